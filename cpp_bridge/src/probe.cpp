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

// The regressor's inputs: latents of the photo and what the two image encoders see in it.
std::vector<Tensor> encoded(Context& context, const Reference& reference, const Tensor& pixels,
                            Call& call) {
    const Stage stage(context, {"image_features", "vae_encoder"});
    const EngineSpec& spec = context.spec("image_features");
    std::vector<Tensor> inputs =
        context.run("image_features", feature_inputs(spec, reference, pixels), call);
    const Tensor parameters = context.run("vae_encoder", {pixels}, call).at(0);
    const BridgeFile& bridge = context.bridge;
    const std::int64_t side = reference.size / bridge.vae_scale_factor;
    check_shape("the encoded photo", parameters, {1, 2 * bridge.latent_channels, side, side});
    inputs.insert(inputs.begin(), latent_mode(parameters, bridge));
    return inputs;
}

// Returns (1, n, d) words.
Tensor words_of(Context& context, const Reference& reference, const Tensor& pixels, Call& call) {
    std::vector<Tensor> inputs = encoded(context, reference, pixels, call);
    const Stage stage(context, {"regressor"});
    Tensor words = context.run("regressor", std::move(inputs), call).at(0);
    const BridgeFile& bridge = context.bridge;
    check_shape("the regressor's words", words, {1, bridge.num_words, bridge.word_dim});
    return words;
}

}  // namespace

Subject probe(Context& context, const Pixels& photo, const Pixels& mask, const std::string& name,
              Call& call) {
    check_name(name);
    context.spec("regressor");  // a bundle without one is told so first, whatever the photo
    const BridgeFile& bridge = context.bridge;
    const Reference reference =
        make_reference(photo, mask, bridge.image_size_px, bridge.vae_scale_factor);
    const std::int64_t size = reference.size;
    const Tensor pixels = float_tensor(reference.pixels, {1, 3, size, size});
    const Tensor words = words_of(context, reference, pixels, call);
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
