#include "engine_spec.hpp"

#include <algorithm>
#include <array>
#include <charconv>

#include "error.hpp"
#include "file_bytes.hpp"
#include "folder_files.hpp"
#include "json_file.hpp"
#include "manifest_fields.hpp"

namespace hbsdk {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t highest_size = std::int64_t{1} << 31;  // so that products stay in range
constexpr std::array<const char*, 3> element_types = {"float32", "float16", "int64"};

Error wrong(const std::string& what, const std::string& expected, const std::string& got) {
    return Error(Status::damaged, what, expected, got, build_again);
}

std::int64_t size_from(const Json& object, const char* key, const std::string& what) {
    const std::int64_t value = whole_number(object, key, what);
    if (value < 1 || value > highest_size)
        throw wrong(std::string(key) + " in " + what, "a whole number above 0",
                    std::to_string(value));
    return value;
}

Axis axis_from(const Json& data, const std::string& what) {
    Axis axis;
    axis.min = size_from(data, "min", what);
    axis.opt = size_from(data, "opt", what);
    axis.max = size_from(data, "max", what);
    if (data.contains("multiple")) axis.multiple = size_from(data, "multiple", what);
    if (axis.min > axis.opt || axis.opt > axis.max)
        throw wrong(what, "min <= opt <= max", shown(data));
    return axis;
}

// "8 * height", "height" or a number.
Dim dim_from(const Json& data, const std::map<std::string, Axis>& axes, const std::string& what) {
    constexpr std::string_view times = " * ";
    Dim dim;
    bool is_valid = false;
    if (data.is_number_integer()) {
        dim.factor = data.get<std::int64_t>();
        is_valid = data >= 0 && data <= highest_size;
    } else if (data.is_string()) {
        const std::string name = data.get<std::string>();
        const std::size_t place = name.rfind(times);
        is_valid = true;
        if (place == std::string::npos) {
            dim.axis = name;
        } else {
            dim.axis = name.substr(place + times.size());
            const char* const end = name.data() + place;
            const auto read = std::from_chars(name.data(), end, dim.factor);
            is_valid = read.ec == std::errc() && read.ptr == end && dim.factor >= 1 &&
                       dim.factor <= highest_size;
        }
        is_valid = is_valid && axes.count(dim.axis) != 0;
    }
    if (!is_valid) throw wrong(what, "a size, or the name of an axis", shown(data));
    return dim;
}

std::vector<TensorSpec> tensors_from(const Json& data, const char* key,
                                     const std::map<std::string, Axis>& axes,
                                     const std::string& what) {
    const Json& list = member(data, key, what);
    if (!list.is_array() || list.empty()) throw wrong(key + (" of " + what), "a list", shown(list));
    std::vector<TensorSpec> tensors;
    for (const Json& one : list) {
        TensorSpec tensor;
        tensor.name = text(one, "name", what);
        tensor.dtype = text(one, "dtype", what);
        const std::string where = "tensor " + in_quotes(tensor.name) + " of " + what;
        if (std::find(element_types.begin(), element_types.end(), tensor.dtype) ==
            element_types.end())
            throw wrong("dtype of " + where, "float32, float16 or int64", tensor.dtype);
        const Json& shape = member(one, "shape", where);
        if (!shape.is_array()) throw wrong("shape of " + where, "a list", shown(shape));
        for (const Json& dim : shape)
            tensor.shape.push_back(dim_from(dim, axes, "shape of " + where));
        tensors.push_back(std::move(tensor));
    }
    return tensors;
}

EngineSpec spec_from(const Json& data, const std::string& what) {
    EngineSpec spec;
    spec.name = text(data, "name", what);
    spec.network = text(data, "network", what);
    spec.file = text(data, "file", what);
    const Json& axes = member(data, "axes", what);
    if (!axes.is_object()) throw wrong("axes of " + what, "an object", shown(axes));
    for (const auto& [name, axis] : axes.items())
        spec.axes[name] = axis_from(axis, "axis " + in_quotes(name) + " of " + what);
    spec.inputs = tensors_from(data, "inputs", spec.axes, what);
    spec.outputs = tensors_from(data, "outputs", spec.axes, what);
    return spec;
}

bool is_graph(const std::string& path) {
    const std::string suffix = std::filesystem::u8path(path).extension().u8string();
    return suffix == ".onnx" || suffix == ".engine";
}

}  // namespace

std::vector<std::int64_t> EngineSpec::shape(
    const TensorSpec& tensor, const std::map<std::string, std::int64_t>& values) const {
    std::vector<std::int64_t> sizes;
    for (const Dim& dim : tensor.shape) {
        if (dim.axis.empty()) {
            sizes.push_back(dim.factor);
        } else {
            const auto given = values.find(dim.axis);
            sizes.push_back(dim.factor *
                            (given == values.end() ? axes.at(dim.axis).opt : given->second));
        }
    }
    return sizes;
}

void EngineSpec::check(const std::map<std::string, std::int64_t>& values) const {
    for (const auto& [axis_name, value] : values) {
        const auto found = axes.find(axis_name);
        if (found == axes.end()) {
            throw Error(Status::invalid_argument, in_quotes(axis_name) + " of engine " + name,
                        "the name of an axis", "none of that name");
        }
        const Axis& axis = found->second;
        if (value >= axis.min && value <= axis.max && value % axis.multiple == 0) continue;
        std::string expected = std::to_string(axis.min) + ".." + std::to_string(axis.max);
        if (axis.multiple > 1) expected += ", a multiple of " + std::to_string(axis.multiple);
        throw Error(Status::invalid_argument, axis_name + " of engine " + name, expected,
                    std::to_string(value), "Build engines with a recipe that allows it");
    }
}

EngineSpecs parse_engine_specs(std::string_view json, const Manifest& manifest,
                               const std::string& what) {
    EngineSpecs specs;
    const Json all = parse_json(json, what);
    for (const auto& [name, data] : all.items()) {
        EngineSpec spec = spec_from(data, "engine " + in_quotes(name) + " in " + what);
        const bool has_place = is_inside(spec.file) && spec.file != "manifest.json";
        if (name != spec.name || !is_network(spec.network) || !has_place ||
            (manifest.files.count(spec.file) == 0 &&
             manifest.files.count(tensorrt_file(spec)) == 0)) {
            throw wrong(in_quotes(name) + " in " + what,
                        "an engine of one of " + network_names() + " with a file in manifest.json",
                        spec.network + " in " + spec.file);
        }
        specs.emplace(name, std::move(spec));
    }
    return specs;
}

EngineSpecs read_engine_specs(const std::filesystem::path& folder, const Manifest& manifest) {
    verify(folder, manifest, "engines.json");
    const std::filesystem::path path = folder / "engines.json";
    return parse_engine_specs(read_file(path, max_json_bytes), manifest, path.u8string());
}

std::string tensorrt_file(const EngineSpec& spec) {
    return std::filesystem::u8path(spec.file).replace_extension(".engine").generic_u8string();
}

std::filesystem::path checked_engine_file(const std::filesystem::path& folder,
                                          const Manifest& manifest, const EngineSpec& spec,
                                          HashedFiles& hashed) {
    const bool is_onnx = manifest.runtime == "onnxruntime";
    const std::string file = is_onnx ? spec.file : tensorrt_file(spec);
    if (manifest.files.count(file) == 0) {
        throw Error(Status::not_found, "engine " + spec.name + " of " + folder.u8string(), file,
                    "no such file in its manifest.json", build_again);
    }
    const std::string part = std::filesystem::u8path(file).parent_path().generic_u8string();
    check_same_files(folder, manifest, part);
    for (const auto& [path, digest] : manifest.files) {
        // A TensorRT engine holds its weights itself.
        const bool is_others =
            is_graph(path) ||
            (!is_onnx && std::filesystem::u8path(path).extension() == ".onnx_data");
        if (is_in_part(path, part) && (path == file || !is_others))
            hashed.verify(folder, manifest, path);
    }
    return folder / std::filesystem::u8path(file);
}

}  // namespace hbsdk
