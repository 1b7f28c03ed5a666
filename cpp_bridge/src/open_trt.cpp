// Whether this library, this machine and its GPU are those that engines of TensorRT were built for.
#include <NvInfer.h>

#include <algorithm>
#include <string>

#include "cuda_device.hpp"
#include "error.hpp"
#include "network.hpp"
#include "plain_text.hpp"

namespace hbsdk {

namespace {

std::string linked_runtime() {
#if defined(TRT_MAJOR_RTX)
    return "tensorrt_rtx";
#else
    return "tensorrt";
#endif
}

std::string version_of_headers() {
#if defined(TRT_MAJOR_RTX)
    return std::to_string(TRT_MAJOR_RTX) + "." + std::to_string(TRT_MINOR_RTX) + "." +
           std::to_string(TRT_PATCH_RTX) + "." + std::to_string(TRT_BUILD_RTX);
#else
    return std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + "." +
           std::to_string(NV_TENSORRT_PATCH) + "." + std::to_string(NV_TENSORRT_BUILD);
#endif
}

void check_same(const char* field, const std::string& expected, const std::string& got) {
    if (expected != got) {
        throw Error(Status::mismatch, std::string(field) + " of the engines", expected, got,
                    build_again);
    }
}

// An engine runs on the GPUs that it was built for.
void check_capability(const Manifest& manifest, int gpu) {
    cudaDeviceProp properties{};
    check_cuda(cudaGetDeviceProperties(&properties, gpu));
    const std::string here =
        std::to_string(properties.major) + "." + std::to_string(properties.minor);
    const auto& built_for = manifest.compute_capabilities;
    if (std::find(built_for.begin(), built_for.end(), here) != built_for.end()) return;
    check_same("compute_capabilities", here, joined(built_for));
}

}  // namespace

std::unique_ptr<Runtime> open_tensorrt(const Manifest& manifest, const RuntimeOptions& options) {
    check_same("runtime", linked_runtime(), manifest.runtime);
    check_same("runtime_version", version_of_headers(), manifest.runtime_version);
#if defined(__linux__) && defined(__x86_64__)
    if (manifest.platform) check_same("platform", "linux-x86_64", *manifest.platform);
#elif defined(__linux__) && defined(__aarch64__)
    if (manifest.platform) check_same("platform", "linux-aarch64", *manifest.platform);
#endif
    if (options.use_tensorrt) {
        throw Error(Status::invalid_argument, "use_tensorrt", "0 for engines that TensorRT built",
                    "1", "It is a setting of ONNX Runtime's engines");
    }
    const int gpu = gpu_number(options.device.empty() ? "cuda" : options.device, "TensorRT");
    check_gpu(gpu);
    check_capability(manifest, gpu);
    return tensorrt_runtime(gpu);
}

}  // namespace hbsdk
