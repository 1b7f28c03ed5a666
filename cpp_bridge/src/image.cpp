#include "image.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>

#include "error.hpp"
#include "resample.hpp"

namespace hbsdk {

namespace {

constexpr std::int64_t most_pixels = 64'000'000;
constexpr int least_side_px = 16;
constexpr double least_cells = 2.0;  // of the latent, that the subject covers

std::string size_text(const Pixels& image) {
    return "height " + std::to_string(image.height) + " x width " + std::to_string(image.width);
}

void check_photo(const Pixels& photo) {
    const bool fits = photo.bytes != nullptr && (photo.channels == 3 || photo.channels == 4) &&
                      photo.height >= least_side_px && photo.width >= least_side_px &&
                      static_cast<std::int64_t>(photo.height) * photo.width <= most_pixels;
    if (!fits) {
        throw Error(Status::invalid_argument, "the image",
                    "3 or 4 channels, sides of 16 px and more, at most 64,000,000 pixels",
                    photo.bytes == nullptr
                        ? "no pixels"
                        : size_text(photo) + " x " + std::to_string(photo.channels));
    }
}

// Returns 1 on the subject and 0 elsewhere.
std::vector<std::uint8_t> read_mask(const Pixels& photo, const Pixels& mask) {
    if (mask.bytes == nullptr || mask.channels != 1 || mask.height != photo.height ||
        mask.width != photo.width) {
        throw Error(Status::invalid_argument, "the mask", "1 channel, " + size_text(photo),
                    mask.bytes == nullptr
                        ? "no pixels"
                        : std::to_string(mask.channels) + " channels, " + size_text(mask),
                    "Resize it, or draw it over the upright photo");
    }
    const auto count = static_cast<std::size_t>(mask.height) * static_cast<std::size_t>(mask.width);
    // Masks of 0 and 1 are common too; half of 255 would call such a mask empty.
    const int least = *std::max_element(mask.bytes, mask.bytes + count) == 1 ? 1 : 128;
    std::vector<std::uint8_t> values(count);
    std::transform(mask.bytes, mask.bytes + count, values.begin(), [least](std::uint8_t value) {
        return static_cast<std::uint8_t>(value >= least);
    });
    const bool is_full = values[0] == 1;
    if (std::count(values.begin(), values.end(), values[0]) == std::ptrdiff_t(count)) {
        throw Error(Status::invalid_argument, "the mask", "a subject and a background",
                    is_full ? "a full mask, every pixel set" : "an empty mask, no pixel set",
                    "Paint the subject white (255) and the rest black");
    }
    return values;
}

// Where `side` places of an axis hold most of the mask's mass, best centred on it.
int window_start(const std::vector<std::int64_t>& mass, int side) {
    const int length = static_cast<int>(mass.size());
    int first = 0, last = length - 1;
    while (mass[static_cast<std::size_t>(first)] == 0) ++first;
    while (mass[static_cast<std::size_t>(last)] == 0) --last;
    const double wanted = (first + last + 1 - side) / 2.0;
    std::int64_t inside = 0, most = -1;
    int best = 0;
    for (int end = 0; end < length; ++end) {
        inside += mass[static_cast<std::size_t>(end)];
        const int start = end + 1 - side;
        if (start < 0) continue;
        if (start > 0) inside -= mass[static_cast<std::size_t>(start - 1)];
        const bool is_nearer = std::abs(start - wanted) < std::abs(best - wanted);
        if (inside > most || (inside == most && is_nearer)) {
            most = inside;
            best = start;
        }
    }
    return best;
}

struct Square {
    int top = 0, left = 0, side = 0;
};

Square square_of(const std::vector<std::uint8_t>& mask, int height, int width) {
    std::vector<std::int64_t> rows(static_cast<std::size_t>(height)),
        columns(static_cast<std::size_t>(width));
    for (std::size_t y = 0; y < rows.size(); ++y) {
        for (std::size_t x = 0; x < columns.size(); ++x) {
            rows[y] += mask[y * columns.size() + x];
            columns[x] += mask[y * columns.size() + x];
        }
    }
    const int side = std::min(height, width);
    return {window_start(rows, side), window_start(columns, side), side};
}

void check_coverage(const std::vector<float>& mask, int factor) {
    double sum = 0.0;
    for (const float share : mask) sum += share;
    const double cells = sum / factor / factor;  // factor * factor may be more than an int holds
    if (cells < least_cells) {
        throw Error(Status::invalid_argument, "the mask at latent size",
                    "at least 2 cells of " + std::to_string(factor) + " x " +
                        std::to_string(factor) + " pixels covered",
                    std::to_string(cells),
                    "The subject is too small in the photo: crop the photo closer around it");
    }
}

}  // namespace

Reference make_reference(const Pixels& photo, const Pixels& mask, int size, int factor) {
    check_photo(photo);
    const std::vector<std::uint8_t> subject = read_mask(photo, mask);
    const Square square = square_of(subject, photo.height, photo.width);
    std::vector<std::uint8_t> rgb;
    std::vector<float> coverage;
    for (int y = square.top; y < square.top + square.side; ++y) {
        for (int x = square.left; x < square.left + square.side; ++x) {
            const std::size_t at =
                static_cast<std::size_t>(y) * static_cast<std::size_t>(photo.width) +
                static_cast<std::size_t>(x);
            const std::uint8_t* pixel = photo.bytes + at * static_cast<std::size_t>(photo.channels);
            rgb.insert(rgb.end(), pixel, pixel + 3);
            coverage.push_back(subject[at]);
        }
    }
    rgb = resized_lanczos(rgb, square.side, size);
    Reference reference{size, {}, resized_box(coverage, square.side, size)};
    for (float& share : reference.mask) share = std::clamp(share, 0.0F, 1.0F);
    check_coverage(reference.mask, factor);
    for (std::size_t channel = 0; channel < 3; ++channel) {
        for (std::size_t at = channel; at < rgb.size(); at += 3) {
            reference.pixels.push_back(static_cast<float>(rgb[at]) / 127.5F - 1.0F);
        }
    }
    return reference;
}

}  // namespace hbsdk
