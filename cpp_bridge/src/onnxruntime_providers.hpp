// Which of ONNX Runtime's execution providers run the engines, and on which device.
#pragma once

#include <string>
#include <vector>

namespace hbsdk {

struct Providers {
    std::vector<std::string> on_gpu;  // best first; none on the CPU, which comes last anyway
    int gpu = 0;
};

// `wanted`: the recipe's, best first. `available`: of this build of ONNX Runtime. `device`: "" is
// the first that works. TensorRT's provider is taken only if `use_tensorrt`.
// Throws Error (invalid_argument) where no provider is left for the device.
Providers choose_providers(const std::vector<std::string>& wanted,
                           const std::vector<std::string>& available, const std::string& device,
                           bool use_tensorrt);

}  // namespace hbsdk
