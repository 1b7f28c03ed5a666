// Subject files: safetensors with one tensor (n, d), read with suspicion and written in one piece.
//
// What is accepted, refused and written is what hbsdk/subject_file.py and hbsdk/subject.py do.
#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace hbsdk {

inline constexpr std::size_t max_subject_bytes = std::size_t{16} << 20;
inline constexpr std::size_t max_metadata_bytes = std::size_t{256} << 10;  // keys and values
inline constexpr int max_words = 75;  // CLIP's 77 tokens without start and end

struct Subject {
    std::string name;          // stands for it in prompts, as <name>
    std::vector<float> words;  // (count, width), row by row
    int count = 0;
    int width = 0;
    std::map<std::string, std::string> metadata;  // hbsdk's (its prefix left out) and ModelSpec's
};

// Reads the bytes of a file: F32, F16 or BF16, (n, d) or (d,), under any name. Its name is left
// "subject". `what` is what a message calls it.
// Throws Error (damaged): no safetensors, a lie in its header, another hash, or not a subject.
Subject parse_subject(const void* data, std::size_t size, std::string_view what);

// Reads a file; its name becomes the subject's. Throws Error (not_found, damaged).
Subject read_subject(const std::filesystem::path& path);

// Throws Error (invalid_argument) for words, a name or metadata that cannot be a subject's.
void check_subject(const Subject& subject);

// Returns the bytes of a file. `title` is the name under which tools list it.
std::vector<char> encode_subject(const Subject& subject, const std::string& title);

// Writes a file whole or not at all, and returns its path. `path` is a folder that exists, for
// <name>.safetensors in it, or the file, whose name must be a subject's.
// Throws Error (invalid_argument; runtime: the folder is missing, full or not writable).
std::filesystem::path write_subject(const std::filesystem::path& path, const Subject& subject);

}  // namespace hbsdk
