// Four threads draw with one context: every picture must be the one that a single thread draws.
//   test-threads ENGINES SUBJECT PICTURES
#include <atomic>
#include <cstring>
#include <hbsdk.hpp>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int num_threads = 4;
constexpr int num_seeds = 5;

hbsdk::Request request_of(const hbsdk::Subject& subject, int index) {
    hbsdk::Request request;
    request.prompt = index % 2 == 0 ? "a picture of S*" : "a picture of a cat";
    if (index % 2 == 0) request.subjects = {&subject};
    request.seed = static_cast<std::uint64_t>(index % num_seeds);
    request.num_inference_steps = 2;
    return request;
}

std::string drawn(hbsdk::Context& context, const hbsdk::Subject& subject, int index) {
    const std::vector<hbsdk::Image> images = context.generate(request_of(subject, index));
    const hbsdk::Image& image = images.at(0);
    const auto size = static_cast<std::size_t>(image.width()) *
                      static_cast<std::size_t>(image.height() * image.channels());
    return {reinterpret_cast<const char*>(image.pixels()), size};
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return 2;
    const int pictures = std::stoi(arguments[3]);
    hbsdk::OpenOptions options;
    options.engine_folder = arguments[1];
    options.threads = 1;
    std::vector<std::string> alone;  // of every kind of picture
    {
        hbsdk::Context context(options);
        const hbsdk::Subject subject = context.load_subject(arguments[2]);
        for (int i = 0; i < 2 * num_seeds; ++i) alone.push_back(drawn(context, subject, i));
    }
    if (alone[0] == alone[1]) return 3;  // the control: pictures do differ
    // A fresh context: the threads also race to load its networks.
    hbsdk::Context context(options);
    const hbsdk::Subject subject = context.load_subject(arguments[2]);
    std::atomic<int> next{0}, wrong{0};
    std::vector<std::thread> threads;
    for (int thread = 0; thread < num_threads; ++thread) {
        threads.emplace_back([&] {
            for (int i = next++; i < pictures; i = next++) {
                const auto kind = static_cast<std::size_t>(i % (2 * num_seeds));
                if (drawn(context, subject, i) != alone[kind]) ++wrong;
                // Failures of threads are their own.
                if (hbsdk_cancel(nullptr) != HBSDK_INVALID_ARGUMENT) ++wrong;
                if (std::strstr(hbsdk_last_error(), "NULL") == nullptr) ++wrong;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    std::cout << pictures << " pictures, " << wrong << " wrong\n";
    return wrong == 0 ? 0 : 1;
}
