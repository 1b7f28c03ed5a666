// The C ABI's structures: their defaults, and what an app's, maybe older, structure says.
#pragma once

#include <hbsdk.h>

#include <cstring>
#include <string>

#include "error.hpp"

namespace hbsdk {

// Each kind's size in the first version of the ABI; an app's cannot be smaller.
template <typename Params>
constexpr std::size_t first_size = sizeof(Params);

inline void check_size(const char* what, std::size_t got, std::size_t least, std::size_t most) {
    if (got >= least && got <= most) return;
    throw Error(Status::mismatch, std::string("struct_size of ") + what,
                least == most ? std::to_string(least)
                              : std::to_string(least) + " to " + std::to_string(most),
                std::to_string(got),
                got > most ? "The library is older than the header, or the size was never set"
                           : "Set the structure up with its _init function");
}

// Returns the app's structure over the defaults: fields that its header did not have keep them.
template <typename Params>
Params read_params(const char* what, const Params* given, const Params& defaults) {
    if (given == nullptr) throw Error(Status::invalid_argument, what, "a structure", "NULL");
    check_size(what, given->struct_size, first_size<Params>, sizeof(Params));
    Params own = defaults;
    std::memcpy(&own, given, given->struct_size);
    return own;
}

// Writes the defaults into an app's structure, as much of them as it has room for.
template <typename Params>
void init_params(const char* what, Params* given, std::size_t struct_size, Params defaults) {
    if (given == nullptr) throw Error(Status::invalid_argument, what, "a structure", "NULL");
    check_size(what, struct_size, first_size<Params>, sizeof(Params));
    defaults.struct_size = struct_size;
    std::memcpy(given, &defaults, struct_size);
}

inline hbsdk_open_params default_open_params() {
    return {};
}

inline hbsdk_generate_params default_generate_params() {
    hbsdk_generate_params params{};
    params.num_images = 1;
    params.num_inference_steps = 20;
    params.guidance_scale = -1.0F;
    return params;
}

}  // namespace hbsdk
