#include "network.hpp"

#include "error.hpp"
#include "plain_text.hpp"

namespace hbsdk {

namespace {

std::string shown(const TensorSpec& tensor) {
    std::string text;
    for (const Dim& dim : tensor.shape) {
        if (!text.empty()) text += " x ";
        if (dim.axis.empty()) {
            text += std::to_string(dim.factor);
        } else {
            text += (dim.factor == 1 ? "" : std::to_string(dim.factor) + " * ") + dim.axis;
        }
    }
    return text;
}

}  // namespace

std::map<std::string, std::int64_t> check_shapes(const EngineSpec& spec,
                                                 const std::vector<Shape>& shapes) {
    if (shapes.size() != spec.inputs.size()) {
        throw Error(Status::mismatch, "inputs of engine " + spec.name,
                    std::to_string(spec.inputs.size()), std::to_string(shapes.size()), build_again);
    }
    std::map<std::string, std::int64_t> values;
    for (std::size_t i = 0; i < spec.inputs.size(); ++i) {
        const TensorSpec& tensor = spec.inputs[i];
        const Shape& got = shapes[i];
        for (std::size_t axis = 0; axis < got.size() && got.size() == tensor.shape.size(); ++axis) {
            const Dim& dim = tensor.shape[axis];
            if (!dim.axis.empty() && dim.factor == 1) values.emplace(dim.axis, got[axis]);
        }
        if (got != spec.shape(tensor, values)) {
            throw Error(Status::invalid_argument,
                        "shape of " + tensor.name + " of engine " + spec.name, shown(tensor),
                        shown(got), "Build engines with a recipe that allows it");
        }
    }
    spec.check(values);
    return values;
}

int gpu_number(const std::string& device, const std::string& runtime) {
    const std::string number = begins_with(device, "cuda:") ? device.substr(5) : "";
    const bool is_number = !number.empty() && number.size() < 4 &&
                           number.find_first_not_of("0123456789") == std::string::npos;
    if (device != "cuda" && !is_number) {
        const std::string gpus = "cuda, cuda:0, cuda:1 and so on";
        throw Error(Status::invalid_argument, "device",
                    runtime.empty() ? "cpu, " + gpus : gpus + ": " + runtime + " runs on GPUs only",
                    device);
    }
    return is_number ? std::stoi(number) : 0;
}

}  // namespace hbsdk
