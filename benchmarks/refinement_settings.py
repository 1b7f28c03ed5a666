"""Which refinement settings lower the loss on *other* pictures of the same identity?

    python benchmarks/refinement_settings.py --out benchmarks/results/refinement_settings.json

Identities are the training seeds that the regressor did not train on (its validation split), never
the held-out ones. The loss is `hbsdk.mini.evaluate.other_pictures_loss`, paired with the probe's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import hbsdk
from hbsdk.mini import world
from hbsdk.mini.cache import draw_picture
from hbsdk.mini.evaluate import REFERENCE, other_pictures_loss

VALIDATION = world.TRAIN_SEEDS[11_936:12_000]
EFFECTIVE_STEPS = (1e-4, 3e-4, 1e-3, 3e-3)
TIMESTEPS = (8, 16)
BACKGROUNDS = (0.1, 1.0)


def main() -> None:
    """Measure every combination, print a line for each, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle")
    parser.add_argument("--identities", type=int, default=24)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    session = hbsdk.Session(arguments.bundle, engine="torch", progress=False)
    seeds = list(VALIDATION[: arguments.identities])
    photos = {seed: draw_picture(seed, REFERENCE)[0] for seed in seeds}
    probe = np.array([
        other_pictures_loss(session, seed, session.personalize(photos[seed], steps=0).words)
        for seed in tqdm(seeds, desc="probe")
    ])  # fmt: skip
    rows = []
    for step, timesteps, background in itertools.product(EFFECTIVE_STEPS, TIMESTEPS, BACKGROUNDS):
        settings = {
            "effective_step": step,
            "timesteps_per_step": timesteps,
            "background_weight": background,
        }
        subjects = [session.personalize(photos[seed], **settings) for seed in seeds]
        losses = np.array(
            [
                other_pictures_loss(session, s, one.words)
                for s, one in zip(seeds, subjects, strict=True)
            ]
        )
        rows.append({
            **settings,
            "other_pictures": float((losses - probe).mean()),
            "standard_error": float((losses - probe).std(ddof=1) / len(seeds) ** 0.5),
            "lower": int((losses < probe).sum()),
            "own_picture": float(
                np.mean([s.report.loss_after - s.report.loss_before for s in subjects])
            ),
            "word_change": float(np.mean([s.report.word_change for s in subjects])),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "bundle_hash": session.bundle.hash,
        "identities": len(seeds),
        "probe_loss": float(probe.mean()),
        "settings": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
