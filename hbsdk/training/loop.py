"""The training loop of the regressor, on any number of processes, by accelerate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.state import AcceleratorState  # type: ignore[import-untyped]
from accelerate.utils import broadcast_object_list  # type: ignore[import-untyped]

from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError, TrainingError
from hbsdk.regressor import PromptRegressor
from hbsdk.training.checkpoint import Checkpoint, newest_checkpoint
from hbsdk.training.options import TrainOptions
from hbsdk.training.pairs import PairSource
from hbsdk.training.run import Run, TrainingResult
from hbsdk.training.stopping import stop_requests
from hbsdk.training.telling import Figures, Listeners, Observer

__all__ = ["Figures", "Observer", "TrainingResult", "train"]


def train(
    bundle: Bundle,
    source: PairSource,
    out: Path,
    options: TrainOptions,
    *,
    regressor: PromptRegressor | None = None,
    resume: bool = False,
    progress: bool = True,
    observers: Sequence[Observer] = (),
    encoded: Path | None = None,
) -> TrainingResult:
    """Train a regressor on pairs (Eq. 7), and nothing else: all other networks are frozen.

    Under `accelerate launch` or `torchrun`, all processes call this alike, with the same `out` on a
    disk that they share. Every random number depends on (seed, step, index in the global batch).

    Args:
        bundle: whose networks it is trained for.
        source: of pairs, of the bundle's picture size.
        out: folder of the run: losses.jsonl, checkpoints/, and at the end regressor/,
            training.json and skipped.tsv.
        options: all settings.
        regressor: where to start, not changed; None starts from the UNet and the class word.
        resume: go on from the newest complete checkpoint in `out`, if there is one.
        progress: show a progress bar.
        observers: told of figures and samples, on the main process, after a step's checkpoint is
            written. One that has no room or no memory is warned of once and ends nothing.
        encoded: folder in which what fixed pictures were encoded as is kept for other runs on the
            same data, bundle and precision; see `FixedPictures`. None keeps it in memory alone.

    Returns:
        What the run came to.

    Raises:
        BundleError: the bundle lacks a network.
        OptionError: there is no such precision on this device.
        TrainingError: `out` holds a run and `resume` is not set, or another run's; the loss is not
            finite; or something cannot be written.
        TrainingStoppedError: a signal stopped the run, at the end of a step, with a checkpoint.
    """
    accelerator = _accelerator(options)
    checkpoint = _checkpoint(accelerator, out, resume=resume)
    run = Run(accelerator, bundle, source, out, options, regressor, checkpoint)
    listeners = Listeners(observers)
    kept = None if encoded is None else encoded / run.kept_name
    if kept is not None:
        run.encoder.read_kept(kept)
    try:
        with stop_requests() as stop, run.bar(shown=progress) as bar, run.batches() as batches:
            run.started = time.perf_counter()
            for step, parts in groupby(batches, key=lambda batch: batch.step):
                figures = run.step(step, parts, stop)
                run.write_log(step + 1, figures)
                run.keep(step + 1)  # before others look at the step, whatever becomes of that
                run.tell(step + 1, figures, listeners)
                bar.set_postfix(
                    refresh=False,
                    loss=f"{figures['loss']:.4f}",
                    images_s=f"{figures['images_per_second']:.1f}",
                )
                bar.update()
                run.end_if_stopped(step + 1)
        return run.finish()
    finally:
        if kept is not None and accelerator.is_main_process:
            run.encoder.write_kept(kept)
        accelerator.free_memory()


def _accelerator(options: TrainOptions) -> Accelerator:
    # An earlier run in this process may have had another precision; its processes stay.
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            # Else processes on a machine without an accelerator would not find each other.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=options.mixed_precision,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
        )
    except ValueError as error:
        raise _no_such_precision(options, str(error)) from error
    if options.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise _no_such_precision(options, "on a CPU")  # accelerate would take float32 unasked
    return accelerator


def _no_such_precision(options: TrainOptions, why: str) -> OptionError:
    return OptionError(
        "mixed_precision",
        expected="one that this device has",
        got=f"{options.mixed_precision} {why}",
        remedy='Use "no" or "bf16"',
    )


def _checkpoint(accelerator: Accelerator, out: Path, *, resume: bool) -> Checkpoint | None:
    """Return what to go on from, the same on all processes."""
    found = [newest_checkpoint(out) if accelerator.is_main_process else None]
    checkpoint: Checkpoint | None = broadcast_object_list(found)[0]
    if checkpoint is not None and not resume:
        raise TrainingError(
            f"{out} holds a run of {checkpoint.step} steps, which would be overwritten",
            remedy="Go on with it by --resume, or train in another folder",
        )
    return checkpoint
