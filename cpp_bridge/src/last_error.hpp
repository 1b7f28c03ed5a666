// Each thread's last failure, and the one place where exceptions become statuses.
#pragma once

#include <hbsdk.h>

#include <exception>

namespace hbsdk {

// "" before any.
const char* last_error() noexcept;

// Notes what was thrown and returns its status. Call it within a catch block.
hbsdk_status status_of_current_exception() noexcept;

// Runs what a function of the C ABI does: nothing that it throws gets out.
template <typename Work>
hbsdk_status guarded(const Work& work) noexcept {
    try {
        work();
        return HBSDK_OK;
    } catch (...) {
        return status_of_current_exception();
    }
}

}  // namespace hbsdk
