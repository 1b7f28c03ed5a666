#include "file_bytes.hpp"

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <system_error>

#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

#include "error.hpp"

namespace hbsdk {
namespace {

namespace fs = std::filesystem;

void write_to_disk(const fs::path& path, std::string_view bytes) {
#ifdef _WIN32
    std::FILE* opened = _wfopen(path.c_str(), L"wbx");
#else
    std::FILE* opened = std::fopen(path.c_str(), "wbx");
#endif
    if (opened == nullptr) throw std::system_error(errno, std::generic_category());
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(opened, &std::fclose);
    bool is_written = std::fwrite(bytes.data(), 1, bytes.size(), opened) == bytes.size();
    is_written = is_written && std::fflush(opened) == 0;
#ifdef _WIN32
    is_written = is_written && _commit(_fileno(opened)) == 0;
#else
    is_written = is_written && fsync(fileno(opened)) == 0;
#endif
    if (!is_written) throw std::system_error(errno, std::generic_category());
}

std::string random_letters() {
    std::random_device source;
    std::string letters;
    for (int i = 0; i < 8; ++i) letters += "0123456789abcdef"[source() & 15];
    return letters;
}

}  // namespace

void check_ordinary(const fs::path& path) {
    if (path.native().find(fs::path::value_type{0}) != fs::path::string_type::npos) {
        throw Error(Status::invalid_argument, path.u8string(), "a file that can be read",
                    "a path with a null character");
    }
    std::error_code error;
    const auto status = fs::status(path, error);
    if (fs::is_regular_file(status)) return;  // a pipe would block, a device never end
    const bool is_there = fs::exists(status);
    throw Error(Status::not_found, path.u8string(),
                is_there ? "an ordinary file" : "a file that can be read",
                fs::is_directory(status) ? "a folder"
                : is_there               ? "no ordinary file"
                           : std::make_error_code(std::errc::no_such_file_or_directory).message());
}

std::string read_file(const fs::path& path, std::size_t max_bytes) {
    check_ordinary(path);
    std::ifstream file(path, std::ios::binary);
    std::error_code error;
    const auto stated = fs::file_size(path, error);
    if (!file || error) {
        throw Error(Status::not_found, path.u8string(), "a file that can be read",
                    std::make_error_code(std::errc::permission_denied).message());
    }
    const std::string limit = "at most " + std::to_string(max_bytes) + " bytes";
    if (stated > max_bytes) {
        throw Error(Status::damaged, path.u8string(), limit, std::to_string(stated) + " bytes");
    }
    std::string bytes(static_cast<std::size_t>(stated), '\0');
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    bytes.resize(static_cast<std::size_t>(file.gcount()));
    if (bytes.empty()) throw Error(Status::damaged, path.u8string(), limit, "an empty file");
    return bytes;
}

void write_atomically(const fs::path& path, std::string_view bytes) {
    fs::path temporary = path;
    temporary.replace_filename(fs::path(".").concat(path.filename().native()));
    temporary += "." + random_letters() + ".part";
    std::string problem;
    try {
        write_to_disk(temporary, bytes);
        fs::rename(temporary, path);
    } catch (const std::system_error& error) {
        problem = error.code().message();
    }
    std::error_code ignored;
    fs::remove(temporary, ignored);
    if (!problem.empty()) {
        throw Error(Status::runtime, path.u8string(), "a folder with room that can be written to",
                    problem, "Nothing was changed: save to another folder");
    }
}

}  // namespace hbsdk
