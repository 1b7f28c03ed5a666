"""A GPU that is not there: host memory behind cuda-python's and TensorRT's names.

It shows mistakes in bookkeeping, not in the use of the real libraries (test_tensorrt_contract.py
looks at that, tests/gpu runs them): its stream runs nothing until somebody waits for it, so that
memory which is changed, freed or read too early gives wrong numbers; fresh memory is full of NaN;
a copy outside of what was allocated fails.
"""

# ruff: noqa: N802, N815  (CUDA's names)
from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import tensorrt_rtx
from cuda.bindings import runtime

OK = runtime.cudaError_t.cudaSuccess
_ONNX_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


class Cudart:
    """`cuda.bindings.runtime` for one GPU with one stream that runs as late as it may."""

    cudaError_t = runtime.cudaError_t
    cudaMemcpyKind = runtime.cudaMemcpyKind
    cudaStreamCaptureMode = runtime.cudaStreamCaptureMode
    cudaStreamNonBlocking = runtime.cudaStreamNonBlocking
    cudaEventDisableTiming = runtime.cudaEventDisableTiming

    def __init__(self) -> None:
        self.queue: list[Any] = []  # work, and events as marks in it
        self.memory: dict[int, Any] = {}
        self.recording: list[Any] | None = None
        self.capture_fails = False
        self.launches = self.captures = 0

    def put(self, work: Any) -> tuple[Any]:
        (self.queue if self.recording is None else self.recording).append(work)
        return (OK,)

    def run(self, until: Any = None) -> tuple[Any]:
        if until is not None and until not in self.queue:
            return (OK,)
        while self.queue:
            work = self.queue.pop(0)
            if callable(work):
                work()
            elif work is until:
                break
        return (OK,)

    def check(self, address: int, size: int) -> None:
        assert any(
            start <= address and address + size <= start + len(block)
            for start, block in self.memory.items()
        ), "memory that is not allocated"

    def cudaGetDeviceCount(self):
        return OK, 1

    def cudaSetDevice(self, index):
        return (OK,) if index == 0 else (runtime.cudaError_t.cudaErrorInvalidDevice,)

    def cudaGetLastError(self):
        return (OK,)

    def cudaGetErrorString(self, error):
        return OK, error.name.encode()

    def cudaStreamCreateWithFlags(self, _flags):
        return OK, 7

    def cudaStreamDestroy(self, _stream):
        return (OK,)

    def cudaMalloc(self, size):
        if size > 2**30:
            return runtime.cudaError_t.cudaErrorMemoryAllocation, None
        block = (ctypes.c_ubyte * size)()
        ctypes.memset(block, 0xFF, size)  # NaN in float16 and float32
        address = ctypes.addressof(block)
        self.memory[address] = block
        return OK, address

    def cudaFree(self, address):
        self.run()  # as CUDA does
        del self.memory[address]
        return (OK,)

    cudaMallocHost, cudaFreeHost = cudaMalloc, cudaFree

    def cudaMemcpyAsync(self, target, source, size, kind, _stream):
        on_device = {"cudaMemcpyHostToDevice": (target,), "cudaMemcpyDeviceToHost": (source,)}
        for address in on_device.get(kind.name, (target, source)):
            self.check(address, size)
        return self.put(lambda: ctypes.memmove(target, source, size))

    def cudaMemsetAsync(self, target, value, size, _stream):
        self.check(target, size)
        return self.put(lambda: ctypes.memset(target, value, size))

    def cudaStreamSynchronize(self, _stream):
        assert self.recording is None, "waiting is not allowed while recording"
        return self.run()

    def cudaEventCreateWithFlags(self, _flags):
        return OK, object()

    def cudaEventDestroy(self, _event):
        return (OK,)

    def cudaEventRecord(self, event, _stream):
        self.queue = [one for one in self.queue if one is not event]
        return self.put(event)

    def cudaEventSynchronize(self, event):
        return self.run(until=event)

    def cudaStreamBeginCapture(self, _stream, _mode):
        self.recording = []
        self.captures += 1
        return (OK,)

    def cudaStreamEndCapture(self, _stream):
        recorded, self.recording = self.recording, None
        if self.capture_fails:
            return runtime.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return OK, recorded

    def cudaGraphInstantiate(self, graph, _flags):
        return OK, list(graph)

    def cudaGraphDestroy(self, _graph):
        return (OK,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, graph, _stream):
        self.launches += 1
        for work in graph:
            self.put(work)
        return (OK,)


class _Module(SimpleNamespace):
    """Hashable, as a module is."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def tensorrt_module(cudart: Cudart, *, capturable: bool = True) -> Any:
    """A module like `tensorrt_rtx` whose engine files are ONNX graphs that ONNX Runtime runs."""

    class Logger:
        INTERNAL_ERROR, ERROR = "internal", "error"

        def __init__(self) -> None:
            pass

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            try:
                return _Engine(cudart, onnxruntime.InferenceSession(data), capturable=capturable)
            except Exception as error:  # ONNX Runtime's errors share no base class
                self.log.log(Logger.ERROR, f"bad engine: {error}")
                return None

    return _Module(
        __name__="tensorrt_rtx", __version__="0.simulated", ILogger=Logger, Runtime=Runtime,
        TensorIOMode=tensorrt_rtx.TensorIOMode, IRuntimeCache=object,
        DynamicShapesKernelSpecializationStrategy=(
            tensorrt_rtx.DynamicShapesKernelSpecializationStrategy
        ),
    )  # fmt: skip


class _RuntimeCache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, data: bytes) -> bool:
        self.content = data
        return True

    def serialize(self) -> bytes:
        return self.content or b"kernels"


class _Engine:
    def __init__(self, cudart: Cudart, session: Any, *, capturable: bool) -> None:
        self.cudart, self.session, self.capturable = cudart, session, capturable
        modes = tensorrt_rtx.TensorIOMode
        self.tensors = [(modes.INPUT, node) for node in session.get_inputs()]
        self.tensors += [(modes.OUTPUT, node) for node in session.get_outputs()]
        self.num_io_tensors = len(self.tensors)

    def _of(self, name: str) -> tuple[Any, Any]:
        return next(pair for pair in self.tensors if pair[1].name == name)

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index][1].name

    def get_tensor_mode(self, name: str) -> Any:
        return self._of(name)[0]

    def get_tensor_dtype(self, name: str) -> Any:
        types = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}
        return tensorrt_rtx.DataType.__members__[types[_ONNX_TYPES[self._of(name)[1].type]]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self._of(name)[1].shape)

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(
            create_runtime_cache=_RuntimeCache, set_runtime_cache=lambda _cache: True
        )

    def create_execution_context(self, _settings: Any) -> Any:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, _stream: int) -> bool:
        return self.engine.capturable

    def execute_async_v3(self, _stream: int) -> bool:
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        self.engine.cudart.put(self._work(addresses, shapes))
        return True

    def _work(self, addresses: dict[str, int], shapes: dict[str, Any]) -> Callable[[], None]:
        session, check = self.engine.session, self.engine.cudart.check

        def work() -> None:
            feeds = {}
            for node in session.get_inputs():
                array = np.empty(shapes[node.name], _ONNX_TYPES[node.type])
                check(addresses[node.name], array.nbytes)
                ctypes.memmove(array.ctypes.data, addresses[node.name], array.nbytes)
                feeds[node.name] = array
            for node, value in zip(session.get_outputs(), session.run(None, feeds), strict=True):
                output = np.ascontiguousarray(value)
                check(addresses[node.name], output.nbytes)
                ctypes.memmove(addresses[node.name], output.ctypes.data, output.nbytes)

        return work
