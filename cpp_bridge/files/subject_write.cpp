// Writing subject files; what is read is in subject_file.cpp.
#include <cstdint>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "file_bytes.hpp"
#include "plain_text.hpp"
#include "sha256.hpp"
#include "subject_file.hpp"
#include "subject_name.hpp"

namespace hbsdk {
namespace {

namespace fs = std::filesystem;

constexpr const char* suffix = ".safetensors";

std::string now_utc() {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
#ifdef _WIN32
    gmtime_s(&parts, &now);
#else
    gmtime_r(&now, &parts);
#endif
    char text[32];
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S+00:00", &parts);
    return text;
}

// The words as little-endian float32.
std::string tensor_bytes(const std::vector<float>& words) {
    std::string bytes;
    bytes.reserve(4 * words.size());
    for (const float value : words) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &value, sizeof bits);
        for (int shift = 0; shift < 32; shift += 8)
            bytes += static_cast<char>(bits >> shift & 0xff);
    }
    return bytes;
}

// Keys without a prefix are hbsdk's; what follows from the words replaces what was given.
std::map<std::string, std::string> header_metadata(const Subject& subject, const std::string& title,
                                                   const std::string& tensor) {
    const std::string count = std::to_string(subject.count), width = std::to_string(subject.width);
    const std::string base = subject.width == 768 ? "stable-diffusion-v1" : "hbsdk-clip-" + width;
    std::map<std::string, std::string> all = {
        {"modelspec.description",
         "The " + count + " words of one subject, made from a photo by hbsdk."},
        {"modelspec.date", now_utc()},
        {"modelspec.architecture", base + "/textual-inversion"},
    };
    for (const auto& [key, value] : subject.metadata) {
        const bool has_prefix = begins_with(key, "hbsdk.") || begins_with(key, "modelspec.");
        all[has_prefix ? key : "hbsdk." + key] = value;
    }
    all["modelspec.sai_model_spec"] = "1.0.1";
    all["modelspec.implementation"] = "hbsdk";
    all["modelspec.title"] = title;
    all["modelspec.usage_hint"] =
        "Write " + title + " (in hbsdk S* or <" + title + ">) for the subject.";
    all["modelspec.hash_sha256"] = "0x" + sha256_of(tensor.data(), tensor.size());
    all["hbsdk.words"] = count;
    return all;
}

// Readers count the title and the rest that is written beside what was given.
void check_size(const std::map<std::string, std::string>& metadata, const std::string& title) {
    std::size_t size = 0;
    for (const auto& [key, value] : metadata) {
        const bool is_own = begins_with(key, "hbsdk.");  // read without this prefix
        size += key.size() - (is_own ? 6 : 0) + value.size();
    }
    if (size <= max_metadata_bytes) return;
    throw Error(Status::invalid_argument, "subject " + in_quotes(title) + ", metadata",
                "at most " + std::to_string(max_metadata_bytes) +
                    " bytes with those that hbsdk writes beside",
                std::to_string(size));
}

// The nearest file name that can be used, for messages.
std::string nearest(const fs::path& file) {
    return (file.parent_path() / (safe_name(file.stem().u8string()) + suffix)).u8string();
}

fs::path file_for(const fs::path& path, const std::string& name) {
    std::error_code ignored;
    if (fs::is_directory(path, ignored)) return path / (name + suffix);
    if (path.extension() != suffix) {
        const std::string ending = path.extension().u8string();
        throw Error(Status::invalid_argument, path.u8string(),
                    "a folder that exists, or a file name that ends with .safetensors",
                    ending.empty() ? "no ending" : ending, "Save to " + nearest(path));
    }
    check_name(path.stem().u8string());
    return path;
}

}  // namespace

std::vector<char> encode_subject(const Subject& subject, const std::string& title) {
    check_subject(subject);
    const std::string tensor = tensor_bytes(subject.words);
    const auto metadata = header_metadata(subject, title, tensor);
    check_size(metadata, title);
    const nlohmann::json header = {
        {"__metadata__", metadata},
        {"emb_params",
         {{"dtype", "F32"},
          {"shape", {subject.count, subject.width}},
          {"data_offsets", {0, tensor.size()}}}},
    };
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the tensor's numbers are aligned
    std::vector<char> bytes;
    bytes.reserve(8 + text.size() + tensor.size());
    for (int shift = 0; shift < 64; shift += 8)
        bytes.push_back(static_cast<char>(static_cast<std::uint64_t>(text.size()) >> shift & 0xff));
    bytes.insert(bytes.end(), text.begin(), text.end());
    bytes.insert(bytes.end(), tensor.begin(), tensor.end());
    return bytes;
}

fs::path write_subject(const fs::path& path, const Subject& subject) {
    check_subject(subject);
    const fs::path file = file_for(path, subject.name);
    const std::vector<char> bytes = encode_subject(subject, file.stem().u8string());
    write_atomically(file, {bytes.data(), bytes.size()});
    return file;
}

}  // namespace hbsdk
