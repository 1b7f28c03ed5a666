// Resizing as Pillow does it, bit for bit, so that a probe here sees what a probe in Python sees.
#pragma once

#include <cstdint>
#include <vector>

namespace hbsdk {

// Resizes a (side, side, 3) picture to (size, size, 3), Pillow's LANCZOS: a sinc of three lobes,
// widened where the picture shrinks, in fixed point with bytes between the two passes.
std::vector<std::uint8_t> resized_lanczos(const std::vector<std::uint8_t>& rgb, int side, int size);

// Resizes (side, side) floats to (size, size), Pillow's BOX: the mean over the area.
std::vector<float> resized_box(const std::vector<float>& values, int side, int size);

}  // namespace hbsdk
