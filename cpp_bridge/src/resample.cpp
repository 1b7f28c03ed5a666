#include "resample.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace hbsdk {

namespace {

constexpr double pi = 3.14159265358979323846;
constexpr int fraction_bits = 22;  // of Pillow's fixed point: 8 bits of value, 2 of headroom

using Filter = double (*)(double);

double sinc(double x) {
    return x == 0.0 ? 1.0 : std::sin(x * pi) / (x * pi);
}

double lanczos(double x) {
    return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
}

double box(double x) {
    return -0.5 < x && x <= 0.5 ? 1.0 : 0.0;
}

// The weights of the places that one place of the result is made of; they add up to 1.
struct Window {
    int begin = 0;
    std::vector<double> weights;
};

std::vector<Window> windows(int side, int size, Filter filter, double support) {
    const double scale = static_cast<double>(side) / size;
    const double widened = std::max(scale, 1.0);
    support *= widened;
    std::vector<Window> found;
    for (int place = 0; place < size; ++place) {
        const double centre = (place + 0.5) * scale;
        const int begin = std::max(static_cast<int>(centre - support + 0.5), 0);
        const int end = std::min(static_cast<int>(centre + support + 0.5), side);
        Window window{begin, {}};
        double sum = 0.0;
        const double step = 1.0 / widened;
        for (int x = begin; x < end; ++x) {
            window.weights.push_back(filter((x - centre + 0.5) * step));
            sum += window.weights.back();
        }
        for (double& weight : window.weights) weight /= sum;
        found.push_back(std::move(window));
    }
    return found;
}

std::uint8_t fixed_point_sum(const std::uint8_t* values, std::size_t stride, const Window& window) {
    std::int32_t sum = 1 << (fraction_bits - 1);  // so that cutting off rounds
    for (std::size_t i = 0; i < window.weights.size(); ++i) {
        const double scaled = window.weights[i] * (1 << fraction_bits);
        sum += values[i * stride] * static_cast<std::int32_t>(scaled + (scaled < 0 ? -0.5 : 0.5));
    }
    return static_cast<std::uint8_t>(std::clamp(sum >> fraction_bits, 0, 255));
}

float double_sum(const float* values, std::size_t stride, const Window& window) {
    double sum = 0.0;
    for (std::size_t i = 0; i < window.weights.size(); ++i) {
        sum += values[i * stride] * window.weights[i];
    }
    return static_cast<float>(sum);
}

// Both passes, rows before columns; `Sum` adds up one window.
template <typename Value, typename Sum>
std::vector<Value> resized(const std::vector<Value>& values, int side, int size, int channels,
                           const std::vector<Window>& places, Sum sum) {
    const auto from = static_cast<std::size_t>(side), to = static_cast<std::size_t>(size);
    const auto depth = static_cast<std::size_t>(channels);
    std::vector<Value> narrow(from * to * depth), result(to * to * depth);
    for (std::size_t y = 0; y < from; ++y) {
        for (std::size_t x = 0; x < to; ++x) {
            const auto begin = static_cast<std::size_t>(places[x].begin);
            for (std::size_t channel = 0; channel < depth; ++channel) {
                const Value* first = &values[(y * from + begin) * depth + channel];
                narrow[(y * to + x) * depth + channel] = sum(first, depth, places[x]);
            }
        }
    }
    for (std::size_t y = 0; y < to; ++y) {
        const auto begin = static_cast<std::size_t>(places[y].begin);
        for (std::size_t x = 0; x < to * depth; ++x) {
            result[y * to * depth + x] =
                sum(&narrow[begin * to * depth + x], to * depth, places[y]);
        }
    }
    return result;
}

}  // namespace

std::vector<std::uint8_t> resized_lanczos(const std::vector<std::uint8_t>& rgb, int side,
                                          int size) {
    if (side == size) return rgb;
    return resized(rgb, side, size, 3, windows(side, size, lanczos, 3.0), fixed_point_sum);
}

std::vector<float> resized_box(const std::vector<float>& values, int side, int size) {
    if (side == size) return values;
    return resized(values, side, size, 1, windows(side, size, box, 0.5), double_sum);
}

}  // namespace hbsdk
