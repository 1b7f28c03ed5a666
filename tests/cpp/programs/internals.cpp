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
//   test-internals fallback DEVICE FAILURE -> text, what two networks are loaded on where a GPU
//   fails test-internals turns                   -> text, what a run from within a run is told
//   test-internals grown SIZE              -> text, fields of a structure that has grown
//   test-internals coverage SIZE FACTOR    -> nothing, or what is told of a mask of one pixel
#include <atomic>
#include <cstddef>
#include <cstring>
#include <iostream>
#include <iterator>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "error.hpp"
#include "generate.hpp"
#include "image.hpp"
#include "noise.hpp"
#include "onnxruntime_providers.hpp"
#include "params.hpp"
#include "resample.hpp"
#include "tensor.hpp"
#include "turns.hpp"

// A structure whose last field came later: apps of both headers pass their own size.
struct Grown {
    std::size_t struct_size;
    std::int64_t first;
    std::int64_t added;
};

template <>
inline constexpr std::size_t hbsdk::first_size<Grown> = 2 * sizeof(std::int64_t);

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

// Loads two networks where the GPU fails with a status, or not at all (0).
void fallback(const Texts& a) {
    const std::string gpu = "CUDAExecutionProvider";
    hbsdk::ProviderChoice choice(hbsdk::choose_providers({gpu}, {gpu}, a.at(1), false));
    const auto failure = static_cast<hbsdk::Status>(std::stoi(a.at(2)));
    for (int network = 0; network < 2; ++network) {
        std::cout << choice.with([&](const hbsdk::Providers& providers) -> std::string {
            if (providers.on_gpu.empty()) return "cpu ";
            std::cout << "tried ";
            if (failure != hbsdk::Status::ok) throw hbsdk::Error(failure, "the GPU");
            return "gpu ";
        });
    }
}

void turns() {
    hbsdk::Turns turns;
    const std::lock_guard<hbsdk::Turns> run(turns);
    std::atomic<bool> had_a_turn{false};
    std::thread other([&] {
        const std::lock_guard<hbsdk::Turns> later(turns);
        had_a_turn = true;
    });
    try {
        const std::lock_guard<hbsdk::Turns> within(turns);
    } catch (const hbsdk::Error& error) {
        std::cout << error.what() << (had_a_turn ? " both at once" : "");
    }
    turns.unlock();
    other.join();
    turns.lock();  // again by this thread: it had been let go
    std::cout << (had_a_turn ? " in turn" : "");
}

void grown(const Texts& a) {
    const auto size = static_cast<std::size_t>(std::stoull(a.at(1)));
    const Grown defaults{0, 1, 2};
    Grown given{77, 77, 77};
    hbsdk::write_params("grown", &given, size, defaults);
    std::cout << given.struct_size << ' ' << given.first << ' ' << given.added << ' ';
    given = {size, 5, 6};
    const Grown read = hbsdk::read_params("grown", &given, defaults);
    std::cout << read.first << ' ' << read.added;
}

// A mask of one pixel in the corner, and a factor of any size.
void coverage(const Texts& a) {
    const int size = std::stoi(a.at(1));
    const auto area = static_cast<std::size_t>(size) * static_cast<std::size_t>(size);
    const std::vector<std::uint8_t> photo(3 * area);
    std::vector<std::uint8_t> mask(area);
    mask[0] = 255;
    hbsdk::make_reference({photo.data(), size, size, 3}, {mask.data(), size, size, 1}, size,
                          std::stoi(a.at(2)));
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
    } else if (verb == "fallback") {
        fallback(a);
    } else if (verb == "turns") {
        turns();
    } else if (verb == "grown") {
        grown(a);
    } else if (verb == "coverage") {
        coverage(a);
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
