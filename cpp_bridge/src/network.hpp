// What every runtime is behind: networks on host arrays, and the denoising loop on the device.
#pragma once

#include <array>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine_spec.hpp"
#include "tensor.hpp"

namespace hbsdk {

// One row of a schedule's table, [p, q, a, b, c] and the timestep; float32 as the graph takes them.
struct StepRow {
    float timestep = 0.0F;
    std::array<float, 5> coefficients{};
};

// What the denoising loop starts from; all but the sample stays the same from step to step.
struct LoopInputs {
    Tensor sample;    // (rows, C, h, w) float32: with guidance, each picture twice
    Tensor states;    // (rows, tokens, d), in the type that the engine takes
    Tensor guidance;  // (rows, rows) float32
};

// The denoise_step engine whose outputs become its inputs, without a way over the host.
class DenoisingLoop {
  public:
    virtual ~DenoisingLoop() = default;
    virtual void step(const StepRow& row, bool is_last) = 0;

    // Returns the (rows, C, h, w) float32 sample after the last step, once the device has made it.
    virtual Tensor sample() = 0;
};

// One engine. Threads may share it.
class Network {
  public:
    virtual ~Network() = default;

    // Runs it on arrays in the order and of the types of its spec; returns its outputs in order.
    virtual std::vector<Tensor> run(const std::vector<Tensor>& inputs) = 0;

    // Starts a loop; only of the engine denoise_step, and not after it is destroyed.
    virtual std::unique_ptr<DenoisingLoop> loop(const LoopInputs& inputs) = 0;
};

// One runtime on one device.
class Runtime {
  public:
    virtual ~Runtime() = default;

    // Loads a file whose hash was checked. Throws Error (runtime, mismatch, out_of_memory).
    virtual std::unique_ptr<Network> load(const EngineSpec& spec,
                                          const std::filesystem::path& file) = 0;
};

struct RuntimeOptions {
    std::string device;  // "" is the first that works
    int threads = 0;
    bool use_tensorrt = false;
};

// Throws Error (mismatch: the engines were built with another version; invalid_argument: device).
std::unique_ptr<Runtime> open_onnxruntime(const Manifest& manifest, const RuntimeOptions& options);

#if defined(HBSDK_WITH_TENSORRT)
// The same for engines of the runtimes "tensorrt" and "tensorrt_rtx".
std::unique_ptr<Runtime> open_tensorrt(const Manifest& manifest, const RuntimeOptions& options);

// What it returns once all of that fits: engines on one GPU.
std::unique_ptr<Runtime> tensorrt_runtime(int gpu);
#endif

// Returns the axes' values that the shapes imply, of the spec's inputs in order.
// Throws Error (invalid_argument) where a shape does not fit, or the engine was not built for it.
std::map<std::string, std::int64_t> check_shapes(const EngineSpec& spec,
                                                 const std::vector<Shape>& shapes);

// Returns the GPU's number that a device names: "cuda" is 0. Throws Error (invalid_argument) for
// anything else; `runtime` is then named as one that runs on GPUs only, unless it is "".
int gpu_number(const std::string& device, const std::string& runtime = "");

}  // namespace hbsdk
