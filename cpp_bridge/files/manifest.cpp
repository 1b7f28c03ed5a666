#include "manifest.hpp"

#include <algorithm>
#include <set>
#include <system_error>

#include "error.hpp"
#include "file_bytes.hpp"
#include "folder_files.hpp"
#include "json_file.hpp"
#include "manifest_fields.hpp"
#include "plain_text.hpp"
#include "sha256.hpp"

namespace hbsdk {
namespace {

namespace fs = std::filesystem;

const char* const manifest_file = "manifest.json";

// What file managers leave in any folder that is looked at, and nothing ever loads.
const std::set<std::string> stray_files = {".DS_Store", "Thumbs.db", "desktop.ini"};

Error wrong_file(Status status, const fs::path& path, const char* problem,
                 const std::string& expected, const std::string& got) {
    return Error(status, path.u8string() + problem, expected, got, build_again);
}

}  // namespace

bool is_inside(std::string_view path) {
    if (path.empty() || path.find_first_of(std::string_view("\\:\0", 3)) != std::string_view::npos)
        return false;
    for (std::size_t start = 0; start <= path.size();) {
        const std::size_t end = std::min(path.find('/', start), path.size());
        const std::string_view part = path.substr(start, end - start);
        if (part.empty() || part == "." || part == "..") return false;
        start = end + 1;
    }
    return true;
}

Manifest parse_manifest(std::string_view json, const std::string& what) {
    const nlohmann::json data = parse_json(json, what);
    check_manifest_fields(data, what);
    check_seal(data, what);
    Manifest manifest;
    data["bundle_name"].get_to(manifest.bundle_name);
    data["bundle_hash"].get_to(manifest.bundle_hash);
    data["recipe_name"].get_to(manifest.recipe_name);
    data["recipe_hash"].get_to(manifest.recipe_hash);
    data["runtime"].get_to(manifest.runtime);
    data["runtime_version"].get_to(manifest.runtime_version);
    data["opset"].get_to(manifest.opset);
    data["precision"].get_to(manifest.precision);
    data["compute_capabilities"].get_to(manifest.compute_capabilities);
    data["providers"].get_to(manifest.providers);
    if (!data["platform"].is_null()) manifest.platform = data["platform"].get<std::string>();
    data["hbsdk_version"].get_to(manifest.hbsdk_version);
    data["created"].get_to(manifest.created);
    data["files"].get_to(manifest.files);
    return manifest;
}

Manifest open_manifest(const fs::path& folder) {
    const fs::path path = folder / manifest_file;
    Manifest manifest = parse_manifest(read_file(path, max_json_bytes), path.u8string());
    check_same_files(folder, manifest, "");
    verify(folder, manifest, "engines.json");
    verify(folder, manifest, "recipe.toml");
    if (manifest.files.at("recipe.toml") != manifest.recipe_hash) {
        throw Error(Status::mismatch, "recipe_hash of engines " + folder.u8string(),
                    manifest.files.at("recipe.toml"), manifest.recipe_hash, build_again);
    }
    return manifest;
}

void verify(const fs::path& folder, const Manifest& manifest, const std::string& file) {
    const auto listed = manifest.files.find(file);
    if (listed == manifest.files.end()) {
        throw Error(Status::not_found, in_quotes(file) + " of " + folder.u8string(),
                    "a file that manifest.json lists", "none of that name", build_again);
    }
    const fs::path path = folder / fs::u8path(file);
    std::error_code error;
    if (fs::is_symlink(path, error))  // it could be turned elsewhere
        throw wrong_file(Status::damaged, path, "", "an ordinary file", "a link");
    if (!fs::exists(path, error))
        throw wrong_file(Status::not_found, path, " is missing",
                         "every file that manifest.json lists", "none");
    const std::string got = sha256_of_file(path);
    if (got != listed->second)
        throw wrong_file(Status::damaged, path, " was changed", "sha256 " + listed->second, got);
}

std::optional<HashedFiles::State> HashedFiles::state_of(const fs::path& path) {
    std::error_code error;
    if (fs::is_symlink(path, error)) return std::nullopt;
    const std::uintmax_t bytes = fs::file_size(path, error);
    if (error) return std::nullopt;
    const fs::file_time_type changed = fs::last_write_time(path, error);
    if (error) return std::nullopt;
    return State{bytes, changed};
}

void HashedFiles::verify(const fs::path& folder, const Manifest& manifest,
                         const std::string& file) {
    const fs::path path = folder / fs::u8path(file);
    const std::optional<State> state = state_of(path);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = good_.find(path);
        if (state && found != good_.end() && found->second == *state) return;
    }
    hbsdk::verify(folder, manifest, file);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (state) good_.insert_or_assign(path, *state);
}

std::set<std::string> files_of(const fs::path& folder, const std::string& part) {
    std::set<std::string> found;
    std::error_code error;
    const fs::path start = part.empty() ? folder : folder / fs::u8path(part);
    fs::recursive_directory_iterator place(start, error);
    for (; !error && place != fs::recursive_directory_iterator(); place.increment(error)) {
        // A link to a folder is listed as if it were a file, and so refused.
        if (place->is_directory(error) && !place->is_symlink(error)) continue;
        if (stray_files.count(place->path().filename().u8string()) != 0) continue;
        found.insert(place->path().lexically_relative(folder).generic_u8string());
    }
    if (error) {
        const bool is_missing = error == std::errc::no_such_file_or_directory;
        throw wrong_file(is_missing ? Status::not_found : Status::runtime, start, " cannot be read",
                         "", error.message());
    }
    found.erase(manifest_file);
    return found;
}

void check_same_files(const fs::path& folder, const Manifest& manifest, const std::string& part) {
    const std::set<std::string> found = files_of(folder, part);
    for (const auto& [path, digest] : manifest.files) {
        if (is_in_part(path, part) && found.count(path) == 0) {
            throw wrong_file(Status::not_found, folder / fs::u8path(path), " is missing",
                             "every file that manifest.json lists", "none");
        }
    }
    for (const std::string& path : found) {
        if (manifest.files.count(path) == 0) {
            throw Error(Status::damaged, (folder / fs::u8path(path)).u8string() + " was added",
                        "only files that manifest.json lists", path,
                        std::string("Remove it. ") + build_again);
        }
    }
}

bool is_in_part(std::string_view path, std::string_view part) {
    return part.empty() || path == part ||
           (begins_with(path, part) && path.substr(part.size(), 1) == "/");
}

}  // namespace hbsdk
