"""Sums up a training's logs: what each stage was asked for, how long it took, what it reached."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hbsdk.mini import train_clip, train_dino, train_regressor, train_unet, train_vae
from hbsdk.training.run_folder import LOSSES

STAGES = {"vae": train_vae, "clip": train_clip, "dino": train_dino, "unet": train_unet}
_LONGEST_PAUSE_S = 180.0  # a longer gap between two lines of a log is a pause, not work


def record(folder: Path) -> dict[str, Any]:
    """Return stage -> its schedule, steps done, hours of work and last figures.

    Args:
        folder: holds the stages' .jsonl logs, and the folder of the regressor's run.
    """
    stages = {}
    for name, log, schedule, batch_size, first in _logs(folder):
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
            "schedule": {key: v for key, v in schedule.items() if key != "steps"},
            "batch_size": batch_size,
            "steps": last["step"] + 1 - first,
            "hours": round(sum(p for p in pauses if p < _LONGEST_PAUSE_S) / 3600.0, 2),
            "figures": {key: round(value, 4) for key, value in figures.items()},
        }
    return stages


def _logs(folder: Path) -> Iterator[tuple[str, Path, dict[str, Any], int, int]]:
    """Yield each stage's name, log, schedule, batch size, and what its first step is called."""
    for name, module in STAGES.items():
        yield name, folder / f"{name}.jsonl", asdict(module.PLAN), module.BATCH_SIZE, 0
    options = train_regressor.OPTIONS
    log = folder / train_regressor.FOLDER / LOSSES
    yield "regressor", log, asdict(options), options.batch_size, 1
