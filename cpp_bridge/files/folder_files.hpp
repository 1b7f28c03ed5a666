// The files of an engine folder against those that its manifest lists.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <string_view>

#include "manifest.hpp"

namespace hbsdk {

// The relative paths of all that a manifest lists of a folder, or of one sub-folder of it.
// Throws Error (not_found, runtime): it cannot be read.
std::set<std::string> files_of(const std::filesystem::path& folder, const std::string& part);

// Throws Error (not_found: a listed file is missing; damaged: one was added, and a library might
// load it).
void check_same_files(const std::filesystem::path& folder, const Manifest& manifest,
                      const std::string& part);

// Whether a listed path is a part, or in the sub-folder `part`; all are in "".
bool is_in_part(std::string_view path, std::string_view part);

}  // namespace hbsdk
