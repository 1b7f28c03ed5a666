#include "pictures.hpp"

#include <algorithm>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "error.hpp"

namespace hbsdk {

namespace {

struct HandedOut {
    std::mutex mutex;
    std::unordered_map<const void*, std::unique_ptr<std::uint8_t[]>> pixels;
};

// Never destroyed: an app may free pictures until after its end.
HandedOut& handed_out() {
    static HandedOut& all = *new HandedOut;
    return all;
}

}  // namespace

void hand_out(const std::vector<Picture>& pictures, hbsdk_image* images) {
    std::vector<std::unique_ptr<std::uint8_t[]>> copies;
    for (const Picture& picture : pictures) {
        copies.push_back(std::make_unique<std::uint8_t[]>(picture.rgb.size()));
        std::copy(picture.rgb.begin(), picture.rgb.end(), copies.back().get());
    }
    HandedOut& all = handed_out();
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.pixels.reserve(all.pixels.size() + copies.size());
    for (std::size_t i = 0; i < pictures.size(); ++i) {
        std::uint8_t* pixels = copies[i].get();
        all.pixels.emplace(pixels, std::move(copies[i]));
        images[i] = {pixels, pictures[i].width, pictures[i].height, 3};
    }
}

void take_back(const hbsdk_image& image) {
    HandedOut& all = handed_out();
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (all.pixels.erase(image.pixels) == 0) {
        throw Error(Status::invalid_argument, "pixels", "those of a picture that hbsdk drew",
                    "others, or ones that were freed");
    }
}

Pixels pixels_of(const hbsdk_image* image) {
    if (image == nullptr) return {};
    if (image->width < 0 || image->height < 0) {
        throw Error(Status::invalid_argument, "size of a picture", "positive numbers",
                    std::to_string(image->height) + " x " + std::to_string(image->width));
    }
    return {image->pixels, image->height, image->width, image->channels};
}

}  // namespace hbsdk
