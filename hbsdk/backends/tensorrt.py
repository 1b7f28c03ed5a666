"""TensorRT and TensorRT for RTX: engines on an NVIDIA GPU; the loop is one CUDA graph a step."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hbsdk.backends.base import Features, Memory, StepCoefficients
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
from hbsdk.engine_spec import SHALLOW_STEP, EngineSpec
from hbsdk.errors import EngineError, OptionError


@dataclass(frozen=True, eq=False)
class _Latents:
    """Latents on the device: their own, or those that a loop's buffers hold after a step.

    shape: (N, C, h, w).
    place: an array, or where a loop holds them.
    """

    shape: tuple[int, ...]
    place: DeviceArray | _Held


@dataclass(frozen=True, eq=False)
class _Before:
    """What a step needs of the one before: x0 in a loop's buffers, and deep features if kept."""

    x0: _Held
    deep: _Held | None


@dataclass(frozen=True, eq=False)
class _Held:
    """What a loop's buffers hold after a step, until its next one."""

    loop: _Loop
    step: int

    def array(self, name: str) -> DeviceArray:
        """Return a buffer.

        Raises:
            EngineError: the loop has written over it.
        """
        if self.step != self.loop.step:
            raise EngineError(
                "latents of an earlier step", expected="those that the last step returned",
                got="others, which the loop has written over",
                remedy="Copy them to the host within the callback of their step",
            )  # fmt: skip
        return self.loop.engine.buffers[name]


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
        # By engine, and whether it runs both halves of guidance: either has its own CUDA graph.
        self._loops: dict[tuple[str, bool], _Loop] = {}

    def _open(self, spec: EngineSpec) -> Engine:
        path = self.engines.path(spec)
        return Engine(self._trt, self._device, path, spec, self.engines.command)

    def _release(self, *names: str) -> None:
        released = [self._loaded[name] for name in names if name in self._loaded]
        super()._release(*names)
        if self.memory == "low":
            for engine in released:
                engine.free()
            for key in [key for key in self._loops if key[0] in names]:
                self._loops.pop(key).free()

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

    def prompts_only(self, states: DeviceArray) -> DeviceArray:
        """Return the second half of guided states; see `Backend`."""
        self._device.use()
        half = states.shape[0] // 2
        return self._device.rows(states, half, half)

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
        place = latents.place
        source = place.array("sample") if isinstance(place, _Held) else place
        return self._device.download(source, rows=latents.shape[0])

    def denoise_step(
        self,
        latents: _Latents,
        before: _Before | None,
        states: DeviceArray,
        guidance_scale: float,
        coefficients: StepCoefficients,
        features: Features = "off",
    ) -> tuple[_Latents, _Before]:
        """Put the whole step on the GPU's stream, without waiting for it; see `Backend`.

        What a step returns lasts until the next one.
        """
        self._device.use()
        guided = is_guided(latents.shape[0], states.shape[0])
        loop = self._loop(self.step_engine(features), guided)
        held = loop.run(latents, before, states, (guided, guidance_scale), coefficients)
        deep = held if features == "keep" else None
        if features == "reuse" and before is not None:
            deep = before.deep
        return _Latents(latents.shape, held), _Before(held, deep)

    def _loop(self, name: str, guided: bool) -> _Loop:
        """Return the loop of an engine, with both halves of guidance or one."""
        if (name, guided) not in self._loops:
            engine: Engine = self.load(name)
            if (name, not guided) in self._loops:
                engine = engine.another()
            self._loops[name, guided] = _Loop(self._device, engine)
        return self._loops[name, guided]


class _Loop:
    """An engine of one step whose outputs become its inputs, without a way over the host.

    Where a step follows one of another loop, the latents are copied within the GPU. From the third
    step on for a shape, a step is an upload of 24 bytes and one graph's launch: the first runs as
    it is, since TensorRT may compile and allocate then, the second is recorded.
    """

    def __init__(self, device: CudaDevice, engine: Engine) -> None:
        self.engine = engine
        self.step = 0
        self._device = device
        self._row = device.pinned(6)  # timestep, p, q, a, b, c
        self._row_is_read = device.event()
        self._forget()

    def free(self) -> None:
        """Give all memory back; latents of its steps may live on, and are not to be read."""
        self._forget()
        self.engine.free()
        del self.engine, self._row

    def _forget(self) -> None:
        """Start anew over new buffers."""
        self._graph: CudaGraph | None = None
        self._is_warm = False
        self._is_capturable = True
        self._states: DeviceArray | None = None
        self._guidance: tuple[int, bool, float] | None = None
        self.step += 1  # what was in the buffers before is gone

    def run(
        self,
        latents: _Latents,
        before: _Before | None,
        states: DeviceArray,
        guidance: tuple[bool, float],
        coefficients: StepCoefficients,
    ) -> _Held:
        """Run one step; as of `TensorRTBackend.denoise_step`."""
        count, rows = latents.shape[0], states.shape[0]
        sample = (rows, *latents.shape[1:])
        shapes = {"sample": sample, "encoder_hidden_states": states.shape}
        if self.engine.bind(self.engine.spec.axes_of(shapes)):
            self._forget()
        self._take("sample", latents.place, count)
        if before is None:
            self._device.clear(self.engine.buffers["previous_x0"])
        else:
            self._take("previous_x0", before.x0, count)
            if self.engine.spec.name == SHALLOW_STEP:
                assert before.deep is not None, "deep features are reused that were not kept"
                self._take("deep_features", before.deep, rows)
        self._take_text(states, (count, *guidance))
        self._take_row(coefficients, first=before is None)
        self._launch()
        self.step += 1
        return _Held(self, self.step)

    def _take(self, name: str, place: DeviceArray | _Held, count: int) -> None:
        """Have a buffer hold `count` rows of an array, or of a loop's buffer, again and again."""
        buffer = self.engine.buffers[name]
        source = place.array(name) if isinstance(place, _Held) else place
        if source is not buffer:
            for row in range(0, buffer.shape[0], count):
                self._device.copy(source, buffer, row, rows=count)

    def _take_text(self, states: DeviceArray, guidance: tuple[int, bool, float]) -> None:
        """Have the buffers hold the text's states and the guidance; both are the same all along."""
        buffers = self.engine.buffers
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
        buffers = self.engine.buffers
        self._device.upload_pinned(self._row[:1], buffers["timestep"])
        self._device.upload_pinned(self._row[1:], buffers["coefficients"])
        self._row_is_read.record()

    def _launch(self) -> None:
        if self._graph is None and self._is_warm and self._is_capturable:
            if self.engine.can_be_captured():
                self._graph = self._device.capture(self._work)
            self._is_capturable = self._graph is not None
        if self._graph is not None:
            self._graph.launch()
            return
        self._work()
        if not self._is_warm:
            self._device.synchronize()
            self.engine.save_runtime_cache()
            self._is_warm = True

    def _work(self) -> None:
        self.engine.enqueue()
        buffers = self.engine.buffers
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
