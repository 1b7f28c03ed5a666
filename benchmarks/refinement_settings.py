"""Which refinement settings lower the loss on *other* pictures and keep the identity found?

    python benchmarks/refinement_settings.py --out benchmarks/results/refinement_settings.json

Identities are the training seeds that the regressor did not train on (its validation split), never
the held-out ones. The loss is `hbsdk.mini.evaluate.other_pictures_loss`, paired with the probe's;
retrieval and CLIP-T are of the evaluation's prompts. With --guidance-scales the probe is drawn at
each of these instead, beside the class word.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import hbsdk
from hbsdk.mini import world
from hbsdk.mini.cache import draw_picture
from hbsdk.mini.evaluate import REFERENCE, Judge, draw_all, figures, other_pictures_loss

VALIDATION = world.TRAIN_SEEDS[11_936:12_000]
Words = dict[int, Any]


def refined(
    session: hbsdk.Session, photos: dict[int, Any], probes: Words, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the probe's row and one for every combination of settings; print each."""
    seeds, judge = list(photos), Judge(session)
    before = losses_of(session, probes)
    rows = [{"settings": "probe", "loss": float(before.mean()), **found(session, judge, probes)}]
    print(json.dumps(rows[0]), flush=True)
    grid = itertools.product(
        arguments.effective_steps, arguments.timesteps, arguments.background_weights
    )
    for step, timesteps, background in grid:
        settings = {
            "effective_step": step, "timesteps_per_step": timesteps,
            "background_weight": background,
        }  # fmt: skip
        subjects = [session.personalize(photos[seed], **settings) for seed in seeds]
        words = {seed: subject.words for seed, subject in zip(seeds, subjects, strict=True)}
        change = losses_of(session, words) - before
        rows.append({
            "settings": settings,
            "loss_change": float(change.mean()),
            "standard_error": float(change.std(ddof=1) / len(seeds) ** 0.5),
            "lower": int((change < 0).sum()),
            "word_change": float(np.mean([s.report.word_change for s in subjects])),
            **found(session, judge, words),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def losses_of(session: hbsdk.Session, words: Words) -> np.ndarray:
    """Return (identities,) losses on other pictures."""
    return np.array([other_pictures_loss(session, seed, one) for seed, one in words.items()])


def found(session: hbsdk.Session, judge: Judge, words: Words) -> dict[str, float]:
    """Return how often pictures find their own identity, and how well CLIP finds the prompt."""
    seeds = list(words)
    measured = figures(judge, draw_all(session, seeds, words), seeds)
    return {
        "retrieved_plain": measured["plain"]["retrieved"],
        **{key: measured["mean"][key] for key in ("retrieved", "dino_i", "clip_t")},
    }


def guided(session: hbsdk.Session, probes: Words, scales: Sequence[float]) -> list[dict[str, Any]]:
    """Return a row for every guidance scale; print each."""
    seeds, judge, rows = list(probes), Judge(session), []
    for scale in scales:
        row: dict[str, Any] = {"guidance_scale": scale}
        for name, words in (("class word", None), ("probe", probes)):
            drawn = draw_all(session, seeds, words, guidance_scale=scale)
            row[name] = figures(judge, drawn, seeds)["mean"]
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle")
    parser.add_argument("--identities", type=int, default=64)
    parser.add_argument("--effective-steps", type=float, nargs="+", default=(2e-4, 5e-4, 1e-3))
    parser.add_argument("--timesteps", type=int, nargs="+", default=(16,))
    parser.add_argument("--background-weights", type=float, nargs="+", default=(0.1,))
    parser.add_argument("--guidance-scales", type=float, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    session = hbsdk.Session(arguments.bundle, engine="torch", progress=False)
    seeds = VALIDATION[: arguments.identities]
    photos = {seed: draw_picture(seed, REFERENCE)[0] for seed in seeds}
    probes = {
        seed: session.personalize(photo, steps=0).words
        for seed, photo in tqdm(photos.items(), desc="probe")
    }
    scales = arguments.guidance_scales
    rows = (
        guided(session, probes, scales) if scales else refined(session, photos, probes, arguments)
    )
    report = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "bundle_hash": session.bundle.hash,
        "identities": len(seeds),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
