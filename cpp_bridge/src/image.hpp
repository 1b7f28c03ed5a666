// The photo: cut to the square that the networks take, as hbsdk/image.py cuts it.
#pragma once

#include <cstdint>
#include <vector>

namespace hbsdk {

// Bytes of a picture that somebody else holds: rows without gaps, top row first.
struct Pixels {
    const std::uint8_t* bytes = nullptr;
    int height = 0;
    int width = 0;
    int channels = 0;
};

// What the networks see of a photo.
struct Reference {
    int size = 0;               // px, of both sides
    std::vector<float> pixels;  // (3, size, size) in -1..1
    std::vector<float> mask;    // (size, size) in 0..1, the share that the subject covers
};

// Makes the square, resized picture and mask.
//   photo: 3 channels, or 4 of which the last is ignored. mask: 1 channel; 128 and
//   more is the subject, or 1 where nothing is more.
//   factor: pixels a side of a latent cell, of which the subject must cover two.
// Throws Error (invalid_argument): a size, or a mask that is empty, full or of another size.
Reference make_reference(const Pixels& photo, const Pixels& mask, int size, int factor);

}  // namespace hbsdk
