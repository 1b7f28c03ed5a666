"""TensorRT and TensorRT for RTX: engines on an NVIDIA GPU; the loop is one CUDA graph a step."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hbsdk.backends.base import Memory, StepCoefficients
from hbsdk.backends.cuda_device import CudaDevice, CudaGraph, DeviceArray
from hbsdk.backends.engine_math import (
    Array,
    Floats,
    cast,
    coefficient_row,
    guidance_matrix,
    is_guided,
)
from hbsdk.backends.engines import EngineBackend
from hbsdk.backends.tensorrt_engine import Engine, load_module
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder
from hbsdk.engine_spec import EngineSpec
from hbsdk.errors import EngineError, OptionError


@dataclass(frozen=True, eq=False)
class _Latents:
    """Latents on the device: their own, or those that the loop's buffers hold after a step.

    shape: (N, C, h, w).
    array: None if they are in the loop's buffers.
    step: of the loop, after which they are.
    """

    shape: tuple[int, ...]
    array: DeviceArray | None
    step: int = 0


@dataclass(frozen=True)
class _PreviousX0:
    """The x0 that the loop's buffers hold after a step."""

    step: int


class TensorRTBackend(EngineBackend):
    """Engines in TensorRT. Not for several threads at once: `Session` holds the lock."""

    name = "tensorrt"

    def __init__(
        self,
        bundle: Bundle,
        engines: EngineFolder,
        *,
        device: str | None = None,
        memory: Memory = "high",
    ) -> None:
        """Open the GPU; no engine is loaded yet.

        Args:
            bundle: that the engines were built from.
            engines: of runtime "tensorrt_rtx" or "tensorrt".
            device: "cuda" or "cuda:1"; None is the first GPU.
            memory: "low" releases each engine after its stage.

        Raises:
            OptionError: the device is no GPU.
            EngineError: there is no such GPU here.
            MissingDependencyError: TensorRT or cuda-python is not installed.
        """
        super().__init__(bundle, engines, memory)
        index = _gpu_index(device)
        self._trt = load_module(engines.manifest.runtime)
        self._device = CudaDevice(index)
        self.device = f"cuda:{index}"
        self._loop: _Loop | None = None

    def _open(self, spec: EngineSpec) -> Engine:
        path = self.engines.path(spec)
        return Engine(self._trt, self._device, path, spec, self.engines.command)

    def _release(self, *names: str) -> None:
        released = [self._loaded[name] for name in names if name in self._loaded]
        super()._release(*names)
        if self.memory == "low":
            for engine in released:
                engine.free()
            if "denoise_step" in names:
                self._loop = None

    def run(self, name: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run an engine on host arrays."""
        self._device.use()
        engine: Engine = self.load(name)
        return engine.run(
            {tensor.name: cast(feeds[tensor.name], tensor) for tensor in engine.spec.inputs}
        )

    def on_device(self, array: Array) -> DeviceArray:
        """Copy a host array to the GPU."""
        self._device.use()
        return self._device.array(array)

    def to_device(self, latents: Floats) -> _Latents:
        """Move (N, C, h, w) latents to the device."""
        array = self.on_device(np.asarray(latents, np.float32, order="C"))
        return _Latents(latents.shape, array)

    def shown(self, latents: _Latents) -> Floats:
        """Return (N, C, h, w) float32 latents for a callback to read.

        Raises:
            EngineError: they are of a step before the last: the loop has written over them.
        """
        self._device.use()
        if latents.array is not None:
            return self._device.download(latents.array)
        if self._loop is None:
            raise _gone()
        return self._loop.latents(latents)

    def denoise_step(
        self,
        latents: _Latents,
        previous_x0: _PreviousX0 | None,
        states: DeviceArray,
        guidance_scale: float,
        coefficients: StepCoefficients,
    ) -> tuple[_Latents, _PreviousX0]:
        """Put the whole step on the GPU's stream, without waiting for it; see `Backend`.

        What a step returns lasts until the next one.
        """
        self._device.use()
        if self._loop is None:
            self._loop = _Loop(self._device, self.load("denoise_step"))
        return self._loop.run(latents, previous_x0, states, guidance_scale, coefficients)


class _Loop:
    """The denoise_step engine whose outputs become its inputs, without a way over the host.

    From the third step on for a shape, a step is an upload of 24 bytes and one graph's launch: the
    first runs as it is, since TensorRT may compile and allocate then, the second is recorded.
    """

    def __init__(self, device: CudaDevice, engine: Engine) -> None:
        self._device, self._engine = device, engine
        self._row = device.pinned(6)  # timestep, p, q, a, b, c
        self._row_is_read = device.event()
        self._step = 0
        self._forget()

    def _forget(self) -> None:
        """Start anew over new buffers."""
        self._graph: CudaGraph | None = None
        self._is_warm = False
        self._is_capturable = True
        self._states: DeviceArray | None = None
        self._guidance: tuple[int, bool, float] | None = None
        self._step += 1  # what was in the buffers before is gone

    def run(
        self,
        latents: _Latents,
        previous_x0: _PreviousX0 | None,
        states: DeviceArray,
        guidance_scale: float,
        coefficients: StepCoefficients,
    ) -> tuple[_Latents, _PreviousX0]:
        """Run one step; as of `TensorRTBackend.denoise_step`."""
        count, rows = latents.shape[0], states.shape[0]
        guided = is_guided(count, rows)
        sample = (rows, *latents.shape[1:])
        shapes = {"sample": sample, "encoder_hidden_states": states.shape}
        if self._engine.bind(self._engine.spec.axes_of(shapes)):
            self._forget()
        self._take_latents(latents, previous_x0, rows)
        self._take_text(states, (count, guided, guidance_scale))
        self._take_row(coefficients, first=previous_x0 is None)
        self._launch()
        self._step += 1
        return _Latents(latents.shape, None, self._step), _PreviousX0(self._step)

    def latents(self, latents: _Latents) -> Floats:
        """Return the latents after the last step, (N, C, h, w)."""
        self._check_last(latents.step)
        return self._device.download(self._engine.buffers["sample"], rows=latents.shape[0])

    def _check_last(self, step: int) -> None:
        if step != self._step:
            raise _gone()

    def _take_latents(self, latents: _Latents, previous_x0: _PreviousX0 | None, rows: int) -> None:
        """Have `sample` and `previous_x0` hold what the step starts from."""
        buffers = self._engine.buffers
        if latents.array is None:
            self._check_last(latents.step)
        else:
            for row in range(0, rows, latents.shape[0]):
                self._device.copy(latents.array, buffers["sample"], row)
        if previous_x0 is None:
            self._device.clear(buffers["previous_x0"])
        else:
            self._check_last(previous_x0.step)

    def _take_text(self, states: DeviceArray, guidance: tuple[int, bool, float]) -> None:
        """Have the buffers hold the text's states and the guidance; both are the same all along."""
        buffers = self._engine.buffers
        if states is not self._states:
            self._device.copy(states, buffers["encoder_hidden_states"])
            self._states = states
        if guidance != self._guidance:
            count, guided, scale = guidance
            matrix = guidance_matrix(count, scale, guided=guided)
            self._device.upload(matrix, buffers["guidance"])
            self._guidance = guidance

    def _take_row(self, coefficients: StepCoefficients, *, first: bool) -> None:
        """Upload the step's six numbers, once the GPU has read those of the step before."""
        self._row_is_read.wait()
        self._row[0] = coefficients.timestep
        self._row[1:] = coefficient_row(coefficients, first=first)
        buffers = self._engine.buffers
        self._device.upload_pinned(self._row[:1], buffers["timestep"])
        self._device.upload_pinned(self._row[1:], buffers["coefficients"])
        self._row_is_read.record()

    def _launch(self) -> None:
        if self._graph is None and self._is_warm and self._is_capturable:
            if self._engine.can_be_captured():
                self._graph = self._device.capture(self._work)
            self._is_capturable = self._graph is not None
        if self._graph is not None:
            self._graph.launch()
            return
        self._work()
        if not self._is_warm:
            self._device.synchronize()
            self._engine.save_runtime_cache()
            self._is_warm = True

    def _work(self) -> None:
        self._engine.enqueue()
        buffers = self._engine.buffers
        self._device.copy(buffers["next_sample"], buffers["sample"])
        self._device.copy(buffers["x0"], buffers["previous_x0"])


def _gpu_index(device: str | None) -> int:
    asked = re.fullmatch(r"cuda(?::(\d+))?", device or "cuda")
    if asked is None:
        raise OptionError(
            "device", expected="cuda, cuda:0, cuda:1 and so on: TensorRT runs on NVIDIA GPUs",
            got=str(device), remedy="Use engine='onnxruntime' or 'torch' on a CPU",
        )  # fmt: skip
    return int(asked[1] or 0)


def _gone() -> EngineError:
    return EngineError(
        "latents of an earlier step", expected="those that the last step returned",
        got="others, which the loop has written over",
        remedy="Copy them to the host within the callback of their step",
    )  # fmt: skip
