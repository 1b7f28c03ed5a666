// What goes into and comes out of each engine: engines.json, as hbsdk/engine_spec.py writes it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "manifest.hpp"

namespace hbsdk {

// A dynamic dimension: its least, usual and greatest value, all multiples of `multiple`.
struct Axis {
    std::int64_t min = 1, opt = 1, max = 1, multiple = 1;
};

// A number (`axis` is empty), or `factor` times the value of an axis.
struct Dim {
    std::int64_t factor = 1;
    std::string axis;
};

struct TensorSpec {
    std::string name;
    std::string dtype;  // "float32", "float16" or "int64"
    std::vector<Dim> shape;
};

struct EngineSpec {
    std::string name;
    std::string network;             // whose weights it holds
    std::string file;                // of the ONNX graph, relative to the engine folder
    std::vector<TensorSpec> inputs;  // in the graph's order, as the outputs
    std::vector<TensorSpec> outputs;
    std::map<std::string, Axis> axes;

    // The shape of a tensor where the axes have these values; one that is not given has `opt`.
    std::vector<std::int64_t> shape(const TensorSpec& tensor,
                                    const std::map<std::string, std::int64_t>& values) const;

    // Throws Error (invalid_argument) for a value that the engine was not built for.
    void check(const std::map<std::string, std::int64_t>& values) const;
};

using EngineSpecs = std::map<std::string, EngineSpec>;

// Reads the text of an engines.json: specs by engine name. Throws Error (damaged).
EngineSpecs parse_engine_specs(std::string_view json, const Manifest& manifest,
                               const std::string& what = "engines.json");

// Reads an opened folder's engines.json after comparing its hash. Throws Error.
EngineSpecs read_engine_specs(const std::filesystem::path& folder, const Manifest& manifest);

// The path of the TensorRT engine beside an ONNX graph, "unet/model.engine".
std::string tensorrt_file(const EngineSpec& spec);

// Returns the file that the manifest's runtime loads for an engine, after checking all that is read
// with it: its weights, its configuration and whatever else lies in its folder, but for the other
// graphs there. Throws Error (not_found, damaged).
std::filesystem::path checked_engine_file(const std::filesystem::path& folder,
                                          const Manifest& manifest, const EngineSpec& spec,
                                          HashedFiles& hashed);

}  // namespace hbsdk
