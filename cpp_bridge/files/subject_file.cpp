#include "subject_file.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <set>
#include <stdexcept>

#include "error.hpp"
#include "file_bytes.hpp"
#include "plain_text.hpp"
#include "safetensors.hpp"
#include "sha256.hpp"
#include "subject_name.hpp"
#include "unicode.hpp"

namespace hbsdk {
namespace {

constexpr double max_root_mean_square = 4.0;
constexpr std::size_t most_named = 4;  // of tensors, in a message
constexpr std::string_view own_prefix = "hbsdk.";
constexpr std::string_view standard_prefix = "modelspec.";

// What files are that come in place of a safetensors file, by how they begin.
struct Lookalike {
    std::string_view beginning;
    const char* kind;
    bool is_pickle;
};

constexpr std::array<Lookalike, 9> lookalikes = {{
    {"PK\x03\x04", "a pickle, which can run any code when it is opened (a .pt or .bin of PyTorch)",
     true},
    {"\x80\x02", "a pickle, which can run any code when it is opened", true},
    {"\x80\x03", "a pickle, which can run any code when it is opened", true},
    {"\x80\x04", "a pickle, which can run any code when it is opened", true},
    {"\x80\x05", "a pickle, which can run any code when it is opened", true},
    {"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded", false},
    {"<", "a web page", false},
    {"\x89PNG", "a PNG picture", false},
    {"GGUF", "a GGUF file", false},
}};

Error damaged(const std::string& what, const std::string& expected, const std::string& got,
              const std::string& remedy = {}) {
    return Error(Status::damaged, what, expected, got, remedy);
}

void refuse_lookalikes(std::string_view bytes, const std::string& what) {
    // A header of 640 bytes makes a good file begin as a pickle does, so its brace is looked at
    // too.
    if (bytes.substr(0, 9).substr(std::min<std::size_t>(8, bytes.size())) == "{") return;
    for (const Lookalike& one : lookalikes) {
        if (!begins_with(bytes, one.beginning)) continue;
        std::string remedy = "Get the .safetensors file of it";
        if (one.is_pickle)
            remedy += ", or convert it where nothing can be lost; hbsdk opens no pickles";
        throw damaged(what, "a safetensors file", one.kind, remedy);
    }
}

float from_bits(std::uint32_t bits) {
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

float from_half(std::uint32_t bits) {
    const std::uint32_t sign = (bits & 0x8000u) << 16;
    const std::uint32_t exponent = (bits >> 10) & 0x1fu;
    const std::uint32_t fraction = bits & 0x3ffu;
    if (exponent == 0x1f) return from_bits(sign | 0x7f800000u | (fraction << 13));
    if (exponent != 0) return from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
    const float small = std::ldexp(static_cast<float>(fraction), -24);  // subnormal, exactly
    return sign != 0 ? -small : small;
}

std::vector<float> values_of(const TensorView& tensor) {
    const std::size_t size = tensor.dtype == "F32" ? 4 : 2;
    std::vector<float> values(tensor.data.size() / size);
    for (std::size_t i = 0; i < values.size(); ++i) {
        std::uint32_t bits = 0;  // little-endian in the file
        for (std::size_t byte = size; byte-- > 0;)
            bits = (bits << 8) | static_cast<unsigned char>(tensor.data[i * size + byte]);
        values[i] = size == 4               ? from_bits(bits)
                    : tensor.dtype == "F16" ? from_half(bits)
                                            : from_bits(bits << 16);
    }
    return values;
}

const TensorView& only_tensor(const SafetensorsView& file, const std::string& what) {
    if (file.tensors.size() != 1) {
        std::set<std::string> sorted;
        for (const TensorView& tensor : file.tensors) sorted.insert(tensor.name);
        while (sorted.size() > most_named) sorted.erase(std::prev(sorted.end()));
        const std::string names = joined(sorted);
        throw damaged(what, "one tensor, as 'emb_params'",
                      names.empty() ? "none" : std::to_string(file.tensors.size()) + ": " + names,
                      "SDXL embeddings (clip_l and clip_g), LoRAs and models are no subjects");
    }
    const TensorView& tensor = file.tensors.front();
    if (tensor.dtype != "F32" && tensor.dtype != "F16" && tensor.dtype != "BF16") {
        throw damaged(what + ", tensor " + in_quotes(tensor.name), "F32, F16 or BF16",
                      tensor.dtype);
    }
    return tensor;
}

void set_words(const TensorView& tensor, const std::string& what, Subject& subject) {
    std::vector<std::uint64_t> shape = tensor.shape;
    if (shape.size() == 1) shape.insert(shape.begin(), 1);
    if (shape.size() != 2 || shape[0] < 1 || shape[0] > max_words || shape[1] < 1) {
        const std::string got =
            joined(shape, [](std::uint64_t size) { return std::to_string(size); });
        throw damaged(what, "shape (n, d) with n from 1 to 75", "(" + got + ")");
    }
    subject.words = values_of(tensor);
    subject.count = static_cast<int>(shape[0]);
    subject.width = static_cast<int>(shape[1]);  // at most 8 million: the file has 16 MiB
}

void check_words(const Subject& subject, const std::string& what, Status status) {
    const auto width = static_cast<std::size_t>(subject.width);
    std::size_t bad = 0;
    double largest = 0;
    for (std::size_t row = 0; row < static_cast<std::size_t>(subject.count); ++row) {
        double sum = 0;
        for (std::size_t i = row * width; i < (row + 1) * width; ++i) {
            const double value = subject.words[i];
            bad += std::isfinite(value) ? 0 : 1;
            sum += value * value;
        }
        largest = std::max(largest, std::sqrt(sum / static_cast<double>(width)));
    }
    if (bad > 0) {
        throw Error(status, what, "finite numbers",
                    std::to_string(bad) + " that are NaN or infinite",
                    "Personalize again: these words would make every picture black");
    }
    if (largest > max_root_mean_square) {
        char text[32];
        std::snprintf(text, sizeof text, "%.3g", largest);
        throw Error(status, what, "words of a root mean square of at most 4", text,
                    "CLIP's own words have about 0.02: personalize again with a smaller step");
    }
}

void check_hash(const SafetensorsView& file, const std::string& what) {
    const auto maker = file.metadata.find("modelspec.implementation");
    const auto stated = file.metadata.find("modelspec.hash_sha256");
    if (maker == file.metadata.end() || maker->second != "hbsdk" || stated == file.metadata.end())
        return;
    const std::string found = "0x" + sha256_of(file.data.data(), file.data.size());
    if (found == stated->second) return;
    throw damaged(what, "modelspec.hash_sha256 " + stated->second.substr(0, 14) + "...",
                  found.substr(0, 14) + "...",
                  "The words were changed after hbsdk wrote them: get the file again");
}

void check_metadata(const Subject& subject, const std::string& what, Status status) {
    std::size_t size = 0;
    for (const auto& [key, value] : subject.metadata) {
        size += key.size() + value.size();
        if (!decode_utf8(key) || !decode_utf8(value))
            throw Error(status, what + ", metadata", "text for text", "bytes that are no UTF-8");
    }
    if (size > max_metadata_bytes) {
        throw Error(status, what + ", metadata",
                    "at most " + std::to_string(max_metadata_bytes) + " bytes",
                    std::to_string(size));
    }
}

}  // namespace

Subject parse_subject(const void* data, std::size_t size, std::string_view what_view) {
    const std::string what(what_view);
    const std::string_view bytes(static_cast<const char*>(data), size);
    refuse_lookalikes(bytes, what);
    SafetensorsView file;
    try {
        file = read_safetensors(bytes);
    } catch (const std::invalid_argument& error) {
        throw damaged(what, "a whole safetensors file", error.what(),
                      "It is damaged: download or make it again");
    }
    Subject subject;
    subject.name = "subject";
    set_words(only_tensor(file, what), what, subject);
    check_words(subject, what, Status::damaged);
    check_hash(file, what);
    for (const auto& [key, value] : file.metadata) {
        if (begins_with(key, own_prefix)) subject.metadata[key.substr(own_prefix.size())] = value;
        if (begins_with(key, standard_prefix)) subject.metadata[key] = value;
    }
    check_metadata(subject, what, Status::damaged);
    return subject;
}

Subject read_subject(const std::filesystem::path& path) {
    const std::string bytes = read_file(path, max_subject_bytes);
    Subject subject = parse_subject(bytes.data(), bytes.size(), path.u8string());
    subject.name = safe_name(path.stem().u8string());
    return subject;
}

void check_subject(const Subject& subject) {
    check_name(subject.name);
    const std::string what = "subject " + in_quotes(subject.name);
    const bool has_shape = subject.count >= 1 && subject.count <= max_words && subject.width >= 1;
    const auto expected =
        static_cast<std::uint64_t>(subject.count) * static_cast<std::uint64_t>(subject.width);
    if (!has_shape || subject.words.size() != expected) {
        throw Error(Status::invalid_argument, what, "shape (n, d) with n from 1 to 75",
                    "(" + std::to_string(subject.count) + ", " + std::to_string(subject.width) +
                        ") and " + std::to_string(subject.words.size()) + " numbers");
    }
    check_words(subject, what, Status::invalid_argument);
    check_metadata(subject, what, Status::invalid_argument);
}

}  // namespace hbsdk
