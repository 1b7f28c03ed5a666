// The C ABI's structures: their defaults, and what an app's, maybe older, structure says.
#pragma once

#include <hbsdk.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "error.hpp"

namespace hbsdk {

// The bytes up to the end of a structure's last field in the first version of the ABI: what an
// app's has at least. Fields that are added after it must not change this.
template <typename Params>
constexpr std::size_t first_size = 0;
template <>
inline constexpr std::size_t first_size<hbsdk_open_params> = offsetof(hbsdk_open_params, load_all) +
                                                             sizeof(std::int32_t);
template <>
inline constexpr std::size_t first_size<hbsdk_generate_params> = offsetof(hbsdk_generate_params,
                                                                          stats) +
                                                                 sizeof(hbsdk_stats*);
template <>
inline constexpr std::size_t first_size<hbsdk_stats> = offsetof(hbsdk_stats, loading_ms) +
                                                       sizeof(double);

// As they were when version 1 came out; a field in the middle would break every app.
static_assert(sizeof(void*) != 8 ||
              (first_size<hbsdk_open_params> == 48 && first_size<hbsdk_generate_params> == 104 &&
               first_size<hbsdk_stats> == 32));

inline void check_size(const char* what, std::size_t got, std::size_t least, std::size_t most) {
    if (got >= least && got <= most) return;
    throw Error(Status::mismatch, std::string("struct_size of ") + what,
                least == most ? std::to_string(least)
                              : std::to_string(least) + " to " + std::to_string(most),
                std::to_string(got),
                got > most ? "The library is older than the header, or the size was never set"
                           : "Set the structure up with its _init function");
}

template <typename Params>
void check_size_of(const char* what, const Params* given, std::size_t struct_size) {
    static_assert(first_size<Params> > 0);
    if (given == nullptr) throw Error(Status::invalid_argument, what, "a structure", "NULL");
    check_size(what, struct_size, first_size<Params>, sizeof(Params));
}

// Returns the app's structure over the defaults: fields that its header did not have keep them.
template <typename Params>
Params read_params(const char* what, const Params* given, const Params& defaults) {
    check_size_of(what, given, given == nullptr ? 0 : given->struct_size);
    Params own = defaults;
    std::memcpy(&own, given, given->struct_size);
    return own;
}

// Writes into an app's structure, as much as it has room for.
template <typename Params>
void write_params(const char* what, Params* given, std::size_t struct_size, Params own) {
    check_size_of(what, given, struct_size);
    own.struct_size = struct_size;
    std::memcpy(given, &own, struct_size);
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
