"""How much memory work needs, and whether it is there: weights, and tensors that live at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError
from hbsdk.generate import Canvas
from hbsdk.network_sizes import network_sizes
from hbsdk.options import PersonalizeOptions

if TYPE_CHECKING:
    import torch

    from hbsdk.backends.torch import TorchBackend

_CGROUP = "/sys/fs/cgroup"

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}
_LIBRARIES_BYTES = 700_000_000  # of Python, torch, diffusers and transformers, measured
_ALWAYS_FLOAT32 = ("text_encoder", "regressor")  # as the torch backend has them
TO_DRAW = ("text_encoder", "unet", "vae_decoder")  # folders of engines
_TO_DRAW = ("text_encoder", "unet", "vae")  # in torch
_TO_REFINE = ("text_encoder", "unet", "regressor")  # what is held at once where memory is low
_NETWORKS = ("text_encoder", "unet", "vae", "image_encoder", "dino", "regressor")
# Numbers that live at once, by latent cell (or pixel) and channel of the first level, at most: 1.4
# to 4 times what is counted at SD 1.5's size and at mini's. What fits these is not counted at all.
_WHILE_REFINING, _WHILE_DENOISING, _WHILE_DECODING = 900, 200, 16


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
    networks: Iterable[str] = _TO_DRAW,
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
    held = _TO_REFINE if memory == "low" else _NETWORKS
    weights = weights_bytes(bundle, dtype, held) * (2 if everywhere else 1)
    return _LIBRARIES_BYTES + weights + _refinement_peak(bundle, options, dtype)


def _refinement_peak(bundle: Bundle, options: PersonalizeOptions, dtype: str) -> int:
    from hbsdk.bench.counting import count_refinement

    return count_refinement(bundle, options, dtype=dtype).peak_bytes


def fitting_micro_batch(
    bundle: Bundle, options: PersonalizeOptions, dtype: str, room_bytes: int
) -> int | None:
    """Return the most noise levels at once that fit, a power of two; None if not even one does.

    Args:
        bundle: says the sizes.
        options: of the refinement.
        dtype: of the UNet.
        room_bytes: free for tensors, beside all weights.
    """
    one, two = (
        _refinement_peak(bundle, replace(options, micro_batch_size=size), dtype) for size in (1, 2)
    )
    if one > room_bytes:
        return None
    size = 1
    while size < options.timesteps_per_step and one + (two - one) * (2 * size - 1) <= room_bytes:
        size *= 2
    return size


def without_room(bundle: Bundle, options: PersonalizeOptions, dtype: str, room_bytes: int) -> str:
    """Return which option makes a refinement fit into so many bytes, as a sentence's end.

    Args:
        bundle: says the sizes.
        options: of the refinement.
        dtype: of the UNet, the VAE and the image encoders.
        room_bytes: free for a process that has nothing yet.
    """
    rest = room_bytes - _LIBRARIES_BYTES - weights_bytes(bundle, dtype)
    fits = fitting_micro_batch(bundle, options, dtype, rest)
    if fits is not None and fits < options.micro_batch_size:
        return f"micro_batch_size={fits} fits, with the same result"
    if dtype == "float32":
        return "dtype='bfloat16' needs half of the UNet's memory"
    return "It needs a machine with more memory"


def fit_refinement(backend: TorchBackend, options: PersonalizeOptions) -> PersonalizeOptions:
    """Return options whose micro-batches fit the memory that is free, with the same result.

    Args:
        backend: that is to refine.
        options: whose `micro_batch_size` is the most to return.

    Raises:
        OptionError: not even one noise level at once fits.
    """
    bundle, dtype = backend.bundle, _name(backend)
    free = _free_beside_weights(backend, _TO_REFINE if backend.memory == "low" else _NETWORKS)
    at_once = min(options.micro_batch_size, options.timesteps_per_step)
    cells = (bundle.info.image_size_px // bundle.info.vae_scale_factor) ** 2
    if free is None or _rough(bundle, dtype, _WHILE_REFINING, at_once * cells) <= free:
        return options
    fits = fitting_micro_batch(bundle, options, dtype, free)
    if fits is not None:
        return replace(options, micro_batch_size=min(at_once, fits))
    least = _refinement_peak(bundle, replace(options, micro_batch_size=1), dtype)
    raise _no_room("to refine, one noise level at once", least, free, backend)


def check_room_to_draw(backend: TorchBackend, canvas: Canvas, count: int) -> None:
    """Refuse pictures that need more memory than is free.

    Args:
        backend: that is to draw.
        canvas: the size of their latents.
        count: how many at once.

    Raises:
        OptionError: they do, by the count of a guided step and of the decoder.
    """
    bundle, dtype, factor = backend.bundle, _name(backend), backend.bundle.info.vae_scale_factor
    free = _free_beside_weights(backend, _TO_DRAW)
    cells = canvas.height * canvas.width
    denoising = _rough(bundle, dtype, _WHILE_DENOISING, 2 * count * cells)
    decoding = _rough(bundle, dtype, _WHILE_DECODING, factor**2 * cells)
    if free is None or max(denoising, decoding) <= free:
        return
    from hbsdk.bench.counting import count_generation

    height_px, width_px = canvas.height * factor, canvas.width * factor
    parts = count_generation(
        bundle, pictures=count, height_px=height_px, width_px=width_px, dtype=dtype
    )
    need = max(part.peak_bytes for part in parts.values())
    if need > free:
        what = f"to draw {count} of {width_px} x {height_px} px at once"
        raise _no_room(what, need, free, backend, "Draw fewer at once, or smaller ones")


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that is free: the accelerator's, or the machine's within its container.

    Args:
        device: the CPU, or one of this machine's accelerators.

    Returns:
        None where it cannot be told.
    """
    if device.type != "cpu":
        import torch

        try:
            return int(torch.accelerator.get_memory_info(device)[0])
        except RuntimeError:  # of an accelerator that does not count it
            return None
    free_kib = _number_of("/proc/meminfo", "MemAvailable:")
    if free_kib is None:
        return None
    limit, used = _number_of(f"{_CGROUP}/memory.max"), _number_of(f"{_CGROUP}/memory.current")
    if limit is None or used is None:
        return 1024 * free_kib
    return min(1024 * free_kib, limit - used)


def _number_of(path: str, key: str = "") -> int | None:
    """Return the number after a key in a file of the system; None where there is none."""
    try:
        lines = Path(path).read_text("ascii").splitlines()
    except (OSError, ValueError):
        return None
    found = [line.removeprefix(key).split() for line in lines if line.startswith(key)]
    return int(found[0][0]) if found and found[0] and found[0][0].isdigit() else None


def _free_beside_weights(backend: TorchBackend, networks: Iterable[str]) -> int | None:
    """Return what is free once the networks that are not there yet are loaded."""
    free = available_bytes(backend.device)
    if free is None:
        return None
    wanted = [name for name in networks if not backend.has_loaded(name)]
    return free - weights_bytes(backend.bundle, _name(backend), wanted)


def _rough(bundle: Bundle, dtype: str, numbers: int, places: int) -> int:
    """Return bytes that are more than what lives at once at so many places, without counting."""
    return places * network_sizes(bundle).deep_width * numbers * BYTES_OF[dtype]


def _name(backend: TorchBackend) -> str:
    return str(backend.dtype).removeprefix("torch.")


def _no_room(
    what: str, need: int, free: int, backend: TorchBackend, remedy: str | None = None
) -> OptionError:
    options = [] if remedy is None else [remedy]
    if backend.memory == "high":
        options.append("Session(memory='low') keeps one stage's networks at a time")
    if backend.dtype.itemsize > 2:
        options.append("dtype='bfloat16' needs half")
    return OptionError(
        f"memory {what}", expected=f"{need / 1e9:.1f} GB free on {backend.device} beside weights",
        got=f"{max(free, 0) / 1e9:.1f} GB",
        remedy="; ".join(options) or "It needs a machine with more memory",
    )  # fmt: skip
