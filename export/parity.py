"""Are the engines the networks? Three legs: untouched modules, wrappers, ONNX Runtime (TensorRT).

Every graph runs on shapes that it was not traced with, at several timesteps, and its outputs are
compared with what the untouched diffusers and transformers modules give for the same inputs in
float32. A failure ends the build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from export.recipe import THRESHOLDS
from hbsdk.backends.engine_math import guidance_matrix
from hbsdk.engine_spec import SHALLOW_STEP, EngineSpec, Precision, TensorSpec
from hbsdk.errors import EngineError
from hbsdk.features import ImageFeatures, extract_features
from hbsdk.schedule import Schedule, make_schedule
from hbsdk.text_encoder import replaced_words

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Runner = Callable[[Arrays], Arrays]

_BATCHES = (1, 2, 3)
_GUIDANCE_SCALE = 7.5


@dataclass(frozen=True)
class Comparison:
    """How far outputs are from the reference's, the worst of all cases and outputs.

    max_abs: in the output's unit. relative_max_abs: over the reference's largest magnitude.
    cosine: of the flattened arrays.
    """

    max_abs: float
    relative_max_abs: float
    cosine: float

    def to_json(self) -> dict[str, float]:
        """Return it as the manifest holds it."""
        return {
            "max_abs": self.max_abs,
            "relative_max_abs": self.relative_max_abs,
            "cosine": self.cosine,
        }


def cases(spec: EngineSpec, config: Mapping[str, object], vocabulary: int) -> list[Arrays]:
    """Return inputs that differ in batch, picture size and timestep from case to case.

    Args:
        spec: of the engine.
        config: of the bundle's scheduler.
        vocabulary: number of tokens.
    """
    rng = np.random.default_rng(sum(spec.name.encode()))
    schedule = make_schedule(config, sampler="dpm++2m", num_inference_steps=20)
    return [
        _case(spec, rng, values, schedule, step, vocabulary)
        for values, step in zip(_axis_values(spec), (0, 10, 19), strict=True)
    ]


def _axis_values(spec: EngineSpec) -> list[dict[str, int]]:
    """Batches 1, 2 and 3, and the smallest size, one that is not square, the smallest again."""
    found = []
    for number, batch in enumerate(_BATCHES):
        values = {}
        for name, axis in spec.axes.items():
            is_side = name in ("height", "width")
            wanted = axis.min + (axis.multiple if (number, name) == (1, "height") else 0)
            values[name] = wanted if is_side else min(max(batch, axis.min), axis.max)
        found.append(values)
    return found


def _case(
    spec: EngineSpec,
    rng: np.random.Generator,
    values: Mapping[str, int],
    schedule: Schedule,
    step: int,
    vocabulary: int,
) -> Arrays:
    def value(tensor: TensorSpec) -> Array:
        shape = spec.shape(tensor, values)
        if tensor.name == "input_ids":
            return rng.integers(0, vocabulary, shape)
        if tensor.name == "timestep":
            return np.array(schedule.timesteps[step], np.float32)
        if tensor.name == "coefficients":
            row = [column[step] for column in _columns(schedule)]
            return np.array(row, np.float32)
        if tensor.name == "guidance":
            rows = shape[0]
            guided = rows % 2 == 0
            return guidance_matrix(rows // 2 if guided else rows, _GUIDANCE_SCALE, guided=guided)
        if tensor.name == "mask":
            return (rng.random(shape) < 0.5).astype(np.float32)
        if tensor.name in ("pixels",) or (spec.network, tensor.name) == ("vae_encoder", "sample"):
            return rng.uniform(-1.0, 1.0, shape)
        return rng.standard_normal(shape)

    return {tensor.name: value(tensor).astype(tensor.dtype) for tensor in spec.inputs}


def _columns(schedule: Schedule) -> tuple[Array, ...]:
    return schedule.p, schedule.q, schedule.a, schedule.b, schedule.c


@torch.no_grad()
def untouched(name: str, parts: Mapping[str, Any], feeds: Arrays) -> Arrays:
    """Run what an engine stands for with the modules as diffusers and transformers made them.

    Args:
        name: of the engine.
        parts: as of `wrappers.load_networks`, before any wrapper holds them.
        feeds: by input name; floats are taken to float32.
    """
    given = {key: _tensor(array) for key, array in feeds.items()}
    outputs = _UNTOUCHED[name](parts, given)
    return {key: tensor.numpy() for key, tensor in outputs.items()}


def _tensor(array: Array) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.float() if tensor.is_floating_point() else tensor


_Tensors = dict[str, torch.Tensor]


def _features(parts: Mapping[str, Any], given: _Tensors) -> _Tensors:
    found = extract_features(
        parts["image_encoder"], parts["dino"], given["pixels"], given.get("mask"),
        background="mask" if "mask" in given else "keep",
    )  # fmt: skip
    return {"clip": found.clip, "dino": found.dino}


def _regressor(parts: Mapping[str, Any], given: _Tensors) -> _Tensors:
    features = ImageFeatures(given["clip"], given["dino"])
    return {"words": parts["regressor"](given["latents"], features)}


def _text_encoder(parts: Mapping[str, Any], given: _Tensors) -> _Tensors:
    return {"last_hidden_state": parts["text_encoder"](given["input_ids"]).last_hidden_state}


def _token_embedding(parts: Mapping[str, Any], given: _Tensors) -> _Tensors:
    return {"inputs_embeds": parts["text_encoder"].get_input_embeddings()(given["input_ids"])}


def _text_encoder_embeds(parts: Mapping[str, Any], given: _Tensors) -> _Tensors:
    embedded = given["inputs_embeds"]
    texts, tokens = embedded.shape[:2]
    rows = torch.arange(texts).repeat_interleave(tokens)
    columns = torch.arange(tokens).repeat(texts)
    with replaced_words(parts["text_encoder"], rows, columns, embedded.flatten(0, 1)):
        ids = torch.zeros(texts, tokens, dtype=torch.int64)
        return {"last_hidden_state": parts["text_encoder"](ids).last_hidden_state}


def _unet(parts: Mapping[str, Any], given: _Tensors) -> _Tensors:
    out = parts["unet"](given["sample"], given["timestep"], given["encoder_hidden_states"])
    return {"out_sample": out.sample}


def _denoise_step(parts: Mapping[str, Any], given: _Tensors) -> _Tensors:
    """Guidance as diffusers' pipelines do it, and the sampler's rule, in float64.

    The whole UNet runs also where deep features are given: they take the place of its own.
    """
    deep = given.get("deep_features")
    with _last_layer(parts["unet"], deep) as kept:
        predicted = _unet(parts, given)["out_sample"].double()
    sample, before = given["sample"].double(), given["previous_x0"].double()
    if len(sample) % 2 == 0:
        without, with_prompt = predicted.chunk(2)
        guided = without + _GUIDANCE_SCALE * (with_prompt - without)
        predicted = torch.cat([guided, guided])
    p, q, a, b, c = given["coefficients"].double()
    x0 = p * sample + q * predicted
    return {"next_sample": a * sample + b * x0 + c * before, "x0": x0, "deep_features": kept[0]}


@contextmanager
def _last_layer(unet: Any, deep: torch.Tensor | None) -> Iterator[list[torch.Tensor]]:
    """Keep the deep features that a UNet's last layer is given; put others there, if any."""
    kept: list[torch.Tensor] = []

    def swap(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *others = inputs
        skipped = unet.conv_in.out_channels
        own, skip = hidden.split([hidden.shape[1] - skipped, skipped], dim=1)
        kept.append(own)
        return torch.cat([own if deep is None else deep, skip], dim=1), *others

    handle = unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(swap)
    try:
        yield kept
    finally:
        handle.remove()


def _vae_encoder(parts: Mapping[str, Any], given: _Tensors) -> _Tensors:
    return {"latent_parameters": parts["vae"].encode(given["sample"]).latent_dist.parameters}


def _vae_decoder(parts: Mapping[str, Any], given: _Tensors) -> _Tensors:
    return {"sample": parts["vae"].decode(given["latent_sample"]).sample}


_UNTOUCHED: dict[str, Callable[[Mapping[str, Any], _Tensors], _Tensors]] = {
    "image_features": _features,
    "regressor": _regressor,
    "text_encoder": _text_encoder,
    "token_embedding": _token_embedding,
    "text_encoder_embeds": _text_encoder_embeds,
    "unet": _unet,
    "denoise_step": _denoise_step,
    SHALLOW_STEP: _denoise_step,
    "vae_encoder": _vae_encoder,
    "vae_decoder": _vae_decoder,
}


def wrapper_runner(engine: nn.Module, spec: EngineSpec) -> Runner:
    """Return a function that runs a wrapper, in float32, on arrays."""

    @torch.no_grad()
    def run(feeds: Arrays) -> Arrays:
        out = engine(*(_tensor(feeds[tensor.name]) for tensor in spec.inputs))
        outputs = (out,) if isinstance(out, torch.Tensor) else out
        return {
            tensor.name: array.numpy() for tensor, array in zip(spec.outputs, outputs, strict=True)
        }

    return run


def compare(
    spec: EngineSpec, leg: str, run: Runner, feeds: Sequence[Arrays], references: Sequence[Arrays]
) -> Comparison:
    """Compare a leg's outputs with the references of all cases.

    Raises:
        EngineError: an output is missing, of another shape, or it or its reference is not finite.
    """
    worst = Comparison(0.0, 0.0, 1.0)
    for case, reference in zip(feeds, references, strict=True):
        outputs = run(case)
        for tensor in spec.outputs:
            got, want = outputs.get(tensor.name), reference[tensor.name]
            # A NaN in either would be lost when the worst figure is taken.
            if got is None or got.shape != want.shape or not _all_finite(got, want):
                raise EngineError(
                    f"{tensor.name} of engine {spec.name} by {leg}",
                    expected=f"finite values of shape {want.shape}",
                    got="none" if got is None
                    else f"shape {got.shape}" if got.shape != want.shape else "values that are not",
                    remedy="Use float32 for this network in the recipe, or report it",
                )  # fmt: skip
            worst = _worse(worst, difference(got, want))
    return worst


def _all_finite(*arrays: Array) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def difference(got: Array, want: Array) -> Comparison:
    """Compare two arrays of one shape."""
    one, other = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    largest = np.abs(other).max(initial=0.0)
    max_abs = float(np.abs(one - other).max(initial=0.0))
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return Comparison(
        max_abs=max_abs,
        relative_max_abs=max_abs / float(largest) if largest else float(max_abs > 0.0),
        cosine=float(one @ other) / lengths if lengths else float(max_abs == 0.0),
    )


def _worse(one: Comparison, other: Comparison) -> Comparison:
    return Comparison(
        max(one.max_abs, other.max_abs),
        max(one.relative_max_abs, other.relative_max_abs),
        min(one.cosine, other.cosine),
    )


def check(spec: EngineSpec, leg: str, precision: Precision, found: Comparison) -> None:
    """Refuse an engine that is too far from the network.

    Raises:
        EngineError: a figure is beyond its threshold (`recipe.THRESHOLDS`).
    """
    limits = THRESHOLDS[precision]
    wanted, got = [], []
    far = limits.relative_max_abs
    # Written so that a NaN fails.
    if far is not None and not found.relative_max_abs <= far:
        wanted.append(f"max-abs at most {far:g} of the output's scale")
        got.append(f"{found.relative_max_abs:.3g}")
    if limits.cosine is not None and not found.cosine >= limits.cosine:
        wanted.append(f"cosine at least {limits.cosine}")
        got.append(f"{found.cosine:.6f}")
    if wanted:
        raise EngineError(
            f"parity of engine {spec.name}, {precision}, by {leg}",
            expected=" and ".join(wanted), got=" and ".join(got),
            remedy="Use float32 for this network in the recipe, or report it",
        )  # fmt: skip
