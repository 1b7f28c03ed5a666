// The identity of a bundle's folder: `Bundle.open(folder).hash` of hbsdk/bundle.py.
#pragma once

#include <filesystem>
#include <string>

namespace hbsdk {

// Returns the sha256 over the (path, sha256) of all that is loaded of a bundle: taken from its
// hbsdk.json where there is one, the files are hashed where not.
// Throws Error (not_found: no bundle there; damaged: hbsdk.json; mismatch: its schema).
std::string bundle_hash(const std::filesystem::path& folder);

}  // namespace hbsdk
