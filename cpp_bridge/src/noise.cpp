#include "noise.hpp"

#include <cmath>

namespace hbsdk {

namespace {

constexpr std::uint64_t multiplier_0 = 0xD2E7470EE14C6C93ULL;
constexpr std::uint64_t multiplier_1 = 0xCA5A826395121157ULL;
constexpr std::uint64_t key_step_0 = 0x9E3779B97F4A7C15ULL;
constexpr std::uint64_t key_step_1 = 0xBB67AE8584CAA73BULL;
constexpr int rounds = 10;
constexpr double two_pi = 6.283185307179586476925286766559;

// The upper half of a product of 128 bits, which standard C++ has no type for.
std::uint64_t high_product(std::uint64_t a, std::uint64_t b) {
    constexpr std::uint64_t mask = 0xFFFFFFFFULL;
    const std::uint64_t a0 = a & mask, a1 = a >> 32, b0 = b & mask, b1 = b >> 32;
    const std::uint64_t middle = a1 * b0 + ((a0 * b0) >> 32);
    const std::uint64_t low = a0 * b1 + (middle & mask);
    return a1 * b1 + (middle >> 32) + (low >> 32);
}

// numpy's stream of doubles in [0, 1) from Philox(key=seed).
class Uniforms {
  public:
    explicit Uniforms(std::uint64_t key) : key_(key) {}

    double next() {
        if (used_ == block_.size()) {
            ++counter_[0];  // before each block, as numpy does; a picture needs fewer than 2^64
            block_ = philox_block(counter_, key_);
            used_ = 0;
        }
        return static_cast<double>(block_[used_++] >> 11) * 0x1.0p-53;
    }

  private:
    std::uint64_t key_;
    std::array<std::uint64_t, 4> counter_{};
    std::array<std::uint64_t, 4> block_{};
    std::size_t used_ = 4;
};

}  // namespace

std::array<std::uint64_t, 4> philox_block(std::array<std::uint64_t, 4> counter, std::uint64_t key) {
    std::uint64_t key_0 = key, key_1 = 0;
    for (int round = 0; round < rounds; ++round) {
        const std::uint64_t high_0 = high_product(multiplier_0, counter[0]);
        const std::uint64_t high_1 = high_product(multiplier_1, counter[2]);
        counter = {high_1 ^ counter[1] ^ key_0, multiplier_1 * counter[2],
                   high_0 ^ counter[3] ^ key_1, multiplier_0 * counter[0]};
        key_0 += key_step_0;
        key_1 += key_step_1;
    }
    return counter;
}

std::vector<float> initial_noise(std::uint64_t seed, int count, std::size_t size) {
    std::vector<float> noise;
    noise.reserve(static_cast<std::size_t>(count) * size);
    for (int picture = 0; picture < count; ++picture) {
        Uniforms uniforms(seed + static_cast<std::uint64_t>(picture));  // past 2^64 it wraps
        for (std::size_t i = 0; i < size; i += 2) {
            const double radius = std::sqrt(-2.0 * std::log1p(-uniforms.next()));
            const double angle = two_pi * uniforms.next();
            noise.push_back(static_cast<float>(radius * std::cos(angle)));
            if (i + 1 < size) noise.push_back(static_cast<float>(radius * std::sin(angle)));
        }
    }
    return noise;
}

}  // namespace hbsdk
