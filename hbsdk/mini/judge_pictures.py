"""Pictures for the judge's training: drawn, labelled, and spoiled as generated ones are."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from hbsdk.evaluation.subjects import Pixels
from hbsdk.mini import world

_PICTURES_OF_FILE = 1_000


@dataclass(frozen=True)
class Labelled:
    """Pictures, (N, 64, 64, 3) uint8 RGB, and their identities' attributes, (N, factors) uint8."""

    pixels: Pixels
    labels: Pixels


def surroundings(seed: int) -> tuple[world.View, world.Context]:
    """Return those of an identity's one picture; half are cartoons, the others `world.context`s.

    Args:
        seed: the identity's.
    """
    rng = np.random.default_rng([seed, 4])
    view, context = world.view(rng), world.context(rng, plain=0.15)
    return view, replace(context, style="cartoon") if rng.random() < 0.5 else context


def is_plain_to_see(seed: int) -> bool:
    """Whether neither a style nor an accessory hides an attribute in an identity's picture."""
    context = surroundings(seed)[1]
    return context.style == "cartoon" and context.accessory == "none"


def draw_labelled(seed: int) -> tuple[Pixels, list[int]]:
    """Draw an identity's one picture.

    Args:
        seed: the identity's.

    Returns:
        The picture, (64, 64, 3) uint8, and the identity's attributes, in the order of FACTORS.
    """
    view, context = surroundings(seed)
    identity = world.identity(seed)
    pixels, _ = world.render(identity, view, context)
    return pixels, list(world.attributes(identity).values())


def _draw_chunk(seeds: range, target: Path) -> None:
    import cv2

    cv2.setNumThreads(1)
    pixels, labels = zip(*map(draw_labelled, seeds), strict=True)
    temporary = target.with_suffix(".tmp.npz")
    np.savez(temporary, pixels=np.stack(pixels), labels=np.array(labels, np.uint8))
    os.replace(temporary, target)


def draw_all(folder: Path, seeds: range, *, workers: int = 2) -> Labelled:
    """Draw the pictures of `seeds` into `folder`, keeping what is there, and load them.

    Args:
        folder: made if need be.
        seeds: of identities.
        workers: processes that draw.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(seeds), _PICTURES_OF_FILE)
    parts = [seeds[start : start + _PICTURES_OF_FILE] for start in starts]
    files = [folder / f"judge-{part.start}-{len(part)}.npz" for part in parts]
    # Forked, a child can wait for ever for a lock that a thread of OpenCV or torch held.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_draw_chunk, part, file)
            for part, file in zip(parts, files, strict=True)
            if not file.exists()
        ]
        for job in tqdm(jobs, desc="drawing for the judge", unit="chunk", disable=not jobs):
            job.result()
    chunks = []
    for file in files:
        with np.load(file, allow_pickle=False) as chunk:
            chunks.append(Labelled(chunk["pixels"], chunk["labels"]))
    return Labelled(
        np.concatenate([chunk.pixels for chunk in chunks]),
        np.concatenate([chunk.labels for chunk in chunks]),
    )


def soften(rng: np.random.Generator, batch: Tensor) -> Tensor:
    """Spoil (N, 3, H, W) pictures in [-1, 1] as generated ones are; a quarter stays as it is.

    Half of them lose resolution (1..2x), the others are blurred (sigma 0..1.2 px); all are shifted
    in colour and get noise, fine and in blotches.

    Args:
        rng: of the scale; all other random numbers are torch's global ones.
        batch: not changed.
    """
    count, _, height, width = batch.shape
    small = [round(side / rng.uniform(1.0, 2.0)) for side in (height, width)]
    less = F.interpolate(batch[: count // 2], small, mode="bilinear", antialias=True)
    scaled = F.interpolate(less, (height, width), mode="bicubic")
    blurred = _blurred(batch[count // 2 :], 1.2 * torch.rand(count - count // 2))
    spoiled = torch.cat([scaled, blurred])
    gain = 1.0 + 0.08 * (2.0 * torch.rand(count, 3, 1, 1) - 1.0)
    shift = 0.06 * (2.0 * torch.rand(count, 3, 1, 1) - 1.0)
    blotches = F.interpolate(
        torch.randn(count, 3, height // 4, width // 4), (height, width), mode="bilinear"
    )
    noise = 0.04 * torch.rand(count, 1, 1, 1) * torch.randn_like(batch)
    noise = noise + 0.06 * torch.rand(count, 1, 1, 1) * blotches
    clean = torch.rand(count, 1, 1, 1) < 0.25
    return torch.where(clean, batch, (gain * spoiled + shift + noise).clamp(-1.0, 1.0))


def _blurred(batch: Tensor, sigma_px: Tensor) -> Tensor:
    """Blur each (3, H, W) picture by a Gaussian of its own width."""
    count, channels, height, width = batch.shape
    distance = torch.arange(-3.0, 4.0)
    kernel = torch.exp(-(distance**2) / (2.0 * sigma_px[:, None] ** 2 + 1e-4))  # (N, 7)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = batch.reshape(1, count * channels, height, width)
    for shape, padding in (((1, 7), (3, 3, 0, 0)), ((7, 1), (0, 0, 3, 3))):
        padded = F.pad(planes, padding, mode="replicate")
        planes = F.conv2d(padded, kernel.view(-1, 1, *shape), groups=count * channels)
    return planes.reshape(batch.shape)
