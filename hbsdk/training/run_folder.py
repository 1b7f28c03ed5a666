"""What a training run writes besides its checkpoints: the losses, the regressor, the account."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hbsdk.regressor import PromptRegressor
from hbsdk.training.checkpoint import refused_writes

LOSSES, SKIPPED, ACCOUNT, REGRESSOR = "losses.jsonl", "skipped.tsv", "training.json", "regressor"


class LossLog:
    """losses.jsonl: one line of figures for each logged step, 1 being the first."""

    def __init__(self, out: Path, steps_done: int) -> None:
        """Open the log of a run, or of a resumed one: what came after its checkpoint goes.

        Raises:
            TrainingError: it cannot be written.
        """
        self._path = out / LOSSES
        with refused_writes(str(self._path)):
            out.mkdir(parents=True, exist_ok=True)
            kept = [line for line in self._lines() if json.loads(line)["step"] <= steps_done]
            _write_atomically(self._path, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a line.

        Raises:
            TrainingError: it cannot be written.
        """
        finite = {key: value for key, value in figures.items() if math.isfinite(value)}
        line = {"step": step, "time": round(time.time(), 1), **finite}
        with refused_writes(str(self._path)), self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")

    def _lines(self) -> list[str]:
        """Return all whole lines: a run that was killed may have left half of one."""
        if not self._path.exists():
            return []
        *whole, _ = self._path.read_text("utf-8").split("\n")
        return whole


def save_regressor(regressor: PromptRegressor, out: Path) -> Path:
    """Write the regressor's config.json and safetensors; return their folder.

    Raises:
        TrainingError: it cannot be written; what was there before still is.
    """
    folder = out / REGRESSOR
    new, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    with refused_writes(f"the regressor in {folder}"):
        try:
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)
            regressor.save_pretrained(new)
            if folder.exists():
                os.replace(folder, old)
            os.replace(new, folder)
        finally:
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)
    return folder


def write_skipped(out: Path, skipped: Sequence[tuple[str, str]]) -> int:
    """Add to skipped.tsv (file, reason) what is not in it; return how many it lists.

    Raises:
        TrainingError: it cannot be written.
    """
    path = out / SKIPPED
    rows = {"\t".join(" ".join(cell.split()) for cell in row) for row in skipped}
    with refused_writes(str(path)):
        if path.exists():
            rows.update(path.read_text("utf-8").splitlines()[1:])
        lines = ["file\treason", *sorted(rows)]
        _write_atomically(path, "".join(f"{line}\n" for line in lines))
    return len(rows)


def write_account(out: Path, account: Mapping[str, Any]) -> None:
    """Write training.json: what was trained on what, how, for how long, with which versions.

    Raises:
        TrainingError: it cannot be written.
    """
    packages = ("hbsdk", "torch", "diffusers", "transformers", "accelerate")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    text = json.dumps({**account, "versions": versions}, indent=2) + "\n"
    with refused_writes(str(out / ACCOUNT)):
        _write_atomically(out / ACCOUNT, text)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
