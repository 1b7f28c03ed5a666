#include "png_file.hpp"

#include <png.h>

#include <cstdio>
#include <stdexcept>

namespace {

constexpr std::uint64_t most_pixels = 64'000'000;  // as hbsdk reads at most

// Frees what libpng holds, whatever happens.
struct Image : png_image {
    Image() : png_image{} { version = PNG_IMAGE_VERSION; }
    Image(const Image&) = delete;
    Image& operator=(const Image&) = delete;
    ~Image() { png_image_free(this); }
};

[[noreturn]] void fail(const std::string& path, const std::string& why) {
    throw std::runtime_error(path + ": " + why);
}

}  // namespace

PngPicture read_png(const std::string& path, int channels) {
    Image image;
    if (png_image_begin_read_from_file(&image, path.c_str()) == 0) fail(path, image.message);
    if (std::uint64_t{image.width} * image.height > most_pixels) {
        fail(path, "expected at most 64,000,000 pixels");
    }
    image.format = channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
    PngPicture picture;
    picture.bytes.resize(PNG_IMAGE_SIZE(image));
    picture.width = static_cast<int>(image.width);
    picture.height = static_cast<int>(image.height);
    picture.channels = channels;
    const png_color black{0, 0, 0};  // what is transparent is laid on
    if (png_image_finish_read(&image, &black, picture.bytes.data(), 0, nullptr) == 0) {
        fail(path, image.message);
    }
    return picture;
}

void write_png(const std::string& path, const std::uint8_t* rgb, int width, int height) {
    Image image;
    image.width = static_cast<png_uint_32>(width);
    image.height = static_cast<png_uint_32>(height);
    image.format = PNG_FORMAT_RGB;
    const std::string part = path + ".part";
    const bool written = png_image_write_to_file(&image, part.c_str(), 0, rgb, 0, nullptr) != 0;
    if (!written || std::rename(part.c_str(), path.c_str()) != 0) {
        std::remove(part.c_str());
        fail(path, written ? "cannot be replaced" : image.message);
    }
}
