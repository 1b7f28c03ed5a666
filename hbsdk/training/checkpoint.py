"""Checkpoints of a training run: whole or not there at all, and only resumed by the same run."""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from hbsdk.bundle import Bundle
from hbsdk.errors import HbsdkError, TrainingError
from hbsdk.regressor import PromptRegressor
from hbsdk.training.options import TrainOptions
from hbsdk.training.pairs import PairSource
from hbsdk.training.refusal import is_full, refusal_of

FROZEN = ("tokenizer", "text_encoder", "unet", "vae", "scheduler", "image_encoder", "dino")
DATA = "data"
NETWORKS = "the bundle's frozen networks"
BACKGROUND = "the bundle's background"
_SCHEMA = 1
_STATE, _ABOUT = "state.pt", "about.json"
_NAME = re.compile(r"step-(\d{6,})")
# What may change from one part of a run to the next, or is part of the global batch.
_FREE = (
    "steps", "checkpoint_steps", "keep_checkpoints", "log_steps", "sample_steps",
    "gradient_checkpointing", "batch_size", "gradient_accumulation_steps",
)  # fmt: skip
# What may change if one means it to, as after a loss that was not finite.
_WARNED = ("learning_rate", "muon_rate", "warmup_steps", "decay_fraction", "max_gradient_norm")
_REMEDY = "Go on with what the run began with, or begin another one in another folder"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    step: steps done. seconds: that they took. run: what `describe_run` said.
    """

    folder: Path
    step: int
    seconds: float
    run: Mapping[str, Any]


def describe_run(
    bundle: Bundle,
    source: PairSource,
    options: TrainOptions,
    regressor: PromptRegressor,
    processes: int,
) -> dict[str, Any]:
    """Return what must be the same for a run to be resumed, by name, as JSON has it.

    Args:
        bundle: whose frozen networks are trained with.
        source: of the data.
        options: of the run; what may change from one part of it to the next is left out.
        regressor: where the run starts, of which only the architecture counts.
        processes: how many share the global batch.
    """
    frozen = {name: bundle.components[name] for name in FROZEN if name in bundle.components}
    each = options.batch_size * options.gradient_accumulation_steps
    described: dict[str, Any] = {
        DATA: source.fingerprint,
        NETWORKS: replace(bundle, components=frozen).hash,
        BACKGROUND: bundle.info.background,
        "global batch (batch_size x processes x gradient_accumulation_steps)": each * processes,
    }
    config = regressor.config.items()
    described |= {f"regressor's {key}": v for key, v in config if not key.startswith("_")}
    described |= {key: v for key, v in asdict(options).items() if key not in _FREE}
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def check_same_run(checkpoint: Checkpoint, run: Mapping[str, Any]) -> None:
    """Refuse to resume what is another run; warn of rates that are others.

    Args:
        checkpoint: to go on from.
        run: what `describe_run` says of the run that would go on.

    Raises:
        TrainingError: data, bundle, architecture or settings differ from the checkpoint's.
    """
    for name in {**checkpoint.run, **run}:
        before, now = checkpoint.run.get(name), run.get(name)
        if before != now and name in _WARNED:
            warnings.warn(f"{name} was {before} so far and is {now} from here on", stacklevel=2)
        elif before != now:
            raise TrainingError(
                f"{name}: {checkpoint.folder} is of another run",
                expected=_short(before),
                got=_short(now),
                remedy=_REMEDY,
            )


def newest_checkpoint(out: Path) -> Checkpoint | None:
    """Return the complete checkpoint with the most steps; what is half-written does not count.

    Args:
        out: the run's folder, which need not be there.
    """
    return next(_complete(out), None)


def write_checkpoint(
    out: Path,
    state: Mapping[str, Any],
    *,
    step: int,
    seconds: float,
    run: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint, then remove the oldest ones and what is incomplete.

    Args:
        out: the run's folder; checkpoints are in checkpoints/step-000500/ and so on.
        state: tensors, numbers and texts in dictionaries and lists.
        step: steps done.
        seconds: that they took.
        run: what `describe_run` returned.
        keep: how many complete checkpoints stay.

    Returns:
        Its folder.

    Raises:
        TrainingError: it could not be written; the former checkpoints are still there.
    """
    folder = out / "checkpoints" / f"step-{step:06d}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    with refused_writes(f"the checkpoint of step {step}", out):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            _write_state(state, temporary / _STATE)
            size = (temporary / _STATE).stat().st_size
            about = {
                "schema": _SCHEMA, "step": step, "seconds": seconds, "bytes": size, "run": run
            }  # fmt: skip
            _write_about(about, temporary / _ABOUT)
            _sync_folder(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
            _sync_folder(folder.parent)  # before an older one goes
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    kept = {one.folder for one in islice(_complete(out), keep)}
    for old in _folders(out):
        if old not in kept:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what was given to `write_checkpoint`, on the CPU.

    Args:
        checkpoint: a complete one.

    Raises:
        TrainingError: the file is damaged.
    """
    path = checkpoint.folder / _STATE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise almost anything
        raise TrainingError(
            f"checkpoint {checkpoint.folder} cannot be read",
            got=f"{type(error).__name__}: {error}"[:300],
            remedy="Remove this folder: the run then resumes from the checkpoint before",
        ) from error
    return state


@contextmanager
def refused_writes(what: str, out: Path) -> Iterator[None]:
    """Make a TrainingError of what the disk refuses while the context is open.

    Args:
        what: is written, for the message.
        out: the run's folder, whose checkpoints decide how one can go on.

    Raises:
        TrainingError: the disk is full, or may not be written to.
    """
    try:
        yield
    except HbsdkError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        refused = refusal_of(error)
        if refused is None:
            raise
        cure = "Make room" if is_full(refused) else f"Make {out} a place that can be written to"
        kept = newest_checkpoint(out)
        again = (
            "begin again: there is no checkpoint yet"
            if kept is None
            else f"go on with --resume from {kept.folder.name}, which is still there"
        )
        raise TrainingError(
            f"{what} could not be written" + (": the disk is full" if is_full(refused) else ""),
            got=str(refused)[:300],
            remedy=f"{cure}, then {again}",
        ) from error


def _write_state(state: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())  # before the folder gets its name


def _write_about(about: Mapping[str, Any], path: Path) -> None:
    """Write what makes a checkpoint complete."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(about, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """See to it that the names in a folder are on the disk, where the system can."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _folders(out: Path) -> list[Path]:
    """Return all checkpoints' folders, the newest first."""
    within = out / "checkpoints"
    found = within.iterdir() if within.is_dir() else iter(())
    named = [(match, path) for path in found if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(named, key=lambda one: -int(one[0][1]))]


def _complete(out: Path) -> Iterator[Checkpoint]:
    """Yield the complete checkpoints, the newest first."""
    found = (_described(folder) for folder in _folders(out))
    return (one for one in found if one is not None)


def _described(folder: Path) -> Checkpoint | None:
    try:
        about = json.loads((folder / _ABOUT).read_text("utf-8"))
        if about["schema"] != _SCHEMA or about["bytes"] != (folder / _STATE).stat().st_size:
            return None
        return Checkpoint(folder, int(about["step"]), float(about["seconds"]), about["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
