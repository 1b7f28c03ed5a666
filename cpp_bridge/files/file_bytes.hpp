// Ordinary files, read within bounds and written whole or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace hbsdk {

// Throws Error (not_found: none that can be read, a folder, or a device, which would never end;
// invalid_argument: a null character in the path).
void check_ordinary(const std::filesystem::path& path);

// Throws Error (not_found: none that can be read, a folder or a device; damaged: it is empty or
// larger than `max_bytes`; invalid_argument: a null character in the path).
std::string read_file(const std::filesystem::path& path, std::size_t max_bytes);

// Writes a file; what was there stays until the new one is on the disk. Throws Error (runtime).
void write_atomically(const std::filesystem::path& path, std::string_view bytes);

}  // namespace hbsdk
