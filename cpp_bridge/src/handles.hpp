// Handles as the C ABI hands them out: numbers in the shape of pointers, each used only once, so
// that one that was freed is always known for what it is.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "error.hpp"

namespace hbsdk {

// Objects of one kind by their handles. Who has found one keeps it alive, also after its release.
template <typename Object>
class Handles {
  public:
    // `mark` tells the kinds apart, so that a handle of one is none of another. Below 16.
    Handles(const char* kind, std::uintptr_t mark) : kind_(kind), mark_(mark) {}

    template <typename Handle>
    Handle* add(std::shared_ptr<Object> object) {
        const std::lock_guard<std::mutex> lock(mutex_);
        last_ += 16;
        objects_.emplace(last_ + mark_, std::move(object));
        return reinterpret_cast<Handle*>(last_ + mark_);
    }

    // Throws Error (invalid_argument) for NULL, a freed handle, or one of another kind.
    std::shared_ptr<Object> find(const void* handle) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = objects_.find(reinterpret_cast<std::uintptr_t>(handle));
        if (found == objects_.end()) throw unknown(handle);
        return found->second;
    }

    // Forgets a handle and returns what it stood for. Throws as `find`.
    std::shared_ptr<Object> release(const void* handle) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = objects_.find(reinterpret_cast<std::uintptr_t>(handle));
        if (found == objects_.end()) throw unknown(handle);
        std::shared_ptr<Object> object = std::move(found->second);
        objects_.erase(found);
        return object;
    }

  private:
    Error unknown(const void* handle) const {
        return Error(Status::invalid_argument, kind_, "a handle that hbsdk gave and that lives",
                     handle == nullptr ? "NULL" : "one that was freed, or is no handle of it");
    }

    const char* kind_;
    const std::uintptr_t mark_;
    std::mutex mutex_;
    std::uintptr_t last_ = 0;
    std::unordered_map<std::uintptr_t, std::shared_ptr<Object>> objects_;
};

}  // namespace hbsdk
