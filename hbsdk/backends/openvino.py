"""OpenVINO: the same ONNX graphs on a CPU, in bfloat16 where that is faster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino

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
from hbsdk.backends.precision import prefers_bfloat16
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder
from hbsdk.engine_spec import RUNTIME_ENGINES, SHALLOW_STEP, EngineSpec
from hbsdk.errors import EngineError, OptionError

_BUILD_AGAIN = "Build the engines again: python export/build_engines.py"
_ALWAYS_FLOAT32 = ("text_encoder", "regressor")  # as the torch backend has them
_SHAPES_KEPT = 2  # of each engine: with guidance and without
_Shapes = tuple[tuple[int, ...], ...]


class _Graph:
    """One graph, compiled anew for each shape of its inputs: fixed shapes make faster code."""

    def __init__(self, core: Any, model: Any, spec: EngineSpec, hints: Mapping[str, str]) -> None:
        self._core, self._model, self._spec, self._hints = core, model, spec, dict(hints)
        self._compiled: dict[_Shapes, Any] = {}

    def compiled(self, shapes: _Shapes) -> Any:
        """Return the graph for inputs of these shapes, in the spec's order."""
        if shapes not in self._compiled:
            while len(self._compiled) >= _SHAPES_KEPT:
                del self._compiled[next(iter(self._compiled))]
            names = [tensor.name for tensor in self._spec.inputs]
            self._model.reshape(
                {name: list(shape) for name, shape in zip(names, shapes, strict=True)}
            )
            self._compiled[shapes] = self._core.compile_model(self._model, "CPU", self._hints)
        return self._compiled[shapes]


class OpenVinoBackend(EngineBackend):
    """The engines of ONNX Runtime, run by OpenVINO. Not thread-safe: `Session` holds the lock."""

    name = "openvino"
    device = "cpu"

    def __init__(
        self,
        bundle: Bundle,
        engines: EngineFolder,
        *,
        device: str | None = None,
        memory: Memory = "high",
    ) -> None:
        """Prepare; nothing is loaded yet.

        Args:
            bundle: that the engines were built from.
            engines: of runtime "onnxruntime".
            device: "cpu" or None.
            memory: "low" releases each network after its stage.

        Raises:
            OptionError: another device.
        """
        if device not in (None, "cpu"):
            raise OptionError(
                "device", expected="cpu, where engine='openvino' runs", got=str(device),
                remedy="Use another engine on a GPU",
            )  # fmt: skip
        super().__init__(bundle, engines, memory)
        self._core = openvino.Core()
        self._large = "bf16" if prefers_bfloat16(bundle) else "f32"

    def _open(self, spec: EngineSpec) -> _Graph:
        path = self.engines.path(spec, ".onnx")
        try:
            model = self._core.read_model(path)
        except RuntimeError as error:
            raise EngineError(
                f"engine {spec.name} in {path}", expected="a graph that OpenVINO reads",
                got=str(error)[:1000], remedy=_BUILD_AGAIN,
            ) from error  # fmt: skip
        _check_interface(model, spec)
        precision = "f32" if spec.network in _ALWAYS_FLOAT32 else self._large
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        return _Graph(self._core, model, spec, hints)

    def load_all(self) -> None:
        """Load every engine, compiled for the shapes that its recipe calls usual."""
        for name in (*RUNTIME_ENGINES, SHALLOW_STEP):
            if name in self.engines.specs:
                self.prepare(name)

    def prepare(self, name: str) -> None:
        """Load an engine, and compile it for the shapes that its recipe calls usual."""
        spec = self.spec(name)
        usual = {axis: values.opt for axis, values in spec.axes.items()}
        shapes = tuple(spec.shape(tensor, usual) for tensor in spec.inputs)
        self.load(name).compiled(shapes)

    def run(self, name: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run an engine on host arrays."""
        spec = self.spec(name)
        inputs = {tensor.name: cast(feeds[tensor.name], tensor) for tensor in spec.inputs}
        spec.axes_of({key: array.shape for key, array in inputs.items()})
        graph = self.load(name).compiled(tuple(array.shape for array in inputs.values()))
        found = graph(inputs)
        return {tensor.name: found[tensor.name] for tensor in spec.outputs}

    def on_device(self, array: Array) -> Array:
        """Return the array: the device is the host."""
        return array

    def to_device(self, latents: Floats) -> Rows:
        """Take (N, C, h, w) latents into the loop."""
        return Rows(np.asarray(latents, np.float32, order="C"), len(latents))

    def prompts_only(self, states: Array) -> Array:
        """Return the second half of guided states; see `Backend`."""
        return states[len(states) // 2 :]

    def shown(self, latents: Rows) -> Floats:
        """Return (N, C, h, w) float32 latents for a callback to read."""
        shown: Floats = latents.value[: latents.count]
        return shown

    def denoise_step(
        self,
        latents: Rows,
        before: Before | None,
        states: Array,
        guidance_scale: float,
        coefficients: StepCoefficients,
        features: Features = "off",
    ) -> tuple[Rows, Before]:
        """Run the whole step as one graph; see `Backend`."""
        rows, sample = len(states), latents.value
        guided = is_guided(latents.count, rows)
        if len(sample) < rows:  # the first step: each picture twice
            sample = engine_rows(sample, guided=True)
        feeds: dict[str, Any] = {
            "sample": sample[:rows],
            "encoder_hidden_states": states,
            # c is 0 at the first step
            "previous_x0": (sample if before is None else before.x0)[:rows],
            "timestep": np.array(coefficients.timestep, np.float32),
            "guidance": guidance_matrix(latents.count, guidance_scale, guided=guided),
            "coefficients": coefficient_row(coefficients, first=before is None),
        }
        if features == "reuse":
            assert before is not None, "deep features are reused that were not kept"
            feeds["deep_features"] = before.deep
        name = self.step_engine(features)
        found = self.run(name, feeds)
        following, x0, *kept = (found[tensor.name] for tensor in self.spec(name).outputs)
        deep = kept[0] if features == "keep" else feeds.get("deep_features")
        return Rows(following, latents.count), Before(x0, deep)


def _check_interface(model: Any, spec: EngineSpec) -> None:
    """Refuse a graph whose inputs and outputs are not the spec's.

    Raises:
        EngineError: one has another name or type.
    """
    for tensors, ports in ((spec.inputs, model.inputs), (spec.outputs, model.outputs)):
        want = {(one.name, np.dtype(one.dtype).name) for one in tensors}
        got = {(port.any_name, np.dtype(port.element_type.to_dtype()).name) for port in ports}
        if want != got:
            raise EngineError(
                f"inputs and outputs of engine {spec.name}", expected=str(sorted(want)),
                got=str(sorted(got)), remedy=_BUILD_AGAIN,
            )  # fmt: skip
