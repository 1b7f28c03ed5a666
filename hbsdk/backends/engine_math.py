"""Arithmetic on the host around the engines, the same for every runtime. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hbsdk.bundle_check import config_of
from hbsdk.engine_spec import EngineSpec, TensorSpec
from hbsdk.errors import EngineError

if TYPE_CHECKING:
    from hbsdk.backends.base import StepCoefficients
    from hbsdk.bundle import Bundle
    from hbsdk.image import Reference
    from hbsdk.text import PromptTokens

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LatentScale:
    """What lies between the VAE's own latents z and those that the UNet sees, (z - shift) factor.

    Attributes:
        factor: the VAE's `scaling_factor`.
        shift: its `shift_factor`, 0 where the configuration has none.
    """

    factor: float
    shift: float


def latent_scale(bundle: Bundle) -> LatentScale:
    """Read the latents' scale off a bundle's VAE configuration.

    Raises:
        BundleError: the configuration cannot be read.
    """
    config = config_of(bundle.components["vae"], "vae", bundle.configs)
    # diffusers' own default, which folders written by old versions rely on.
    return LatentScale(
        float(config.get("scaling_factor", 0.18215)), float(config.get("shift_factor") or 0.0)
    )


def reference_pixels(references: Sequence[Reference]) -> Floats:
    """Return references' pictures as engines take them, (N, 3, H, W) float32 in [-1, 1]."""
    pixels = np.stack([one.pixels for one in references])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)


def reference_mask(references: Sequence[Reference]) -> Floats:
    """Return references' masks as engines take them, (N, 1, H, W) float32 in [0, 1]."""
    return np.stack([one.mask for one in references])[:, None].astype(np.float32)


def latent_mode(parameters: Array, scale: LatentScale) -> Floats:
    """Return the mode of the VAE's distribution, scaled for the UNet.

    Args:
        parameters: (N, 2 C, h, w), means before log variances, as the VAE encoder gives them.
        scale: of the latents.

    Returns:
        (N, C, h, w) float32.
    """
    mean = parameters[:, : parameters.shape[1] // 2].astype(np.float32)
    return np.ascontiguousarray((mean - np.float32(scale.shift)) * np.float32(scale.factor))


def decoder_latents(latents: Floats, scale: LatentScale) -> Floats:
    """Return (N, C, h, w) latents as the VAE decoder takes them: `latent_mode`'s scale undone."""
    unscaled: Floats = latents / np.float32(scale.factor) + np.float32(scale.shift)
    return unscaled


def unit_pictures(decoded: Array) -> Floats:
    """(N, 3, H, W) in [-1, 1] from the VAE decoder -> (N, H, W, 3) float32 in [0, 1]."""
    unit = np.clip(decoded.astype(np.float32) / 2.0 + 0.5, 0.0, 1.0)
    return np.ascontiguousarray(unit.transpose(0, 2, 3, 1))


def cast(array: Array, tensor: TensorSpec) -> Array:
    """Return an array in an input's dtype, its values in C order."""
    return np.asarray(array, tensor.dtype, order="C")  # ascontiguousarray adds an axis to 0-d


def token_ids(prompts: Sequence[PromptTokens]) -> npt.NDArray[np.int64]:
    """Return N prompts' ids as one (N, tokens) int64 array."""
    return np.stack([prompt.ids for prompt in prompts])


def place_words(
    embedded: Array, prompts: Sequence[PromptTokens], words: Mapping[str, Floats]
) -> Array:
    """Put the subjects' words where their placeholders stand; positions are added after this.

    Args:
        embedded: (N, tokens, d), the prompts' rows of the token embedding's table.
        prompts: the N prompts.
        words: placeholder -> (n, d).

    Returns:
        (N, tokens, d) of the same dtype; `embedded` is left as it is.
    """
    placed: Array = embedded.copy()
    for row, prompt in enumerate(prompts):
        for name, runs in prompt.places.items():
            for positions in runs:
                placed[row, list(positions)] = words[name]
    return placed


def is_guided(pictures: int, states: int) -> bool:
    """Whether states of a text stand for classifier-free guidance: two for each picture.

    Raises:
        EngineError: they are neither as many as the pictures nor twice as many.
    """
    if states not in (pictures, 2 * pictures):
        raise EngineError(
            f"text states for {pictures} pictures",
            expected=f"{pictures} or {2 * pictures} of them", got=str(states),
            remedy="Encode the prompts with copies= the number of pictures",
        )  # fmt: skip
    return states == 2 * pictures


def guidance_matrix(pictures: int, guidance_scale: float, *, guided: bool) -> Floats:
    """Return classifier-free guidance as a matrix over the rows of the UNet's batch.

    With G = [[(1 - s) I, s I], [(1 - s) I, s I]] both halves of the batch get the guided noise
    e_without + s (e_with - e_without), so they stay equal from step to step and the loop needs no
    copies. Source: Ho and Salimans 2022, Eq. 6 with w = s - 1.

    Args:
        pictures: N.
        guidance_scale: s.
        guided: whether the batch holds each picture twice, without its prompt first.

    Returns:
        (2 N, 2 N) float32, or the (N, N) identity if not guided.
    """
    one = np.eye(pictures, dtype=np.float32)
    if not guided:
        return one
    scale = np.float32(guidance_scale)
    half = np.concatenate([(np.float32(1.0) - scale) * one, scale * one], axis=1)
    return np.concatenate([half, half])


def engine_rows(latents: Floats, *, guided: bool) -> Floats:
    """(N, C, h, w) latents -> the rows of the UNet's batch: twice each if guided."""
    return np.concatenate([latents, latents]) if guided else latents


def coefficient_row(coefficients: StepCoefficients, *, first: bool) -> Floats:
    """Return a step's [p, q, a, b, c], (5,) float32; the first has no x0 before: c = 0."""
    k = coefficients
    return np.array([k.p, k.q, k.a, k.b, 0.0 if first else k.c], np.float32)


def batches(spec: EngineSpec, axis: str, count: int) -> Iterator[slice]:
    """Yield slices of `count` rows that an engine can run at once, as few and as even as can be.

    Args:
        spec: of the engine; its first input's first dimension is `axis`, or a number if fixed.
        axis: "images", "texts" or "photos".
        count: how many rows there are.

    Raises:
        EngineError: the engine takes no batch as small as is left to run.
    """
    fixed = spec.inputs[0].shape[0]
    least, most = (fixed, fixed) if isinstance(fixed, int) else _limits(spec, axis)
    number = -(-count // most)
    ends = [count * index // number for index in range(number + 1)]
    for start, end in pairwise(ends):
        if end - start < least:
            raise EngineError(
                f"{axis} of engine {spec.name}", expected=f"at least {least} at once",
                got=str(end - start),
                remedy="Build engines with a recipe that allows it, or use engine='torch'",
            )  # fmt: skip
        yield slice(start, end)


def _limits(spec: EngineSpec, axis: str) -> tuple[int, int]:
    return spec.axes[axis].min, spec.axes[axis].max
