// Threads share a context: every picture must be the one that a single thread draws.
//   test-threads ENGINES SUBJECT PICTURES
// First four threads draw PICTURES pictures. Then they draw and probe with low memory, while a
// fifth cancels them and at last closes the context.
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <hbsdk.hpp>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int num_threads = 4;
constexpr int num_seeds = 5;
constexpr int num_cancellations = 5;
constexpr int pictures_between = 3;  // the last cancellation and the end

using Pictures = std::vector<std::string>;

hbsdk::Request request_of(const hbsdk::Subject& subject, int index) {
    hbsdk::Request request;
    request.prompt = index % 2 == 0 ? "a picture of S*" : "a picture of a cat";
    if (index % 2 == 0) request.subjects = {&subject};
    request.seed = static_cast<std::uint64_t>(index % num_seeds);
    request.num_inference_steps = 2;
    return request;
}

std::string drawn(hbsdk::Context& context, const hbsdk::Request& request) {
    const std::vector<hbsdk::Image> images = context.generate(request);
    const hbsdk::Image& image = images.at(0);
    const auto size = static_cast<std::size_t>(image.width()) *
                      static_cast<std::size_t>(image.height() * image.channels());
    return {reinterpret_cast<const char*>(image.pixels()), size};
}

// Returns how many pictures came out wrong.
int draw_together(const hbsdk::OpenOptions& options, const hbsdk::Subject& subject,
                  const Pictures& alone, int pictures) {
    hbsdk::Context context(options);  // a fresh one: the threads also race to load its networks
    std::atomic<int> next{0}, wrong{0};
    std::vector<std::thread> threads;
    for (int thread = 0; thread < num_threads; ++thread) {
        threads.emplace_back([&] {
            for (int i = next++; i < pictures; i = next++) {
                const auto kind = static_cast<std::size_t>(i) % alone.size();
                if (drawn(context, request_of(subject, i)) != alone[kind]) ++wrong;
                // Failures of threads are their own.
                if (hbsdk_cancel(nullptr) != HBSDK_INVALID_ARGUMENT) ++wrong;
                if (std::strstr(hbsdk_last_error(), "NULL") == nullptr) ++wrong;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    return wrong;
}

// What the threads of the second part tell one another.
class Board {
  public:
    // A run is at a step, and waits there until something was done to it.
    void arrive() {
        std::unique_lock<std::mutex> lock(mutex_);
        const int mine = ++arrived_;
        changed_.notify_all();
        changed_.wait(lock, [&] { return done_ >= mine; });
    }
    void wait_for_arrival() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return arrived_ > done_; });
    }
    void done() { add(done_); }
    void picture() { add(pictures_); }
    void wait_for_pictures(int more) {
        std::unique_lock<std::mutex> lock(mutex_);
        const int wanted = pictures_ + more;
        changed_.wait(lock, [&] { return pictures_ >= wanted; });
    }

  private:
    void add(int& number) {
        const std::lock_guard<std::mutex> lock(mutex_);
        ++number;
        changed_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    int arrived_ = 0, done_ = 0, pictures_ = 0;
};

// Repeats `work` until the context is closed; returns how often it was cancelled.
template <typename Work>
int until_closed(const Work& work, std::atomic<int>& wrong) {
    int cancelled = 0;
    while (true) {
        try {
            work();
        } catch (const hbsdk::Failure& failure) {
            if (failure.status == HBSDK_INVALID_ARGUMENT) return cancelled;
            if (failure.status != HBSDK_CANCELLED) {
                std::cerr << failure.what() << '\n';
                ++wrong;
                return cancelled;
            }
            ++cancelled;
        }
    }
}

struct Photo {
    std::vector<std::uint8_t> rgb, mask;
    hbsdk_image image() { return {rgb.data(), 64, 64, 3}; }
    hbsdk_image subject() { return {mask.data(), 64, 64, 1}; }
};

Photo photo() {
    Photo made{std::vector<std::uint8_t>(64 * 64 * 3), std::vector<std::uint8_t>(64 * 64)};
    for (std::size_t i = 0; i < made.rgb.size(); ++i) made.rgb[i] = std::uint8_t(i * 31 % 251);
    for (std::size_t y = 16; y < 48; ++y) std::memset(&made.mask[y * 64 + 16], 255, 32);
    return made;
}

int stop_them(hbsdk::OpenOptions options, const hbsdk::Subject& subject, const Pictures& alone) {
    options.low_memory = true;
    hbsdk::Context context(options);
    Board board;
    std::atomic<int> wrong{0};
    int cancelled = 0;  // of the thread that waits for it
    std::vector<std::thread> threads;
    threads.emplace_back([&] {
        hbsdk::Request request = request_of(subject, 0);
        request.on_step = [&](int step, int) {
            if (step == 1) board.arrive();
            return true;
        };
        cancelled = until_closed([&] { context.generate(request); }, wrong);
    });
    for (const int kind : {0, 1}) {
        threads.emplace_back([&, kind] {
            const hbsdk::Request request = request_of(subject, kind);
            until_closed(
                [&] {
                    if (drawn(context, request) != alone[static_cast<std::size_t>(kind)]) ++wrong;
                    board.picture();
                },
                wrong);
        });
    }
    threads.emplace_back([&] {
        Photo made = photo();
        until_closed([&] { context.probe(made.image(), made.subject()); }, wrong);
    });
    for (int i = 0; i < num_cancellations; ++i) {
        board.wait_for_arrival();
        context.cancel();
        board.done();
    }
    board.wait_for_arrival();
    board.wait_for_pictures(pictures_between);  // the others go on
    hbsdk_close(context.get());
    board.done();
    for (std::thread& thread : threads) thread.join();
    if (cancelled != num_cancellations + 1) {
        std::cerr << "cancelled " << cancelled << " times\n";
        ++wrong;
    }
    return wrong;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) return 2;
    const int pictures = std::stoi(arguments[3]);
    hbsdk::OpenOptions options;
    options.engine_folder = arguments[1];
    options.threads = 1;
    Pictures alone;  // of every kind of picture
    hbsdk::Context context(options);
    const hbsdk::Subject subject = context.load_subject(arguments[2]);
    for (int i = 0; i < 2 * num_seeds; ++i) {
        alone.push_back(drawn(context, request_of(subject, i)));
    }
    if (alone[0] == alone[1]) return 3;  // the control: pictures do differ
    const int wrong = draw_together(options, subject, alone, pictures);
    const int wrong_at_the_end = stop_them(options, subject, alone);
    std::cout << pictures << " pictures, " << wrong << " wrong; " << wrong_at_the_end
              << " wrong when stopped\n";
    return wrong + wrong_at_the_end == 0 ? 0 : 1;
}
