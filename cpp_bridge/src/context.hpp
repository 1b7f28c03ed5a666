// Opened engines: what all calls share. Nothing in it changes after opening, but which networks are
// loaded: each of them has a lock of its own for that.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bridge_file.hpp"
#include "engine_spec.hpp"
#include "manifest.hpp"
#include "network.hpp"
#include "tokenizer.hpp"

namespace hbsdk {

// Adds the time until its end to a sum.
class Timer {
  public:
    explicit Timer(double& sum_ms) : sum_ms_(sum_ms) {}
    ~Timer() {
        const std::chrono::duration<double, std::milli> spent =
            std::chrono::steady_clock::now() - start_;
        sum_ms_ += spent.count();
    }
    Timer(const Timer&) = delete;
    Timer& operator=(const Timer&) = delete;

  private:
    double& sum_ms_;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

struct OpenOptions {
    std::filesystem::path engine_folder;
    std::filesystem::path bundle_folder;  // empty takes engines of any bundle
    RuntimeOptions runtime;
    bool low_memory = false;
    bool load_all = false;
};

class Context;

// One call on a context: where its time went, and whether it has to stop. Belongs to one thread.
class Call {
  public:
    explicit Call(const Context& context);

    // Throws Error (cancelled) once the context was closed, or cancelled since the call began.
    // `place` is where that was seen, such as "before engine regressor".
    void check_goes_on(const std::string& place) const;

    double graphs_ms = 0.0;
    double loading_ms = 0.0;

  private:
    const Context& context_;
    const std::uint64_t cancellations_;
};

class Context {
  public:
    // Throws Error.
    explicit Context(const OpenOptions& options);

    const std::filesystem::path folder;
    const Manifest manifest;
    const EngineSpecs specs;
    const BridgeFile bridge;
    const Tokenizer tokenizer;

    // Throws Error (mismatch) where the bundle that the engines are of has no such network.
    const EngineSpec& spec(const std::string& name) const;

    // Runs an engine, loading it if need be, after casting the floats. The shapes of what goes in
    // and comes out are the spec's, or else it throws Error (invalid_argument, mismatch).
    std::vector<Tensor> run(const std::string& name, std::vector<Tensor> inputs, Call& call);

    // Returns a network, loading it, and hashing its files, if need be. Both this and `run` end a
    // call that has to stop: Error (cancelled).
    std::shared_ptr<Network> network(const std::string& name, Call& call);

    // Forgets networks whose stage is over, if memory is to be low. Who uses one still has it.
    void release(const std::vector<const char*>& names) noexcept;

    // Stops the calls that are under way.
    void cancel() { ++cancellations_; }

    // Stops all calls, also those that have found the context and not begun yet.
    void close() { is_closed_ = true; }

  private:
    friend class Call;

    struct Slot {
        std::mutex loading;
        std::shared_ptr<Network> network;
    };

    const bool low_memory_;
    std::atomic<bool> is_closed_{false};
    std::atomic<std::uint64_t> cancellations_{0};  // a call that began before one of them stops
    HashedFiles hashed_;
    std::unique_ptr<Runtime> runtime_;
    std::map<std::string, Slot> slots_;  // of every engine; never changes in size
};

// A stage of a call: its networks are released at its end, however it ends.
class Stage {
  public:
    Stage(Context& context, std::vector<const char*> networks)
        : context_(context), networks_(std::move(networks)) {}
    ~Stage() { context_.release(networks_); }
    Stage(const Stage&) = delete;
    Stage& operator=(const Stage&) = delete;

  private:
    Context& context_;
    const std::vector<const char*> networks_;
};

}  // namespace hbsdk
