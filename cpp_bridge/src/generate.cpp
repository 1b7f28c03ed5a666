#include "generate.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "error.hpp"
#include "noise.hpp"
#include "prompt.hpp"

namespace hbsdk {

namespace {

constexpr int most_pictures = 64;
constexpr int most_side_px = 4096;
constexpr float most_guidance = 100.0F;

// What is drawn on: latents of (channels, height, width).
struct Canvas {
    std::int64_t channels = 0, height = 0, width = 0;
    std::size_t size() const { return static_cast<std::size_t>(channels * height * width); }
};

// The subjects of a prompt by their placeholders.
using Named = std::map<std::string, const Subject*>;

int side_px(const char* name, int asked, const BridgeFile& bridge) {
    const int side = asked == 0 ? bridge.image_size_px : asked;
    const int factor = bridge.vae_scale_factor;
    if (side < factor || side > most_side_px || side % factor != 0) {
        throw Error(Status::invalid_argument, name,
                    "a multiple of " + std::to_string(factor) + " in " + std::to_string(factor) +
                        "..4096 px",
                    std::to_string(asked));
    }
    return side;
}

Canvas canvas_of(const GenerateRequest& request, const BridgeFile& bridge) {
    const int height = side_px("height", request.height, bridge);
    const int width = side_px("width", request.width, bridge);
    return {bridge.latent_channels, height / bridge.vae_scale_factor,
            width / bridge.vae_scale_factor};
}

void check_request(const GenerateRequest& request, const BridgeFile& bridge) {
    check_count(request.num_images);
    if (!(request.guidance_scale <= most_guidance)) {  // NaN too
        throw Error(Status::invalid_argument, "guidance_scale",
                    "a number up to 100, or a negative one for the bundle's own",
                    std::to_string(request.guidance_scale));
    }
    for (const auto& subject : request.subjects) check_width(*subject, bridge);
}

Named named_subjects(const GenerateRequest& request) {
    std::vector<std::string> names;
    for (const auto& subject : request.subjects) names.push_back(subject->name);
    Named named;
    for (const auto& [placeholder, index] : name_subjects(request.prompt, names)) {
        named[placeholder] = request.subjects.at(index).get();
    }
    return named;
}

// The prompt, after the negative one if guided.
std::vector<Prompt> tokenized(const Context& context, const GenerateRequest& request,
                              const Named& named, bool guided) {
    std::map<std::string, int> lengths;
    for (const auto& [placeholder, subject] : named) lengths[placeholder] = subject->count;
    check_has_text(request.prompt);
    std::vector<Prompt> prompts{tokenize_prompt(context.tokenizer, request.prompt, lengths)};
    if (guided) {
        prompts.insert(prompts.begin(),
                       tokenize_prompt(context.tokenizer, request.negative_prompt, lengths));
    }
    return prompts;
}

// Puts the subjects' words where their placeholders stand; positions are added after this.
Tensor with_words(const Tensor& embedded, const std::vector<Prompt>& prompts, const Named& named) {
    std::vector<float> rows = floats_of(embedded);
    const auto tokens = static_cast<std::size_t>(embedded.shape.at(1));
    const auto width = static_cast<std::size_t>(embedded.shape.at(2));
    for (std::size_t text = 0; text < prompts.size(); ++text) {
        for (const auto& [placeholder, runs] : prompts[text].places) {
            const std::vector<float>& words = named.at(placeholder)->words;
            for (const std::vector<int>& run : runs) {
                for (std::size_t word = 0; word < run.size(); ++word) {
                    const std::size_t row = text * tokens + static_cast<std::size_t>(run[word]);
                    std::copy_n(&words.at(word * width), width, &rows.at(row * width));
                }
            }
        }
    }
    return float_tensor(rows, embedded.shape, embedded.type);
}

// Encodes each text once; returns the states of each for all pictures.
Tensor text_states(Context& context, const std::vector<Prompt>& prompts, const Named& named,
                   int pictures, Call& call) {
    const Stage stage(context, {"token_embedding", "text_encoder_embeds"});
    std::vector<Tensor> states;
    const auto count = static_cast<std::int64_t>(prompts.size());
    for (const auto& [begin, end] : batches(context.spec("token_embedding"), "texts", count)) {
        const std::vector<Prompt> part(prompts.begin() + begin, prompts.begin() + end);
        std::vector<std::int64_t> ids;
        for (const Prompt& prompt : part)
            ids.insert(ids.end(), prompt.ids.begin(), prompt.ids.end());
        const auto tokens = static_cast<std::int64_t>(part.at(0).ids.size());
        const Tensor embedded =
            context.run("token_embedding", {int64_tensor(ids, {end - begin, tokens})}, call).at(0);
        check_shape("the embedded texts", embedded, {end - begin, tokens, context.bridge.word_dim});
        states.push_back(
            context.run("text_encoder_embeds", {with_words(embedded, part, named)}, call).at(0));
    }
    const Tensor all = concatenated(states);
    Shape expected = all.shape;
    expected.at(0) = count;
    check_shape("the texts' states", all, expected);
    return repeated(all, pictures);
}

StepRow row_of(const Schedule& schedule, std::size_t step) {
    const auto number = [step](const std::vector<double>& column) {
        return static_cast<float>(column[step]);
    };
    const float c = step == 0 ? 0.0F : number(schedule.c);  // there is no x0 before
    return {number(schedule.timesteps),
            {number(schedule.p), number(schedule.q), number(schedule.a), number(schedule.b), c}};
}

// Returns the loop's inputs in the types of the engine.
LoopInputs loop_inputs(const EngineSpec& spec, const GenerateRequest& request,
                       const Schedule& schedule, const Canvas& canvas, const Tensor& states,
                       float guidance_scale) {
    const int pictures = request.num_images;
    const std::int64_t rows = states.shape.at(0);
    const bool guided = rows == 2 * pictures;
    // Before the noise is drawn: an engine's limits are also those of memory.
    const Shape sample{rows, canvas.channels, canvas.height, canvas.width};
    check_shapes(spec, {sample, {}, states.shape, sample, {rows, rows}, {5}});
    std::vector<float> noise = initial_noise(request.seed, pictures, canvas.size());
    for (float& value : noise) value *= static_cast<float>(schedule.initial_noise_scale);
    const Tensor latents =
        float_tensor(noise, {pictures, canvas.channels, canvas.height, canvas.width});
    return {guided ? concatenated({latents, latents}) : latents,
            cast(states, element_type(spec.inputs.at(2).dtype)),
            guidance_matrix(pictures, guidance_scale, guided)};
}

// Runs the loop; returns (pictures, C, h, w) clean latents.
Tensor denoised(Context& context, const GenerateRequest& request, const Schedule& schedule,
                const LoopInputs& inputs, Call& call) {
    const Stage stage(context, {"denoise_step"});
    const std::shared_ptr<Network> network = context.network("denoise_step", call);
    const std::unique_ptr<DenoisingLoop> loop = network->loop(inputs);
    const std::size_t steps = schedule.timesteps.size();
    for (std::size_t step = 0; step < steps; ++step) {
        {
            const Timer timer(call.graphs_ms);
            loop->step(row_of(schedule, step), step + 1 == steps);
        }
        const std::string place = "after " + std::to_string(step + 1);
        if (request.on_step && !request.on_step(static_cast<int>(step) + 1)) {
            throw Error(Status::cancelled, "drawing", std::to_string(steps) + " steps",
                        "a request to stop " + place);
        }
        call.check_goes_on(place + " of " + std::to_string(steps) + " steps");
    }
    const Timer timer(call.graphs_ms);  // a GPU may still be at work
    const Tensor sample = loop->sample();
    check_shape("the sample of engine denoise_step", sample, inputs.sample.shape);
    return rows_of(sample, 0, request.num_images);
}

// (1, 3, H, W) in [-1, 1] of a batch -> bytes, as Python's clip and round to even.
Picture picture_of(const std::vector<float>& decoded, std::size_t begin, int height, int width) {
    const std::size_t area = static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
    Picture picture{height, width, std::vector<std::uint8_t>(3 * area)};
    for (std::size_t channel = 0; channel < 3; ++channel) {
        for (std::size_t at = 0; at < area; ++at) {
            const float unit = decoded[begin + channel * area + at] / 2.0F + 0.5F;
            const float clipped = unit > 0.0F ? std::min(unit, 1.0F) : 0.0F;  // NaN is black
            picture.rgb[3 * at + channel] =
                static_cast<std::uint8_t>(std::nearbyint(clipped * 255.0F));
        }
    }
    return picture;
}

std::vector<Picture> decoded(Context& context, const Tensor& latents, Call& call) {
    const Stage stage(context, {"vae_decoder"});
    std::vector<float> values = floats_of(latents);
    const BridgeFile& bridge = context.bridge;
    for (float& value : values) value = value / bridge.latent_scale + bridge.latent_shift;
    const Tensor samples = float_tensor(values, latents.shape);
    std::vector<Picture> pictures;
    for (const auto& [begin, end] :
         batches(context.spec("vae_decoder"), "images", latents.shape.at(0))) {
        const Tensor part = context.run("vae_decoder", {rows_of(samples, begin, end)}, call).at(0);
        const int height = static_cast<int>(latents.shape.at(2)) * bridge.vae_scale_factor;
        const int width = static_cast<int>(latents.shape.at(3)) * bridge.vae_scale_factor;
        check_shape("the decoded pictures", part, {end - begin, 3, height, width});
        const std::vector<float> all = floats_of(part);
        const std::size_t size = all.size() / static_cast<std::size_t>(end - begin);
        for (std::size_t at = 0; at < all.size(); at += size) {
            pictures.push_back(picture_of(all, at, height, width));
        }
    }
    return pictures;
}

}  // namespace

void check_count(int num_images) {
    if (num_images < 1 || num_images > most_pictures) {
        throw Error(Status::invalid_argument, "num_images", "a whole number from 1 to 64",
                    std::to_string(num_images));
    }
}

void check_width(const Subject& subject, const BridgeFile& bridge) {
    if (subject.width == bridge.word_dim) return;
    throw Error(Status::mismatch, "subject '" + subject.name + "'",
                "words of width " + std::to_string(bridge.word_dim) + ", as of bundle '" +
                    bridge.bundle + "'",
                "width " + std::to_string(subject.width),
                "Use the bundle that it was made with, or personalize anew");
}

std::vector<Picture> generate(Context& context, const GenerateRequest& request, Call& call) {
    const BridgeFile& bridge = context.bridge;
    check_request(request, bridge);
    const Canvas canvas = canvas_of(request, bridge);
    const Schedule& schedule = bridge.schedule(request.sampler, request.num_inference_steps);
    const float scale =
        request.guidance_scale < 0.0F ? bridge.guidance_scale : request.guidance_scale;
    const Named named = named_subjects(request);
    const std::vector<Prompt> prompts = tokenized(context, request, named, scale > 1.0F);
    const Tensor states = text_states(context, prompts, named, request.num_images, call);
    const LoopInputs inputs =
        loop_inputs(context.spec("denoise_step"), request, schedule, canvas, states, scale);
    const Tensor latents = denoised(context, request, schedule, inputs, call);
    return decoded(context, latents, call);
}

}  // namespace hbsdk
