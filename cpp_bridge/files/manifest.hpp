// What an engine folder says of itself, manifest.json, and that its files are those it lists.
//
// The rules are those of hbsdk/manifest.py and hbsdk/engine_folder.py. Whoever can write into a
// folder can also write its manifest: open only engines that were built on this machine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hbsdk {

struct Manifest {
    std::string bundle_name;  // for people
    std::string bundle_hash;  // of the bundle whose networks these are: see bundle_hash()
    std::string recipe_name;
    std::string recipe_hash;  // sha256 of recipe.toml
    std::string runtime;      // "onnxruntime", "tensorrt_rtx" or "tensorrt"
    std::string runtime_version;
    int opset = 0;
    std::map<std::string, std::string> precision;   // network -> "float32" or "float16"
    std::vector<std::string> compute_capabilities;  // such as "8.9"; empty for onnxruntime
    std::vector<std::string> providers;   // ONNX Runtime's, best first; empty for TensorRT
    std::optional<std::string> platform;  // for tensorrt, whose engines run on no other
    std::string hbsdk_version;
    std::string created;                       // UTC, ISO 8601
    std::map<std::string, std::string> files;  // relative path -> sha256, of every other file
};

// Reads the text of a manifest.json and its seal, the sha256 of its other fields.
// Throws Error (damaged: no JSON, a field lacks, is added or has no meaning, the seal is another's;
// mismatch: another schema).
Manifest parse_manifest(std::string_view json, const std::string& what = "manifest.json");

// Opens an engine folder: its manifest, that no file is missing or was added, and the hashes of
// engines.json and recipe.toml. Other files are hashed by `verify`, just before their use.
// Throws Error (not_found: no folder, no manifest or a file of it missing; else as parse_manifest).
Manifest open_manifest(const std::filesystem::path& folder);

// Compares one file with the manifest: call it just before the file is used.
// Throws Error (not_found, damaged).
void verify(const std::filesystem::path& folder, const Manifest& manifest, const std::string& file);

// Compares files as `verify` does, but each only once: networks share their weights, and are loaded
// again where memory is low. One whose size or time of change differs since is hashed again.
class HashedFiles {
  public:
    void verify(const std::filesystem::path& folder, const Manifest& manifest,
                const std::string& file);

  private:
    struct State {
        std::uintmax_t bytes;
        std::filesystem::file_time_type changed;
        bool operator==(const State& other) const {
            return bytes == other.bytes && changed == other.changed;
        }
    };

    static std::optional<State> state_of(const std::filesystem::path& path);

    std::mutex mutex_;
    std::map<std::filesystem::path, State> good_;  // as they were just before they were hashed
};

// Whether a path is relative, in its shortest form, and does not leave the folder.
bool is_inside(std::string_view path);

}  // namespace hbsdk
