"""What all peers start from, and the times of a pipeline's steps; hbsdk is not imported."""

from __future__ import annotations

import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np


def read_inputs(path: str) -> dict[str, Any]:
    """Return the arrays that hbsdk wrote: noise, states, guidance and the sampler's table."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def versions_of(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def synchronise() -> None:
    """Wait for the GPU, if torch has used one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed_picture(pipeline: Any, settings: dict[str, Any], inputs: dict[str, Any]) -> Any:
    """Draw with a diffusers-like pipeline; return (samples, picture).

    With `settings["guided_step"]` nothing is decoded: the second return is latents, (C, h, w).
    """
    ends: list[float] = []

    def on_step_end(_: Any, __: int, ___: Any, values: dict[str, Any]) -> dict[str, Any]:
        synchronise()
        ends.append(time.perf_counter())
        return values

    alone = settings["guided_step"]
    height, width = (side * settings["pixels_a_cell"] for side in inputs["latents"].shape[-2:])
    synchronise()
    started = time.perf_counter()
    picture = pipeline(
        **inputs, num_inference_steps=settings["steps"], guidance_scale=settings["guidance_scale"],
        height=height, width=width, output_type="latent" if alone else "np",
        callback_on_step_end=on_step_end,
    ).images[0]  # fmt: skip
    synchronise()
    seconds = time.perf_counter() - started
    if hasattr(picture, "float"):  # latents are tensors
        picture = picture.float().cpu().numpy()
    return samples_of(settings, seconds, ends), picture


def samples_of(settings: dict[str, Any], seconds: float, ends: list[float]) -> dict[str, Any]:
    """Return what was measured, by name: the steps but for the first, and the picture if asked."""
    samples = {"guided step": np.diff(ends).tolist()} if len(ends) > 1 else {}
    if not settings["guided_step"]:
        samples = {f"picture of {settings['steps']} steps": [seconds], **samples}
    return samples


def save_once(settings: dict[str, Any], values: Any) -> None:
    """Write the first run's picture whole, or not at all."""
    if settings.get("picture"):
        path = Path(settings.pop("picture"))
        temporary = path.with_suffix(".part.npy")
        np.save(temporary, values)
        temporary.replace(path)
