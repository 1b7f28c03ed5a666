// bridge.json: what Python computes of a bundle so that nobody has to compute it here.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace hbsdk {

// One sampler's steps, the noisiest first: x0 = p x + q model(x, t), x' = a x + b x0 + c x0_before.
struct Schedule {
    double initial_noise_scale = 1.0;
    std::vector<double> timesteps, p, q, a, b, c;
};

struct BridgeFile {
    std::string bundle;
    std::string class_word;
    int num_words = 0;
    int word_dim = 0;
    int image_size_px = 0;
    int latent_channels = 0;
    int vae_scale_factor = 0;
    float guidance_scale = 1.0F;
    float latent_scale = 1.0F;  // the UNet's latents are (z - latent_shift) * latent_scale
    float latent_shift = 0.0F;
    std::string default_sampler;
    std::map<std::string, std::map<int, Schedule>> schedules;  // by sampler and number of steps

    // Throws Error (invalid_argument) where there is no such table. "" is the default sampler.
    const Schedule& schedule(const std::string& sampler, int num_inference_steps) const;
};

// Reads an engine folder's bridge.json after comparing its hash.
// Throws Error (not_found, damaged, mismatch: another schema).
BridgeFile read_bridge_file(const std::filesystem::path& folder, const Manifest& manifest);

}  // namespace hbsdk
