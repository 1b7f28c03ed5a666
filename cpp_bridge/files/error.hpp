// The error that everything inside the bridge throws: a status for programs, a sentence for people.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace hbsdk {

// The numbers are part of the C ABI: they never change, new ones are added at the end.
enum class Status : int {
    ok = 0,
    invalid_argument = 1,
    not_found = 2,
    damaged = 3,   // bytes are not what the manifest or the format says
    mismatch = 4,  // of another width, bundle or version
    bad_prompt = 5,
    cancelled = 6,
    out_of_memory = 7,
    runtime = 8,
    internal = 9,
};

// Its message is one line, "what: expected X, got Y. Remedy.", as hbsdk/errors.py writes it; an
// empty part is left out. It is always valid UTF-8: bytes that are not become U+FFFD.
class Error : public std::runtime_error {
  public:
    explicit Error(Status status, const std::string& what, const std::string& expected = {},
                   const std::string& got = {}, const std::string& remedy = {});

    const Status status;
};

// The remedy where an engine folder is at fault.
inline constexpr const char* build_again =
    "Build the engines again: python export/build_engines.py";

// The line that `Error` would have, of a problem that is only warned about.
std::string one_line_message(const std::string& what, const std::string& expected,
                             const std::string& got, const std::string& remedy);

// A text in quotation marks, as Python's repr() shows it, with control characters written out.
std::string in_quotes(std::string_view text);

}  // namespace hbsdk
