// The seal of a manifest: Python computes it over its own JSON, so that has to be written here too.
#include <charconv>
#include <cstdlib>
#include <system_error>

#include "error.hpp"
#include "json_file.hpp"
#include "manifest_fields.hpp"
#include "sha256.hpp"

namespace hbsdk {
namespace {

using Json = nlohmann::json;

// A double as Python's repr() writes it: the fewest digits that read back as the same number.
std::string python_number(double value) {
    char buffer[32];
    const auto end =
        std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
    std::string digits(buffer, end.ptr);  // "-1.25e-07"
    const std::size_t mark = digits.find('e');
    const int exponent = std::atoi(digits.c_str() + mark + 1);
    if (exponent < -4 || exponent >= 16) return digits;
    const std::string sign = digits[0] == '-' ? "-" : "";
    std::string plain = digits.substr(sign.size(), mark - sign.size());
    if (plain.size() > 1) plain.erase(1, 1);  // the point
    if (exponent < 0)
        return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + plain;
    const auto whole = static_cast<std::size_t>(exponent) + 1;
    if (plain.size() <= whole) return sign + plain + std::string(whole - plain.size(), '0') + ".0";
    return sign + plain.substr(0, whole) + "." + plain.substr(whole);
}

std::string quoted_ascii(const std::string& text) {
    return Json(text).dump(-1, ' ', /*ensure_ascii=*/true);
}

void write(const Json& value, std::string& out) {
    const char* separator = "";
    if (value.is_object()) {
        out += '{';
        for (const auto& [key, item] : value.items()) {  // sorted: UTF-8 sorts as code points do
            out += separator + quoted_ascii(key) + ": ";
            write(item, out);
            separator = ", ";
        }
        out += '}';
    } else if (value.is_array()) {
        out += '[';
        for (const Json& item : value) {
            out += separator;
            write(item, out);
            separator = ", ";
        }
        out += ']';
    } else if (value.is_number_float()) {
        out += python_number(value.get<double>());
    } else {
        out += value.dump(-1, ' ', /*ensure_ascii=*/true);
    }
}

}  // namespace

std::string python_json(const Json& value) {
    std::string text;
    write(value, text);  // no deeper than max_json_depth
    return text;
}

void check_seal(const Json& data, const std::string& what) {
    Json others = data;
    others.erase(seal_field);
    const std::string text = python_json(others);
    const std::string got = sha256_of(text.data(), text.size());
    if (data[seal_field] != got) {
        throw Error(Status::damaged, what + " was changed", std::string(seal_field) + " " + got,
                    shown(data[seal_field]), build_again);
    }
}

}  // namespace hbsdk
