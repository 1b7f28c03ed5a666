#include "context.hpp"

#include <utility>

#include "bundle_hash.hpp"
#include "engine_agreement.hpp"
#include "error.hpp"

namespace hbsdk {

namespace {

const char* const run_engines[] = {
    "image_features", "regressor",   "token_embedding", "text_encoder_embeds",
    "denoise_step",   "vae_encoder", "vae_decoder",
};

std::unique_ptr<Runtime> open_runtime(const Manifest& manifest, const RuntimeOptions& options) {
    if (manifest.runtime == "onnxruntime") return open_onnxruntime(manifest, options);
#if defined(HBSDK_WITH_TENSORRT)
    return open_tensorrt(manifest, options);
#else
    throw Error(Status::mismatch, "runtime of the engines", "onnxruntime", manifest.runtime,
                "This library was built without TensorRT: see cpp_bridge/README.md");
#endif
}

void check_bundle(const Manifest& manifest, const std::filesystem::path& bundle) {
    if (bundle.empty()) return;
    const std::string hash = bundle_hash(bundle);
    if (hash != manifest.bundle_hash) {
        throw Error(Status::mismatch, "bundle_hash of the engines", hash, manifest.bundle_hash,
                    "Build engines of this bundle: python export/build_engines.py --bundle " +
                        bundle.string());
    }
}

Manifest opened(const OpenOptions& options) {
    Manifest manifest = open_manifest(options.engine_folder);
    check_bundle(manifest, options.bundle_folder);
    return manifest;
}

void check_count(const char* what, const EngineSpec& spec, std::size_t expected, std::size_t got) {
    if (expected == got) return;
    throw Error(Status::mismatch, std::string(what) + " of engine " + spec.name,
                std::to_string(expected), std::to_string(got), build_again);
}

Tokenizer checked_tokenizer(const std::filesystem::path& folder, const Manifest& manifest) {
    verify(folder, manifest, "prompt_tokenizer.json");
    return Tokenizer::load(folder);
}

}  // namespace

Context::Context(const OpenOptions& options)
    : folder(options.engine_folder),
      manifest(opened(options)),
      specs(read_engine_specs(folder, manifest)),
      bridge(read_bridge_file(folder, manifest)),
      tokenizer(checked_tokenizer(folder, manifest)),
      low_memory_(options.low_memory),
      runtime_(open_runtime(manifest, options.runtime)) {
    for (const char* name : run_engines) {
        if (specs.count(name) != 0) slots_[name];
    }
    check_agreement(specs, bridge, tokenizer.max_length);
    if (!options.load_all) return;
    Call call(*this);
    for (const auto& [name, slot] : slots_) network(name, call);
}

const EngineSpec& Context::spec(const std::string& name) const {
    const auto found = specs.find(name);
    if (found == specs.end()) {
        throw Error(Status::mismatch, "engine " + name + " of " + folder.string(), "one", "none",
                    "Build engines of a bundle that has all networks");
    }
    return found->second;
}

std::vector<Tensor> Context::run(const std::string& name, std::vector<Tensor> inputs, Call& call) {
    const EngineSpec& own = spec(name);
    check_count("inputs", own, own.inputs.size(), inputs.size());
    std::vector<Shape> shapes;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        inputs[i] = cast(std::move(inputs[i]), element_type(own.inputs[i].dtype));
        shapes.push_back(inputs[i].shape);
    }
    const auto values = check_shapes(own, shapes);
    const std::shared_ptr<Network> loaded = network(name, call);
    call.check_goes_on("before engine " + name);
    std::vector<Tensor> outputs;
    {
        const Timer timer(call.graphs_ms);
        outputs = loaded->run(inputs);
    }
    check_count("outputs", own, own.outputs.size(), outputs.size());
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        const TensorSpec& tensor = own.outputs[i];
        check_shape(tensor.name + " of engine " + name, outputs[i], own.shape(tensor, values));
    }
    return outputs;
}

std::shared_ptr<Network> Context::network(const std::string& name, Call& call) {
    const EngineSpec& own = spec(name);
    Slot& slot = slots_.at(name);
    const std::lock_guard<std::mutex> lock(slot.loading);
    if (slot.network == nullptr) {
        call.check_goes_on("before loading engine " + name);
        const Timer timer(call.loading_ms);
        const auto file = checked_engine_file(folder, manifest, own, hashed_);
        call.check_goes_on("before loading engine " + name);  // hashing may have taken seconds
        slot.network = runtime_->load(own, file);
    }
    return slot.network;
}

void Context::release(const std::vector<const char*>& names) noexcept {
    if (!low_memory_) return;
    for (const char* name : names) {
        const auto slot = slots_.find(name);
        if (slot == slots_.end()) continue;
        const std::lock_guard<std::mutex> lock(slot->second.loading);
        slot->second.network = nullptr;
    }
}

Call::Call(const Context& context)
    : context_(context), cancellations_(context.cancellations_.load()) {}

void Call::check_goes_on(const std::string& place) const {
    const bool is_closed = context_.is_closed_.load();
    if (!is_closed && context_.cancellations_.load() == cancellations_) return;
    throw Error(Status::cancelled, "the call", "to be let end",
                (is_closed ? "a request to close it, seen " : "a request to stop, seen ") + place);
}

}  // namespace hbsdk
