"""How much memory a measurement needs: weights by precision, and tensors that live at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hbsdk.bundle import Bundle
from hbsdk.options import PersonalizeOptions

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
_LIBRARIES_BYTES = 700_000_000  # of Python, torch, diffusers and transformers, measured
_ALWAYS_FLOAT32 = ("text_encoder", "regressor")  # as the torch backend has them
TO_DRAW = ("text_encoder", "unet", "vae_decoder")  # folders of engines
_TO_REFINE = ("text_encoder", "unet", "regressor")  # what is held at once where memory is low
_NETWORKS = ("text_encoder", "unet", "vae", "image_encoder", "dino", "regressor")


def parameters(path: Path) -> int:
    """Return how many numbers the safetensors files of a network hold; only headers are read."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    count = 0
    for file in files:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(size, 100_000_000)))
        shapes = [one["shape"] for name, one in header.items() if name != "__metadata__"]
        count += sum(math.prod(shape) for shape in shapes)
    return count


def weights_bytes(bundle: Bundle, dtype: str, networks: Iterable[str] = _NETWORKS) -> int:
    """Return what networks take in memory, as the torch backend loads them."""
    total = 0
    for name in networks:
        if name in bundle.components:
            own = "float32" if name in _ALWAYS_FLOAT32 else dtype
            total += parameters(bundle.components[name]) * BYTES_OF[own]
    return total


def generation_need(
    bundle: Bundle,
    dtype: str,
    peak_bytes: int,
    networks: Iterable[str] = ("text_encoder", "unet", "vae"),
) -> int:
    """Return the bytes that drawing needs, of which `peak_bytes` are of one part's tensors."""
    return _LIBRARIES_BYTES + weights_bytes(bundle, dtype, networks) + peak_bytes


def engines_need(folder: Path, peak_bytes: int, networks: Iterable[str]) -> int:
    """Return the bytes that running engines needs.

    A quarter more than their weights, and what runs at once: ONNX Runtime took 1.2 times the
    weights at Stable Diffusion 1.5's size (benchmarks/results/bridge_sd15.json).

    Args:
        folder: of the engines.
        peak_bytes: of one part's tensors.
        networks: folders in it that are loaded.
    """
    files = [path for name in networks for path in (folder / name).rglob("*") if path.is_file()]
    weights = sum(path.stat().st_size for path in files)
    return _LIBRARIES_BYTES + weights * 5 // 4 + peak_bytes


def refinement_need(
    bundle: Bundle,
    options: PersonalizeOptions,
    dtype: str,
    *,
    memory: str | None = None,
    everywhere: bool = False,
) -> int:
    """Return the bytes that personalizing with refinement needs.

    Args:
        bundle: says the sizes.
        options: of the refinement.
        dtype: of the UNet, the VAE and the image encoders.
        memory: of the session; "low" holds only what refines at once.
        everywhere: with gradients of all weights, as a plain loop has them.
    """
    from hbsdk.bench.counting import count_refinement

    held = _TO_REFINE if memory == "low" else _NETWORKS
    weights = weights_bytes(bundle, dtype, held) * (2 if everywhere else 1)
    return _LIBRARIES_BYTES + weights + count_refinement(bundle, options, dtype=dtype).peak_bytes


def fitting_micro_batch(
    bundle: Bundle, options: PersonalizeOptions, dtype: str, room_bytes: int
) -> int | None:
    """Return the most noise levels at once that fit, a power of two; None if not even one does."""
    size = 1
    one = refinement_need(bundle, replace(options, micro_batch_size=1), dtype)
    two = refinement_need(bundle, replace(options, micro_batch_size=2), dtype)
    if one > room_bytes:
        return None
    while size < options.timesteps_per_step and one + (two - one) * (2 * size - 1) <= room_bytes:
        size *= 2
    return size


def without_room(bundle: Bundle, options: PersonalizeOptions, dtype: str, room_bytes: int) -> str:
    """Return which option makes a refinement fit into so many bytes, as a sentence's end."""
    fits = fitting_micro_batch(bundle, options, dtype, room_bytes)
    if fits is not None and fits < options.micro_batch_size:
        return f"micro_batch_size={fits} fits, with the same result"
    if dtype == "float32":
        return "dtype='bfloat16' needs half of the UNet's memory"
    return "It needs a machine with more memory"
