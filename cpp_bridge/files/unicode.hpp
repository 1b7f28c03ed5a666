// Unicode as Python and the Rust library `tokenizers` see it, over the tables of utf8proc.
//
// The three have tables of different Unicode versions: characters that a version does not know yet
// are told apart differently. tests/cpp/test_files_unicode.py lists for which code points.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hbsdk {

using CodePoints = std::u32string;

// Returns nothing where the bytes are no UTF-8: also for surrogates, overlong forms and what is
// above U+10FFFF.
std::optional<CodePoints> decode_utf8(std::string_view bytes);
std::string encode_utf8(std::u32string_view text);
void append_utf8(char32_t point, std::string& text);

// Reads bytes with U+FFFD in the place of those that are no UTF-8, for messages and names.
CodePoints decode_any(std::string_view bytes);

bool is_letter(char32_t point);        // \p{L}
bool is_number(char32_t point);        // \p{N}
bool is_white_space(char32_t point);   // \s of Oniguruma and Rust: the property White_Space
bool is_rust_word(char32_t point);     // \w of Rust's regex
bool is_python_word(char32_t point);   // \w of Python's re
bool is_python_space(char32_t point);  // \s of Python's re, and what str.strip() takes away

// Each character's own lower case, "İ" as two, whatever stands beside it, as Rust's
// char::to_lowercase.
CodePoints lower_case(std::u32string_view text);

// Normal form C, in time that grows with the text's length, however many marks are in a row.
CodePoints normal_form_c(std::u32string_view text);

// The ASCII characters of a text's normal form KD: "Åé½" gives "Ae12".
std::string ascii_of(std::u32string_view text);

// The part of a text without white space at either end, as Python's str.strip().
std::u32string_view stripped(std::u32string_view text);

}  // namespace hbsdk
