#include "last_error.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <new>
#include <system_error>

#include "error.hpp"

namespace hbsdk {

namespace {

// Not a string: noting that memory is out must not need any.
constexpr std::size_t most_bytes = 4096;
thread_local char message[most_bytes] = "";

void note(const char* text) noexcept {
    std::size_t length = std::min(std::strlen(text), most_bytes - 1);
    // Never end within a character: those of UTF-8 go on with 10xxxxxx.
    while (length > 0 && (static_cast<unsigned char>(text[length]) & 0xC0U) == 0x80U) --length;
    std::memcpy(message, text, length);
    message[length] = '\0';
}

hbsdk_status noted(Status status, const char* text) noexcept {
    note(text);
    return static_cast<hbsdk_status>(status);
}

}  // namespace

const char* last_error() noexcept {
    return message;
}

hbsdk_status status_of_current_exception() noexcept {
    const char* const no_memory =
        "memory: expected enough, got none. Close other programs, or use low_memory.";
    try {
        throw;
    } catch (const Error& error) {
        return noted(error.status, error.what());
    } catch (const std::bad_alloc&) {
        return noted(Status::out_of_memory, no_memory);
    } catch (const std::filesystem::filesystem_error& error) {
        return noted(Status::runtime, error.what());
    } catch (const std::system_error& error) {
        // Threads that cannot be started: their stacks are memory too.
        const bool is_memory = error.code() == std::errc::resource_unavailable_try_again ||
                               error.code() == std::errc::not_enough_memory;
        return is_memory ? noted(Status::out_of_memory, no_memory)
                         : noted(Status::runtime, error.what());
    } catch (const std::exception& error) {
        return noted(Status::internal, error.what());
    } catch (...) {
        return noted(Status::internal, "hbsdk: an exception of no known type");
    }
}

}  // namespace hbsdk
