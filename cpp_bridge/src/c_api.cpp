// The C ABI: arguments are checked and copied, handles looked up, exceptions stopped. Nothing else.
#include <hbsdk.h>

#include <algorithm>
#include <utility>

#include "context.hpp"
#include "error.hpp"
#include "generate.hpp"
#include "handles.hpp"
#include "last_error.hpp"
#include "params.hpp"
#include "pictures.hpp"
#include "probe.hpp"
#include "subject_file.hpp"

namespace {

using hbsdk::Context;
using hbsdk::Error;
using hbsdk::guarded;
using hbsdk::Status;
using hbsdk::Subject;

// Never destroyed: an app may leave handles open until after its end.
hbsdk::Handles<Context>& contexts() {
    static auto& all = *new hbsdk::Handles<Context>("context", 1);
    return all;
}

hbsdk::Handles<const Subject>& subjects() {
    static auto& all = *new hbsdk::Handles<const Subject>("subject", 2);
    return all;
}

template <typename Pointer>
void check_not_null(const char* what, Pointer* pointer) {
    if (pointer == nullptr) throw Error(Status::invalid_argument, what, "a pointer", "NULL");
}

std::string text_or_empty(const char* text) {
    return text == nullptr ? "" : text;
}

hbsdk::OpenOptions options_of(const hbsdk_open_params& params) {
    check_not_null("engine_folder", params.engine_folder);
    if (params.threads < 0 || params.threads > 1024) {
        throw Error(Status::invalid_argument, "threads", "0 to 1024",
                    std::to_string(params.threads));
    }
    hbsdk::OpenOptions options;
    options.engine_folder = params.engine_folder;
    options.bundle_folder = text_or_empty(params.bundle_folder);
    options.runtime = {text_or_empty(params.device), params.threads, params.use_tensorrt != 0};
    options.low_memory = params.low_memory != 0;
    options.load_all = params.load_all != 0;
    return options;
}

hbsdk::GenerateRequest request_of(const hbsdk_generate_params& params) {
    check_not_null("prompt", params.prompt);
    if (params.num_subjects > 0) check_not_null("subjects", params.subjects);
    hbsdk::GenerateRequest request;
    request.prompt = params.prompt;
    request.negative_prompt = text_or_empty(params.negative_prompt);
    for (std::size_t i = 0; i < params.num_subjects; ++i) {
        request.subjects.push_back(subjects().find(params.subjects[i]));
    }
    request.seed = params.seed;
    request.num_images = params.num_images;
    request.num_inference_steps = params.num_inference_steps;
    request.guidance_scale = params.guidance_scale;
    request.height = params.height;
    request.width = params.width;
    request.sampler = text_or_empty(params.sampler);
    if (params.on_step != nullptr) {
        request.on_step = [params](int step) {
            return params.on_step(step, params.num_inference_steps, params.user_data) == 0;
        };
    }
    return request;
}

// `found.struct_size` is the app's.
void write_stats(hbsdk_stats* stats, const hbsdk_stats& found) {
    if (stats != nullptr) hbsdk::write_params("stats", stats, found.struct_size, found);
}

void draw(Context& context, const hbsdk_generate_params& params, std::size_t stats_size,
          hbsdk_image* images) {
    hbsdk::Call call(context);
    double total_ms = 0.0;
    {
        const hbsdk::Timer timer(total_ms);
        hbsdk::hand_out(hbsdk::generate(context, request_of(params), call), images);
    }
    write_stats(params.stats, {stats_size, total_ms, call.graphs_ms, call.loading_ms});
}

}  // namespace

uint32_t hbsdk_abi_version(void) {
    return HBSDK_ABI_VERSION;
}

const char* hbsdk_status_text(hbsdk_status status) {
    switch (status) {
        case HBSDK_OK: return "ok";
        case HBSDK_INVALID_ARGUMENT: return "invalid argument";
        case HBSDK_NOT_FOUND: return "not found";
        case HBSDK_DAMAGED: return "damaged";
        case HBSDK_MISMATCH: return "mismatch";
        case HBSDK_BAD_PROMPT: return "bad prompt";
        case HBSDK_CANCELLED: return "cancelled";
        case HBSDK_OUT_OF_MEMORY: return "out of memory";
        case HBSDK_RUNTIME: return "runtime";
        case HBSDK_INTERNAL: return "internal";
        default: return "unknown status";
    }
}

const char* hbsdk_last_error(void) {
    return hbsdk::last_error();
}

hbsdk_status hbsdk_open_params_init(hbsdk_open_params* params, size_t struct_size) {
    return guarded([&] {
        hbsdk::write_params("open_params", params, struct_size, hbsdk::default_open_params());
    });
}

hbsdk_status hbsdk_generate_params_init(hbsdk_generate_params* params, size_t struct_size) {
    return guarded([&] {
        hbsdk::write_params("generate_params", params, struct_size,
                            hbsdk::default_generate_params());
    });
}

hbsdk_status hbsdk_open(const hbsdk_open_params* params, hbsdk_context** context) {
    return guarded([&] {
        check_not_null("context", context);
        *context = nullptr;
        const hbsdk_open_params own =
            hbsdk::read_params("open_params", params, hbsdk::default_open_params());
        *context = contexts().add<hbsdk_context>(std::make_shared<Context>(options_of(own)));
    });
}

hbsdk_status hbsdk_close(hbsdk_context* context) {
    return guarded([&] {
        if (context != nullptr) contexts().release(context)->close();
    });
}

hbsdk_status hbsdk_cancel(hbsdk_context* context) {
    return guarded([&] { contexts().find(context)->cancel(); });
}

hbsdk_status hbsdk_subject_load(const hbsdk_context* context, const char* path,
                                hbsdk_subject** subject) {
    return guarded([&] {
        check_not_null("subject", subject);
        *subject = nullptr;
        check_not_null("path", path);
        auto loaded = std::make_shared<const Subject>(hbsdk::read_subject(path));
        if (context != nullptr) {
            hbsdk::check_width(*loaded, contexts().find(context)->bridge);
        }
        *subject = subjects().add<hbsdk_subject>(std::move(loaded));
    });
}

hbsdk_status hbsdk_probe(hbsdk_context* context, const hbsdk_image* image, const hbsdk_image* mask,
                         const char* name, hbsdk_subject** subject) {
    return guarded([&] {
        check_not_null("subject", subject);
        *subject = nullptr;
        const std::shared_ptr<Context> found = contexts().find(context);
        hbsdk::Call call(*found);
        auto made = std::make_shared<const Subject>(
            hbsdk::probe(*found, hbsdk::pixels_of(image), hbsdk::pixels_of(mask),
                         name == nullptr ? "subject" : name, call));
        *subject = subjects().add<hbsdk_subject>(std::move(made));
    });
}

hbsdk_status hbsdk_subject_save(const hbsdk_subject* subject, const char* path) {
    return guarded([&] {
        check_not_null("path", path);
        hbsdk::write_subject(path, *subjects().find(subject));
    });
}

hbsdk_status hbsdk_subject_free(hbsdk_subject* subject) {
    return guarded([&] {
        if (subject != nullptr) subjects().release(subject);
    });
}

hbsdk_status hbsdk_generate(hbsdk_context* context, const hbsdk_generate_params* params,
                            hbsdk_image* images) {
    return guarded([&] {
        check_not_null("images", images);
        const hbsdk_generate_params own =
            hbsdk::read_params("generate_params", params, hbsdk::default_generate_params());
        // Read once: what a callback does to it meanwhile must not make a run fail that went well.
        const std::size_t stats_size = own.stats == nullptr ? 0 : own.stats->struct_size;
        write_stats(own.stats, {stats_size, 0.0, 0.0, 0.0});
        hbsdk::check_count(own.num_images);
        std::fill_n(images, own.num_images, hbsdk_image{});
        draw(*contexts().find(context), own, stats_size, images);
    });
}

hbsdk_status hbsdk_image_free(hbsdk_image* image) {
    return guarded([&] {
        if (image == nullptr) return;
        if (image->pixels != nullptr) hbsdk::take_back(*image);
        *image = hbsdk_image{};
    });
}
