#include "manifest_fields.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <vector>

#include "error.hpp"
#include "json_file.hpp"
#include "manifest.hpp"
#include "plain_text.hpp"
#include "unicode.hpp"

namespace hbsdk {
namespace {

using Json = nlohmann::json;

constexpr std::size_t most_named = 10;  // of unknown keys, in a message
constexpr std::array<const char*, 3> runtimes = {"onnxruntime", "tensorrt_rtx", "tensorrt"};
constexpr std::array<const char*, 6> networks = {"image_features", "regressor",   "text_encoder",
                                                 "unet",           "vae_encoder", "vae_decoder"};

bool is_text(const Json& value) {
    return value.is_string() &&
           !stripped(*decode_utf8(value.get_ref<const std::string&>())).empty();
}

bool is_digit(char letter) {
    return letter >= '0' && letter <= '9';
}

bool is_finite_from_0(const Json& value) {
    return value.is_number() && value.get<double>() >= 0 && value.get<double>() < 1e18;
}

bool is_capability(const Json& value) {
    if (!value.is_string()) return false;
    const auto& text = value.get_ref<const std::string&>();
    const auto digits = static_cast<std::size_t>(
        std::find_if_not(text.begin(), text.end(), is_digit) - text.begin());
    return digits >= 1 && digits <= 3 && text.size() == digits + 2 && text[digits] == '.' &&
           is_digit(text[digits + 1]);
}

bool is_list_of(const Json& value, bool (*is_one)(const Json&)) {
    return value.is_array() && std::all_of(value.begin(), value.end(), is_one);
}

bool is_recipe_name(const Json& value) {
    if (!value.is_string()) return false;
    const auto& text = value.get_ref<const std::string&>();
    const auto is_plain = [](char c) { return (c >= 'a' && c <= 'z') || is_digit(c); };
    return !text.empty() && text.size() <= 64 && is_plain(text[0]) &&
           std::all_of(text.begin(), text.end(),
                       [&](char c) { return is_plain(c) || c == '.' || c == '_' || c == '-'; });
}

bool is_runtime(const Json& value) {
    return std::any_of(runtimes.begin(), runtimes.end(),
                       [&](const char* name) { return value == name; });
}

bool are_precisions(const Json& value) {
    if (!value.is_object() || value.empty()) return false;
    for (const auto& [network, precision] : value.items())
        if (!is_network(network) || (precision != "float32" && precision != "float16"))
            return false;
    return true;
}

struct Rule {
    const char* key;
    const char* expected;
    std::function<bool(const Json&)> is_valid;
};

const std::vector<Rule>& rules() {
    static const std::vector<Rule> all = {
        {"schema", "1",
         [](const Json& v) { return v.is_number_integer() && v == manifest_schema; }},
        {"bundle_name", "a text", is_text},
        {"bundle_hash", "64 lower-case hexadecimal digits", is_sha256},
        {"recipe_name", "lower-case letters, digits, '.', '_' and '-'", is_recipe_name},
        {"recipe_hash", "64 lower-case hexadecimal digits", is_sha256},
        {"runtime", "onnxruntime or tensorrt_rtx or tensorrt", is_runtime},
        {"runtime_version", "a text", is_text},
        {"opset", "a whole number above 0",
         [](const Json& v) { return v.is_number_integer() && v > 0 && v < (1 << 16); }},
        {"precision", "float32 or float16 by network", are_precisions},
        {"compute_capabilities", "a list such as [\"8.9\"]",
         [](const Json& v) { return is_list_of(v, is_capability); }},
        {"providers", "a list of ONNX Runtime's execution providers",
         [](const Json& v) { return is_list_of(v, is_text); }},
        {"platform", "a text or null", [](const Json& v) { return v.is_null() || is_text(v); }},
        {"seconds", "a number from 0", is_finite_from_0},
        {"parity", "an object", [](const Json& v) { return v.is_object(); }},
        {"image_psnr_db", "a number from 0 or null",
         [](const Json& v) { return v.is_null() || is_finite_from_0(v); }},
        {"hbsdk_version", "a text", is_text},
        {"created", "a text", is_text},
        {"files", "an object of sha256s by path", [](const Json& v) { return v.is_object(); }},
        {seal_field, "64 lower-case hexadecimal digits", is_sha256},
    };
    return all;
}

Error wrong_field(const char* key, const std::string& what, const std::string& expected,
                  const std::string& got) {
    return Error(Status::damaged, std::string(key) + " in " + what, expected, got, build_again);
}

void check_keys(const Json& data, const std::string& what) {
    std::vector<std::string> missing, unknown;
    for (const Rule& rule : rules())
        if (!data.contains(rule.key)) missing.emplace_back(rule.key);
    for (const auto& [key, value] : data.items()) {
        const bool is_known =
            std::any_of(rules().begin(), rules().end(),
                        [&, name = key](const Rule& rule) { return name == rule.key; });
        if (!is_known && unknown.size() < most_named) unknown.push_back(in_quotes(key));
    }
    if (missing.empty() && unknown.empty()) return;
    throw Error(Status::damaged, "keys of " + what, "those of schema 1",
                "without [" + joined(missing) + "], with unknown [" + joined(unknown) + "]",
                build_again);
}

// Fields that have to fit the runtime.
void check_together(const Json& data, const std::string& what) {
    const bool is_onnx = data["runtime"] == "onnxruntime";
    const std::string of = " for " + data["runtime"].get<std::string>();
    if (data["compute_capabilities"].empty() != is_onnx) {
        throw wrong_field("compute_capabilities", what, "some for TensorRT, none for onnxruntime",
                          shown(data["compute_capabilities"]) + of);
    }
    if (data["providers"].empty() == is_onnx) {
        throw wrong_field("providers", what, "some for onnxruntime, none for TensorRT",
                          shown(data["providers"]) + of);
    }
    if (data["platform"].is_null() == (data["runtime"] == "tensorrt")) {
        throw wrong_field("platform", what, "a text for tensorrt, else null",
                          shown(data["platform"]) + of);
    }
}

}  // namespace

bool is_sha256(const Json& value) {
    if (!value.is_string()) return false;
    const auto& text = value.get_ref<const std::string&>();
    return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
               return is_digit(c) || (c >= 'a' && c <= 'f');
           });
}

bool is_network(std::string_view name) {
    return std::find(networks.begin(), networks.end(), name) != networks.end();
}

std::string network_names() {
    return joined(networks);
}

void check_manifest_fields(const Json& data, const std::string& what) {
    const Rule& schema = rules().front();  // told first: another's keys may rightly be others
    if (data.contains("schema") && !schema.is_valid(data["schema"])) {
        throw Error(Status::mismatch, "schema in " + what, schema.expected, shown(data["schema"]),
                    build_again);
    }
    check_keys(data, what);
    for (const Rule& rule : rules())
        if (!rule.is_valid(data[rule.key]))
            throw wrong_field(rule.key, what, rule.expected, shown(data[rule.key]));
    check_together(data, what);
    for (const auto& [name, digest] : data["files"].items()) {
        if (!is_inside(name) || name == "manifest.json" || !is_sha256(digest)) {
            throw wrong_field("files", what, "sha256s by relative paths inside of the folder",
                              shown(name + ": " + shown(digest)));
        }
    }
}

}  // namespace hbsdk
