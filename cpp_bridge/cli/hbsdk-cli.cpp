// hbsdk-cli: pictures from a prompt, a subject and a seed; subjects from a photo and a mask.
#include <hbsdk.hpp>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <limits>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>

#include "png_file.hpp"

namespace {

const char* const usage =
    "hbsdk-cli generate --engines FOLDER --prompt TEXT --out FILE.png [--subject "
    "FILE.safetensors]\n"
    "          [--negative-prompt TEXT] [--seed N] [--steps N] [--count N] [--guidance-scale X]\n"
    "          [--height PX] [--width PX] [--sampler NAME] [--stats]\n"
    "hbsdk-cli probe --engines FOLDER --image FILE.png --mask FILE.png --out FILE.safetensors\n"
    "          [--name NAME]\n"
    "both:     [--bundle FOLDER] [--device cpu|cuda|cuda:N] [--threads N] [--low-memory] "
    "[--quiet]\n"
    "--count N writes FILE-0.png, FILE-1.png and so on, from seed, seed + 1, ...\n";

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

bool is_switch(const std::string& name) {
    return name == "--quiet" || name == "--low-memory" || name == "--stats";
}

class Arguments {
  public:
    Arguments(int count, char** texts) {
        for (int i = 2; i < count; ++i) {
            const std::string name = texts[i];
            if (known().find(" " + name + " ") == std::string::npos || name[0] != '-') {
                throw UsageError("unknown argument " + name);
            }
            if (is_switch(name)) {
                given_[name] = "";
            } else if (++i < count) {
                given_[name] = texts[i];
            } else {
                throw UsageError(name + " needs a value");
            }
        }
    }

    bool has(const std::string& name) const { return given_.count(name) != 0; }

    std::string text(const std::string& name, const std::string& otherwise = "") const {
        return has(name) ? given_.at(name) : otherwise;
    }

    std::string needed(const std::string& name) const {
        if (!has(name)) throw UsageError(name + " is missing");
        return given_.at(name);
    }

    unsigned long long whole(const std::string& name, unsigned long long otherwise,
                             unsigned long long most = std::numeric_limits<int>::max()) const {
        if (!has(name)) return otherwise;
        const auto value = read<unsigned long long>(given_.at(name));
        if (!value || *value > most) {
            throw UsageError(name + ": expected a whole number from 0 to " + std::to_string(most) +
                             ", got " + given_.at(name));
        }
        return *value;
    }

    float real(const std::string& name, float otherwise) const {
        if (!has(name)) return otherwise;
        const auto value = read<float>(given_.at(name));
        if (!value || !std::isfinite(*value)) {
            throw UsageError(name + ": expected a number, got " + given_.at(name));
        }
        return *value;
    }

    int number(const std::string& name, int otherwise) const {
        return static_cast<int>(whole(name, static_cast<unsigned long long>(otherwise)));
    }

  private:
    // All of a text as a number, in no language's own notation; none where there is a rest.
    template <typename Number>
    static std::optional<Number> read(const std::string& text) {
        const char* const end = text.data() + text.size();
        Number value{};
        const auto result = std::from_chars(text.data(), end, value);
        if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
        return value;
    }

    static std::string known() {
        return " --engines --prompt --out --subject --negative-prompt --seed --steps --count "
               "--guidance-scale --height --width --sampler --stats --image --mask --name "
               "--bundle --device --threads --low-memory --quiet ";
    }

    std::map<std::string, std::string> given_;
};

hbsdk::Context opened(const Arguments& arguments) {
    hbsdk::OpenOptions options;
    options.engine_folder = arguments.needed("--engines");
    options.bundle_folder = arguments.text("--bundle");
    options.device = arguments.text("--device");
    options.threads = arguments.number("--threads", 0);
    options.low_memory = arguments.has("--low-memory");
    return hbsdk::Context(options);
}

hbsdk::Request request_of(const Arguments& arguments) {
    hbsdk::Request request;
    request.prompt = arguments.needed("--prompt");
    request.negative_prompt = arguments.text("--negative-prompt");
    request.seed = arguments.whole("--seed", 0, std::numeric_limits<unsigned long long>::max());
    request.num_images = arguments.number("--count", 1);
    request.num_inference_steps = arguments.number("--steps", request.num_inference_steps);
    request.guidance_scale = arguments.real("--guidance-scale", request.guidance_scale);
    request.height = arguments.number("--height", 0);
    request.width = arguments.number("--width", 0);
    request.sampler = arguments.text("--sampler");
    if (!arguments.has("--quiet")) {
        request.on_step = [](int step, int steps) {
            std::cerr << '\r' << "step " << step << " of " << steps;
            if (step == steps) std::cerr << '\n';
            return true;
        };
    }
    return request;
}

// FILE.png for one picture, else FILE-0.png, FILE-1.png, ...
std::string path_of(const std::string& out, std::size_t index, std::size_t count) {
    if (count == 1) return out;
    const std::size_t dot = out.rfind(".png");
    return out.substr(0, dot) + "-" + std::to_string(index) + ".png";
}

void check_ending(const std::string& path, const std::string& ending) {
    const bool fits = path.size() > ending.size() &&
                      path.compare(path.size() - ending.size(), ending.size(), ending) == 0;
    if (!fits)
        throw UsageError("--out: expected a file that ends with " + ending + ", got " + path);
}

void generate(const Arguments& arguments) {
    const std::string out = arguments.needed("--out");
    check_ending(out, ".png");
    hbsdk::Request request = request_of(arguments);
    hbsdk::Context context = opened(arguments);
    std::vector<hbsdk::Subject> subjects;
    if (arguments.has("--subject")) {
        subjects.push_back(context.load_subject(arguments.text("--subject")));
        request.subjects = {&subjects[0]};
    }
    hbsdk_stats stats{};
    stats.struct_size = sizeof stats;
    const std::vector<hbsdk::Image> images = context.generate(request, &stats);
    for (std::size_t i = 0; i < images.size(); ++i) {
        const std::string path = path_of(out, i, images.size());
        write_png(path, images[i].pixels(), images[i].width(), images[i].height());
        std::cout << path << '\n';
    }
    if (arguments.has("--stats")) {
        std::printf("{\"total_ms\": %.3f, \"graphs_ms\": %.3f, \"loading_ms\": %.3f}\n",
                    stats.total_ms, stats.graphs_ms, stats.loading_ms);
    }
}

void probe(const Arguments& arguments) {
    const std::string out = arguments.needed("--out");
    check_ending(out, ".safetensors");
    const PngPicture photo = read_png(arguments.needed("--image"), 3);
    const PngPicture mask = read_png(arguments.needed("--mask"), 1);
    hbsdk::Context context = opened(arguments);
    const hbsdk::Subject subject =
        context.probe(photo.image(), mask.image(), arguments.text("--name", "subject"));
    subject.save(out);
    std::cout << out << '\n';
}

int run(int count, char** texts) {
    const std::string verb = count > 1 ? texts[1] : "";
    if (verb == "--help" || verb == "-h") {
        std::cout << usage;
        return 0;
    }
    if (verb != "generate" && verb != "probe") {
        throw UsageError("expected generate or probe, got " + (verb.empty() ? "nothing" : verb));
    }
    const Arguments arguments(count, texts);
    verb == "generate" ? generate(arguments) : probe(arguments);
    return 0;
}

}  // namespace

int main(int count, char** texts) {
    try {
        return run(count, texts);
    } catch (const UsageError& error) {
        std::cerr << "error: " << error.what() << '\n' << usage;
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
}
