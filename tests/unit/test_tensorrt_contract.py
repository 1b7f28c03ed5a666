"""A contract test, not a run: what our TensorRT and CUDA code names exists in the real bindings.

Running an engine takes a GPU (tests/gpu does it where there is one). Without one, this reads our
sources, follows which class of `tensorrt_rtx` each value is of (by the signatures that the bindings
carry in their docstrings) and looks every attribute, method and enum member up in the installed
package. What it cannot see is whether the calls do the right thing.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from export.to_tensorrt import TensorRTSettings
from hbsdk.backends.cuda_device import CudaDevice, CudaEvent, CudaGraph
from hbsdk.backends.tensorrt_engine import Engine
from hbsdk.errors import EngineError
from tests.small_denoise_step import specs

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instance:
    """Some object of a class, where the class alone is known."""

    of: type


# What no assignment tells: the parameters' and attributes' types, by the names they have there.
SEEDS: dict[str, dict[str, Any]] = {
    "hbsdk/backends/cuda_device.py": {
        "self.cudart": cudart, "device.cudart": cudart, "self._device.cudart": cudart,
    },
    "hbsdk/backends/tensorrt_engine.py": {
        "trt": trt, "self._trt": trt, "engine": Instance(trt.ICudaEngine),
        "self._context": Instance(trt.IExecutionContext),
        "self._runtime_cache": Instance(trt.IRuntimeCache),
    },
    "hbsdk/backends/tensorrt.py": {},
    "export/to_tensorrt.py": {
        "trt": trt, "builder": Instance(trt.Builder), "network": Instance(trt.INetworkDefinition),
        "parser": Instance(trt.OnnxParser), "config": Instance(trt.IBuilderConfig),
        "profile": Instance(trt.IOptimizationProfile), "error": Instance(trt.ParserError),
    },
    "export/check_tensorrt.py": {
        "trt": trt, "network": Instance(trt.INetworkDefinition), "one": Instance(trt.ITensor),
        "found": Instance(trt.ITensor),
    },
}  # fmt: skip


@dataclass
class Names:
    """The bindings' names that a source uses: those that exist, and those that do not."""

    found: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    followed: set[int] = field(default_factory=set)  # places of the attributes that were looked up


def names_in(source: str, seeds: dict[str, Any]) -> Names:
    """Follow the values of each function, in the order of its lines."""
    names = Names()
    tree = ast.parse(source)
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        known = dict(seeds)
        for node in _in_order(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    _assign(target, node.value, known, names)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                _assign(node.target, node.value, known, names)
            elif isinstance(node, ast.Attribute | ast.Call):
                _value(node, known, names)
    return names


def _in_order(function: ast.FunctionDef) -> list[ast.AST]:
    nodes = [node for node in ast.walk(function) if hasattr(node, "lineno")]
    kinds = (ast.Attribute, ast.Call)  # looked up after the assignment of their line is known
    return sorted(nodes, key=lambda node: (node.lineno, isinstance(node, kinds)))


def _assign(target: ast.AST, value: ast.AST, known: dict[str, Any], names: Names) -> None:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its in zip(target.elts, value.elts, strict=True):
            _assign(one, its, known, names)
        return
    if isinstance(target, ast.Name | ast.Attribute):
        _value(target, known, names)  # a setting of the bindings, perhaps
        name, found = ast.unparse(target), _value(value, known, names)
        if name.endswith(".__class__"):
            known[name.removesuffix(".__class__")] = Instance(found)
        elif found is not None:
            known[name] = found


def _value(node: ast.AST, known: dict[str, Any], names: Names) -> Any:
    """The object, class or `Instance` that an expression is, if it is one of the bindings'."""
    if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in known:
        return known[ast.unparse(node)]
    if isinstance(node, ast.Attribute):
        base = _value(node.value, known, names)
        return None if base is None else _member(base, node.attr, node, names)
    if isinstance(node, ast.BoolOp):
        return next((v for one in node.values if (v := _value(one, known, names))), None)
    if isinstance(node, ast.Call):
        name, arguments = ast.unparse(node.func), node.args
        if name in ("getattr", "hasattr") and isinstance(arguments[1], ast.Constant):
            base = _value(arguments[0], known, names)
            member = None if base is None else _member(base, arguments[1].value, node, names)
            return member if name == "getattr" else None
        return _result(_value(node.func, known, names))
    return None


def _member(base: Any, name: str, node: ast.AST, names: Names) -> Any:
    owner = base.of if isinstance(base, Instance) else base
    if not isinstance(owner, type | ModuleType):
        return None  # an enum's member, a dictionary of them
    label = f"{owner.__name__}.{name}"
    names.followed.add((node.lineno, name))
    if not hasattr(owner, name):
        names.missing.add(label)
        return None
    names.found.add(label)
    member = getattr(owner, name)
    if isinstance(member, property):
        return _returned(member.fget.__doc__)
    return member


def _result(called: Any) -> Any:
    if isinstance(called, type):
        return Instance(called)
    return _returned(called.__doc__) if callable(called) else None


def _returned(signature: str | None) -> Any:
    """The class that a signature such as "(...) -> tensorrt_rtx.IBuilderConfig" ends with."""
    match = re.search(r"-> (?:\w+(?:\.|::))*(\w+)", signature or "")
    if match is None:
        return None
    kind = getattr(trt, match[1], getattr(trt, match[1].removeprefix("I"), None))
    return Instance(kind) if isinstance(kind, type) else None


def source(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SEEDS)
def test_what_the_code_names_exists(path):
    assert names_in(source(path), SEEDS[path]).missing == set()


@pytest.mark.parametrize("path", SEEDS)
def test_nothing_is_overlooked(path):
    """Every attribute with a name of TensorRT's or CUDA's own was followed."""
    classes = [one for one in vars(trt).values() if isinstance(one, type)]
    theirs = {name for one in classes for name in dir(one) if not name.startswith("_")}
    theirs = {name for name in theirs | set(dir(trt)) | set(dir(cudart)) if len(name) > 9}
    theirs -= {one.name for one in fields(TensorRTSettings)}  # named after theirs
    followed = names_in(source(path), SEEDS[path]).followed
    overlooked = {
        node.attr
        for node in ast.walk(ast.parse(source(path)))
        if isinstance(node, ast.Attribute)
        and node.attr in theirs
        and (node.lineno, node.attr) not in followed
    }
    assert overlooked == set()


def test_the_names_are_those_we_think_of():
    found = {name for path in SEEDS for name in names_in(source(path), SEEDS[path]).found}
    assert len(found) > 90
    assert found >= {
        "IExecutionContext.execute_async_v3", "IExecutionContext.set_tensor_address",
        "IExecutionContext.is_stream_capturable", "ICudaEngine.create_execution_context",
        "IRuntimeConfig.set_runtime_cache", "DynamicShapesKernelSpecializationStrategy.EAGER",
        "BuilderFlag.TF32", "BuilderFlag.REQUIRE_USER_ALLOCATION", "ComputeCapability.__members__",
        "ParserError.node_operator", "IOptimizationProfile.set_shape", "ITimingCache.serialize",
        "cuda.bindings.runtime.cudaMemcpyAsync", "cudaMemcpyKind.cudaMemcpyDeviceToDevice",
        "cuda.bindings.runtime.cudaGraphLaunch", "IRuntimeCache.deserialize",
    }  # fmt: skip


def test_a_made_up_name_is_reported():
    code = """
def f(trt, config, context):
    builder = trt.Builder(None)
    other = builder.create_builder_config()
    other.set_no_such_flag(trt.BuilderFlag.FP17)
    context.execute_async_v9(0)
    (cache, level) = (builder.create_network(0), 1)
    cache.get_layer(0).get_output(1).no_such_type
    if hasattr(config, "no_such_limit"):
        cudart.cudaMemcpyKind.cudaMemcpyMoonToEarth
    cudart.cudaFlyToMoon(1)
"""
    seeds = {
        "trt": trt, "config": Instance(trt.IBuilderConfig), "cudart": cudart,
        "context": Instance(trt.IExecutionContext),
    }  # fmt: skip
    names = names_in(code, seeds)
    assert names.missing == {
        "IBuilderConfig.set_no_such_flag", "BuilderFlag.FP17", "IExecutionContext.execute_async_v9",
        "ITensor.no_such_type", "IBuilderConfig.no_such_limit",
        "cudaMemcpyKind.cudaMemcpyMoonToEarth", "cuda.bindings.runtime.cudaFlyToMoon",
    }  # fmt: skip
    assert "ILayer.get_output" in names.found
    assert names_in(code, {}).missing == set()  # the types are what finds them


def has_gpu() -> bool:
    error, count = cudart.cudaGetDeviceCount()
    return error == cudart.cudaError_t.cudaSuccess and count > 0


@pytest.mark.skipif(has_gpu(), reason="there is a GPU: tests/gpu runs these calls for real")
def test_cuda_takes_our_arguments_and_misses_but_the_gpu():
    """Wrong arguments are a TypeError even where there is no driver; ours get as far as CUDA."""
    with pytest.raises(EngineError, match=r"CUDA: got .*hbsdk doctor"):
        CudaDevice()
    device = object.__new__(CudaDevice)
    device.cudart, device.index, device.stream = cudart, 0, cudart.cudaStream_t(0)
    event, graph = object.__new__(CudaEvent), object.__new__(CudaGraph)
    event._device = graph._device = device
    event._event, graph._executable = cudart.cudaEvent_t(0), cudart.cudaGraphExec_t(0)
    row = np.zeros(4, np.float32)
    array = SimpleNamespace(shape=(4,), dtype=row.dtype, nbytes=16, pointer=4096)
    for call in (
        device.use, device.synchronize, device.event, event.record, event.wait, graph.launch,
        lambda: device.empty((2, 3), "float16"), lambda: device.pinned(6),
        lambda: device.upload(row, array), lambda: device.upload_pinned(row, array),
        lambda: device.copy(array, array), lambda: device.download(array),
        lambda: device.clear(array), lambda: device.capture(lambda: None),
        lambda: CudaGraph(device, cudart.cudaGraph_t(0)),
    ):  # fmt: skip
        with pytest.raises(EngineError, match="CUDA: got"):
            call()
    with pytest.raises(TypeError):
        cudart.cudaMemcpyAsync(4096, 4096, "sixteen", cudart.cudaMemcpyKind(1), device.stream)
    for free, handle in (
        (cudart.cudaFree, 4096), (cudart.cudaFreeHost, 4096),
        (cudart.cudaStreamDestroy, device.stream), (cudart.cudaEventDestroy, event._event),
        (cudart.cudaGraphExecDestroy, graph._executable),
    ):  # fmt: skip
        assert free(handle)[0] != cudart.cudaError_t.cudaSuccess


@pytest.mark.skipif(has_gpu(), reason="there is a GPU: tests/gpu loads engines for real")
def test_an_engine_is_not_loaded_without_a_gpu(tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(b"no engine either")
    device = SimpleNamespace(use=lambda: None)
    spec = specs("float16")["unet"]
    with pytest.raises(EngineError, match=r"TensorRT engine unet: .*Build .* again: build it"):
        Engine(trt, device, path, spec, "build it")
