// Every function of the ABI, rightly and wrongly, to be run under the address sanitizer.
//   test-sanitized ENGINES SUBJECT FOLDER
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <hbsdk.hpp>
#include <string>
#include <thread>
#include <vector>

namespace {

void expect(hbsdk_status got, hbsdk_status wanted, const char* what) {
    const bool has_message = wanted == HBSDK_OK || hbsdk_last_error()[0] != '\0';
    if (got == wanted && has_message) return;
    std::fprintf(stderr, "%s: expected %s, got %s: %s\n", what, hbsdk_status_text(wanted),
                 hbsdk_status_text(got), hbsdk_last_error());
    std::exit(1);
}

struct Picture {
    std::vector<std::uint8_t> rgb, mask;
    hbsdk_image image() { return {rgb.data(), 70, 50, 3}; }
    hbsdk_image subject() { return {mask.data(), 70, 50, 1}; }
};

Picture picture() {
    Picture made{std::vector<std::uint8_t>(70 * 50 * 3), std::vector<std::uint8_t>(70 * 50)};
    for (std::size_t i = 0; i < made.rgb.size(); ++i) made.rgb[i] = std::uint8_t(i * 31 % 251);
    for (std::size_t y = 10; y < 40; ++y) std::memset(&made.mask[y * 70 + 20], 255, 30);
    return made;
}

hbsdk_generate_params params_of(const char* prompt) {
    hbsdk_generate_params params;
    expect(hbsdk_generate_params_init(&params, sizeof params), HBSDK_OK, "init");
    params.prompt = prompt;
    params.num_inference_steps = 2;
    return params;
}

int stop_at_once(std::int32_t, std::int32_t, void*) {
    return 1;
}

// Closes or cancels the context that is drawing, from within.
int close_it(std::int32_t, std::int32_t, void* context) {
    return hbsdk_close(static_cast<hbsdk_context*>(context)) == HBSDK_OK ? 0 : 1;
}
int cancel_it(std::int32_t, std::int32_t, void* context) {
    return hbsdk_cancel(static_cast<hbsdk_context*>(context)) == HBSDK_OK ? 0 : 1;
}

hbsdk_context* opened(const char* engines) {
    hbsdk_open_params where;
    expect(hbsdk_open_params_init(&where, sizeof where), HBSDK_OK, "init");
    where.engine_folder = engines;
    where.threads = 1;
    hbsdk_context* context = nullptr;
    expect(hbsdk_open(&where, &context), HBSDK_OK, "open");
    return context;
}

void draw(hbsdk_context* context, hbsdk_subject* subject) {
    const hbsdk_subject* subjects[] = {subject};
    hbsdk_generate_params params = params_of("a picture of S*");
    hbsdk_stats stats{sizeof(hbsdk_stats), 0, 0, 0};
    params.subjects = subjects;
    params.num_subjects = 1;
    params.num_images = 3;
    params.stats = &stats;
    hbsdk_image images[3];
    expect(hbsdk_generate(context, &params, images), HBSDK_OK, "generate");
    if (!(stats.total_ms >= stats.graphs_ms && stats.graphs_ms > 0)) std::exit(4);
    for (hbsdk_image& image : images) {
        hbsdk_image copy = image;
        expect(hbsdk_image_free(&image), HBSDK_OK, "image free");
        expect(hbsdk_image_free(&image), HBSDK_OK, "image free of zeros");
        expect(hbsdk_image_free(&copy), HBSDK_INVALID_ARGUMENT, "image freed twice");
    }
    params.on_step = stop_at_once;
    expect(hbsdk_generate(context, &params, images), HBSDK_CANCELLED, "stopped");
    if (images[0].pixels != nullptr) std::exit(5);
    params.on_step = cancel_it;
    params.user_data = context;
    expect(hbsdk_generate(context, &params, images), HBSDK_CANCELLED, "cancelled");
    params.on_step = nullptr;
    expect(hbsdk_generate(context, &params, images), HBSDK_OK, "after a cancellation");
    for (hbsdk_image& image : images) hbsdk_image_free(&image);
}

void probe(hbsdk_context* context, const std::string& folder) {
    Picture made = picture();
    const hbsdk_image image = made.image(), mask = made.subject(), none{};
    hbsdk_subject* subject = nullptr;
    expect(hbsdk_probe(context, &image, &mask, "fox", &subject), HBSDK_OK, "probe");
    expect(hbsdk_subject_save(subject, (folder + "/fox.safetensors").c_str()), HBSDK_OK, "save");
    expect(hbsdk_subject_save(subject, "/nowhere/fox.safetensors"), HBSDK_RUNTIME, "save nowhere");
    hbsdk_subject* read = nullptr;
    expect(hbsdk_subject_load(nullptr, (folder + "/fox.safetensors").c_str(), &read), HBSDK_OK,
           "load");
    expect(hbsdk_subject_free(read), HBSDK_OK, "free");
    expect(hbsdk_subject_free(read), HBSDK_INVALID_ARGUMENT, "freed twice");
    expect(hbsdk_subject_free(subject), HBSDK_OK, "free");
    expect(hbsdk_probe(context, &image, &none, "fox", &subject), HBSDK_INVALID_ARGUMENT, "no mask");
    expect(hbsdk_probe(context, &none, &mask, "fox", &subject), HBSDK_INVALID_ARGUMENT, "no photo");
    expect(hbsdk_probe(context, nullptr, nullptr, "fox", &subject), HBSDK_INVALID_ARGUMENT, "NULL");
    expect(hbsdk_probe(context, &image, &mask, "../x", &subject), HBSDK_INVALID_ARGUMENT, "name");
    if (subject != nullptr) std::exit(6);
}

void misuse(hbsdk_context* context, hbsdk_subject* subject) {
    hbsdk_generate_params params = params_of("a picture of a cat");
    hbsdk_image image;
    expect(hbsdk_generate(nullptr, &params, &image), HBSDK_INVALID_ARGUMENT, "no context");
    expect(hbsdk_generate(context, nullptr, &image), HBSDK_INVALID_ARGUMENT, "no params");
    expect(hbsdk_generate(context, &params, nullptr), HBSDK_INVALID_ARGUMENT, "no images");
    auto* wrong_kind = reinterpret_cast<hbsdk_context*>(subject);
    expect(hbsdk_generate(wrong_kind, &params, &image), HBSDK_INVALID_ARGUMENT, "wrong kind");
    for (const std::size_t size :
         {std::size_t{0}, sizeof params - 1, sizeof params + 8, static_cast<std::size_t>(-1)}) {
        hbsdk_generate_params other = params;
        other.struct_size = size;
        expect(hbsdk_generate(context, &other, &image), HBSDK_MISMATCH, "struct_size");
        expect(hbsdk_generate_params_init(&other, size), HBSDK_MISMATCH, "init struct_size");
    }
    params.prompt = "a picture of S*";
    expect(hbsdk_generate(context, &params, &image), HBSDK_BAD_PROMPT, "no subject");
    params.prompt = "\xff\xfe";
    expect(hbsdk_generate(context, &params, &image), HBSDK_BAD_PROMPT, "no UTF-8");
    params.prompt = nullptr;
    expect(hbsdk_generate(context, &params, &image), HBSDK_INVALID_ARGUMENT, "no prompt");
    hbsdk_subject* none = nullptr;
    expect(hbsdk_subject_load(context, "/nowhere.safetensors", &none), HBSDK_NOT_FOUND, "no file");
    expect(hbsdk_subject_load(context, nullptr, &none), HBSDK_INVALID_ARGUMENT, "NULL path");
}

void close_while_drawing(const char* engines) {
    hbsdk_context* context = opened(engines);
    hbsdk_generate_params params = params_of("a picture of a cat");
    params.on_step = close_it;
    params.user_data = context;
    params.num_inference_steps = 4;
    hbsdk_image image;
    expect(hbsdk_generate(context, &params, &image), HBSDK_CANCELLED, "closed while drawing");
    expect(hbsdk_generate(context, &params, &image), HBSDK_INVALID_ARGUMENT, "closed");
    expect(hbsdk_close(context), HBSDK_INVALID_ARGUMENT, "closed twice");
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return 2;
    hbsdk_context* context = opened(arguments[1]);
    hbsdk_subject* subject = nullptr;
    expect(hbsdk_subject_load(context, arguments[2], &subject), HBSDK_OK, "subject");
    draw(context, subject);
    probe(context, arguments[3]);
    misuse(context, subject);
    expect(hbsdk_close(context), HBSDK_OK, "close");
    expect(hbsdk_subject_free(subject), HBSDK_OK, "a subject outlives its context");
    close_while_drawing(arguments[1]);
    std::puts("ok");
}
