#include "onnxruntime_providers.hpp"

#include <algorithm>

#include "error.hpp"
#include "network.hpp"

namespace hbsdk {

namespace {

const char* const tensorrt = "TensorrtExecutionProvider";
const char* const cuda = "CUDAExecutionProvider";

bool holds(const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

}  // namespace

Providers choose_providers(const std::vector<std::string>& wanted,
                           const std::vector<std::string>& available, const std::string& device,
                           bool use_tensorrt) {
    Providers found;
    if (use_tensorrt && !holds(available, tensorrt)) {
        throw Error(Status::invalid_argument, "use_tensorrt",
                    std::string("an ONNX Runtime with ") + tensorrt, joined(available),
                    "Leave it at 0, or link ONNX Runtime's build for GPUs");
    }
    if (use_tensorrt && device != "cpu") found.on_gpu.emplace_back(tensorrt);
    if (device != "cpu" && holds(wanted, cuda) && holds(available, cuda)) {
        found.on_gpu.emplace_back(cuda);
    }
    if (device == "cpu" || (device.empty() && found.on_gpu.empty())) return found;
    found.gpu = gpu_number(device.empty() ? "cuda" : device);
    if (found.on_gpu.empty()) {
        throw Error(
            Status::invalid_argument, "device",
            "cpu: of the recipe's " + joined(wanted) + " this ONNX Runtime has none for a GPU",
            device, "Link ONNX Runtime's build for GPUs, and take a recipe for one");
    }
    return found;
}

}  // namespace hbsdk
