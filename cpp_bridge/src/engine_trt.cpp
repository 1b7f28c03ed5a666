// TensorRT and TensorRT for RTX behind `Network`, in the order of calls of hbsdk/backends/
// tensorrt_engine.py and tensorrt.py. Compiled only where their headers are: see README.md.
#include <NvInfer.h>

#include <algorithm>
#include <deque>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <utility>

#include "cuda_device.hpp"
#include "error.hpp"
#include "network.hpp"
#include "turns.hpp"

namespace hbsdk {

namespace {

// Keeps the last errors for our own messages. One a process: whichever comes first serves it all.
class Logger : public nvinfer1::ILogger {
  public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        errors_.emplace_back(message);
        if (errors_.size() > 4) errors_.pop_front();
    }

    std::string taken() {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::string text;
        for (const std::string& error : errors_) text += (text.empty() ? "" : "; ") + error;
        errors_.clear();
        return text.empty() ? "no message" : text;
    }

  private:
    std::mutex mutex_;
    std::deque<std::string> errors_;
};

Logger& logger() {
    static Logger& one = *new Logger;
    return one;
}

Error refused(const EngineSpec& spec, const std::string& expected) {
    return Error(Status::runtime, "TensorRT engine " + spec.name, expected, logger().taken(),
                 build_again);
}

nvinfer1::DataType type_of(const TensorSpec& tensor) {
    switch (element_type(tensor.dtype)) {
        case ElementType::float16: return nvinfer1::DataType::kHALF;
        case ElementType::int64: return nvinfer1::DataType::kINT64;
        default: return nvinfer1::DataType::kFLOAT;
    }
}

nvinfer1::Dims dims_of(const Shape& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<int>(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) dims.d[i] = shape[i];
    return dims;
}

// One engine file and its buffers; its callers hold `mutex`.
class Engine {
  public:
    Engine(const EngineSpec& spec, const std::filesystem::path& file, int gpu)
        : spec_(spec), stream_(gpu), runtime_(nvinfer1::createInferRuntime(logger())) {
        std::ifstream stream(file, std::ios::binary);
        const std::vector<char> data{std::istreambuf_iterator<char>(stream), {}};
        logger().taken();
        if (runtime_ != nullptr) {
            engine_.reset(runtime_->deserializeCudaEngine(data.data(), data.size()));
        }
        if (engine_ == nullptr) {
            throw refused(spec, "a file that this TensorRT and this GPU can load");
        }
        check_tensors();
        context_.reset(new_context());
        if (context_ == nullptr)
            throw refused(spec, "room for its activations in the GPU's memory");
    }

    // Takes device memory for these shapes, unless it is for them already; says whether it is new.
    bool bind(const std::vector<Shape>& inputs) {
        const auto values = check_shapes(spec_, inputs);
        if (values == values_ && !buffers_.empty()) return false;
        buffers_.clear();
        for (const TensorSpec& tensor : spec_.inputs) {
            const Shape shape = spec_.shape(tensor, values);
            if (!context_->setInputShape(tensor.name.c_str(), dims_of(shape))) {
                throw refused(spec_, tensor.name + " of shape " + shown(shape));
            }
        }
        check_outputs(values);
        for (const auto* tensors : {&spec_.inputs, &spec_.outputs}) {
            for (const TensorSpec& tensor : *tensors) {
                const std::size_t count = count_of(spec_.shape(tensor, values));
                DeviceArray buffer(count * element_bytes(element_type(tensor.dtype)));
                if (!context_->setTensorAddress(tensor.name.c_str(), buffer.pointer())) {
                    throw refused(spec_, "device memory for " + tensor.name);
                }
                buffers_[tensor.name] = std::move(buffer);
            }
        }
        values_ = values;
        return true;
    }

    void enqueue() {
        if (!context_->enqueueV3(stream_.get())) throw refused(spec_, "to run");
    }

    Tensor downloaded(const TensorSpec& tensor) const {
        Tensor result{element_type(tensor.dtype), spec_.shape(tensor, values_), {}};
        const DeviceArray& buffer = buffers_.at(tensor.name);
        result.bytes.resize(buffer.bytes());
        stream_.download(buffer, result.bytes.data());
        return result;
    }

    const DeviceArray& buffer(const std::string& name) const { return buffers_.at(name); }
    const Stream& stream() const { return stream_; }
    const EngineSpec& spec() const { return spec_; }

    Turns mutex;

  private:
    nvinfer1::IExecutionContext* new_context() {
#if defined(TRT_MAJOR_RTX)
        // At the first run for a shape, not later in the background: a CUDA graph would else hold
        // the slow kernels that stand in until then.
        const std::unique_ptr<nvinfer1::IRuntimeConfig> settings(engine_->createRuntimeConfig());
        settings->setDynamicShapesKernelSpecializationStrategy(
            nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
        return engine_->createExecutionContext(settings.get());
#else
        return engine_->createExecutionContext();
#endif
    }

    void check_tensors() const {
        std::size_t found = 0;
        for (const bool is_input : {true, false}) {
            const auto mode =
                is_input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
            for (const TensorSpec& tensor : is_input ? spec_.inputs : spec_.outputs) {
                const char* name = tensor.name.c_str();
                const bool fits =
                    engine_->getTensorIOMode(name) == mode &&
                    engine_->getTensorDataType(name) == type_of(tensor) &&
                    engine_->getTensorShape(name).nbDims == static_cast<int>(tensor.shape.size());
                if (!fits) throw refused(spec_, "the input or output " + tensor.name);
                ++found;
            }
        }
        if (engine_->getNbIOTensors() != static_cast<int>(found)) {
            throw refused(spec_, std::to_string(found) + " inputs and outputs");
        }
    }

    // A larger one than the spec's would be written past the end of its buffer.
    void check_outputs(const std::map<std::string, std::int64_t>& values) const {
        for (const TensorSpec& tensor : spec_.outputs) {
            const nvinfer1::Dims dims = context_->getTensorShape(tensor.name.c_str());
            const Shape got(dims.d, dims.d + std::max(dims.nbDims, 0));
            const Shape expected = spec_.shape(tensor, values);
            if (got == expected) continue;
            throw Error(Status::mismatch, "shape of " + tensor.name + " of engine " + spec_.name,
                        shown(expected), shown(got), build_again);
        }
    }

    const EngineSpec& spec_;
    Stream stream_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::map<std::string, DeviceArray> buffers_;
    std::map<std::string, std::int64_t> values_;
};

// Holds the engine for the whole of a run: its buffers are the loop's state.
class TensorRTLoop : public DenoisingLoop {
  public:
    TensorRTLoop(Engine& engine, const LoopInputs& inputs) : lock_(engine.mutex), engine_(engine) {
        engine.stream().use();
        const Shape& sample = inputs.sample.shape;
        engine.bind({sample, {}, inputs.states.shape, sample, inputs.guidance.shape, {5}});
        upload("sample", inputs.sample.bytes.data());
        upload("encoder_hidden_states", inputs.states.bytes.data());
        upload("guidance", inputs.guidance.bytes.data());
        engine.stream().clear(engine.buffer("previous_x0"));
    }

    ~TensorRTLoop() override {
        if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
    }

    // The first runs as it is, since TensorRT may compile and allocate then; the second is
    // recorded.
    void step(const StepRow& row, bool) override {
        engine_.stream().use();
        upload("timestep", &row.timestep);
        upload("coefficients", row.coefficients.data());
        if (steps_ == 1) graph_ = engine_.stream().captured([this] { work(); });
        if (graph_ != nullptr) {
            check_cuda(cudaGraphLaunch(graph_, engine_.stream().get()));
        } else {
            work();
        }
        if (steps_++ == 0) engine_.stream().synchronize();
    }

    Tensor sample() override {
        engine_.stream().use();
        return engine_.downloaded(engine_.spec().inputs.at(0));
    }

  private:
    void upload(const char* name, const void* bytes) {
        engine_.stream().upload(bytes, engine_.buffer(name));
    }

    void work() {
        engine_.enqueue();
        engine_.stream().copy(engine_.buffer("next_sample"), engine_.buffer("sample"));
        engine_.stream().copy(engine_.buffer("x0"), engine_.buffer("previous_x0"));
    }

    std::lock_guard<Turns> lock_;
    Engine& engine_;
    cudaGraphExec_t graph_ = nullptr;
    int steps_ = 0;
};

class TensorRTNetwork : public Network {
  public:
    TensorRTNetwork(const EngineSpec& spec, const std::filesystem::path& file, int gpu)
        : engine_(spec, file, gpu) {}

    std::vector<Tensor> run(const std::vector<Tensor>& inputs) override {
        const std::lock_guard<Turns> lock(engine_.mutex);
        engine_.stream().use();
        std::vector<Shape> shapes;
        for (const Tensor& input : inputs) shapes.push_back(input.shape);
        engine_.bind(shapes);
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            engine_.stream().upload(inputs[i].bytes.data(),
                                    engine_.buffer(engine_.spec().inputs[i].name));
        }
        engine_.enqueue();
        std::vector<Tensor> outputs;
        for (const TensorSpec& tensor : engine_.spec().outputs) {
            outputs.push_back(engine_.downloaded(tensor));
        }
        return outputs;
    }

    std::unique_ptr<DenoisingLoop> loop(const LoopInputs& inputs) override {
        return std::make_unique<TensorRTLoop>(engine_, inputs);
    }

  private:
    Engine engine_;
};

class TensorRT : public Runtime {
  public:
    explicit TensorRT(int gpu) : gpu_(gpu) {}

    std::unique_ptr<Network> load(const EngineSpec& spec,
                                  const std::filesystem::path& file) override {
        return std::make_unique<TensorRTNetwork>(spec, file, gpu_);
    }

  private:
    int gpu_;
};

}  // namespace

std::unique_ptr<Runtime> tensorrt_runtime(int gpu) {
    return std::make_unique<TensorRT>(gpu);
}

}  // namespace hbsdk
