// What the library hides, for tests that compare it with Python: numbers in, numbers out, as bytes.
//   test-internals noise SEED COUNT SIZE          -> float32
//   test-internals lanczos SIDE SIZE  < uint8     -> uint8
//   test-internals box SIDE SIZE      < float32   -> float32
//   test-internals reference H W CHANNELS SIZE FACTOR < photo, then mask -> float32 pixels, mask
//   test-internals float16            < float32   -> float16
//   test-internals float32            < float16   -> float32
//   test-internals guidance PICTURES SCALE GUIDED -> float32
//   test-internals batches LEAST MOST COUNT       -> text, "0-3 3-5"
//   test-internals providers WANTED AVAILABLE DEVICE USE_TENSORRT -> text, "NAME NAME 0"
#include <cstring>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "error.hpp"
#include "generate.hpp"
#include "image.hpp"
#include "noise.hpp"
#include "onnxruntime_providers.hpp"
#include "resample.hpp"
#include "tensor.hpp"

namespace {

using Texts = std::vector<std::string>;

template <typename Value>
void write(const std::vector<Value>& values) {
    std::cout.write(reinterpret_cast<const char*>(values.data()),
                    static_cast<std::streamsize>(values.size() * sizeof(Value)));
}

template <typename Value>
std::vector<Value> read_all() {
    const std::string bytes{std::istreambuf_iterator<char>(std::cin), {}};
    std::vector<Value> values(bytes.size() / sizeof(Value));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(Value));
    return values;
}

Texts split(const std::string& text) {
    std::istringstream stream(text);
    return {std::istream_iterator<std::string>(stream), {}};
}

void reference(const Texts& a) {
    const int height = std::stoi(a[1]), width = std::stoi(a[2]), channels = std::stoi(a[3]);
    const std::vector<std::uint8_t> bytes = read_all<std::uint8_t>();
    const hbsdk::Pixels photo{bytes.data(), height, width, channels};
    const hbsdk::Pixels mask{bytes.data() + height * width * channels, height, width, 1};
    const auto made = hbsdk::make_reference(photo, mask, std::stoi(a[4]), std::stoi(a[5]));
    write(made.pixels);
    write(made.mask);
}

void halves(bool narrow) {
    if (narrow) {
        const std::vector<float> values = read_all<float>();
        const hbsdk::Shape shape{static_cast<std::int64_t>(values.size())};
        write(hbsdk::float_tensor(values, shape, hbsdk::ElementType::float16).bytes);
    } else {
        const auto bytes = read_all<std::byte>();
        const hbsdk::Shape shape{static_cast<std::int64_t>(bytes.size() / 2)};
        write(hbsdk::floats_of({hbsdk::ElementType::float16, shape, bytes}));
    }
}

void batches(const Texts& a) {
    hbsdk::EngineSpec spec;
    spec.name = "test";
    spec.inputs = {{"sample", "float32", {{1, "images"}}}};
    spec.axes["images"] = {std::stoi(a[1]), std::stoi(a[1]), std::stoi(a[2]), 1};
    for (const auto& [begin, end] : hbsdk::batches(spec, "images", std::stoi(a[3]))) {
        std::cout << begin << '-' << end << ' ';
    }
}

void providers(const Texts& a) {
    const auto found = hbsdk::choose_providers(split(a[1]), split(a[2]), a[3], a[4] == "1");
    for (const std::string& name : found.on_gpu) std::cout << name << ' ';
    std::cout << found.gpu;
}

void run(const Texts& a) {
    const std::string& verb = a.at(0);
    if (verb == "noise") {
        const auto size = static_cast<std::size_t>(std::stoi(a.at(3)));
        write(hbsdk::initial_noise(std::stoull(a.at(1)), std::stoi(a.at(2)), size));
    } else if (verb == "lanczos") {
        write(hbsdk::resized_lanczos(read_all<std::uint8_t>(), std::stoi(a.at(1)),
                                     std::stoi(a.at(2))));
    } else if (verb == "box") {
        write(hbsdk::resized_box(read_all<float>(), std::stoi(a.at(1)), std::stoi(a.at(2))));
    } else if (verb == "reference") {
        reference(a);
    } else if (verb == "float16" || verb == "float32") {
        halves(verb == "float16");
    } else if (verb == "guidance") {
        write(hbsdk::guidance_matrix(std::stoi(a.at(1)), std::stof(a.at(2)), a.at(3) == "1").bytes);
    } else if (verb == "batches") {
        batches(a);
    } else if (verb == "providers") {
        providers(a);
    } else {
        throw hbsdk::Error(hbsdk::Status::invalid_argument, "verb", "a known one", verb);
    }
}

}  // namespace

int main(int count, char** texts) {
    try {
        run(Texts(texts + 1, texts + count));
    } catch (const hbsdk::Error& error) {
        std::cerr << static_cast<int>(error.status) << ' ' << error.what() << '\n';
        return 1;
    }
}
