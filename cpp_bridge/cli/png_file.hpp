// PNG files by libpng's simplified interface.
#pragma once

#include <hbsdk.h>

#include <cstdint>
#include <string>
#include <vector>

struct PngPicture {
    std::vector<std::uint8_t> bytes;
    hbsdk_image image() const {
        return {const_cast<std::uint8_t*>(bytes.data()), width, height, channels};
    }
    int width = 0;
    int height = 0;
    int channels = 0;
};

// Reads a PNG as RGB (3 channels) or as grey (1). Throws std::runtime_error.
PngPicture read_png(const std::string& path, int channels);

// Writes RGB under a temporary name, then renames it. Throws std::runtime_error.
void write_png(const std::string& path, const std::uint8_t* rgb, int width, int height);
