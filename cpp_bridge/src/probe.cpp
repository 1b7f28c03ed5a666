#include "probe.hpp"

#include <utility>

#include "error.hpp"
#include "subject_name.hpp"

namespace hbsdk {

namespace {

// The mode of the VAE's distribution, scaled for the UNet: (1, 2 C, h, w), means before log
// variances -> (1, C, h, w).
Tensor latent_mode(const Tensor& parameters, const BridgeFile& bridge) {
    std::vector<float> mean = floats_of(parameters);
    mean.resize(mean.size() / 2);  // of one photo
    for (float& value : mean) value = (value - bridge.latent_shift) * bridge.latent_scale;
    Shape shape = parameters.shape;
    shape.at(1) /= 2;
    return float_tensor(mean, shape);
}

// The encoders' inputs, by the names that engines.json gives them.
std::vector<Tensor> feature_inputs(const EngineSpec& spec, const Reference& reference,
                                   const Tensor& pixels) {
    std::vector<Tensor> inputs;
    for (const TensorSpec& tensor : spec.inputs) {
        const std::int64_t size = reference.size;
        inputs.push_back(tensor.name == "mask" ? float_tensor(reference.mask, {1, 1, size, size})
                                               : pixels);
    }
    return inputs;
}

}  // namespace

Subject probe(Context& context, const Pixels& photo, const Pixels& mask, const std::string& name,
              Clock& clock) {
    check_name(name);
    const BridgeFile& bridge = context.bridge;
    const EngineSpec& features_spec = context.spec("image_features");
    const Reference reference =
        make_reference(photo, mask, bridge.image_size_px, bridge.vae_scale_factor);
    const std::int64_t size = reference.size;
    const Tensor pixels = float_tensor(reference.pixels, {1, 3, size, size});
    std::vector<Tensor> features =
        context.run("image_features", feature_inputs(features_spec, reference, pixels), clock);
    const Tensor encoded = context.run("vae_encoder", {pixels}, clock).at(0);
    context.release({"image_features", "vae_encoder"});
    const Tensor words = context
                             .run("regressor",
                                  {latent_mode(encoded, bridge), std::move(features.at(0)),
                                   std::move(features.at(1))},
                                  clock)
                             .at(0);
    context.release({"regressor"});
    Subject subject;
    subject.name = name;
    subject.words = floats_of(words);
    subject.count = static_cast<int>(words.shape.at(1));
    subject.width = static_cast<int>(words.shape.at(2));
    subject.metadata = {{"bundle", bridge.bundle},
                        {"bundle_hash", context.manifest.bundle_hash},
                        {"class_word", bridge.class_word},
                        {"mask", "user"},
                        {"steps", "0"}};
    check_subject(subject);
    return subject;
}

}  // namespace hbsdk
