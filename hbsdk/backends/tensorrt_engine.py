"""A TensorRT engine on a GPU: loaded, checked, its device buffers bound once for each shape.

Serves the modules `tensorrt_rtx` (TensorRT for RTX) and `tensorrt` (10 and 11), whose API is one;
where they differ, the module's own attributes tell. No torch.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hbsdk.backends.cuda_device import CudaDevice, DeviceArray
from hbsdk.backends.engine_math import Array
from hbsdk.engine_spec import EngineSpec
from hbsdk.errors import EngineError, MissingDependencyError, OptionError
from hbsdk.whole_file import write_whole

TYPE_NAMES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}  # of trt.DataType
_EXTRAS = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
_log = logging.getLogger(__name__)


def load_module(name: str) -> Any:
    """Return TensorRT's Python module.

    Args:
        name: "tensorrt_rtx" or "tensorrt".

    Raises:
        OptionError: it is another.
        MissingDependencyError: it is not installed, or its libraries cannot be loaded.
    """
    if name not in _EXTRAS:
        raise OptionError("TensorRT module", expected=" or ".join(_EXTRAS), got=name)
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            name, expected="an installed TensorRT", got=str(error),
            remedy=f'Install it: pip install "hbsdk[{_EXTRAS[name]}]"',
        ) from error  # fmt: skip


@cache
def logger(trt: Any) -> Any:
    """Return the module's one logger: whichever comes first serves the whole process."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps the last errors for our own messages; the rest goes to Python's logging."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=4)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message.strip())
            _log.debug("%s: %s", severity, message)

    return Logger()


def last_errors(trt: Any) -> str:
    """Return what TensorRT complained of since the last call."""
    errors = logger(trt).errors
    text = "; ".join(errors)
    errors.clear()
    return text or "no message"


class Engine:
    """One engine file and its buffers. Not for several threads at once."""

    def __init__(
        self, trt: Any, device: CudaDevice, file: Path, spec: EngineSpec, command: str
    ) -> None:
        """Load it.

        Args:
            trt: TensorRT's module.
            device: to run on.
            file: whose hash was checked: an engine is native code.
            spec: what it should take and give.
            command: that builds it again.

        Raises:
            EngineError: it was built for another TensorRT or GPU, or is not what `spec` says.
        """
        self._trt, self._device, self.spec = trt, device, spec
        self._remedy = f"Build the engines again: {command}"
        device.use()
        data = file.read_bytes()
        last_errors(trt)
        runtime = trt.Runtime(logger(trt))
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self._error("a file that this TensorRT and this GPU can load")
        self._check_tensors(engine)
        self._cache_file = _runtime_cache_file(trt, data)
        self._runtime_cache: Any = None
        self._kept = (runtime, engine)  # the context needs both
        self._start()

    def _start(self) -> None:
        """Make a context, which has no buffers yet."""
        context = self._new_context(self._kept[1])
        if context is None:
            raise self._error("room for its activations in the GPU's memory")
        self._context = context
        self.buffers: dict[str, DeviceArray] = {}
        self._values: dict[str, int] | None = None

    def another(self) -> Engine:
        """Return the engine with buffers of its own, for other shapes; the weights are shared.

        Raises:
            EngineError: the GPU has no memory for its activations.
        """
        other = copy.copy(self)
        other._start()
        return other

    def bind(self, values: Mapping[str, int]) -> bool:
        """Take device memory for these values of the axes, unless it is for them already.

        Args:
            values: of the spec's axes.

        Returns:
            Whether the buffers are new; those from before are gone then.

        Raises:
            EngineError: the engine was not built for a value, or the memory is not enough.
        """
        if values == self._values:
            return False
        self.spec.check(values)
        self.free()
        context = self._context
        for tensor in self.spec.inputs:
            shape = self.spec.shape(tensor, values)
            if not context.set_input_shape(tensor.name, shape):
                raise self._error(f"{tensor.name} of shape {shape}, as its spec allows")
        for tensor in (*self.spec.inputs, *self.spec.outputs):
            shape = self.spec.shape(tensor, values)
            buffer = self._device.empty(shape, tensor.dtype)
            self.buffers[tensor.name] = buffer
            if not context.set_tensor_address(tensor.name, buffer.pointer):
                raise self._error(f"device memory for {tensor.name}")
        self._values = dict(values)
        return True

    def enqueue(self) -> None:
        """Put one run over the bound buffers on the device's stream.

        Raises:
            EngineError: TensorRT refuses.
        """
        if not self._context.execute_async_v3(int(self._device.stream)):
            raise self._error("to run")

    def can_be_captured(self) -> bool:
        """Whether a run can be recorded in a CUDA graph, as far as TensorRT tells beforehand."""
        context = self._context
        if not hasattr(context, "is_stream_capturable"):  # only TensorRT for RTX has it
            return True
        return bool(context.is_stream_capturable(int(self._device.stream)))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once on host arrays.

        Args:
            feeds: an array for each input, of its shape and type.

        Raises:
            EngineError: a shape is outside of what the engine was built for.
        """
        values = self.spec.axes_of({name: array.shape for name, array in feeds.items()})
        is_new = self.bind(values)
        for name, array in feeds.items():
            self._device.upload(array, self.buffers[name])
        self.enqueue()
        outputs = {
            tensor.name: self._device.download(self.buffers[tensor.name])
            for tensor in self.spec.outputs
        }
        if is_new:
            self.save_runtime_cache()
        return outputs

    def free(self) -> None:
        """Give the buffers back."""
        for buffer in self.buffers.values():
            buffer.free()
        self.buffers, self._values = {}, None

    def save_runtime_cache(self) -> None:
        """Keep the kernels compiled for this GPU (TensorRT for RTX) for the next process."""
        if self._runtime_cache is None:
            return
        data = bytes(self._runtime_cache.serialize())
        try:
            if self._cache_file.is_file() and self._cache_file.stat().st_size == len(data):
                return
            # It is native code: nobody else may write there.
            self._cache_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._cache_file, data)
        except OSError as error:
            _log.warning("kernels are compiled again next time: %s", error)

    def _new_context(self, engine: Any) -> Any:
        """Create the execution context; TensorRT for RTX compiles kernels for it at run time."""
        if not hasattr(self._trt, "IRuntimeCache"):
            return engine.create_execution_context()
        settings = engine.create_runtime_config()
        # At the first run for a shape, not later in the background: a CUDA graph would else hold
        # the slow kernels that stand in until then.
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        settings.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        runtime_cache = settings.create_runtime_cache()
        if self._cache_file.is_file():
            runtime_cache.deserialize(self._cache_file.read_bytes())  # left empty if it is not fit
        settings.set_runtime_cache(runtime_cache)
        self._runtime_cache = runtime_cache
        return engine.create_execution_context(settings)

    def _error(self, expected: str) -> EngineError:
        return EngineError(
            f"TensorRT engine {self.spec.name}", expected=expected, got=last_errors(self._trt),
            remedy=self._remedy,
        )  # fmt: skip

    def _check_tensors(self, engine: Any) -> None:
        """Refuse an engine whose inputs and outputs are not the spec's."""
        modes, spec = self._trt.TensorIOMode, self.spec
        want = {
            tensor.name: _said(mode.name, TYPE_NAMES[tensor.dtype], tensor.shape)
            for mode, tensors in ((modes.INPUT, spec.inputs), (modes.OUTPUT, spec.outputs))
            for tensor in tensors
        }
        got = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            mode, dtype = engine.get_tensor_mode(name), engine.get_tensor_dtype(name)
            got[name] = _said(mode.name, dtype.name, engine.get_tensor_shape(name))
        if want != got:
            raise EngineError(
                f"inputs and outputs of TensorRT engine {spec.name}", expected=str(want),
                got=str(got), remedy=self._remedy,
            )  # fmt: skip


def _said(mode: str, dtype: str, shape: Sequence[Any]) -> str:
    """Name what is compared: dimensions that vary are "*"."""
    dims = ("*" if isinstance(dim, str) or dim < 0 else str(dim) for dim in shape)
    return f"{mode} {dtype} ({', '.join(dims)})"


def _runtime_cache_file(trt: Any, engine: bytes) -> Path:
    """Return where the kernels compiled for an engine are kept: outside of its folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256(engine).hexdigest()[:16]
    return Path(root) / "hbsdk" / f"{trt.__name__}-{trt.__version__}" / f"{digest}.kernels"
