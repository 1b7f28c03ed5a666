#include "context.hpp"

#include <utility>

#include "bundle_hash.hpp"
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
    if (!options.load_all) return;
    Clock clock;
    for (const auto& [name, slot] : slots_) network(name, clock);
}

const EngineSpec& Context::spec(const std::string& name) const {
    const auto found = specs.find(name);
    if (found == specs.end()) {
        throw Error(Status::mismatch, "engine " + name + " of " + folder.string(), "one", "none",
                    "Build engines of a bundle that has all networks");
    }
    return found->second;
}

std::vector<Tensor> Context::run(const std::string& name, std::vector<Tensor> inputs,
                                 Clock& clock) {
    const EngineSpec& own = spec(name);
    std::vector<Shape> shapes;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        inputs[i] = cast(std::move(inputs[i]), element_type(own.inputs.at(i).dtype));
        shapes.push_back(inputs[i].shape);
    }
    check_shapes(own, shapes);
    const std::shared_ptr<Network> loaded = network(name, clock);
    const Timer timer(clock.graphs_ms);
    return loaded->run(inputs);
}

std::shared_ptr<Network> Context::network(const std::string& name, Clock& clock) {
    const EngineSpec& own = spec(name);
    Slot& slot = slots_.at(name);
    const std::lock_guard<std::mutex> lock(slot.loading);
    if (slot.network == nullptr) {
        const Timer timer(clock.loading_ms);
        slot.network = runtime_->load(own, checked_engine_file(folder, manifest, own));
    }
    return slot.network;
}

void Context::release(std::initializer_list<const char*> names) {
    if (!low_memory_) return;
    for (const char* name : names) {
        Slot& slot = slots_.at(name);
        const std::lock_guard<std::mutex> lock(slot.loading);
        slot.network = nullptr;
    }
}

}  // namespace hbsdk
