// SHA-256 by OpenSSL, as 64 lower-case hexadecimal digits.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace hbsdk {

std::string sha256_of(const void* data, std::size_t size);

// Throws Error (not_found, runtime) where the file cannot be read. Reads it in pieces.
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace hbsdk
