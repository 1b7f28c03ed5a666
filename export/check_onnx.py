"""Refuses ONNX files that are not what their EngineSpec and recipe say, or read outside files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx

from hbsdk.engine_spec import EngineSpec, TensorSpec
from hbsdk.errors import EngineError

_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "int64": onnx.TensorProto.INT64,
}
_REMEDY = "Do not load it: export the network again with python export/build_engines.py"


def check_onnx(path: Path, spec: EngineSpec, *, opset: int) -> None:
    """Check a graph before any runtime gets it; its external data is not read.

    Args:
        path: of the graph; its external data must be in its own folder.
        spec: that it must fit in names, their order, element types, ranks and fixed dimensions.
        opset: of the recipe.

    Raises:
        EngineError: it is damaged or of another opset, an input or output is missing, renamed,
            extra or of another type or shape, or external data is missing, truncated or elsewhere.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own DecodeError has no public base class
        raise _error(
            str(path), "an ONNX file that can be read", f"{type(error).__name__}: {error}"
        ) from error
    _check_opset(path, model, opset)
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(path, tensor)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    _check_values(path, "inputs", inputs, spec.inputs)
    _check_values(path, "outputs", model.graph.output, spec.outputs)


def _check_opset(path: Path, model: onnx.ModelProto, opset: int) -> None:
    found = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if found != [opset]:
        raise _error(f"opset of {path}", str(opset), ", ".join(map(str, found)) or "none")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that could name a file: of the graph, its sub-graphs and functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)
        for attribute in function.attribute_proto:
            yield from _of_attribute(attribute)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _of_attribute(attribute)


def _of_attribute(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    # An absent message field reads as an empty message, which names no file.
    yield from (attribute.t, *attribute.tensors)
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    if attribute.HasField("g"):
        yield from _of_graph(attribute.g)
    for graph in attribute.graphs:
        yield from _of_graph(graph)


def _check_external(path: Path, tensor: onnx.TensorProto) -> None:
    what = f"external data of {tensor.name or 'a constant'} in {path}"
    entries = [(entry.key, entry.value) for entry in tensor.external_data]
    values = dict(entries)
    if len(values) < len(entries):  # readers disagree on which to take
        raise _error(what, "each key once", ", ".join(key for key, _ in entries))
    location = values.get("location", "")
    file = path.parent / location
    if not _is_plain(location) or file.is_symlink() or file.resolve().parent != _home(path):
        raise _error(what, "a file in the graph's own folder", location or "no location")
    if not file.is_file():
        raise _error(what, f"{file}, {_length(tensor)} bytes", "no such file")
    offset = _number(values.get("offset", "0"), f"offset of {what}")
    # Without a length, runtimes read to the end of the file or as many bytes as the shape needs.
    length = _number(values.get("length", str(_length(tensor))), f"length of {what}")
    if length != _length(tensor):
        raise _error(f"length of {what}", f"{_length(tensor)} bytes by its shape", str(length))
    size = file.stat().st_size
    if offset + length > size:
        raise _error(what, f"{offset + length} bytes or more in {file}", f"{size} bytes")


def _is_plain(location: str) -> bool:
    """Whether a location is a name in the same folder, on any operating system."""
    return (
        location not in ("", ".", "..")
        and "\0" not in location
        and PurePosixPath(location).name == location
        and PureWindowsPath(location).name == location
    )


def _home(path: Path) -> Path:
    return path.parent.resolve()


def _length(tensor: onnx.TensorProto) -> int:
    """The bytes that a tensor's shape and type need."""
    number = 1
    for dim in tensor.dims:
        number *= dim
    try:
        bits = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    except (KeyError, TypeError) as error:
        raise _error(
            f"type of {tensor.name}", "a type that numpy knows", str(tensor.data_type)
        ) from error
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        bits = 4
    return (number * bits + 7) // 8


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _error(what, "a whole number from 0", text)
    return int(text)


def _check_values(
    path: Path, what: str, found: Sequence[onnx.ValueInfoProto], expected: Sequence[TensorSpec]
) -> None:
    names, wanted = [value.name for value in found], [tensor.name for tensor in expected]
    if names != wanted:
        raise _error(f"{what} of {path}", ", ".join(wanted), ", ".join(names) or "none")
    for value, tensor in zip(found, expected, strict=True):
        place = f"{what} of {path}: {tensor.name}"
        kind = value.type.tensor_type
        if kind.elem_type != _TYPES[tensor.dtype]:
            name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
            raise _error(place, tensor.dtype, "float32" if name == "float" else name)
        if not kind.HasField("shape") or not _fits(kind.shape.dim, tensor):
            shape = [_dim(dim) for dim in kind.shape.dim]
            raise _error(place, f"shape {list(tensor.shape)}", f"{shape}")


def _fits(dims: Sequence[onnx.TensorShapeProto.Dimension], tensor: TensorSpec) -> bool:
    """Whether ranks and fixed dimensions agree; the names of axes are the exporter's affair."""
    return len(dims) == len(tensor.shape) and all(
        (dim.dim_value if dim.HasField("dim_value") else None)
        == (wanted if isinstance(wanted, int) else None)
        for dim, wanted in zip(dims, tensor.shape, strict=True)
    )


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Any:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"


def _error(what: str, expected: str, got: str) -> EngineError:
    return EngineError(what, expected=expected, got=got[:300], remedy=_REMEDY)
