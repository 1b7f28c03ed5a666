"""Rows of synthetic evaluations whose answers are known, and folders of them."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from hbsdk.evaluation.rows import FitRow, PictureRow
from hbsdk.evaluation.summary import summarise

SUBJECTS = [f"character-{number}" for number in range(20)]
PROMPTS = ["a picture of {}", "a picture of {} <in> the snow", "a watercolor of {}"]
SEEDS = 2
FACTORS = {"ears": 0.9, "fur": 0.6}
RUN = {
    "command": "hbsdk evaluate --set <world>", "date": "2026-01-02", "commit": "abc123",
    "device": "CPU", "versions": {"hbsdk": "0.1.0"}, "bundle": "mini", "bundle_hash": "f00",
    "set": "world-out", "subjects": SUBJECTS, "prompts": PROMPTS, "seeds": SEEDS,
    "metrics": {"clip": "test/clip-b32", "dino": "test/dino-s16"}, "judge": "test-judge",
    "methods": {"hybridbooth": {"steps": 5}}, "peak_bytes": "of the GPU, a fit",
}  # fmt: skip
REAL = ("real pictures", 0)
CLASS_WORD = ("class-word", 0)
PROBE = ("probe", 0)
FULL = ("hybridbooth", 5)
# dino_i, attributes, clip_t, seconds
EFFECTS = {
    REAL: (0.3, 0.25, 0.02, None),
    CLASS_WORD: (-0.2, -0.3, 0.03, 0.0),
    PROBE: (0.0, 0.0, 0.0, 0.1),
    FULL: (0.1, 0.05, -0.001, 1.0),
    ("without-dino", 5): (0.02, 0.0, 0.0, 1.0),
    ("textual-inversion", 10): (-0.15, -0.2, 0.0, 0.9),
    ("textual-inversion", 500): (0.05, 0.0, -0.02, 50.0),
    ("dreambooth", 20): (-0.05, -0.1, 0.0, 4.0),
    ("dreambooth", 400): (0.1, 0.05, -0.05, 80.0),
}


def clip01(value):
    return float(min(max(value, 0.0), 1.0))


def rows(effects=EFFECTS, *, subjects=SUBJECTS, noise=0.0, seeds=SEEDS):
    """Rows of base + effect + noise: bases differ from subject to subject, and hit every method."""
    generator = np.random.default_rng(0)
    bases = {subject: generator.normal(0.5, 0.05) for subject in subjects}
    pictures, fits = [], []
    for (method, steps), (dino, attributes, clip_t, seconds) in effects.items():
        for subject in subjects:
            for prompt in range(len(PROMPTS)):
                for seed in range(1 if method == "real pictures" else seeds):
                    about = bases[subject] + 0.01 * prompt + noise * generator.normal()
                    pictures.append(PictureRow(
                        method=method, steps=steps, subject=subject, prompt=prompt, seed=seed,
                        file=f"pictures/{method.replace(' ', '-')}/{steps}/{subject}.png",
                        dino_i=about + dino, dino_i_other=0.2, clip_i=0.7, clip_i_other=0.4,
                        clip_t=0.25 + 0.01 * (about - 0.5) + clip_t, retrieved=dino > 0.0,
                        attributes=clip01(about + attributes),
                        attribute_values={"ears": int(prompt < 2), "fur": int(prompt < 1)},
                    ))  # fmt: skip
            if seconds is not None:
                fits.append(FitRow(method, steps, subject, seconds, 0.2, 2_000_000_000))
    return pictures, fits


def write_folder(folder, pictures, fits, run=RUN, *, draw=True, side=16):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))
    for name, some in (("pictures.jsonl", pictures), ("fits.jsonl", fits)):
        (folder / name).write_text("".join(json.dumps(vars(row)) + "\n" for row in some))
    if not draw:
        return folder
    down = {row.file: 0 for row in pictures}
    for row in pictures:
        down[row.file] = max(down[row.file], row.seed + 1)
    colours = np.random.default_rng(1)
    for file, count in down.items():
        tiles = colours.integers(0, 255, (count, 1, len(PROMPTS), 1, 3))
        grid = np.broadcast_to(tiles, (count, side, len(PROMPTS), side, 3)).astype(np.uint8)
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid.reshape(count * side, -1, 3)).save(path)
    return folder


def summary_of(folder, effects=EFFECTS, run=RUN, **how):
    return summarise(write_folder(folder, *rows(effects, **how), run, draw=False))


def entry(summary, key):
    (found,) = [row for row in summary["methods"] if (row["method"], row["steps"]) == key]
    return found


def verdict(summary, *parts):
    found = [one for one in summary["verdicts"] if all(part in one["claim"] for part in parts)]
    assert len(found) == 1, [one["claim"] for one in summary["verdicts"]]
    return found[0]
