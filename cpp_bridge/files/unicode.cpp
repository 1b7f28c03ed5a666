#include "unicode.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <new>

namespace hbsdk {
namespace {

constexpr char32_t replacement = 0xfffd;
constexpr std::size_t longest_decomposition = 32;  // U+FDFA has 18 characters in form KD

utf8proc_category_t category_of(char32_t point) {
    return utf8proc_category(static_cast<utf8proc_int32_t>(point));
}

int combining_class(char32_t point) {
    return utf8proc_get_property(static_cast<utf8proc_int32_t>(point))->combining_class;
}

// Reads the character at the beginning of some bytes; its size is 0 where there is none.
struct Decoded {
    char32_t point;
    std::size_t size;
};

Decoded decode_one(std::string_view bytes) {
    utf8proc_int32_t point = 0;
    const auto size = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(bytes.data()),
                                       static_cast<utf8proc_ssize_t>(bytes.size()), &point);
    if (size <= 0) return {replacement, 0};
    return {static_cast<char32_t>(point), static_cast<std::size_t>(size)};
}

std::vector<utf8proc_int32_t> decomposed(std::u32string_view text, unsigned options) {
    std::vector<utf8proc_int32_t> result;
    result.reserve(text.size());
    for (const char32_t point : text) {
        utf8proc_int32_t parts[longest_decomposition];
        int boundary = 0;  // only for splitting into graphemes
        const auto count = utf8proc_decompose_char(
            static_cast<utf8proc_int32_t>(point), parts, longest_decomposition,
            static_cast<utf8proc_option_t>(options), &boundary);
        result.insert(result.end(), parts, parts + std::max<utf8proc_ssize_t>(count, 0));
    }
    return result;
}

// Sorts the marks after each base by their class. utf8proc's own way takes time that grows with the
// square of a row of marks, and a prompt may be nothing else.
void order_marks(std::vector<utf8proc_int32_t>& points) {
    struct Mark {
        int order;
        utf8proc_int32_t point;
    };
    std::vector<Mark> marks;
    for (std::size_t start = 0; start < points.size(); ++start) {
        marks.clear();
        for (std::size_t i = start; i < points.size(); ++i) {
            const int order = combining_class(static_cast<char32_t>(points[i]));
            if (order == 0) break;
            marks.push_back({order, points[i]});
        }
        std::stable_sort(marks.begin(), marks.end(),
                         [](const Mark& a, const Mark& b) { return a.order < b.order; });
        for (std::size_t i = 0; i < marks.size(); ++i) points[start + i] = marks[i].point;
        start += marks.size();
    }
}

}  // namespace

std::optional<CodePoints> decode_utf8(std::string_view bytes) {
    CodePoints text;
    text.reserve(bytes.size());
    while (!bytes.empty()) {
        const Decoded one = decode_one(bytes);
        if (one.size == 0) return std::nullopt;
        text += one.point;
        bytes.remove_prefix(one.size);
    }
    return text;
}

void append_utf8(char32_t point, std::string& text) {
    utf8proc_uint8_t bytes[4];
    const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(point), bytes);
    text.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(size));
}

std::string encode_utf8(std::u32string_view text) {
    std::string bytes;
    bytes.reserve(text.size());
    for (const char32_t point : text) append_utf8(point, bytes);
    return bytes;
}

CodePoints decode_any(std::string_view bytes) {
    CodePoints text;
    text.reserve(bytes.size());
    while (!bytes.empty()) {
        const Decoded one = decode_one(bytes);
        text += one.point;
        bytes.remove_prefix(std::max<std::size_t>(one.size, 1));
    }
    return text;
}

bool is_letter(char32_t point) {
    const auto category = category_of(point);
    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool is_number(char32_t point) {
    const auto category = category_of(point);
    return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool is_white_space(char32_t point) {
    const auto category = category_of(point);
    return (category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP) ||
           (point >= 0x09 && point <= 0x0d) || point == 0x85;
}

bool is_rust_word(char32_t point) {
    const auto category = category_of(point);
    const bool is_mark = category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
    const bool is_counted = category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL;
    const bool is_joiner = point == 0x200c || point == 0x200d;
    // Letters in circles and squares are symbols with the property Alphabetic.
    const bool is_enclosed_letter =
        (point >= 0x24b6 && point <= 0x24e9) || (point >= 0x1f130 && point <= 0x1f149) ||
        (point >= 0x1f150 && point <= 0x1f169) || (point >= 0x1f170 && point <= 0x1f189);
    return is_letter(point) || is_mark || is_counted || category == UTF8PROC_CATEGORY_PC ||
           is_joiner || is_enclosed_letter;
}

bool is_python_word(char32_t point) {
    return is_letter(point) || is_number(point) || point == U'_';
}

bool is_python_space(char32_t point) {
    const auto* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(point));
    return property->category == UTF8PROC_CATEGORY_ZS ||
           property->bidi_class == UTF8PROC_BIDI_CLASS_WS ||
           property->bidi_class == UTF8PROC_BIDI_CLASS_B ||
           property->bidi_class == UTF8PROC_BIDI_CLASS_S;
}

CodePoints lower_case(std::u32string_view text) {
    CodePoints result;
    result.reserve(text.size());
    for (const char32_t point : text) {
        if (point == 0x130) {  // the one character whose lower case is two
            result += U"i\u0307";
        } else {
            result += static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(point)));
        }
    }
    return result;
}

CodePoints normal_form_c(std::u32string_view text) {
    auto points = decomposed(text, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
    order_marks(points);
    const auto size = utf8proc_normalize_utf32(
        points.data(), static_cast<utf8proc_ssize_t>(points.size()),
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (size < 0) throw std::bad_alloc();
    return {points.begin(), points.begin() + size};
}

std::string ascii_of(std::u32string_view text) {
    std::string result;
    for (const auto point :
         decomposed(text, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT))
        if (point < 0x80) result += static_cast<char>(point);
    return result;
}

std::u32string_view stripped(std::u32string_view text) {
    while (!text.empty() && is_python_space(text.front())) text.remove_prefix(1);
    while (!text.empty() && is_python_space(text.back())) text.remove_suffix(1);
    return text;
}

}  // namespace hbsdk
