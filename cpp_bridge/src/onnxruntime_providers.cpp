#include "onnxruntime_providers.hpp"

#include <algorithm>

#include "error.hpp"
#include "network.hpp"
#include "plain_text.hpp"

namespace hbsdk {

namespace {

const char* const tensorrt = "TensorrtExecutionProvider";
const char* const cuda = "CUDAExecutionProvider";

bool holds(const std::vector<std::string>& names, const std::string& name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

Providers choose_providers(const std::vector<std::string>& wanted,
                           const std::vector<std::string>& available, const std::string& device,
                           bool use_tensorrt) {
    const bool on_cpu = device == "cpu";
    if (use_tensorrt && (on_cpu || !holds(available, tensorrt))) {
        throw Error(
            Status::invalid_argument, "use_tensorrt",
            on_cpu ? "0 for the device cpu" : std::string("an ONNX Runtime with ") + tensorrt,
            on_cpu ? "1" : joined(available),
            "Leave it at 0, or link ONNX Runtime's build for GPUs");
    }
    if (on_cpu) return {};
    Providers found;
    if (!device.empty()) found.gpu = gpu_number(device);
    if (use_tensorrt) found.on_gpu.emplace_back(tensorrt);
    if (holds(wanted, cuda) && holds(available, cuda)) found.on_gpu.emplace_back(cuda);
    if (found.on_gpu.empty() && !device.empty()) {
        const bool is_recipe = !holds(wanted, cuda);
        throw Error(Status::invalid_argument, "device",
                    is_recipe
                        ? "cpu: the engines' recipe does not name CUDAExecutionProvider, only " +
                              joined(wanted)
                        : "cpu: the ONNX Runtime that is linked has no provider for a GPU, "
                          "only " +
                              joined(available),
                    device,
                    is_recipe ? "Build engines with a recipe for GPUs"
                              : "Link ONNX Runtime's build for GPUs (onnxruntime-gpu)");
    }
    // What was asked for is used or refused; what was not asked for may turn out not to work.
    found.may_fall_back = device.empty() && !use_tensorrt && !found.on_gpu.empty();
    return found;
}

}  // namespace hbsdk
