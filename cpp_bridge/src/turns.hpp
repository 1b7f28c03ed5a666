// Taking turns: a lock that knows who has it.
#pragma once

#include <atomic>
#include <mutex>
#include <thread>

#include "error.hpp"

namespace hbsdk {

// A mutex for what a whole run holds, callbacks included. A callback that starts another run in the
// same thread would wait for itself for ever: it is refused instead.
class Turns {
  public:
    // Waits for other threads. Throws Error (invalid_argument) if this thread has it already.
    void lock() {
        if (owner_.load() == std::this_thread::get_id()) {
            throw Error(Status::invalid_argument, "drawing from within on_step",
                        "another context, or the end of the run, since TensorRT's engines draw "
                        "one picture at a time",
                        "the context that calls on_step");
        }
        mutex_.lock();
        owner_ = std::this_thread::get_id();
    }

    void unlock() {
        owner_ = std::thread::id();
        mutex_.unlock();
    }

  private:
    std::mutex mutex_;
    std::atomic<std::thread::id> owner_{};  // none while it is free
};

}  // namespace hbsdk
