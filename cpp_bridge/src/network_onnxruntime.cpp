// ONNX Runtime behind `Network`: the one file that includes its headers.
#include <onnxruntime_cxx_api.h>

#include <string_view>
#include <utility>

#include "error.hpp"
#include "network.hpp"
#include "onnxruntime_providers.hpp"

namespace hbsdk {

namespace {

const char* const gpu_remedy =
    "See with `hbsdk doctor` whether this machine's GPU and driver work, or use the device cpu";

// One a process, and never destroyed: an app may leave contexts open until after its end.
Ort::Env& environment() {
    static Ort::Env& env = *new Ort::Env(ORT_LOGGING_LEVEL_ERROR, "hbsdk");
    return env;
}

// ONNX Runtime has no code for it: what was thrown inside is only in the text.
bool is_out_of_memory(std::string_view message) {
    for (const char* sign :
         {"bad_alloc", "bad allocation", "Failed to allocate memory", "out of memory",
          "Cannot allocate memory", "CUBLAS_STATUS_ALLOC_FAILED"}) {
        if (message.find(sign) != std::string_view::npos) return true;
    }
    return false;
}

// Runs `work`; what ONNX Runtime throws becomes ours, and says what was being done.
template <typename Work>
auto guarded(const std::string& what, const std::string& expected, const Work& work,
             const char* remedy = build_again) -> decltype(work()) {
    try {
        return work();
    } catch (const Ort::Exception& error) {
        const std::string got = std::string(error.what()).substr(0, 1000);
        if (is_out_of_memory(got)) {
            throw Error(Status::out_of_memory, what, "enough memory", got,
                        "Close other programs, use low_memory, or engines of smaller shapes");
        }
        throw Error(Status::runtime, what, expected, got, remedy);
    }
}

ONNXTensorElementDataType type_of(ElementType type) {
    switch (type) {
        case ElementType::float16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case ElementType::int64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
}

Ort::MemoryInfo host_memory() {
    return Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
}

// A view of a tensor's bytes, which must outlive it.
Ort::Value view(const Tensor& tensor) {
    auto* bytes = const_cast<std::byte*>(tensor.bytes.data());  // inputs are only read
    return Ort::Value::CreateTensor(host_memory(), bytes, tensor.bytes.size(), tensor.shape.data(),
                                    tensor.shape.size(), type_of(tensor.type));
}

Tensor copied(const Ort::Value& value, ElementType type) {
    Tensor tensor{type, value.GetTensorTypeAndShapeInfo().GetShape(), {}};
    const auto* begin = static_cast<const std::byte*>(value.GetTensorRawData());
    tensor.bytes.assign(begin, begin + count_of(tensor.shape) * element_bytes(type));
    return tensor;
}

// What a graph says of itself, one text a tensor, for comparison with the spec.
std::string described(const std::string& name, int type, std::size_t rank) {
    return name + " (type " + std::to_string(type) + ", rank " + std::to_string(rank) + ") ";
}

std::string described(const std::vector<TensorSpec>& tensors) {
    std::string text;
    for (const TensorSpec& one : tensors) {
        text += described(one.name, type_of(element_type(one.dtype)), one.shape.size());
    }
    return text;
}

std::string described(const Ort::Session& session, bool inputs) {
    const Ort::AllocatorWithDefaultOptions allocator;
    std::string text;
    const std::size_t count = inputs ? session.GetInputCount() : session.GetOutputCount();
    for (std::size_t i = 0; i < count; ++i) {
        const auto name = inputs ? session.GetInputNameAllocated(i, allocator)
                                 : session.GetOutputNameAllocated(i, allocator);
        const Ort::TypeInfo info =
            inputs ? session.GetInputTypeInfo(i) : session.GetOutputTypeInfo(i);
        const auto tensor = info.GetTensorTypeAndShapeInfo();
        text += described(name.get(), tensor.GetElementType(), tensor.GetDimensionsCount());
    }
    return text;
}

class OnnxRuntimeLoop : public DenoisingLoop {
  public:
    OnnxRuntimeLoop(Ort::Session& session, const EngineSpec& spec, const Ort::MemoryInfo& device,
                    const LoopInputs& inputs)
        : session_(session), spec_(spec), device_(device), inputs_(inputs), binding_(session) {
        binding_.BindInput("sample", view(inputs_.sample));
        binding_.BindInput("encoder_hidden_states", view(inputs_.states));
        binding_.BindInput("previous_x0", view(inputs_.sample));  // c is 0 at the first step
        binding_.BindInput("guidance", view(inputs_.guidance));
    }

    void step(const StepRow& row, bool is_last) override {
        guarded("engine denoise_step", "a step", [&] {
            row_ = row;
            const Ort::MemoryInfo host = host_memory();
            const Shape five{5};
            binding_.BindInput("timestep",
                               Ort::Value::CreateTensor(host, &row_.timestep, 1, nullptr, 0));
            binding_.BindInput("coefficients",
                               Ort::Value::CreateTensor(host, row_.coefficients.data(), 5,
                                                        five.data(), five.size()));
            // Bound anew each time: a run would else write into what the last one returned, which
            // are its own inputs. The last sample is wanted on the host.
            for (const TensorSpec& output : spec_.outputs) {
                const bool to_host = is_last && output.name == "next_sample";
                binding_.BindOutput(output.name.c_str(), to_host ? host : device_);
            }
            binding_.SynchronizeInputs();
            session_.Run(Ort::RunOptions{nullptr}, binding_);
            std::vector<Ort::Value> outputs = binding_.GetOutputValues();
            next_sample_ = std::move(outputs.at(0));
            if (is_last) return;
            binding_.BindInput("sample", next_sample_);
            binding_.BindInput("previous_x0", outputs.at(1));
        });
    }

    Tensor sample() override {
        return guarded("engine denoise_step", "its latents", [&] {
            binding_.SynchronizeOutputs();
            return copied(next_sample_, ElementType::float32);  // as check_agreement made sure
        });
    }

  private:
    Ort::Session& session_;
    const EngineSpec& spec_;
    const Ort::MemoryInfo& device_;
    LoopInputs inputs_;
    Ort::IoBinding binding_;
    StepRow row_;
    Ort::Value next_sample_{nullptr};
};

class OnnxRuntimeNetwork : public Network {
  public:
    OnnxRuntimeNetwork(const EngineSpec& spec, Ort::Session session, Ort::MemoryInfo device)
        : spec_(spec), session_(std::move(session)), device_(std::move(device)) {
        const std::string inputs = described(session_, true);
        const std::string outputs = described(session_, false);
        if (inputs != described(spec.inputs) || outputs != described(spec.outputs)) {
            throw Error(Status::mismatch, "inputs and outputs of engine " + spec.name,
                        described(spec.inputs) + "-> " + described(spec.outputs),
                        inputs + "-> " + outputs, build_again);
        }
    }

    std::vector<Tensor> run(const std::vector<Tensor>& inputs) override {
        return guarded("engine " + spec_.name, "a run", [&] {
            std::vector<const char*> input_names, output_names;
            std::vector<Ort::Value> values;
            for (const TensorSpec& one : spec_.inputs) input_names.push_back(one.name.c_str());
            for (const TensorSpec& one : spec_.outputs) output_names.push_back(one.name.c_str());
            for (const Tensor& input : inputs) values.push_back(view(input));
            const std::vector<Ort::Value> outputs =
                session_.Run(Ort::RunOptions{nullptr}, input_names.data(), values.data(),
                             values.size(), output_names.data(), output_names.size());
            std::vector<Tensor> tensors;
            for (std::size_t i = 0; i < outputs.size(); ++i) {
                tensors.push_back(copied(outputs[i], element_type(spec_.outputs[i].dtype)));
            }
            return tensors;
        });
    }

    std::unique_ptr<DenoisingLoop> loop(const LoopInputs& inputs) override {
        return guarded("engine denoise_step", "its inputs", [&] {
            return std::make_unique<OnnxRuntimeLoop>(session_, spec_, device_, inputs);
        });
    }

  private:
    const EngineSpec& spec_;
    Ort::Session session_;
    Ort::MemoryInfo device_;
};

class OnnxRuntime : public Runtime {
  public:
    OnnxRuntime(Providers providers, int threads)
        : choice_(std::move(providers)), threads_(threads) {}

    std::unique_ptr<Network> load(const EngineSpec& spec,
                                  const std::filesystem::path& file) override {
        const std::string what = "engine " + spec.name + " in " + file.string();
        return choice_.with([&](const Providers& providers) {
            const bool on_gpu = !providers.on_gpu.empty();
            return guarded(
                what,
                std::string("a graph that ONNX Runtime loads") + (on_gpu ? " on the GPU" : ""),
                [&] {
                    Ort::Session session(environment(), file.c_str(), options(providers));
                    return std::make_unique<OnnxRuntimeNetwork>(spec, std::move(session),
                                                                memory(providers));
                },
                on_gpu ? gpu_remedy : build_again);
        });
    }

  private:
    // As hbsdk/backends/onnxruntime.py sets them: the fastest of benchmarks/onnxruntime_options.py.
    // Each session has threads of its own, which would spin on after a run and take the cores from
    // the next network.
    Ort::SessionOptions options(const Providers& providers) const {
        Ort::SessionOptions options;
        options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
        options.AddConfigEntry("session.force_spinning_stop", "1");
        if (threads_ > 0) options.SetIntraOpNumThreads(threads_);
        for (const std::string& provider : providers.on_gpu) {
            if (provider == "CUDAExecutionProvider") {
                OrtCUDAProviderOptions settings;
                settings.device_id = providers.gpu;
                options.AppendExecutionProvider_CUDA(settings);
            } else {
                OrtTensorRTProviderOptions settings{};
                settings.device_id = providers.gpu;
                options.AppendExecutionProvider_TensorRT(settings);
            }
        }
        return options;
    }

    static Ort::MemoryInfo memory(const Providers& providers) {
        if (providers.on_gpu.empty()) return host_memory();
        return Ort::MemoryInfo("Cuda", OrtDeviceAllocator, providers.gpu, OrtMemTypeDefault);
    }

    ProviderChoice choice_;
    int threads_;
};

// "1.31" of "1.31.1": parity was measured with one version, up to its bug fixes.
std::string significant(const std::string& version) {
    const std::size_t minor = version.find('.');
    return minor == std::string::npos ? version : version.substr(0, version.find('.', minor + 1));
}

}  // namespace

std::unique_ptr<Runtime> open_onnxruntime(const Manifest& manifest, const RuntimeOptions& options) {
    const std::string here = OrtGetApiBase()->GetVersionString();
    // Else every call of the C++ interface would be one through a null pointer.
    if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) {
        throw Error(Status::mismatch, "ONNX Runtime's library",
                    "1." + std::to_string(ORT_API_VERSION) +
                        " or newer, as the headers that hbsdk was built with",
                    here, "Install a newer ONNX Runtime, or build hbsdk with its headers");
    }
    if (significant(here) != significant(manifest.runtime_version)) {
        throw Error(Status::mismatch, "runtime_version (onnxruntime) of the engines", here,
                    manifest.runtime_version, build_again);
    }
    Providers providers = choose_providers(manifest.providers, Ort::GetAvailableProviders(),
                                           options.device, options.use_tensorrt);
    return std::make_unique<OnnxRuntime>(std::move(providers), options.threads);
}

}  // namespace hbsdk
