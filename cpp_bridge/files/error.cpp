#include "error.hpp"

#include <cstdio>

#include "unicode.hpp"

namespace hbsdk {
namespace {

// The text with every run of white space, line breaks included, made one space.
std::string one_line(const std::string& text) {
    std::string line;
    bool is_between_words = false;
    for (const char32_t point : decode_any(text)) {
        if (is_python_space(point)) {
            is_between_words = !line.empty();
            continue;
        }
        if (is_between_words) line += ' ';
        is_between_words = false;
        if (point == 0) {  // would end the text of an exception
            line += "\\x00";
        } else {
            append_utf8(point, line);
        }
    }
    return line;
}

std::string end_sentence(const std::string& text) {
    const bool has_end =
        !text.empty() && std::string_view(".!?").find(text.back()) != std::string_view::npos;
    return has_end ? text : text + '.';
}

}  // namespace

std::string one_line_message(const std::string& what, const std::string& expected,
                             const std::string& got, const std::string& remedy) {
    std::string problem = one_line(what);
    if (!expected.empty()) problem += ": expected " + one_line(expected);
    if (!got.empty()) problem += (expected.empty() ? ": got " : ", got ") + one_line(got);
    problem = end_sentence(problem);
    return remedy.empty() ? problem : problem + ' ' + end_sentence(one_line(remedy));
}

Error::Error(Status given, const std::string& what, const std::string& expected,
             const std::string& got, const std::string& remedy)
    : std::runtime_error(one_line_message(what, expected, got, remedy)), status(given) {}

std::string in_quotes(std::string_view text) {
    const bool has_apostrophe = text.find('\'') != std::string_view::npos;
    const char mark = has_apostrophe && text.find('"') == std::string_view::npos ? '"' : '\'';
    std::string result(1, mark);
    for (const char32_t point : decode_any(text)) {
        char escaped[8];
        if (point == U'\\' || point == static_cast<unsigned char>(mark)) {
            result += '\\';
            append_utf8(point, result);
        } else if (point == U'\n' || point == U'\r' || point == U'\t') {
            result += point == U'\n' ? "\\n" : point == U'\r' ? "\\r" : "\\t";
        } else if (point < 0x20 || (point >= 0x7f && point <= 0xa0) || point == 0xad) {
            std::snprintf(escaped, sizeof escaped, "\\x%02x", static_cast<unsigned>(point));
            result += escaped;
        } else {
            append_utf8(point, result);
        }
    }
    return result + mark;
}

}  // namespace hbsdk
