#include "json_file.hpp"

#include <stdexcept>
#include <unordered_set>
#include <vector>

#include "error.hpp"
#include "file_bytes.hpp"
#include "unicode.hpp"

namespace hbsdk {
namespace {

using Json = nlohmann::json;

constexpr std::size_t longest_shown = 200;

// Looks on while the library parses, and stops it at what it would let pass.
class Watcher {
  public:
    bool operator()(int depth, Json::parse_event_t event, const Json& value) {
        switch (event) {
            case Json::parse_event_t::object_start:
            case Json::parse_event_t::array_start:
                if (static_cast<std::size_t>(depth) >= max_json_depth)
                    throw std::invalid_argument("it is nested too deep");
                if (event == Json::parse_event_t::object_start) keys_.emplace_back();
                break;
            case Json::parse_event_t::object_end: keys_.pop_back(); break;
            case Json::parse_event_t::key:
                if (!keys_.back().insert(value.get_ref<const std::string&>()).second)
                    throw std::invalid_argument("it has a key twice");
                break;
            default: break;
        }
        return true;
    }

  private:
    std::vector<std::unordered_set<std::string>> keys_;  // of the objects that are open
};

Error wrong_member(const char* key, const std::string& what, const char* expected,
                   const std::string& got) {
    return Error(Status::damaged, std::string(key) + " in " + what, expected, got);
}

}  // namespace

Json parse_object(std::string_view text) {
    if (text.substr(0, 3) == "\xef\xbb\xbf")  // the library would skip it, others stumble
        throw std::invalid_argument("it begins with a byte order mark");
    if (text.find('\0') != std::string_view::npos)  // the library would take it for the end
        throw std::invalid_argument("it has a null character");
    Watcher watcher;
    try {
        Json value = Json::parse(text.begin(), text.end(), std::ref(watcher));
        if (!value.is_object())
            throw std::invalid_argument(std::string("it is a JSON ") + value.type_name());
        return value;
    } catch (const Json::exception& error) {
        throw std::invalid_argument(std::string("it is no JSON: ") + error.what());
    }
}

Json parse_json(std::string_view text, const std::string& what) {
    try {
        return parse_object(text);
    } catch (const std::invalid_argument& error) {
        throw Error(Status::damaged, what, "a JSON object", error.what(),
                    "Copy it again from where it came, or make it anew");
    }
}

Json read_json(const std::filesystem::path& path, std::size_t max_bytes) {
    return parse_json(read_file(path, max_bytes), path.u8string());
}

std::string shown(const Json& value) {
    const std::string whole = value.is_string()
                                  ? value.get<std::string>()
                                  : value.dump(-1, ' ', false, Json::error_handler_t::replace);
    const CodePoints points = decode_any(whole);
    if (points.size() <= longest_shown) return whole;
    return encode_utf8(std::u32string_view(points).substr(0, longest_shown)) + "...";
}

const Json& member(const Json& object, const char* key, const std::string& what) {
    if (!object.is_object()) throw Error(Status::damaged, what, "a JSON object", shown(object));
    const auto found = object.find(key);
    if (found == object.end()) throw wrong_member(key, what, "a value", "none");
    return *found;
}

std::int64_t whole_number(const Json& object, const char* key, const std::string& what) {
    const Json& value = member(object, key, what);
    constexpr auto highest = static_cast<std::uint64_t>(INT64_MAX);
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<std::uint64_t>() > highest))
        throw wrong_member(key, what, "a whole number", shown(value));
    return value.get<std::int64_t>();
}

std::string text(const Json& object, const char* key, const std::string& what) {
    const Json& value = member(object, key, what);
    if (!value.is_string()) throw wrong_member(key, what, "a text", shown(value));
    return value.get<std::string>();
}

}  // namespace hbsdk
