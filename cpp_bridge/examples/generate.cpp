// Draws one picture of a subject: generate-cpp ENGINES SUBJECT PROMPT OUT.ppm
#include <fstream>
#include <hbsdk.hpp>
#include <iostream>

int main(int count, char** arguments) {
    if (count != 5) {
        std::cerr << "usage: " << arguments[0] << " ENGINES SUBJECT.safetensors PROMPT OUT.ppm\n";
        return 2;
    }
    try {
        hbsdk::OpenOptions options;
        options.engine_folder = arguments[1];
        hbsdk::Context context(options);
        const hbsdk::Subject subject = context.load_subject(arguments[2]);

        hbsdk::Request request;
        request.prompt = arguments[3];
        request.subjects = {&subject};
        request.seed = 7;
        request.on_step = [](int step, int steps) {
            std::cerr << '\r' << step << " of " << steps << " steps";
            return true;  // go on
        };
        const hbsdk::Image image = std::move(context.generate(request).at(0));

        std::ofstream file(arguments[4], std::ios::binary);
        file << "P6\n" << image.width() << ' ' << image.height() << "\n255\n";
        file.write(reinterpret_cast<const char*>(image.pixels()),
                   std::streamsize(image.width()) * image.height() * image.channels());
        if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + arguments[4]);
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
