// One NVIDIA GPU for TensorRT: memory, copies, a stream, CUDA graphs. As hbsdk/backends/
// cuda_device.py; ONNX Runtime does all of this by itself.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <string>

namespace hbsdk {

// Throws Error (out_of_memory, runtime) unless the call went well.
void check_cuda(cudaError_t error);

// Throws Error (invalid_argument) unless this machine has a GPU of that number.
void check_gpu(int gpu);

// Device memory that is freed with its object.
class DeviceArray {
  public:
    DeviceArray() = default;
    explicit DeviceArray(std::size_t bytes);
    DeviceArray(DeviceArray&& other) noexcept;
    DeviceArray& operator=(DeviceArray&& other) noexcept;
    ~DeviceArray();

    void* pointer() const { return pointer_; }
    std::size_t bytes() const { return bytes_; }

  private:
    void* pointer_ = nullptr;
    std::size_t bytes_ = 0;
};

// A stream, in whose order everything happens; of the GPU that was chosen when it was made.
class Stream {
  public:
    explicit Stream(int gpu);
    ~Stream();
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    // Makes its GPU the calling thread's; each thread has its own.
    void use() const;
    cudaStream_t get() const { return stream_; }

    // Copies from the host, which may change its bytes afterwards.
    void upload(const void* bytes, const DeviceArray& target) const;
    // Copies to the host, once the stream has come here.
    void download(const DeviceArray& source, void* bytes) const;
    void copy(const DeviceArray& source, const DeviceArray& target) const;
    void clear(const DeviceArray& target) const;
    void synchronize() const;

    // Records what `work` puts on the stream, which does not run then; null if it cannot be.
    cudaGraphExec_t captured(const std::function<void()>& work) const;

  private:
    int gpu_;
    cudaStream_t stream_ = nullptr;
};

}  // namespace hbsdk
