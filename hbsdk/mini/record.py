"""Sums up a training's logs: what each stage was asked for, how long it took, what it reached."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hbsdk.mini import train_clip, train_dino, train_regressor, train_unet, train_vae

STAGES = {
    "vae": train_vae,
    "clip": train_clip,
    "dino": train_dino,
    "unet": train_unet,
    "regressor": train_regressor,
}
_LONGEST_PAUSE_S = 180.0  # a longer gap between two lines of a log is a pause, not work


def record(folder: Path) -> dict[str, Any]:
    """Return stage -> its schedule, steps done, hours of work and last figures.

    Args:
        folder: holds the stages' .jsonl logs.
    """
    stages = {}
    for name, module in STAGES.items():
        log = folder / f"{name}.jsonl"
        if not log.exists():
            continue
        lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        times = [line["time"] for line in lines]
        pauses = (later - sooner for sooner, later in itertools.pairwise(times))
        last: dict[str, Any] = {}
        for line in lines:
            last.update(line)
        figures = {k: v for k, v in last.items() if k not in ("stage", "step", "time")}
        stages[name] = {
            "schedule": {key: v for key, v in asdict(module.PLAN).items() if key != "steps"},
            "batch_size": module.BATCH_SIZE,
            "steps": last["step"] + 1,
            "hours": round(sum(p for p in pauses if p < _LONGEST_PAUSE_S) / 3600.0, 2),
            "figures": {key: round(value, 4) for key, value in figures.items()},
        }
    return stages
