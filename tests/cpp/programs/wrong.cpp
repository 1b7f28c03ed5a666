// What the sanitizers are there to find, in a program that is built and run as the tested ones are.
//   test-wrong address|undefined|leak|thread ENGINES
#include <climits>
#include <cstring>
#include <hbsdk.hpp>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

namespace {

volatile int kept = 0;  // so that no compiler sees what is done to it
int shared = 0;

void read_past_the_end() {
    const std::vector<int> values(4, int{kept});
    kept = values.data()[4 + kept];
}

void overflow() {
    int most = INT_MAX - kept;
    kept = most + 1;
}

void leak() {
    char* lost = new char[64];
    std::memset(lost, kept, 64);
    kept = lost[3];
    lost = nullptr;
}

// Two threads write what no lock guards, each from the callback of a run of its
// own.
void race(const char* engines) {
    hbsdk::OpenOptions options;
    options.engine_folder = engines;
    options.threads = 1;
    hbsdk::Context context(options);
    const auto draw = [&] {
        hbsdk::Request request;
        request.prompt = "a picture of a cat";
        request.num_inference_steps = 2;
        request.on_step = [](int, int) { return ++shared > 0; };
        context.generate(request);
    };
    std::thread other(draw);
    draw();
    other.join();
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return 2;
    const std::string kind = arguments[1];
    if (kind == "address") read_past_the_end();
    if (kind == "undefined") overflow();
    if (kind == "leak") leak();
    if (kind == "thread") race(arguments[2]);
    std::cout << "not found: " << kind << '\n';
}
