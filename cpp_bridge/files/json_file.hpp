// JSON as the bridge accepts it: an object in UTF-8 without doubled keys, not deep, of bounded
// size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace hbsdk {

// Most that hbsdk reads of a JSON file; tokenizers alone may be larger.
inline constexpr std::size_t max_json_bytes = std::size_t{4} << 20;

// Deepest nesting of objects and lists that is read.
inline constexpr std::size_t max_json_depth = 64;

// Parses an object. Throws std::invalid_argument with the reason where there is none: what
// parse_json says of it.
nlohmann::json parse_object(std::string_view text);

// Parses an object. Throws Error (damaged): no JSON, another value, a key twice, too deep, bytes
// that are no UTF-8, or a number that no double holds.
nlohmann::json parse_json(std::string_view text, const std::string& what);

// Reads a file of at most `max_bytes`. Throws Error (not_found, damaged).
nlohmann::json read_json(const std::filesystem::path& path, std::size_t max_bytes = max_json_bytes);

// A value as error messages show it: never long.
std::string shown(const nlohmann::json& value);

// A member of an object. Throws Error (damaged) where there is none, or it is of another type.
const nlohmann::json& member(const nlohmann::json& object, const char* key,
                             const std::string& what);
std::int64_t whole_number(const nlohmann::json& object, const char* key, const std::string& what);
std::string text(const nlohmann::json& object, const char* key, const std::string& what);

}  // namespace hbsdk
