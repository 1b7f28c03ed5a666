#include "bridge_file.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "error.hpp"
#include "json_file.hpp"
#include "plain_text.hpp"

namespace hbsdk {

namespace {

constexpr int schema = 1;
constexpr int most = 1 << 20;  // of any size in the file
const char* const file_name = "bridge.json";

int size_in(const nlohmann::json& data, const char* key, const std::string& what) {
    const std::int64_t value = whole_number(data, key, what);
    if (value < 1 || value > most) {
        throw Error(Status::damaged, what + ", " + key, "a size", std::to_string(value));
    }
    return static_cast<int>(value);
}

double number_in(const nlohmann::json& data, const char* key, const std::string& what) {
    const nlohmann::json& value = member(data, key, what);
    if (!value.is_number()) {
        throw Error(Status::damaged, what + ", " + key, "a number", shown(value), build_again);
    }
    return value.get<double>();
}

std::vector<double> column(const nlohmann::json& table, const char* key, std::size_t steps,
                           const std::string& what) {
    const nlohmann::json& list = member(table, key, what);
    const bool fits = list.is_array() && list.size() == steps &&
                      std::all_of(list.begin(), list.end(),
                                  [](const nlohmann::json& one) { return one.is_number(); });
    if (!fits) {
        throw Error(Status::damaged, what + ", " + key, std::to_string(steps) + " numbers",
                    shown(list), build_again);
    }
    return list.get<std::vector<double>>();
}

Schedule schedule_in(const nlohmann::json& table, std::size_t steps, const std::string& what) {
    Schedule schedule;
    schedule.initial_noise_scale = number_in(table, "initial_noise_scale", what);
    schedule.timesteps = column(table, "timesteps", steps, what);
    schedule.p = column(table, "p", steps, what);
    schedule.q = column(table, "q", steps, what);
    schedule.a = column(table, "a", steps, what);
    schedule.b = column(table, "b", steps, what);
    schedule.c = column(table, "c", steps, what);
    return schedule;
}

std::map<int, Schedule> tables_in(const nlohmann::json& tables, const std::string& what) {
    std::map<int, Schedule> found;
    for (const auto& [text, table] : tables.items()) {
        const bool is_count = !text.empty() && text.size() < 5 &&
                              text.find_first_not_of("0123456789") == std::string::npos;
        const int steps = is_count ? std::stoi(text) : 0;
        if (steps < 1) {
            throw Error(Status::damaged, what, "numbers of steps", text, build_again);
        }
        found[steps] = schedule_in(table, static_cast<std::size_t>(steps), what + ", " + text);
    }
    return found;
}

}  // namespace

const Schedule& BridgeFile::schedule(const std::string& sampler, int num_inference_steps) const {
    const auto tables = schedules.find(sampler.empty() ? default_sampler : sampler);
    if (tables == schedules.end()) {
        throw Error(Status::invalid_argument, "sampler", "one of " + joined_keys(schedules),
                    sampler, "The bundle's scheduler_config.json decides which there are");
    }
    const auto found = tables->second.find(num_inference_steps);
    if (found == tables->second.end()) {
        throw Error(Status::invalid_argument, "num_inference_steps", "1 to 50, or 100",
                    std::to_string(num_inference_steps), "20 to 50 steps are usual");
    }
    return found->second;
}

BridgeFile read_bridge_file(const std::filesystem::path& folder, const Manifest& manifest) {
    const std::string what = (folder / file_name).string();
    if (manifest.files.count(file_name) == 0) {
        throw Error(Status::not_found, what, "a file that the manifest lists", "none",
                    "The engines are of an older hbsdk. " + std::string(build_again));
    }
    verify(folder, manifest, file_name);
    const nlohmann::json data = read_json(folder / file_name);
    if (const std::int64_t got = whole_number(data, "schema", what); got != schema) {
        throw Error(Status::mismatch, what + ", schema", std::to_string(schema),
                    std::to_string(got), build_again);
    }
    BridgeFile bridge;
    bridge.bundle = text(data, "bundle", what);
    bridge.class_word = text(data, "class_word", what);
    bridge.num_words = size_in(data, "num_words", what);
    bridge.word_dim = size_in(data, "word_dim", what);
    bridge.image_size_px = size_in(data, "image_size_px", what);
    bridge.latent_channels = size_in(data, "latent_channels", what);
    bridge.vae_scale_factor = size_in(data, "vae_scale_factor", what);
    if (bridge.image_size_px % bridge.vae_scale_factor != 0) {
        throw Error(Status::damaged, what + ", image_size_px",
                    "a multiple of vae_scale_factor " + std::to_string(bridge.vae_scale_factor),
                    std::to_string(bridge.image_size_px), build_again);
    }
    bridge.guidance_scale = static_cast<float>(number_in(data, "guidance_scale", what));
    bridge.latent_scale = static_cast<float>(number_in(data, "latent_scale", what));
    bridge.latent_shift = static_cast<float>(number_in(data, "latent_shift", what));
    bridge.default_sampler = text(data, "default_sampler", what);
    for (const auto& [sampler, tables] : member(data, "schedules", what).items()) {
        bridge.schedules[sampler] = tables_in(tables, what + ", " + sampler);
    }
    return bridge;
}

}  // namespace hbsdk
