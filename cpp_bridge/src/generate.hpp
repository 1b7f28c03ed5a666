// From a prompt and subjects to pictures: hbsdk/generate.py and hbsdk/backends/engines.py.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "context.hpp"
#include "subject_file.hpp"

namespace hbsdk {

struct GenerateRequest {
    std::string prompt;
    std::string negative_prompt;
    std::vector<std::shared_ptr<const Subject>> subjects;
    std::uint64_t seed = 0;
    int num_images = 1;
    int num_inference_steps = 20;
    float guidance_scale = -1.0F;  // below 0 is the bundle's own; 1 and less is without
    int height = 0;                // px; 0 is the bundle's own
    int width = 0;
    std::string sampler;  // "" is the bundle's default
    // Called after each step with 1, 2, ...; false stops the run. May be empty.
    std::function<bool(int)> on_step;
};

struct Picture {
    int height = 0;
    int width = 0;
    std::vector<std::uint8_t> rgb;  // (height, width, 3)
};

// Throws Error (invalid_argument) unless it is from 1 to 64.
void check_count(int num_images);

// Throws Error (mismatch) for a subject of another width than the bundle's.
void check_width(const Subject& subject, const BridgeFile& bridge);

// Throws Error (cancelled if on_step, hbsdk_cancel or hbsdk_close say so; invalid_argument,
// mismatch, bad_prompt: as hbsdk.Session.generate refuses).
std::vector<Picture> generate(Context& context, const GenerateRequest& request, Call& call);

// The host's arithmetic of it, apart for the tests.

// The matrix over the UNet's batch by which classifier-free guidance leaves both of its halves
// equal: [[(1 - s) I, s I], [(1 - s) I, s I]], or the identity if not guided. float32.
Tensor guidance_matrix(int pictures, float scale, bool guided);

// Slices of `count` rows that an engine can run at once, as few and as even as can be, as pairs of
// begin and end. Throws Error (invalid_argument) where a slice would be too small for it,
// (mismatch) where the engine's rows are no such axis.
std::vector<std::pair<std::int64_t, std::int64_t>> batches(const EngineSpec& spec,
                                                           const std::string& axis,
                                                           std::int64_t count);

}  // namespace hbsdk
