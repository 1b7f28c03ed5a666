"""One NVIDIA GPU through NVIDIA's cuda-python: memory, copies, a stream, CUDA graphs. No torch."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hbsdk.errors import EngineError, MissingDependencyError

Array = npt.NDArray[Any]


def load_cudart() -> Any:
    """Return NVIDIA's bindings of the CUDA runtime.

    Raises:
        MissingDependencyError: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingDependencyError(
            "cuda-python", expected="the module cuda.bindings.runtime", got=str(error),
            remedy='Install it: pip install "hbsdk[tensorrt-rtx]" (or [tensorrt])',
        ) from error  # fmt: skip
    return runtime


class CudaDevice:
    """A GPU and a stream on it, in whose order everything here happens."""

    def __init__(self, index: int = 0) -> None:
        """Open it.

        Args:
            index: as CUDA counts the GPUs that `CUDA_VISIBLE_DEVICES` leaves.

        Raises:
            EngineError: there is no such GPU, or its driver is too old.
        """
        self.cudart = load_cudart()
        self.index = index
        count = self.call(self.cudart.cudaGetDeviceCount())
        if not 0 <= index < count:
            raise EngineError(
                "GPU for TensorRT", expected=f"cuda:0 to cuda:{count - 1}", got=f"cuda:{index}"
            )
        self.use()
        # Not the legacy default stream, which would wait for all others.
        flags = self.cudart.cudaStreamNonBlocking
        self.stream = self.call(self.cudart.cudaStreamCreateWithFlags(flags))
        weakref.finalize(self, self.cudart.cudaStreamDestroy, self.stream).atexit = False

    def call(self, result: tuple[Any, ...]) -> Any:
        """Return what a CUDA call gave.

        Raises:
            EngineError: it failed.
        """
        error, *values = result
        codes = self.cudart.cudaError_t
        if error != codes.cudaSuccess:
            self.cudart.cudaGetLastError()  # forgets it, for the calls after this one
            remedy = "Run `hbsdk doctor`: it tells what this machine's driver and GPU can run"
            if error == codes.cudaErrorMemoryAllocation:
                remedy = 'Use memory="low", or engines of a recipe with smaller shapes'
            text = self.cudart.cudaGetErrorString(error)[1].decode()
            raise EngineError("CUDA", got=f"{text} ({error.name})", remedy=remedy)
        return values[0] if values else None

    def use(self) -> None:
        """Make it the calling thread's GPU; each thread has its own."""
        self.call(self.cudart.cudaSetDevice(self.index))

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> DeviceArray:
        """Take memory for an array; what is in it is undefined."""
        return DeviceArray(self, tuple(shape), np.dtype(dtype))

    def array(self, values: Array) -> DeviceArray:
        """Return a copy of a host array on the device."""
        target = self.empty(values.shape, values.dtype)
        self.upload(values, target)
        return target

    def pinned(self, size: int) -> npt.NDArray[np.float32]:
        """Return (size,) float32 of the host that the GPU can read by itself."""
        pointer = int(self.call(self.cudart.cudaMallocHost(4 * size)))
        memory = (ctypes.c_float * size).from_address(pointer)
        weakref.finalize(memory, self.cudart.cudaFreeHost, pointer).atexit = False
        values: npt.NDArray[np.float32] = np.ctypeslib.as_array(memory)
        return values

    def upload(self, values: Array, target: DeviceArray) -> None:
        """Copy a host array, of the target's shape and type, and wait until it may change."""
        assert values.shape == target.shape
        assert values.dtype == target.dtype
        source = np.ascontiguousarray(values)
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(target.pointer, source.ctypes.data, target.nbytes, kind)
        self.synchronize()

    def upload_pinned(self, values: npt.NDArray[np.float32], target: DeviceArray) -> None:
        """Copy from pinned memory; it must stay as it is until the stream has come here."""
        assert values.nbytes == target.nbytes
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(target.pointer, values.ctypes.data, target.nbytes, kind)

    def copy(
        self, source: DeviceArray, target: DeviceArray, row: int = 0, rows: int | None = None
    ) -> None:
        """Copy an array of the device, or its first rows, into another, from its row `row` on."""
        assert source.dtype == target.dtype
        assert source.shape[1:] == target.shape[1:]
        size = source.nbytes if rows is None else rows * _row_bytes(source)
        offset = row * _row_bytes(target)
        assert size <= source.nbytes
        assert offset + size <= target.nbytes
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(target.pointer + offset, source.pointer, size, kind)

    def rows(self, source: DeviceArray, first: int, count: int) -> DeviceArray:
        """Return a copy of some rows of an array."""
        target = self.empty((count, *source.shape[1:]), source.dtype)
        offset = first * _row_bytes(source)
        assert offset + target.nbytes <= source.nbytes
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(target.pointer, source.pointer + offset, target.nbytes, kind)
        return target

    def download(self, source: DeviceArray, rows: int | None = None) -> Array:
        """Return an array, or its first rows, on the host, once the stream has made it."""
        shape = source.shape if rows is None else (rows, *source.shape[1:])
        values = np.empty(shape, source.dtype)
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(values.ctypes.data, source.pointer, values.nbytes, kind)
        self.synchronize()
        return values

    def _copy(self, target: int, source: int, nbytes: int, kind: Any) -> None:
        self.call(self.cudart.cudaMemcpyAsync(target, source, nbytes, kind, self.stream))

    def clear(self, target: DeviceArray) -> None:
        """Set an array to zeros."""
        self.call(self.cudart.cudaMemsetAsync(target.pointer, 0, target.nbytes, self.stream))

    def synchronize(self) -> None:
        """Wait until the stream has done all that was put on it."""
        self.call(self.cudart.cudaStreamSynchronize(self.stream))

    def event(self) -> CudaEvent:
        """Return a mark that can be put on the stream and waited for."""
        return CudaEvent(self)

    def capture(self, work: Callable[[], None]) -> CudaGraph | None:
        """Record what `work` puts on the stream, which does not run then.

        Args:
            work: calls of TensorRT and copies within the device.

        Returns:
            The graph to launch, or None if part of the work cannot be recorded.
        """
        cudart = self.cudart
        # Relaxed, or freeing an array that Python happens to drop meanwhile would spoil it.
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        self.call(cudart.cudaStreamBeginCapture(self.stream, mode))
        recorded = False
        try:
            work()
            recorded = True
        except EngineError:
            pass  # said by the result: the caller then runs the work without a graph
        finally:
            error, graph = cudart.cudaStreamEndCapture(self.stream)
        if not recorded or error != cudart.cudaError_t.cudaSuccess:
            cudart.cudaGetLastError()
            return None
        return CudaGraph(self, graph)


class DeviceArray:
    """An array in the device's memory, which is freed with the last reference to it."""

    def __init__(self, device: CudaDevice, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.pointer = int(device.call(device.cudart.cudaMalloc(self.nbytes)))
        self._free = weakref.finalize(self, device.cudart.cudaFree, self.pointer)
        self._free.atexit = False  # the process's end frees it, after CUDA may have gone

    def free(self) -> None:
        """Give the memory back now."""
        self._free()


def _row_bytes(array: DeviceArray) -> int:
    return array.nbytes // array.shape[0]


class CudaEvent:
    """A mark on a device's stream."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        cudart = device.cudart
        flags = cudart.cudaEventDisableTiming
        self._event = device.call(cudart.cudaEventCreateWithFlags(flags))
        weakref.finalize(self, cudart.cudaEventDestroy, self._event).atexit = False

    def record(self) -> None:
        """Put the mark on the stream, after all that is there."""
        device = self._device
        device.call(device.cudart.cudaEventRecord(self._event, device.stream))

    def wait(self) -> None:
        """Wait on the host until the stream has passed the mark; at once if it never had one."""
        self._device.call(self._device.cudart.cudaEventSynchronize(self._event))


class CudaGraph:
    """Recorded work that is launched as a whole."""

    def __init__(self, device: CudaDevice, graph: Any) -> None:
        self._device = device
        cudart = device.cudart
        try:
            self._executable = device.call(cudart.cudaGraphInstantiate(graph, 0))
        finally:
            device.call(cudart.cudaGraphDestroy(graph))
        weakref.finalize(self, cudart.cudaGraphExecDestroy, self._executable).atexit = False

    def launch(self) -> None:
        """Put the work on the stream."""
        device = self._device
        device.call(device.cudart.cudaGraphLaunch(self._executable, device.stream))
