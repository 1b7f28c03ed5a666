#include "bundle_hash.hpp"

#include <array>
#include <map>
#include <set>
#include <string_view>

#include "error.hpp"
#include "json_file.hpp"
#include "manifest.hpp"
#include "manifest_fields.hpp"
#include "plain_text.hpp"
#include "sha256.hpp"

namespace hbsdk {
namespace {

namespace fs = std::filesystem;
using Digests = std::map<std::string, std::string>;  // sha256 by relative path

constexpr std::array<const char*, 8> components = {
    "tokenizer", "text_encoder", "unet", "vae", "scheduler", "image_encoder", "dino", "regressor"};
constexpr std::size_t required = 5;  // the first of them are plain Stable Diffusion
const char* const copy_again = "Copy the bundle again from where it came";

bool remove_prefix(std::string_view& text, std::string_view prefix) {
    const bool has_it = begins_with(text, prefix);
    if (has_it) text.remove_prefix(prefix.size());
    return has_it;
}

// "-00001-of-00002", where it stands: nothing is as good.
void remove_shard(std::string_view& name) {
    constexpr std::string_view pattern = "-00000-of-00000";
    if (name.size() < pattern.size()) return;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
        const bool is_digit = name[i] >= '0' && name[i] <= '9';
        if (pattern[i] == '0' ? !is_digit : name[i] != pattern[i]) return;
    }
    name.remove_prefix(pattern.size());
}

// The files that diffusers and transformers load; variants (fp16, non_ema) are left alone.
bool is_weights(std::string_view name) {
    if (!remove_prefix(name, "diffusion_pytorch_model") && !remove_prefix(name, "model"))
        return false;
    remove_shard(name);
    return name == ".safetensors" || name == ".safetensors.index.json";
}

// Whether a file of a component's folder decides what the component does.
bool counts_for(std::string_view component, std::string_view name) {
    static const std::set<std::string_view> tokenizer_files = {
        "tokenizer.json",          "vocab.json",        "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json", "merges.txt"};
    if (component == "tokenizer") return tokenizer_files.count(name) != 0;
    if (component == "scheduler") return name == "scheduler_config.json";
    return name == "config.json" || is_weights(name);
}

Digests listed_files(const fs::path& folder) {
    const fs::path path = folder / "hbsdk.json";
    if (!fs::exists(path)) return {};
    const nlohmann::json data = read_json(path);
    const std::string what = path.u8string();
    if (whole_number(data, "schema", what) != 1) {
        throw Error(Status::mismatch, "schema in " + what, "1", shown(data["schema"]),
                    "Install the hbsdk that wrote this bundle");
    }
    const nlohmann::json& files = member(data, "files", what);
    if (!files.is_object())
        throw Error(Status::damaged, "files in " + what, "an object of sha256s by path");
    Digests digests;
    for (const auto& [name, digest] : files.items()) {
        if (!is_inside(name) || name == "hbsdk.json" || !is_sha256(digest)) {
            throw Error(Status::damaged, "files in " + what,
                        "sha256s by relative paths inside of the bundle",
                        shown(name + ": " + shown(digest)), copy_again);
        }
        digests[name] = digest.get<std::string>();
    }
    return digests;
}

void add_hashed(const fs::path& folder, const std::string& component, Digests& digests) {
    for (const auto& entry : fs::directory_iterator(folder / component)) {
        const std::string name = entry.path().filename().u8string();
        if (entry.is_regular_file() && counts_for(component, name))
            digests[component + "/" + name] = sha256_of_file(entry.path());
    }
}

std::string hash_of(const fs::path& folder) {
    const Digests listed = listed_files(folder);
    Digests counted;
    for (const std::string component : components) {
        if (!fs::is_directory(folder / component)) continue;
        bool is_listed = false;
        for (auto file = listed.lower_bound(component); file != listed.end(); ++file) {
            std::string_view rest = file->first;
            if (!remove_prefix(rest, component)) break;
            if (!rest.empty() && rest[0] != '/') continue;
            is_listed = true;
            if (!rest.empty() && counts_for(component, rest.substr(1))) counted.insert(*file);
        }
        if (!is_listed) add_hashed(folder, component, counted);
    }
    std::string lines;
    for (const auto& [path, digest] : counted) lines += digest + "  " + path + "\n";
    return sha256_of(lines.data(), lines.size());
}

}  // namespace

std::string bundle_hash(const fs::path& folder) {
    try {
        for (std::size_t i = 0; i < required; ++i) {
            if (fs::is_directory(folder / components[i])) continue;
            throw Error(Status::not_found,
                        "bundle " + folder.u8string() + " without " + components[i],
                        "the sub-folders tokenizer, text_encoder, unet, vae, scheduler", "others",
                        "Pass a bundle's folder");
        }
        return hash_of(folder);
    } catch (const fs::filesystem_error& error) {
        throw Error(Status::not_found, folder.u8string() + " cannot be read", "",
                    error.code().message(), copy_again);
    }
}

}  // namespace hbsdk
