"""ONNX Runtime: engines on a CPU or an NVIDIA GPU; latents stay there for the whole loop."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from hbsdk.backends.base import Features, Memory, StepCoefficients
from hbsdk.backends.engine_math import (
    Array,
    Floats,
    cast,
    coefficient_row,
    engine_rows,
    guidance_matrix,
    is_guided,
)
from hbsdk.backends.engines import Before, EngineBackend, Rows
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder
from hbsdk.engine_spec import EngineSpec
from hbsdk.errors import EngineError, OptionError

_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "int64": "tensor(int64)"}
_NUMPY_TYPES = {name: np.dtype(dtype).type for dtype, name in _TYPES.items()}
_BUILD_AGAIN = "Build the engines again: python export/build_engines.py"
_ON_GPU = ("TensorrtExecutionProvider", "CUDAExecutionProvider")


@dataclass(frozen=True)
class _Part:
    """`count` rows of a device array from row `first` on, where they lie.

    ONNX Runtime has no slices of its arrays, but binds whatever memory it is pointed to; so what
    guidance leaves behind when it ends needs no way over the host.
    """

    whole: Any  # holds the memory
    first: int
    count: int

    def shape(self) -> list[int]:
        """Its shape, as an OrtValue tells its own."""
        return [self.count, *self.whole.shape()[1:]]

    @property
    def dtype(self) -> Any:
        """Of its elements, as numpy names it."""
        return _NUMPY_TYPES[self.whole.data_type()]

    @property
    def pointer(self) -> int:
        """Of its first element."""
        row_bytes: int = math.prod(self.shape()[1:]) * np.dtype(self.dtype).itemsize
        start: int = self.whole.data_ptr()
        return start + self.first * row_bytes


class OnnxRuntimeBackend(EngineBackend):
    """Engines in ONNX Runtime. Sessions run in several threads at once."""

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        engines: EngineFolder,
        *,
        device: str | None = None,
        memory: Memory = "high",
        threads: int | None = None,
    ) -> None:
        """Prepare; nothing is loaded yet.

        Args:
            bundle: that the engines were built from.
            engines: of runtime "onnxruntime".
            device: "cpu", "cuda" or "cuda:1"; None is the first GPU that this ONNX Runtime can use
                and that the recipe's providers are for, or else the CPU.
            memory: "low" releases each network after its stage.
            threads: of the CPU; None is one a core.

        Raises:
            OptionError: this ONNX Runtime cannot use such a device.
        """
        super().__init__(bundle, engines, memory)
        self.providers, self.device = choose_providers(engines.manifest.providers, device)
        self._threads = threads

    def _open(self, spec: EngineSpec) -> ort.InferenceSession:
        path = self.engines.path(spec, ".onnx")
        return open_session(path, spec, self.providers, threads=self._threads)

    def run(self, name: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run an engine on host arrays."""
        spec, session = self.spec(name), self.load(name)
        inputs = {tensor.name: cast(feeds[tensor.name], tensor) for tensor in spec.inputs}
        spec.axes_of({name: array.shape for name, array in inputs.items()})
        outputs = session.run(None, inputs)
        return {tensor.name: out for tensor, out in zip(spec.outputs, outputs, strict=True)}

    def to_device(self, latents: Floats) -> Rows:
        """Move (N, C, h, w) latents to the device."""
        return Rows(self.on_device(np.asarray(latents, np.float32, order="C")), len(latents))

    def prompts_only(self, states: Any) -> _Part:
        """Return the second half of guided states; see `Backend`."""
        half = states.shape()[0] // 2
        return _Part(states, half, half)

    def shown(self, latents: Rows) -> Floats:
        """Return (N, C, h, w) float32 latents for a callback to read."""
        shown: Floats = latents.value.numpy()[: latents.count]
        return shown

    def denoise_step(
        self,
        latents: Rows,
        before: Before | None,
        states: Any,
        guidance_scale: float,
        coefficients: StepCoefficients,
        features: Features = "off",
    ) -> tuple[Rows, Before]:
        """Run the whole step as one graph; see `Backend`."""
        name = self.step_engine(features)
        spec, session = self.spec(name), self.load(name)
        rows = states.shape()[0]
        guided = is_guided(latents.count, rows)
        feeds = self._device_feeds(latents, before, states, features)
        spec.axes_of({key: value.shape() for key, value in feeds.items()})
        binding = session.io_binding()
        for key, value in feeds.items():
            self._bind(binding, key, value)
        small = {
            "timestep": np.array(coefficients.timestep, np.float32),
            "guidance": guidance_matrix(latents.count, guidance_scale, guided=guided),
            "coefficients": coefficient_row(coefficients, first=before is None),
        }
        for key, array in small.items():
            binding.bind_cpu_input(key, array)
        for tensor in spec.outputs:
            binding.bind_output(tensor.name, *self._place)
        session.run_with_iobinding(binding)
        following, x0, *kept = binding.get_outputs()
        deep = kept[0] if features == "keep" else feeds.get("deep_features")
        return Rows(following, latents.count), Before(x0, deep)

    def _device_feeds(
        self, latents: Rows, before: Before | None, states: Any, features: Features
    ) -> dict[str, Any]:
        """Return a step's inputs that are on the device, each of as many rows as the states."""
        rows, sample = states.shape()[0], latents.value
        if sample.shape()[0] < rows:  # the first step: each picture twice
            sample = self.on_device(engine_rows(sample.numpy(), guided=True))
        feeds = {
            "sample": _first_rows(sample, rows),
            "encoder_hidden_states": states,
            # c is 0 at the first step
            "previous_x0": _first_rows(sample if before is None else before.x0, rows),
        }
        if features == "reuse":
            assert before is not None, "deep features are reused that were not kept"
            feeds["deep_features"] = before.deep
        return feeds

    def _bind(self, binding: Any, name: str, value: Any) -> None:
        if isinstance(value, _Part):
            binding.bind_input(name, *self._place, value.dtype, value.shape(), value.pointer)
        else:
            binding.bind_ortvalue_input(name, value)

    @property
    def _place(self) -> tuple[str, int]:
        kind, _, number = self.device.partition(":")
        return kind, int(number or 0)

    def on_device(self, array: Array) -> Any:
        """Copy a host array to the device."""
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), *self._place)


def _first_rows(value: Any, count: int) -> Any:
    """Return the first rows of a device array, or the array itself if it has no more."""
    return value if value.shape()[0] == count else _Part(value, 0, count)


def open_session(
    path: Path, spec: EngineSpec, providers: Sequence[Any], *, threads: int | None = None
) -> ort.InferenceSession:
    """Load a graph and check that it is the spec's.

    The settings are the fastest ones of benchmarks/onnxruntime_options.py: each session has threads
    of its own, which by default spin on after a run and take the cores from the next network.

    Args:
        path: of a file that was verified.
        spec: of the engine.
        providers: execution providers, best first.
        threads: of the CPU; None is one a core.

    Raises:
        EngineError: ONNX Runtime cannot load it, or an input or output has another name or type.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise EngineError(
            f"engine {spec.name} in {path}", expected="a graph that ONNX Runtime loads",
            got=str(error)[:1000], remedy=_BUILD_AGAIN,
        ) from error  # fmt: skip
    check_interface(session, spec)
    return session


def choose_providers(wanted: Sequence[str], device: str | None) -> tuple[list[Any], str]:
    """Return ONNX Runtime's execution providers, best first, and the device they run on.

    Args:
        wanted: the recipe's, best first.
        device: as of `OnnxRuntimeBackend`.

    Raises:
        OptionError: this ONNX Runtime, or the recipe, has no provider for the device.
    """
    available = ort.get_available_providers()
    on_gpu = [name for name in wanted if name in _ON_GPU and name in available]
    if device == "cpu" or (device is None and not on_gpu):
        return ["CPUExecutionProvider"], "cpu"
    asked = re.fullmatch(r"cuda(?::(\d+))?", "cuda" if device is None else device)
    if asked is None or not on_gpu:
        raise OptionError(
            "device",
            expected="cpu, cuda, cuda:0 and so on" if on_gpu else
            f"cpu: of the recipe's {', '.join(wanted)} this ONNX Runtime has none for a GPU",
            got=str(device), remedy='pip install "hbsdk[cuda]" runs ONNX Runtime on NVIDIA GPUs',
        )  # fmt: skip
    number = int(asked[1] or 0)
    settings = {"device_id": number}
    return [*((name, settings) for name in on_gpu), "CPUExecutionProvider"], f"cuda:{number}"


def check_interface(session: ort.InferenceSession, spec: EngineSpec) -> None:
    """Refuse a graph whose inputs and outputs are not the spec's.

    Raises:
        EngineError: one has another name, type or rank.
    """
    pairs = ((spec.inputs, session.get_inputs()), (spec.outputs, session.get_outputs()))
    for tensors, nodes in pairs:
        want = [(one.name, _TYPES[one.dtype], len(one.shape)) for one in tensors]
        got = [(node.name, node.type, len(node.shape)) for node in nodes]
        if want != got:
            raise EngineError(
                f"inputs and outputs of engine {spec.name}", expected=str(want), got=str(got),
                remedy=_BUILD_AGAIN,
            )  # fmt: skip
