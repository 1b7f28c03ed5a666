// Names of subjects: what can stand in prompts and be a file's name everywhere.
#pragma once

#include <string>
#include <string_view>

namespace hbsdk {

// Throws Error (invalid_argument): not of a-z, 0-9, _, . and -, longer than 64, led by . or -,
// with . last, or a device on Windows.
void check_name(std::string_view name);

// Returns the nearest name: "My Fox (1)" gives "my-fox-1". Bytes that are no UTF-8 are left out.
std::string safe_name(std::string_view text);

}  // namespace hbsdk
