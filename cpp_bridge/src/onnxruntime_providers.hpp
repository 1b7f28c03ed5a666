// Which of ONNX Runtime's execution providers run the engines, and on which device.
#pragma once

#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "error.hpp"

namespace hbsdk {

struct Providers {
    std::vector<std::string> on_gpu;  // best first; none on the CPU, which comes last anyway
    int gpu = 0;
    bool may_fall_back = false;  // to the CPU, where the GPU cannot be used after all
};

// `wanted`: the recipe's, best first. `available`: of this build of ONNX Runtime. `device`: "" is
// the first that works: a GPU's where there is one, and else the CPU. TensorRT's provider is taken
// only if `use_tensorrt`.
// Throws Error (invalid_argument) where no provider is left for the device.
Providers choose_providers(const std::vector<std::string>& wanted,
                           const std::vector<std::string>& available, const std::string& device,
                           bool use_tensorrt);

// The providers of one context. Whether a GPU works shows when the first network is loaded on it:
// that decides for all of them.
class ProviderChoice {
  public:
    explicit ProviderChoice(Providers providers) : providers_(std::move(providers)) {}

    // Returns what `load` returns of the providers; of none on a GPU where that fails for another
    // reason than memory and the device was not asked for.
    template <typename Load>
    auto with(const Load& load) -> decltype(load(Providers())) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (providers_.may_fall_back) return first(load);
        }
        return load(providers_);  // which no longer changes
    }

  private:
    template <typename Load>
    auto first(const Load& load) -> decltype(load(Providers())) {
        try {
            auto loaded = load(providers_);
            providers_.may_fall_back = false;
            return loaded;
        } catch (const Error& error) {
            if (error.status == Status::out_of_memory) throw;
        }
        auto loaded = load(Providers());
        providers_ = {};
        return loaded;
    }

    std::mutex mutex_;
    Providers providers_;
};

}  // namespace hbsdk
