"""PyTorch to ONNX: the graphs of one network, with its weights stored once and shared by them."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from hbsdk.engine_spec import EngineSpec, TensorSpec
from hbsdk.errors import EngineError

DATA = "model.onnx_data"
_SHARED_BYTES = 1024  # smaller tensors stay inside of the graph
_ALIGNMENT_BYTES = 4096  # a memory page: runtimes map weights where they lie


def export_network(
    folder: Path, engines: Mapping[str, nn.Module], specs: Mapping[str, EngineSpec], opset: int
) -> None:
    """Write a network's graphs into an engine folder, and their weights beside them.

    Args:
        folder: the engine folder.
        engines: by name; a wrapper for each graph of the network, in its final precision.
        specs: of these engines; all graphs are in one sub-folder.
        opset: of ONNX.

    Raises:
        EngineError: PyTorch cannot export a wrapper, or fixed a dimension that should vary.
    """
    models = {}
    for name, engine in engines.items():
        models[folder / specs[name].file] = _trace(engine, specs[name], opset)
    (data,) = {path.parent / DATA for path in models}
    _save_sharing(models, data)


def example_inputs(spec: EngineSpec, values: Mapping[str, int]) -> list[Tensor]:
    """Return inputs of the right shapes to trace a graph with."""
    return [
        torch.zeros(spec.shape(tensor, values), dtype=getattr(torch, tensor.dtype))
        for tensor in spec.inputs
    ]


def traced_values(spec: EngineSpec) -> dict[str, int]:
    """Return the axes' values in tracing: never 1, which an exporter takes for a constant."""
    return {name: max(axis.opt, 2 * axis.multiple) for name, axis in spec.axes.items()}


def _trace(engine: nn.Module, spec: EngineSpec, opset: int) -> ir.Model:
    with _quietly():
        try:
            program = torch.onnx.export(
                engine.eval(),
                tuple(example_inputs(spec, traced_values(spec))),
                dynamo=True,
                opset_version=opset,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=_dynamic_shapes(spec),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise EngineError(
                f"engine {spec.name}", expected="a network that PyTorch exports to ONNX",
                got=str(error)[:2000],
                remedy="Report it with the versions that `hbsdk doctor` prints",
            ) from error  # fmt: skip
    assert program is not None
    model = program.model
    _name_dimensions(model, spec)
    _forget_sources(model)
    return model


def _dynamic_shapes(spec: EngineSpec) -> tuple[dict[int, Any], ...]:
    """Name the dynamic dimensions for torch.export; sides are multiples of a free number."""
    free = {
        name: torch.export.Dim(
            f"{name}_{axis.multiple}" if axis.multiple > 1 else name,
            min=axis.min // axis.multiple,
            max=axis.max // axis.multiple,
        )
        for name, axis in spec.axes.items()
    }

    def dimension(name: str) -> Any:
        multiple = spec.axes[name].multiple
        return multiple * free[name] if multiple > 1 else free[name]

    return tuple(
        {place: dimension(dim) for place, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in spec.inputs
    )


def _name_dimensions(model: ir.Model, spec: EngineSpec) -> None:
    """Give inputs' and outputs' dimensions the spec's names; refuse ones that tracing fixed."""
    pairs: list[tuple[ir.Value, TensorSpec]] = [
        *zip(model.graph.inputs, spec.inputs, strict=True),
        *zip(model.graph.outputs, spec.outputs, strict=True),
    ]
    for value, tensor in pairs:
        traced = list(value.shape) if value.shape is not None else []
        for dim, want in zip(traced, tensor.shape, strict=True):
            if isinstance(dim, int) != isinstance(want, int):
                raise EngineError(
                    f"dimension of {tensor.name} of engine {spec.name}",
                    expected=str(want), got=str(dim),
                    remedy="Report it: the network's code fixes a size that should vary",
                )  # fmt: skip
        value.shape = ir.Shape(tensor.shape)


def _forget_sources(model: ir.Model) -> None:
    """Drop stack traces and paths of the machine that exported, and inner shapes' other names."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None


def _save_sharing(models: Mapping[Path, ir.Model], data: Path) -> None:
    """Write graphs whose equal tensors point to one place in one data file."""
    data.parent.mkdir(parents=True, exist_ok=True)
    places: dict[bytes, tuple[int, int]] = {}
    with data.open("wb") as file:
        for model in models.values():
            for value in model.graph.initializers.values():
                tensor = value.const_value
                assert tensor is not None
                if tensor.nbytes < _SHARED_BYTES:
                    continue
                content = tensor.tobytes()
                digest = hashlib.sha256(content).digest()
                if digest not in places:
                    file.seek(-(-file.tell() // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES)
                    places[digest] = (file.tell(), len(content))
                    file.write(content)
                offset, length = places[digest]
                value.const_value = ir.ExternalTensor(
                    data.name, offset, length, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()),
                    name=value.name or "", base_dir=data.parent,
                )  # fmt: skip
    if not places:
        data.unlink()
    for path, model in models.items():
        ir.save(model, path)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's notes on torchvision and on its own progress."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
