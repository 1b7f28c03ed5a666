"""A denoise_step graph with a "UNet" of one convolution: made in milliseconds, known in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hbsdk.engine_spec import NETWORKS, SHALLOW_STEP, Axis, EngineSpec, Precision, engine_specs
from hbsdk.network_sizes import NetworkSizes

SIZES = NetworkSizes(
    image_size_px=32, latent_channels=4, vae_scale_factor=4, unet_scale_factor=2, text_tokens=6,
    word_dim=8, context_dim=8, num_words=5, image_tokens=0, clip_dim=0, dino_dim=0, deep_width=4,
    masked=False,
)  # fmt: skip
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def specs(precision: Precision, *, deep_features: bool = False) -> dict[str, EngineSpec]:
    """Every engine of a bundle of these sizes, 1 to 3 pictures of 32 to 64 px."""
    side = Axis(32, 32, 64)
    return engine_specs(
        SIZES, precision=dict.fromkeys(NETWORKS, precision), pictures=Axis(1, 1, 3),
        height=side, width=side, deep_features=deep_features,
    )  # fmt: skip


def kernel(seed: int = 0) -> np.ndarray:
    """(4, 4) float32, of the convolution."""
    return np.random.default_rng(seed).normal(0, 0.3, (4, 4)).astype(np.float32)


def deep_features(sample: np.ndarray) -> np.ndarray:
    """What the "UNet" keeps for later steps: a 1 x 1 convolution."""
    return np.einsum("oc,nchw->nohw", kernel(), sample)


def predict(
    sample: np.ndarray, timestep: float, states: np.ndarray, deep: np.ndarray | None = None
) -> np.ndarray:
    """What the "UNet" computes, in numpy: deep features, its own or given, plus text and time."""
    mixed = deep_features(sample) if deep is None else deep
    return mixed + states.mean((1, 2))[:, None, None, None] + np.float32(timestep) / 1000


def write_denoise_step(
    path: Path, precision: Precision, *, operator: str = "Identity", name: str | None = None
) -> Path:
    """Write the graph.

    Args:
        path: of the file.
        precision: of the convolution and the text; the rest is float32, as of the real one.
        operator: an ONNX operator of one input that the noise passes on its way.
        name: the engine of those with deep features; None is the step of those without.
    """
    spec = specs(precision, deep_features=name is not None)[name or "denoise_step"]
    mixed = "mixed" if name is None else "deep_features"
    dtype = np.dtype(precision)
    weights = {
        "kernel": kernel().reshape(4, 4, 1, 1).astype(dtype),
        "thousandth": np.array(0.001, np.float32),
        "axes": np.array([1, 2], np.int64),
        "text_shape": np.array([-1, 1, 1, 1], np.int64),
        **{name: np.array(place, np.int64) for place, name in enumerate("pqabc")},
    }
    nodes = [
        ("Cast", ["sample"], "narrow", {"to": _TYPES[precision]}),
        *([("Conv", ["narrow", "kernel"], mixed, {})] if name != SHALLOW_STEP else []),
        ("ReduceMean", ["encoder_hidden_states", "axes"], "text", {"keepdims": 0}),
        ("Reshape", ["text", "text_shape"], "text4", {}),
        ("Add", [mixed, "text4"], "with_text", {}),
        ("Cast", ["with_text"], "wide", {"to": TensorProto.FLOAT}),
        ("Mul", ["timestep", "thousandth"], "time", {}),
        ("Add", ["wide", "time"], "predicted", {}),
        (operator, ["predicted"], "passed", {}),
        ("Einsum", ["guidance", "passed"], "eps", {"equation": "ij,jchw->ichw"}),
        *(("Gather", ["coefficients", name], f"k_{name}", {"axis": 0}) for name in "pqabc"),
        ("Mul", ["k_p", "sample"], "px", {}),
        ("Mul", ["k_q", "eps"], "qe", {}),
        ("Add", ["px", "qe"], "x0", {}),
        ("Mul", ["k_a", "sample"], "ax", {}),
        ("Mul", ["k_b", "x0"], "bx", {}),
        ("Mul", ["k_c", "previous_x0"], "cx", {}),
        ("Add", ["ax", "bx"], "abx", {}),
        ("Add", ["abx", "cx"], "next_sample", {}),
    ]
    tensors = {
        tensor.name: helper.make_tensor_value_info(
            tensor.name, _TYPES[tensor.dtype], list(tensor.shape)
        )
        for tensor in (*spec.inputs, *spec.outputs)
    }
    graph = helper.make_graph(
        [
            helper.make_node(kind, inputs, [output], name=f"make_{output}", **attributes)
            for kind, inputs, output, attributes in nodes
        ],
        "small",
        [tensors[tensor.name] for tensor in spec.inputs],
        [tensors[tensor.name] for tensor in spec.outputs],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path
