// Opened engines: what all calls share. Nothing in it changes after opening, but which networks are
// loaded: each of them has a lock of its own for that.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "bridge_file.hpp"
#include "engine_spec.hpp"
#include "manifest.hpp"
#include "network.hpp"
#include "tokenizer.hpp"

namespace hbsdk {

// Where the time of one call went. Belongs to one thread.
struct Clock {
    double graphs_ms = 0.0;
    double loading_ms = 0.0;
};

// Adds the time until its end to one of a clock's sums.
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

    // Runs an engine, loading it if need be, after checking the shapes and casting the floats.
    std::vector<Tensor> run(const std::string& name, std::vector<Tensor> inputs, Clock& clock);

    // Returns a network, loading it, and hashing its files, if need be.
    std::shared_ptr<Network> network(const std::string& name, Clock& clock);

    // Forgets networks whose stage is over, if memory is to be low. Who uses one still has it.
    void release(std::initializer_list<const char*> names);

    // Goes up by one at each cancellation: a call that began before it stops.
    std::atomic<std::uint64_t> cancellations{0};

  private:
    struct Slot {
        std::mutex loading;
        std::shared_ptr<Network> network;
    };

    const bool low_memory_;
    std::unique_ptr<Runtime> runtime_;
    std::map<std::string, Slot> slots_;  // of every engine; never changes in size
};

}  // namespace hbsdk
