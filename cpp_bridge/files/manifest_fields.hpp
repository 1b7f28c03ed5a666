// What each field of a manifest.json must be, as hbsdk/manifest_rules.py has it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace hbsdk {

inline constexpr int manifest_schema = 1;  // of manifest.json and engines.json
inline constexpr const char* seal_field = "manifest_sha256";

// Throws Error (damaged; mismatch: another schema) unless an object has the fields of a manifest.
void check_manifest_fields(const nlohmann::json& data, const std::string& what);

// Throws Error (damaged) unless the field manifest_sha256 is the sha256 of the other fields.
void check_seal(const nlohmann::json& data, const std::string& what);

// JSON as Python's json.dumps(value, sort_keys=True) writes it, letter for letter.
std::string python_json(const nlohmann::json& value);

bool is_sha256(const nlohmann::json& value);
bool is_network(std::string_view name);

// "image_features, regressor, ...", for messages.
std::string network_names();

}  // namespace hbsdk
