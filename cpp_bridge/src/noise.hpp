// Noise from a seed: the same on every machine and runtime, and as hbsdk/generate.py draws it, but
// for the last bit of a float here and there (1 ulp): libraries round sines and logarithms their
// way.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace hbsdk {

// One block of the Philox4x64-10 counter generator, for a key of (key, 0).
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
std::array<std::uint64_t, 4> philox_block(std::array<std::uint64_t, 4> counter, std::uint64_t key);

// Returns (count, size) unit noise; picture i is drawn from seed + i. Two uniforms of 53 bits make
// two normals by Box-Muller in double precision.
std::vector<float> initial_noise(std::uint64_t seed, int count, std::size_t size);

}  // namespace hbsdk
