"""Makes the evaluation's judge from nothing: `python -m hbsdk.mini.train_judge --work DIR`.

It stands apart from hbsdk.mini.train, whose networks a method sees: other identities
(`JUDGE_SEEDS`, of which every second one has held-out values, so that it can judge those too), its
own contexts, convolutions in place of patches, attribute labels alone (no captions, no contrast
between identities), and pictures softened as an autoencoder and a diffusion model would. What a
method draws, and the method's own networks, take no part in it.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from hbsdk.bundle_info import sha256_of
from hbsdk.evaluation.judge import (
    CONFIG,
    JUDGE,
    SCHEMA,
    WEIGHTS,
    Judge,
    JudgeNetwork,
    Pixels,
    judge_input,
    load_judge,
)
from hbsdk.mini import world
from hbsdk.mini.factors import JUDGE_SEEDS
from hbsdk.mini.training_loop import Plan, Stage, run, save_atomically, save_weights

PLAN = Plan(steps=1800, learning_rate=2e-3, muon_rate=2e-3, warmup_steps=100, decay_fraction=0.5)
BATCH_SIZE = 128
IDENTITIES = 40_000  # one picture of each: for attributes, new identities are worth most
CHANNELS = (32, 64, 112)
VALIDATION = 2_000  # the last identities of JUDGE_SEEDS
SEED = 4_000_000  # of the random weights
LEAST_ACCURACY = 0.8  # of a factor that is judged,
LEAST_OF_GAP = 0.5  # and which part of the way from chance to certainty it must go
_CHUNK = 1_000  # pictures in a file


@dataclass(frozen=True)
class Labelled:
    """Pictures, (N, 64, 64, 3) uint8 RGB, and their identities' attributes, (N, factors) uint8."""

    pixels: Pixels
    labels: Pixels


def surroundings(seed: int) -> tuple[world.View, world.Context]:
    """Return those of an identity's one picture; half are cartoons, the others `world.context`s."""
    rng = np.random.default_rng([seed, 4])
    view, context = world.view(rng), world.context(rng, plain=0.15)
    return view, replace(context, style="cartoon") if rng.random() < 0.5 else context


def is_plain_to_see(seed: int) -> bool:
    """Whether neither a style nor an accessory hides an attribute in an identity's picture."""
    context = surroundings(seed)[1]
    return context.style == "cartoon" and context.accessory == "none"


def draw_labelled(seed: int) -> tuple[Pixels, list[int]]:
    """Draw an identity's one picture; return it and the identity's attributes."""
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
    """Draw the pictures of `seeds` into `folder`, keeping what is there, and load them."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
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
    in colour and get noise, fine and in blotches. Random numbers are torch's global ones but for
    the scale.
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


def stage(
    network: JudgeNetwork,
    data: Labelled,
    held_out: Labelled,
    plan: Plan = PLAN,
    *,
    batch_size: int = BATCH_SIZE,
) -> Stage:
    """Train on `data` by attribute labels; `held_out` gives the figures."""

    def loss(rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        which = rng.integers(len(data.pixels), size=batch_size)
        batch = soften(rng, judge_input(data.pixels[which]))
        if rng.random() < 0.5:  # who it is has no side
            batch = batch.flip(-1)
        labels = torch.from_numpy(data.labels[which].astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch)
        pairs = [(part.float(), labels[:, number]) for number, part in enumerate(logits)]
        right = [(part.argmax(1) == truth).float().mean() for part, truth in pairs]
        total = torch.stack([F.cross_entropy(part, truth) for part, truth in pairs]).mean()
        return total, {"attributes": torch.stack(right).mean().item()}

    def evaluate() -> dict[str, float]:
        right = _right(network, held_out.pixels, held_out.labels)
        return {"held_out_attributes": float(right.mean())}

    return Stage("judge", nn.ModuleDict({"judge": network}), loss, plan, evaluate)


@torch.inference_mode()
def _right(network: JudgeNetwork, pixels: Pixels, labels: Pixels) -> np.ndarray:
    """Return whether each factor of each picture is read right, (N, factors) bool."""
    seen = [
        torch.stack([logits.argmax(1) for logits in network(judge_input(part))], dim=1).numpy()
        for part in np.split(pixels, range(64, len(pixels), 64))
    ]
    return np.asarray(np.concatenate(seen) == labels)


def figures_of(network: JudgeNetwork, held_out: Labelled, seeds: range) -> dict[str, Any]:
    """Return which factors are judged, and the accuracy of the judge and of chance.

    Args:
        network: the judge's.
        held_out: one picture of each identity of `seeds`.
        seeds: of identities that were not trained on.
    """
    names = list(world.FACTORS)
    right = _right(network, held_out.pixels, held_out.labels)
    plain = right[[is_plain_to_see(seed) for seed in seeds]].mean(axis=0)
    chance = np.array([np.bincount(column).max() for column in held_out.labels.T]) / len(right)
    judged = judged_factors(_by_name(plain), _by_name(chance))
    torch.manual_seed(SEED)
    soft = soften(np.random.default_rng(SEED), judge_input(held_out.pixels))
    soft_pixels = ((soft.permute(0, 2, 3, 1) + 1.0) * 127.5).round().byte().numpy()
    others = np.roll(held_out.labels, 1, axis=0)
    means = {
        "real pictures (ceiling)": right.mean(axis=0),
        "real pictures, plain to see": plain,
        "real pictures, softened": _right(network, soft_pixels, held_out.labels).mean(axis=0),
        "other identities": _right(network, held_out.pixels, others).mean(axis=0),
        "chance": chance,
    }
    columns = [names.index(name) for name in judged]
    return {
        "judged": judged,
        "accuracy": _by_name(right.mean(axis=0)),
        "accuracy, plain to see": _by_name(plain),
        "chance": _by_name(chance),
        "means over the judged": {
            name: round(float(values[columns].mean()), 4) for name, values in means.items()
        },
    }


def _by_name(values: np.ndarray) -> dict[str, float]:
    rounded = [round(float(value), 4) for value in values]
    return dict(zip(world.FACTORS, rounded, strict=True))


def judged_factors(accuracy: dict[str, float], chance: dict[str, float]) -> list[str]:
    """Return the factors that the judge reads well: often, and not only by guessing.

    Args:
        accuracy: by factor, where factors are plain to see: what a hat hides is hidden from any
            judge, and lowers the ceiling of real pictures as much as a method's figure.
        chance: by factor, of always naming the most frequent value.
    """
    return [
        name
        for name, value in accuracy.items()
        if value >= LEAST_ACCURACY and value - chance[name] >= LEAST_OF_GAP * (1.0 - chance[name])
    ]


def write_judge(network: JudgeNetwork, held_out: Labelled, folder: Path, plan: Plan) -> Judge:
    """Write the weights in half precision, measure what was written, and write config.json."""
    save_weights(network, folder / WEIGHTS)
    network.load_state_dict({name: w.half() for name, w in network.state_dict().items()})
    seeds = JUDGE_SEEDS[-VALIDATION:]
    figures = figures_of(network, held_out, seeds)
    config = {
        "schema": SCHEMA,
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "channels": list(CHANNELS),
        "factors": {name: list(values) for name, values in world.FACTORS.items()},
        "judged": figures.pop("judged"),
        "figures": {
            **figures,
            "measured on": f"one picture each of the seeds {seeds.start}..{seeds.stop - 1}",
            "rule of the judged": f"an accuracy of at least {LEAST_ACCURACY} where it is plain to"
            f" see (a cartoon without accessory), and at least {LEAST_OF_GAP} of the way from"
            " chance to 1",
            "training": {"steps": plan.steps, "batch_size": BATCH_SIZE, "identities": IDENTITIES},
        },
    }
    text = json.dumps(config, indent=1) + "\n"
    save_atomically(lambda path: path.write_text(text, "utf-8"), folder / CONFIG)
    return load_judge(folder)


def main() -> None:
    """Draw, train and write the judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="pictures, checkpoint, log")
    parser.add_argument("--judge", type=Path, default=JUDGE, help="where it is written")
    parser.add_argument("--identities", type=int, default=IDENTITIES)
    parser.add_argument("--steps", type=int, default=PLAN.steps)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--threads", type=int, help="CPU threads that train")
    arguments = parser.parse_args()
    if not 0 < arguments.identities <= len(JUDGE_SEEDS) - VALIDATION:
        parser.error(f"--identities must be from 1 to {len(JUDGE_SEEDS) - VALIDATION}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    pictures = arguments.work / "pictures"
    held_out = draw_all(pictures, JUDGE_SEEDS[-VALIDATION:], workers=arguments.workers)
    data = draw_all(pictures, JUDGE_SEEDS[: arguments.identities], workers=arguments.workers)
    torch.manual_seed(SEED)
    network = JudgeNetwork([len(values) for values in world.FACTORS.values()], CHANNELS)
    plan = replace(PLAN, steps=arguments.steps)
    if run(stage(network, data, held_out, plan), arguments.work):
        judge = write_judge(network, held_out, arguments.judge, plan)
        print(judge.name, json.dumps(judge.figures["means over the judged"]))


if __name__ == "__main__":
    main()
