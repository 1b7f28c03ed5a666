"""Whether a graph that TensorRT parsed is what its spec and its recipe say, before it is built."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from hbsdk.backends.tensorrt_engine import TYPE_NAMES
from hbsdk.engine_spec import EngineSpec, Precision, TensorSpec
from hbsdk.errors import EngineError

# Of a network's weights. What is not is meant to be: resizing matrices, noise frequencies.
_LEAST_SHARE_IN_PRECISION = 0.9


def check_interface(network: Any, spec: EngineSpec) -> None:
    """Refuse a parsed graph whose inputs and outputs are not the spec's.

    Args:
        network: an `INetworkDefinition`.
        spec: what they should be.

    Raises:
        EngineError: one has another name, type or shape.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    pairs = (("inputs", inputs, spec.inputs), ("outputs", outputs, spec.outputs))
    for what, found, wanted in pairs:
        if len(found) != len(wanted) or not all(map(_is, found, wanted)):
            raise EngineError(
                f"{what} of the graph for engine {spec.name}",
                expected="; ".join(f"{one.name} {one.dtype} {one.shape}" for one in wanted),
                got="; ".join(f"{one.name} {one.dtype.name} {tuple(one.shape)}" for one in found),
                remedy="Export it again: python export/build_engines.py",
            )


def check_precision(trt: Any, network: Any, spec: EngineSpec, precision: Precision) -> None:
    """Refuse a parsed graph whose weights are in another precision than the recipe asks for.

    Inputs and outputs do not tell: denoise_step's latents are float32 whatever the UNet is. And a
    built engine cannot be asked where there is no GPU; in a strongly typed network it computes in
    the types of this definition.

    Args:
        trt: TensorRT's module.
        network: an `INetworkDefinition`.
        spec: of the engine, for the message.
        precision: that is asked for.

    Raises:
        EngineError: less than 90 % of the weights are in it.
    """
    weights = weights_by_type(trt, network)
    total = sum(weights.values())
    share = weights[TYPE_NAMES[precision]] / total if total else 1.0
    if share < _LEAST_SHARE_IN_PRECISION:
        found = ", ".join(f"{count:,} weights in {name}" for name, count in weights.items())
        raise EngineError(
            f"precision of engine {spec.name}", expected=f"{precision}, as the recipe says",
            got=found, remedy="Export the network in that precision; TensorRT does not convert it",
        )  # fmt: skip


def weights_by_type(trt: Any, network: Any) -> Counter[str]:
    """Count a network's floating-point weights by TensorRT's name of their type."""
    floats = (trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.BF16)
    counts: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.CONSTANT:
            tensor = layer.get_output(0)
            if tensor.dtype in floats:
                counts[tensor.dtype.name] += math.prod(tensor.shape)
        elif layer.type == trt.LayerType.CONVOLUTION:
            layer.__class__ = trt.IConvolutionLayer  # get_layer gives the base class
            convolution: Any = layer
            # Its output's type is its kernel's: the network is strongly typed.
            counts[convolution.get_output(0).dtype.name] += convolution.kernel.size
    return counts


def _is(found: Any, wanted: TensorSpec) -> bool:
    """Whether a parsed tensor, whose dimensions are -1 where they vary, can be the spec's."""
    shape = tuple(found.shape)
    return (
        found.name == wanted.name
        and found.dtype.name == TYPE_NAMES[wanted.dtype]
        and len(shape) == len(wanted.shape)
        and all(got in (-1, want) for got, want in zip(shape, wanted.shape, strict=True))
    )
