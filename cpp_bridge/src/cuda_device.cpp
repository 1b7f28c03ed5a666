#include "cuda_device.hpp"

#include <exception>
#include <utility>

#include "error.hpp"

namespace hbsdk {

void check_cuda(cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // forgets it, for the calls after this one
    const std::string got = cudaGetErrorString(error);
    if (error == cudaErrorMemoryAllocation) {
        throw Error(Status::out_of_memory, "the GPU's memory", "enough", got,
                    "Use low_memory, or engines of a recipe with smaller shapes");
    }
    throw Error(Status::runtime, "CUDA", "a call that succeeds", got,
                "Run `hbsdk doctor`: it tells what this machine's driver and GPU can run");
}

void check_gpu(int gpu) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorNoDevice) cudaGetLastError();  // forgets it: said by the count
    if (error != cudaErrorNoDevice) check_cuda(error);
    if (gpu < count) return;
    throw Error(Status::invalid_argument, "device",
                count == 0 ? "a GPU of NVIDIA's for TensorRT"
                           : "cuda:0 to cuda:" + std::to_string(count - 1),
                count == 0 ? "none in this machine" : "cuda:" + std::to_string(gpu));
}

DeviceArray::DeviceArray(std::size_t bytes) : bytes_(bytes) {
    check_cuda(cudaMalloc(&pointer_, bytes));
}

DeviceArray::DeviceArray(DeviceArray&& other) noexcept
    : pointer_(std::exchange(other.pointer_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceArray& DeviceArray::operator=(DeviceArray&& other) noexcept {
    std::swap(pointer_, other.pointer_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

DeviceArray::~DeviceArray() {
    cudaFree(pointer_);
}

Stream::Stream(int gpu) : gpu_(gpu) {
    check_gpu(gpu);
    use();
    // Not the legacy default stream, which would wait for all others.
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

Stream::~Stream() {
    cudaStreamDestroy(stream_);
}

void Stream::use() const {
    check_cuda(cudaSetDevice(gpu_));
}

void Stream::upload(const void* bytes, const DeviceArray& target) const {
    check_cuda(
        cudaMemcpyAsync(target.pointer(), bytes, target.bytes(), cudaMemcpyHostToDevice, stream_));
    synchronize();
}

void Stream::download(const DeviceArray& source, void* bytes) const {
    check_cuda(
        cudaMemcpyAsync(bytes, source.pointer(), source.bytes(), cudaMemcpyDeviceToHost, stream_));
    synchronize();
}

void Stream::copy(const DeviceArray& source, const DeviceArray& target) const {
    check_cuda(cudaMemcpyAsync(target.pointer(), source.pointer(), source.bytes(),
                               cudaMemcpyDeviceToDevice, stream_));
}

void Stream::clear(const DeviceArray& target) const {
    check_cuda(cudaMemsetAsync(target.pointer(), 0, target.bytes(), stream_));
}

void Stream::synchronize() const {
    check_cuda(cudaStreamSynchronize(stream_));
}

cudaGraphExec_t Stream::captured(const std::function<void()>& work) const {
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed));
    bool recorded = false;
    try {
        work();
        recorded = true;
    } catch (const std::exception&) {
        // Said by the result: the caller then runs the work without a graph.
    }
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
    cudaGraphExec_t executable = nullptr;
    cudaError_t made = cudaSuccess;
    if (recorded && ended == cudaSuccess) {
        made = cudaGraphInstantiateWithFlags(&executable, graph, 0);
    } else {
        cudaGetLastError();  // forgets it
    }
    if (graph != nullptr) cudaGraphDestroy(graph);  // there can be one of half the work
    check_cuda(made);
    return executable;
}

}  // namespace hbsdk
