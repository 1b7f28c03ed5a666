"""What a training would take on this machine: measured on a few of its steps, or calculated."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError
from hbsdk.options import check_whole
from hbsdk.regressor import PromptRegressor
from hbsdk.room import available_bytes
from hbsdk.training.loop import train
from hbsdk.training.machine import (
    DTYPES,
    device_name,
    peak_memory_bytes,
    product_rate,
    reset_peak,
    training_device,
)
from hbsdk.training.options import TrainOptions
from hbsdk.training.pairs import PairSource
from hbsdk.training.random_bundle import RandomBundle, RandomPictures, same_size, sd15_bundle
from hbsdk.training.rehearsal import Rehearsal, rehearse
from hbsdk.training.start import Start
from hbsdk.training.stopping import TrainingStoppedError

_NEVER = 100_000_000  # steps between checkpoints
_MOST_MEASURED = 10_000  # steps


@dataclass(frozen=True)
class Estimate:
    """What a training takes.

    Attributes:
        name: of the bundle.
        device: that it was measured on, or calculated for.
        images_per_step: of one step of the optimizer.
        seconds_per_step: the median of the measured ones, or calculated.
        peak_bytes: the most memory: of the process on a CPU, of torch on a GPU; or calculated.
        measured_steps: how many; 0 if the figures are calculated and not measured.
        calculated_bytes: the peak as `rehearse` has it.
        operations: floating-point ones of a step.
        operations_per_second: of large matrix products on this machine, where it was measured.
        trained_parameters: of the regressor.
    """

    name: str
    device: str
    images_per_step: int
    seconds_per_step: float
    peak_bytes: int
    measured_steps: int
    calculated_bytes: int
    operations: int
    operations_per_second: float | None
    trained_parameters: int

    @property
    def is_measured(self) -> bool:
        """Whether steps were run, rather than calculated."""
        return self.measured_steps > 0

    @property
    def images_per_second(self) -> float:
        """Pairs that are trained on."""
        return self.images_per_step / self.seconds_per_step

    def seconds_for(self, steps: int) -> float:
        """Return the wall time of so many steps, without pictures drawn and checkpoints written."""
        return steps * self.seconds_per_step

    def in_words(self, steps: int) -> str:
        """Return the figures for a person to read, and the time for so many steps."""
        per_step = (
            f"{self.seconds_per_step:.3g} s per step of {self.images_per_step} images "
            f"({self.images_per_second:.3g} images/s), "
            f"{_duration(self.seconds_for(steps))} for {steps:,} steps"
        )
        title = f"{self.name}, {self.trained_parameters / 1e6:,.1f} M trained, on {self.device}"
        if self.is_measured:
            return (
                f"{title}, measured over {self.measured_steps} steps: {per_step}; peak memory "
                f"{_gib(self.peak_bytes)} (calculated: {_gib(self.calculated_bytes)} without the "
                "libraries)"
            )
        rate = (self.operations_per_second or 0.0) / 1e12
        return (
            f"{title}, CALCULATED, not measured: {per_step}, if all ran at this machine's "
            f"{rate:.3g} TFLOP/s of large matrix products ({self.operations / 1e12:.3g} TFLOP a "
            f"step); peak memory {_gib(self.peak_bytes)} without the libraries"
        )


def estimate(
    bundle: Bundle,
    source: PairSource,
    options: TrainOptions,
    *,
    start: Start | None = None,
    steps: int = 3,
    warm_up: int = 1,
    on_stage: Callable[[str], object] = lambda _: None,
) -> Estimate:
    """Run a few steps of the real loop and forget them, or calculate where memory is too small.

    Args:
        bundle: to train for.
        source: of pairs.
        options: of the training; nothing of it is written.
        start: what the training starts from; None is the bundle's UNet.
        steps: to measure, at least one.
        warm_up: steps before those, which are not measured; at least one, whose end is where the
            measuring begins.
        on_stage: told what is being done.

    Returns:
        What the training takes.

    Raises:
        OptionError: there are many processes: one is measured alone; a number of steps is out of
            its range; or `start` contradicts the bundle's regressor.
        BundleError: the bundle lacks a network.
        TrainingError: the data cannot be trained on.
        TrainingStoppedError: a signal came while it was measured.
    """
    _check_alone()
    check_whole("steps", steps, 1, _MOST_MEASURED)
    check_whole("warm_up", warm_up, 1, _MOST_MEASURED)
    start = Start() if start is None else start
    on_stage(f"calculating a step of {bundle.info.name}")
    device = training_device()
    sizes = bundle if isinstance(bundle, RandomBundle) else same_size(bundle)
    rehearsal = rehearse(sizes, options, device, start.config(bundle))
    room = available_bytes(device)
    if room is not None and rehearsal.peak_bytes > room:
        on_stage(
            f"{bundle.info.name} needs {_gib(rehearsal.peak_bytes)} and {_gib(room)} are free: "
            "timing matrix products instead"
        )
        return _calculated(bundle.info.name, options, device, rehearsal)
    on_stage(f"measuring {steps} steps of {bundle.info.name} after {warm_up} to warm up")
    watch = _Watch(steps, warm_up)
    return _measured(bundle, source, options, start, watch, device, rehearsal)


def estimate_sd15(
    options: TrainOptions,
    *,
    start: Start | None = None,
    steps: int = 3,
    on_stage: Callable[[str], object] = lambda _: None,
) -> Estimate:
    """Measure random networks of SD 1.5's size on random pictures, or calculate.

    Reading data and making masks is not part of it.

    Args:
        options: of the training.
        start: the regressor's words and encoders, from the UNet; None is five and both.
        steps: to measure; 0 calculates, whatever the memory.
        on_stage: told what is being done.

    Returns:
        What the training takes.

    Raises:
        BundleError: `start` goes on from a regressor: these networks have none.
        OptionError: there are many processes.
        TrainingStoppedError: a signal came while it was measured.
    """
    start = Start() if start is None else start
    with TemporaryDirectory(prefix="hbsdk-sd15-") as folder:
        bundle = sd15_bundle(Path(folder))
        if steps:
            source = RandomPictures(bundle.info.image_size_px)
            return estimate(bundle, source, options, start=start, steps=steps, on_stage=on_stage)
        on_stage("calculating a step of SD 1.5's size")
        device = training_device()
        rehearsal = rehearse(bundle, options, device, start.config(bundle))
        return _calculated(bundle.info.name, options, device, rehearsal)


class _EnoughMeasured(Exception):  # noqa: N818 - no error: it ends a run that has told enough
    pass


class _Watch:
    """Notes when each step ended, and ends the run after so many."""

    def __init__(self, measured: int, warm_up: int) -> None:
        self.warm_up, self.steps = warm_up, warm_up + measured
        self.ends: list[float] = []

    @property
    def spans(self) -> np.ndarray:
        """Seconds of each step after the last one that warmed up, (measured,)."""
        return np.diff(self.ends[self.warm_up - 1 :])

    def on_step(self, _: int, __: Mapping[str, float]) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())
        if len(self.ends) == self.steps:
            raise _EnoughMeasured

    def on_sample(self, step: int, regressor: PromptRegressor) -> None:
        """Nothing is drawn."""


def _measured(
    bundle: Bundle,
    source: PairSource,
    options: TrainOptions,
    start: Start,
    watch: _Watch,
    device: torch.device,
    rehearsal: Rehearsal,
) -> Estimate:
    quiet = replace(
        options, steps=max(options.steps, watch.steps + 1), log_steps=1, sample_steps=0,
        checkpoint_steps=_NEVER,
    )  # fmt: skip
    reset_peak(device)
    with TemporaryDirectory(prefix="hbsdk-estimate-") as folder:
        try:
            train(
                bundle, source, Path(folder), quiet, progress=False, observers=(watch,),
                regressor=start.regressor(bundle, options.seed),
            )  # fmt: skip
        except TrainingStoppedError as error:
            # What it says can be resumed is gone with the folder.
            raise TrainingStoppedError("the estimate was stopped", remedy="Run it again") from error
        except _EnoughMeasured:
            pass
    return _estimate(
        bundle.info.name, options, device, rehearsal,
        seconds_per_step=float(np.median(watch.spans)),
        peak_bytes=peak_memory_bytes(device), measured_steps=len(watch.spans),
    )  # fmt: skip


def _calculated(
    name: str, options: TrainOptions, device: torch.device, rehearsal: Rehearsal
) -> Estimate:
    rate = product_rate(device, DTYPES[options.mixed_precision])
    return _estimate(
        name, options, device, rehearsal, seconds_per_step=rehearsal.operations / rate,
        peak_bytes=rehearsal.peak_bytes, measured_steps=0, operations_per_second=rate,
    )  # fmt: skip


def _estimate(
    name: str,
    options: TrainOptions,
    device: torch.device,
    rehearsal: Rehearsal,
    *,
    seconds_per_step: float,
    peak_bytes: int,
    measured_steps: int,
    operations_per_second: float | None = None,
) -> Estimate:
    return Estimate(
        name=name,
        device=device_name(device),
        images_per_step=options.batch_size * options.gradient_accumulation_steps,
        seconds_per_step=seconds_per_step,
        peak_bytes=peak_bytes,
        measured_steps=measured_steps,
        calculated_bytes=rehearsal.peak_bytes,
        operations=rehearsal.operations,
        operations_per_second=operations_per_second,
        trained_parameters=rehearsal.trained_parameters,
    )


def _check_alone() -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise OptionError(
            "--estimate", expected="one process", got=f"{processes}",
            remedy="Run it without accelerate launch: each process takes what it says",
        )  # fmt: skip


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    if seconds < 7200.0:
        return f"{seconds / 60.0:.0f} min"
    return f"{seconds / 3600.0:.1f} h"
