"""Draws the training pictures once and keeps them on disk, in resumable chunks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from hbsdk.mini import world

REFERENCES = 3  # the first pictures of an identity: cartoon style, no accessory, any scene
PICTURES = 9  # pictures of an identity
CAPTIONS = 3  # captions of a picture that describe the identity; one more says "S*"
_CHUNK = 500  # identities in a file

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """All pictures of a range of identities.

    pixels: (identities, PICTURES, 64, 64, 3) uint8 RGB.
    masks: (identities, PICTURES, 64, 64) uint8 in {0, 1}.
    captions: (identities, PICTURES, CAPTIONS + 1) strings; the last one has "S*" for the subject.
    labels: (identities, factors) uint8, indices into `world.FACTORS`.
    """

    pixels: Pixels
    masks: Pixels
    captions: npt.NDArray[np.object_]
    labels: Pixels


def scene_of(seed: int, index: int) -> tuple[world.Identity, world.View, world.Context]:
    """Return what picture `index` (0..PICTURES - 1) of identity `seed` shows."""
    rng = np.random.default_rng([seed, index])
    view = world.view(rng)
    if index < REFERENCES:
        plain = rng.random() < 0.6
        scenes = world.PLAIN_SCENES if plain else world.PLACES
        return world.identity(seed), view, world.Context(scene=str(rng.choice(scenes)))
    return world.identity(seed), view, world.context(rng, plain=0.15)


def draw_picture(seed: int, index: int) -> tuple[Pixels, Pixels, list[str]]:
    """Draw one picture with its mask and its captions."""
    identity, view, context = scene_of(seed, index)
    pixels, mask = world.render(identity, view, context)
    rng = np.random.default_rng([seed, index, 1])
    captions = [world.caption(rng, identity, view, context) for _ in range(CAPTIONS)]
    captions.append(world.caption(rng, identity, view, context, subject="S*"))
    return pixels, mask, captions


def _draw_chunk(seeds: list[int], target: Path) -> Path:
    import cv2

    cv2.setNumThreads(1)
    drawn = [[draw_picture(seed, index) for index in range(PICTURES)] for seed in seeds]
    labels = [list(world.attributes(world.identity(seed)).values()) for seed in seeds]
    temporary = target.with_suffix(".tmp.npz")
    np.savez(
        temporary,
        pixels=np.array([[picture[0] for picture in row] for row in drawn], np.uint8),
        masks=np.array([[picture[1] for picture in row] for row in drawn], np.uint8),
        labels=np.array(labels, np.uint8),
        captions=np.array(json.dumps([[picture[2] for picture in row] for row in drawn])),
    )
    os.replace(temporary, target)
    return target


def draw_cache(folder: Path, identities: int, *, workers: int = 2) -> None:
    """Draw the first `identities` training characters into `folder`; what is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = {
        start: target
        for start in range(0, identities, _CHUNK)
        if not (target := folder / f"pictures-{start:07d}.npz").exists()
    }
    # Forked, a child can wait for ever for a lock that a thread of OpenCV or torch held.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_draw_chunk, list(world.TRAIN_SEEDS[start : start + _CHUNK]), target)
            for start, target in missing.items()
        ]
        for job in tqdm(jobs, desc="drawing the world", unit="chunk", disable=not jobs):
            job.result()


def _chunks(folder: Path, identities: int) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, identities, _CHUNK):
        with np.load(folder / f"pictures-{start:07d}.npz", allow_pickle=False) as chunk:
            yield dict(chunk)


def load_cache(folder: Path, identities: int) -> Pictures:
    """Load the first `identities` characters, 0.15 MB each."""
    chunks = list(_chunks(folder, identities))
    return Pictures(
        pixels=np.concatenate([chunk["pixels"] for chunk in chunks]),
        masks=np.concatenate([chunk["masks"] for chunk in chunks]),
        labels=np.concatenate([chunk["labels"] for chunk in chunks]),
        captions=np.concatenate(
            [np.array(json.loads(str(chunk["captions"])), dtype=object) for chunk in chunks]
        ),
    )
