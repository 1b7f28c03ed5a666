#include "subject_name.hpp"

#include <algorithm>

#include "error.hpp"
#include "unicode.hpp"

namespace hbsdk {
namespace {

constexpr std::size_t longest_name = 64;

bool is_plain(char letter) {
    return (letter >= 'a' && letter <= 'z') || (letter >= '0' && letter <= '9') || letter == '_';
}

bool is_allowed(char letter) {
    return is_plain(letter) || letter == '.' || letter == '-';
}

bool has_form_of_name(std::string_view name) {
    return !name.empty() && is_plain(name.front()) && name.back() != '.' &&
           std::all_of(name.begin(), name.end(), is_allowed);
}

// "con", "lpt1" and so on, also with an ending.
bool is_windows_device(std::string_view name) {
    const std::string_view stem = name.substr(0, name.find('.'));
    if (stem == "con" || stem == "prn" || stem == "aux" || stem == "nul") return true;
    const std::string_view kind = stem.substr(0, 3);
    return stem.size() == 4 && (kind == "com" || kind == "lpt") && stem[3] >= '0' && stem[3] <= '9';
}

// The text without any of these letters at its ends.
std::string_view without_ends(std::string_view text, std::string_view letters) {
    const std::size_t first = text.find_first_not_of(letters);
    if (first == std::string_view::npos) return {};
    return text.substr(first, text.find_last_not_of(letters) - first + 1);
}

}  // namespace

std::string safe_name(std::string_view text) {
    std::string plain;
    bool is_between = false;  // in a run of other letters, which becomes one "-"
    for (char letter : ascii_of(decode_any(text))) {
        if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
        if (is_allowed(letter)) {
            plain += letter;
        } else if (!is_between) {
            plain += '-';
        }
        is_between = !is_allowed(letter);
    }
    std::string_view name = without_ends(plain, "-.").substr(0, longest_name);
    name = name.substr(0, name.find_last_not_of("-.") + 1);
    return name.empty() || is_windows_device(name) ? "subject" : std::string(name);
}

void check_name(std::string_view name) {
    const std::string what = "subject name " + in_quotes(name);
    const CodePoints points = decode_any(name);
    if (lower_case(points) != points) {
        throw Error(
            Status::invalid_argument, what, "lower case", "capitals",
            "CLIP's tokenizers make prompts lower case: under a name with capitals diffusers "
            "would silently lose all words but one. Use " +
                in_quotes(encode_utf8(lower_case(points))));
    }
    if (!has_form_of_name(name) || points.size() > longest_name) {
        throw Error(
            Status::invalid_argument, what,
            "up to 64 of a-z, 0-9, _, . and -, not led by . or -, no . last",
            points.size() > longest_name ? std::to_string(points.size()) + " characters" : "others",
            "Use for example " + in_quotes(safe_name(name)));
    }
    if (is_windows_device(name)) {
        throw Error(Status::invalid_argument, what, "a name that can be a file's",
                    "one that Windows keeps for a device",
                    "Use for example " + in_quotes(safe_name(name)));
    }
}

}  // namespace hbsdk
