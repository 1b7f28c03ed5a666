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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hbsdk.bundle_info import sha256_of
from hbsdk.evaluation.judge import (
    CONFIG,
    JUDGE,
    SCHEMA,
    WEIGHTS,
    Judge,
    JudgeNetwork,
    judge_input,
    load_judge,
)
from hbsdk.evaluation.subjects import Pixels
from hbsdk.mini import world
from hbsdk.mini.factors import JUDGE_SEEDS
from hbsdk.mini.judge_pictures import Labelled, draw_all, is_plain_to_see, soften
from hbsdk.mini.training_loop import Plan, Stage, run, save_atomically, save_weights


@dataclass(frozen=True)
class JudgeSettings:
    """How the judge is made.

    Attributes:
        plan: of the optimizer.
        batch_size: pictures of a step.
        identities: how many it is trained on, one picture of each: for attributes, new identities
            are worth most.
        validation: the last identities of JUDGE_SEEDS, which give the figures.
        channels: of the network, at 32 x 32, 16 x 16 and 8 x 8.
        seed: of the random weights, and of how pictures are softened for the figures.
        least_accuracy: of a factor that is judged,
        least_of_gap: and which part of the way from chance to certainty it must go.
    """

    plan: Plan
    batch_size: int
    identities: int
    validation: int
    channels: tuple[int, int, int]
    seed: int
    least_accuracy: float
    least_of_gap: float


SETTINGS = JudgeSettings(  # of the judge that is embedded
    plan=Plan(steps=1800, learning_rate=2e-3, muon_rate=2e-3, warmup_steps=100, decay_fraction=0.5),
    batch_size=128,
    identities=40_000,
    validation=2_000,
    channels=(32, 64, 112),
    seed=4_000_000,
    least_accuracy=0.8,
    least_of_gap=0.5,
)


def stage(
    network: JudgeNetwork,
    data: Labelled,
    held_out: Labelled,
    plan: Plan = SETTINGS.plan,
    *,
    batch_size: int = SETTINGS.batch_size,
) -> Stage:
    """Return the training of a judge by attribute labels.

    Args:
        network: with random weights.
        data: to train on.
        held_out: gives the figures.
        plan: of the optimizer.
        batch_size: pictures of a step.
    """

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


def figures_of(
    network: JudgeNetwork, held_out: Labelled, seeds: range, settings: JudgeSettings = SETTINGS
) -> dict[str, Any]:
    """Return which factors are judged, and the accuracy of the judge and of chance.

    Args:
        network: the judge's.
        held_out: one picture of each identity of `seeds`.
        seeds: of identities that were not trained on.
        settings: the rule of the judged, and the seed.
    """
    names = list(world.FACTORS)
    right = _right(network, held_out.pixels, held_out.labels)
    plain = right[[is_plain_to_see(seed) for seed in seeds]].mean(axis=0)
    chance = np.array([np.bincount(column).max() for column in held_out.labels.T]) / len(right)
    judged = judged_factors(_by_name(plain), _by_name(chance), settings)
    torch.manual_seed(settings.seed)
    soft = soften(np.random.default_rng(settings.seed), judge_input(held_out.pixels))
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


def judged_factors(
    accuracy: dict[str, float], chance: dict[str, float], settings: JudgeSettings = SETTINGS
) -> list[str]:
    """Return the factors that the judge reads well: often, and not only by guessing.

    Args:
        accuracy: by factor, where factors are plain to see: what a hat hides is hidden from any
            judge, and lowers the ceiling of real pictures as much as a method's figure.
        chance: by factor, of always naming the most frequent value.
        settings: what "well" is.
    """
    return [
        name
        for name, value in accuracy.items()
        if value >= settings.least_accuracy
        and value - chance[name] >= settings.least_of_gap * (1.0 - chance[name])
    ]


def write_judge(
    network: JudgeNetwork, held_out: Labelled, folder: Path, settings: JudgeSettings
) -> Judge:
    """Write the weights in half precision, measure what was written, and write config.json.

    Args:
        network: trained; its weights are rounded to half precision.
        held_out: one picture of each of the last identities of JUDGE_SEEDS.
        folder: the judge's.
        settings: that it was made with.

    Returns:
        The judge as it is loaded from the folder.
    """
    save_weights(network, folder / WEIGHTS)
    network.load_state_dict({name: w.half() for name, w in network.state_dict().items()})
    seeds = JUDGE_SEEDS[-settings.validation :]
    figures = figures_of(network, held_out, seeds, settings)
    config = {
        "schema": SCHEMA,
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "channels": list(settings.channels),
        "factors": {name: list(values) for name, values in world.FACTORS.items()},
        "judged": figures.pop("judged"),
        "figures": {
            **figures,
            "measured on": f"one picture each of the seeds {seeds.start}..{seeds.stop - 1}",
            "rule of the judged": f"an accuracy of at least {settings.least_accuracy} where it is"
            " plain to see (a cartoon without accessory), and at least"
            f" {settings.least_of_gap} of the way from chance to 1",
            "training": {
                "steps": settings.plan.steps,
                "batch_size": settings.batch_size,
                "identities": settings.identities,
            },
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
    parser.add_argument("--identities", type=int, default=SETTINGS.identities)
    parser.add_argument("--steps", type=int, default=SETTINGS.plan.steps)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw")
    parser.add_argument("--threads", type=int, help="CPU threads that train")
    arguments = parser.parse_args()
    most = len(JUDGE_SEEDS) - SETTINGS.validation
    if not 0 < arguments.identities <= most:
        parser.error(f"--identities must be from 1 to {most}")
    plan = replace(SETTINGS.plan, steps=arguments.steps)
    settings = replace(SETTINGS, identities=arguments.identities, plan=plan)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    pictures = arguments.work / "pictures"
    held_out = draw_all(pictures, JUDGE_SEEDS[-settings.validation :], workers=arguments.workers)
    data = draw_all(pictures, JUDGE_SEEDS[: settings.identities], workers=arguments.workers)
    torch.manual_seed(settings.seed)
    network = JudgeNetwork([len(values) for values in world.FACTORS.values()], settings.channels)
    if run(stage(network, data, held_out, plan), arguments.work):
        judge = write_judge(network, held_out, arguments.judge, settings)
        print(judge.name, json.dumps(judge.figures["means over the judged"]))


if __name__ == "__main__":
    main()
