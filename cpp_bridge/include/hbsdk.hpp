// C++ over hbsdk.h and nothing else: objects that free what they hold, errors that are thrown.
//
//     hbsdk::Context context({.engine_folder = "engines/built/mini-cpu-0123456789ab"});
//     hbsdk::Subject fox = context.load_subject("fox.safetensors");
//     hbsdk::Request request;
//     request.prompt = "a watercolor of S* in the snow";
//     request.subjects = {&fox};
//     std::vector<hbsdk::Image> images = context.generate(request);
//
// (Designated initialisers are C++20; in C++17 set the fields one by one.) Objects move and do not
// copy. Threads may share them, as hbsdk.h says of handles; moving or destroying one is not shared.
#pragma once

#include <hbsdk.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace hbsdk {

// A call that did not end with HBSDK_OK; what() is the whole message.
class Failure : public std::runtime_error {
  public:
    explicit Failure(hbsdk_status code) : std::runtime_error(hbsdk_last_error()), status(code) {}
    const hbsdk_status status;
};

inline void check(hbsdk_status status) {
    if (status != HBSDK_OK) throw Failure(status);
}

// What a callback of the app throws does not cross C: it stops the run and is thrown on from there.
using Progress = std::function<bool(int step, int num_inference_steps)>;  // false stops

struct OpenOptions {
    std::string engine_folder;
    std::string bundle_folder;  // empty takes engines of any bundle
    std::string device;         // empty is a GPU if it can be used, and else the CPU
    int threads = 0;
    bool use_tensorrt = false;
    bool low_memory = false;
    bool load_all = false;
};

class Image {
  public:
    Image() = default;
    explicit Image(const hbsdk_image& taken) : image_(taken) {}
    Image(Image&& other) noexcept : image_(std::exchange(other.image_, hbsdk_image{})) {}
    Image& operator=(Image&& other) noexcept {
        std::swap(image_, other.image_);
        return *this;
    }
    ~Image() { hbsdk_image_free(&image_); }

    const std::uint8_t* pixels() const { return image_.pixels; }
    int width() const { return image_.width; }
    int height() const { return image_.height; }
    int channels() const { return image_.channels; }

  private:
    hbsdk_image image_{};
};

class Subject {
  public:
    explicit Subject(hbsdk_subject* taken) : handle_(taken) {}
    void save(const std::string& path) const { check(hbsdk_subject_save(get(), path.c_str())); }
    const hbsdk_subject* get() const { return handle_.get(); }

  private:
    struct Free {
        void operator()(hbsdk_subject* handle) const { hbsdk_subject_free(handle); }
    };
    std::unique_ptr<hbsdk_subject, Free> handle_;
};

struct Request {
    std::string prompt;
    std::string negative_prompt;
    std::vector<const Subject*> subjects;
    std::uint64_t seed = 0;
    int num_images = 1;
    int num_inference_steps = 20;
    float guidance_scale = -1.0F;  // the bundle's own
    int height = 0;                // px; the bundle's own
    int width = 0;
    std::string sampler;  // empty is the bundle's default
    Progress on_step;
};

class Context {
  public:
    explicit Context(const OpenOptions& options) {
        hbsdk_open_params params;
        check(hbsdk_open_params_init(&params, sizeof params));
        params.engine_folder = options.engine_folder.c_str();
        params.bundle_folder = or_null(options.bundle_folder);
        params.device = or_null(options.device);
        params.threads = options.threads;
        params.use_tensorrt = options.use_tensorrt ? 1 : 0;
        params.low_memory = options.low_memory ? 1 : 0;
        params.load_all = options.load_all ? 1 : 0;
        hbsdk_context* opened = nullptr;
        check(hbsdk_open(&params, &opened));
        handle_.reset(opened);
    }

    Subject load_subject(const std::string& path) const {
        hbsdk_subject* loaded = nullptr;
        check(hbsdk_subject_load(get(), path.c_str(), &loaded));
        return Subject(loaded);
    }

    Subject probe(const hbsdk_image& image, const hbsdk_image& mask,
                  const std::string& name = "subject") {
        hbsdk_subject* made = nullptr;
        check(hbsdk_probe(get(), &image, &mask, name.c_str(), &made));
        return Subject(made);
    }

    std::vector<Image> generate(const Request& request, hbsdk_stats* stats = nullptr) {
        hbsdk_generate_params params;
        check(hbsdk_generate_params_init(&params, sizeof params));
        std::vector<const hbsdk_subject*> subjects;
        for (const Subject* subject : request.subjects) subjects.push_back(subject->get());
        Call call{request.on_step, nullptr};
        params.prompt = request.prompt.c_str();
        params.negative_prompt = or_null(request.negative_prompt);
        params.subjects = subjects.data();
        params.num_subjects = subjects.size();
        params.seed = request.seed;
        params.num_images = request.num_images;
        params.num_inference_steps = request.num_inference_steps;
        params.guidance_scale = request.guidance_scale;
        params.height = request.height;
        params.width = request.width;
        params.sampler = or_null(request.sampler);
        params.on_step = request.on_step ? &Call::on_step : nullptr;
        params.user_data = &call;
        params.stats = stats;
        // hbsdk_generate refuses other numbers, so there need not be room for them.
        const int most = 64;
        std::vector<hbsdk_image> drawn(
            static_cast<std::size_t>(std::clamp(request.num_images, 1, most)));
        std::vector<Image> images;
        images.reserve(drawn.size());
        const hbsdk_status status = hbsdk_generate(get(), &params, drawn.data());
        if (call.thrown) std::rethrow_exception(call.thrown);
        check(status);
        for (const hbsdk_image& image : drawn) images.emplace_back(image);
        return images;
    }

    void cancel() { check(hbsdk_cancel(get())); }
    hbsdk_context* get() const { return handle_.get(); }

  private:
    struct Call {
        const Progress& progress;
        std::exception_ptr thrown;

        static int on_step(std::int32_t step, std::int32_t steps, void* data) {
            Call& call = *static_cast<Call*>(data);
            try {
                return call.progress(step, steps) ? 0 : 1;
            } catch (...) {
                call.thrown = std::current_exception();
                return 1;
            }
        }
    };
    struct Free {
        void operator()(hbsdk_context* handle) const { hbsdk_close(handle); }
    };

    static const char* or_null(const std::string& text) {
        return text.empty() ? nullptr : text.c_str();
    }

    std::unique_ptr<hbsdk_context, Free> handle_;
};

}  // namespace hbsdk
