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
from hbsdk.whole_file import write_whole

LOSSES, SKIPPED, ACCOUNT, REGRESSOR = "losses.jsonl", "skipped.tsv", "training.json", "regressor"


class LossLog:
    """losses.jsonl: one line of figures for each logged step, 1 being the first."""

    def __init__(self, out: Path, steps_done: int) -> None:
        """Open the log of a run, or of a resumed one: what came after its checkpoint goes.

        Args:
            out: the run's folder, made if need be.
            steps_done: by the checkpoint that the run goes on from; 0 for a new one.

        Raises:
            TrainingError: it cannot be written.
        """
        self._out, self._path = out, out / LOSSES
        with refused_writes(str(self._path), out):
            out.mkdir(parents=True, exist_ok=True)
            kept = [line for line in self._lines() if json.loads(line)["step"] <= steps_done]
            write_whole(self._path, "".join(f"{line}\n" for line in kept).encode())

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add a line.

        Args:
            step: 1 is the first.
            figures: by name; those that are not finite are left out.

        Raises:
            TrainingError: it cannot be written.
        """
        finite = {key: value for key, value in figures.items() if math.isfinite(value)}
        line = {"step": step, "time": round(time.time(), 1), **finite}
        with (
            refused_writes(str(self._path), self._out),
            self._path.open("a", encoding="utf-8") as log,
        ):
            log.write(json.dumps(line) + "\n")

    def _lines(self) -> list[str]:
        """Return all whole lines: a run that was killed may have left half of one."""
        if not self._path.exists():
            return []
        *whole, _ = self._path.read_text("utf-8").split("\n")
        return whole


def save_regressor(regressor: PromptRegressor, out: Path) -> Path:
    """Write the regressor's config.json and safetensors.

    Args:
        regressor: the trained one.
        out: the run's folder.

    Returns:
        Their folder.

    Raises:
        TrainingError: it cannot be written; what was there before still is.
    """
    folder = out / REGRESSOR
    new, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    with refused_writes(f"the regressor in {folder}", out):
        try:
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)
            regressor.save_pretrained(new)
            if folder.exists():
                os.replace(folder, old)
            try:
                os.replace(new, folder)
            except OSError:
                if old.exists():
                    os.replace(old, folder)
                raise
        finally:
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)
    return folder


def write_skipped(out: Path, skipped: Sequence[tuple[str, str]]) -> int:
    """Add to skipped.tsv what is not in it.

    Args:
        out: the run's folder.
        skipped: (file, reason) of each picture that could not be read.

    Returns:
        How many the file lists.

    Raises:
        TrainingError: it cannot be written.
    """
    path = out / SKIPPED
    rows = {"\t".join(" ".join(cell.split()) for cell in row) for row in skipped}
    with refused_writes(str(path), out):
        if path.exists():
            rows.update(path.read_text("utf-8").splitlines()[1:])
        lines = ["file\treason", *sorted(rows)]
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())
    return len(rows)


def write_account(out: Path, account: Mapping[str, Any]) -> None:
    """Write training.json: what was trained on what, how, for how long, with which versions.

    Args:
        out: the run's folder.
        account: as JSON has it; the packages' versions are added.

    Raises:
        TrainingError: it cannot be written.
    """
    packages = ("hbsdk", "torch", "diffusers", "transformers", "accelerate")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    text = json.dumps({**account, "versions": versions}, indent=2) + "\n"
    with refused_writes(str(out / ACCOUNT), out):
        write_whole(out / ACCOUNT, text.encode())
