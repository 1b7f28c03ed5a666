"""One run of the training loop on one process: its steps, what it tells, and what it keeps."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import (  # type: ignore[import-untyped]
    broadcast_object_list,
    gather_object,
)
from tqdm import tqdm

from hbsdk.bundle import Bundle
from hbsdk.errors import HbsdkError, TrainingError
from hbsdk.objective import ObjectiveParts, ObjectiveWeights, objective
from hbsdk.regressor import PromptRegressor
from hbsdk.training.batches import Batch, read_batches
from hbsdk.training.checkpoint import (
    BACKGROUND,
    DATA,
    NETWORKS,
    Checkpoint,
    check_same_run,
    describe_run,
    read_state,
    write_checkpoint,
)
from hbsdk.training.encode import FrozenNetworks, PairEncoder
from hbsdk.training.learner import Learner
from hbsdk.training.machine import DTYPES
from hbsdk.training.options import TrainOptions
from hbsdk.training.pairs import PairSource
from hbsdk.training.run_folder import LossLog, save_regressor, write_account, write_skipped
from hbsdk.training.start import check_fits, fresh_regressor
from hbsdk.training.stopping import StopRequest, TrainingStoppedError
from hbsdk.training.telling import Figures, Listeners


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to.

    regressor: the folder it is saved in. figures: of the last step that this call made, if any.
    seconds: of the whole run, with what it was resumed from. skipped: pictures that could not be
    read.
    """

    regressor: Path
    steps: int
    figures: Figures
    seconds: float
    images_per_second: float
    skipped: int


class Run:
    """A run on one process: what is trained, on what, and how far it is."""

    def __init__(
        self,
        accelerator: Accelerator,
        bundle: Bundle,
        source: PairSource,
        out: Path,
        options: TrainOptions,
        start: PromptRegressor | None,
        checkpoint: Checkpoint | None,
    ) -> None:
        """Load all networks, and what the checkpoint holds.

        Args:
            accelerator: of this process.
            bundle: to train for.
            source: of pairs.
            out: the run's folder.
            options: all settings.
            start: of the regressor, not changed; None is the UNet.
            checkpoint: to go on from; None begins anew.

        Raises:
            BundleError: the bundle lacks a network.
            TrainingError: the checkpoint is of another run or damaged, the regressor is of another
                bundle, or the folder cannot be written to.
        """
        self.accelerator, self.source, self.out, self.options = accelerator, source, out, options
        start = start or fresh_regressor(bundle, seed=options.seed)
        check_fits(start, bundle)
        self.about = describe_run(bundle, source, options, start, accelerator.num_processes)
        if checkpoint is not None:
            check_same_run(checkpoint, self.about)
        self.learner = Learner(accelerator, start, options)
        if checkpoint is not None:
            self.learner.load_state(read_state(checkpoint))
        # On a CPU, half precision is for the products alone: autocast sees to them.
        on_cpu = accelerator.device.type == "cpu"
        dtype = torch.float32 if on_cpu else DTYPES[options.mixed_precision]
        networks = FrozenNetworks.load(bundle, accelerator.device, dtype)
        if options.gradient_checkpointing:
            networks.denoiser.unet.enable_gradient_checkpointing()
        self.denoiser, self.bundle_name = networks.denoiser, bundle.info.name
        self.encoder = PairEncoder(networks, start.config.num_words, options.seed)
        self.weights = ObjectiveWeights(
            options.mask_loss_weight, options.mask_loss, options.background_weight
        )
        self.first = self.done = checkpoint.step if checkpoint is not None else 0
        self.seconds_before = checkpoint.seconds if checkpoint is not None else 0.0
        self.saved: Path | None = checkpoint.folder if checkpoint is not None else None
        self.started = time.perf_counter()
        self.stopped_by: str | None = None
        self.figures: Figures = {}
        self.log: LossLog | None = None
        self.on_main(self._open_log)

    def _open_log(self) -> None:
        self.log = LossLog(self.out, self.first)

    @property
    def global_batch(self) -> int:
        """Examples of a step, on all processes."""
        each = self.options.batch_size * self.options.gradient_accumulation_steps
        return each * int(self.accelerator.num_processes)

    @property
    def kept_name(self) -> str:
        """The file of encoded pictures that runs with the same ones, encoded alike, share."""
        alike = [self.about[key] for key in (DATA, NETWORKS, BACKGROUND, "mixed_precision")]
        return f"{hashlib.sha256(json.dumps(alike).encode()).hexdigest()[:16]}.pt"

    @property
    def seconds(self) -> float:
        """Spent so far, with what the run was resumed from."""
        return self.seconds_before + time.perf_counter() - self.started

    def bar(self, *, shown: bool) -> Any:
        """Return the progress bar."""
        return tqdm(
            total=self.options.steps,
            initial=self.first,
            desc="training",
            unit="step",
            disable=not (shown and self.accelerator.is_main_process),
        )

    def batches(self) -> closing[Generator[Batch, None, None]]:
        """Return this process's shares of all steps to come, to be closed at the end."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        return closing(read_batches(self.source, self.options, self.first, process, processes))

    def step(self, step: int, batches: Iterator[Batch], stop: StopRequest) -> Figures:
        """Make one step of the optimizer.

        Args:
            step: 0 is the first.
            batches: this process's, `gradient_accumulation_steps` of them.
            stop: whether this process was asked to stop.

        Returns:
            The step's figures, over all processes.

        Raises:
            TrainingError: the loss or its gradient is not finite.
        """
        parts = self.options.gradient_accumulation_steps
        sums = torch.zeros(3, device=self.accelerator.device)
        for batch in batches:
            with self.accelerator.accumulate(self.learner.model):
                loss = self._objective(batch)
                self.accelerator.backward(loss.total)
            sums += torch.stack([loss.total, loss.denoising, loss.mask]).detach().float()
        losses = self._agreed(sums / parts, stop)
        self._check_finite(step, losses)
        moved = self.learner.move(step)
        if self.accelerator.scaler is None:  # which skips such a step, and goes on
            self._check_finite(step, moved)
        self.done = step + 1
        seconds = time.perf_counter() - self.started
        speed = {"images_per_second": (self.done - self.first) * self.global_batch / seconds}
        self.figures = losses | moved | speed
        return self.figures

    def _objective(self, batch: Batch) -> ObjectiveParts:
        with self.accelerator.autocast():
            encoded = self.encoder.encode(batch.pairs, batch.step, batch.indices, batch.keys)
            words = self.learner.words(encoded.latents, encoded.features)
            return objective(self.denoiser, words, encoded.batch, self.weights)

    def _agreed(self, losses: torch.Tensor, stop: StopRequest) -> dict[str, float]:
        """Return the losses' means over all processes; hear whether one was asked to stop."""
        asked = losses.new_tensor([float(stop.by is not None)])
        means = self.accelerator.reduce(torch.cat([losses, asked]), reduction="mean")
        *figures, asked_any = means.tolist()
        if asked_any:
            self.stopped_by = stop.by or "a signal to another process"
        return dict(zip(("loss", "denoising", "mask"), figures, strict=True))

    def _check_finite(self, step: int, figures: Figures) -> None:
        wrong = {name: value for name, value in figures.items() if not math.isfinite(value)}
        if not wrong:
            return
        kept = f"{self.saved} is kept" if self.saved else "there is no checkpoint yet"
        raise TrainingError(
            f"training stopped at step {step + 1}",
            expected="finite losses and gradients",
            got=", ".join(f"{name} {value}" for name, value in wrong.items()),
            remedy=f"The last good state ({kept}) can go on by --resume with a smaller "
            "learning_rate; or look for broken pictures",
        )

    def write_log(self, step: int, figures: Figures) -> None:
        """Add a step to losses.jsonl, where it is time.

        Args:
            step: 1 is the first.
            figures: of it.

        Raises:
            TrainingError: it cannot be written.
        """
        if self.log is not None and self._is_told(step):
            self.log.write(step, figures)

    def tell(self, step: int, figures: Figures, listeners: Listeners) -> None:
        """Tell the observers of a step, where it is time.

        Args:
            step: 1 is the first.
            figures: of it.
            listeners: the observers.
        """
        if not self.accelerator.is_main_process:
            return
        if self._is_told(step):
            listeners.on_step(step, figures)
        if self.options.sample_steps and step % self.options.sample_steps == 0:
            listeners.on_sample(step, self.learner.trained)

    def _is_told(self, step: int) -> bool:
        return step % self.options.log_steps == 0 or step in (1, self.options.steps)

    def keep(self, step: int) -> None:
        """Write a checkpoint where it is time.

        Args:
            step: 1 is the first.

        Raises:
            TrainingError: it cannot be written.
        """
        is_last = step == self.options.steps
        if step % self.options.checkpoint_steps == 0 or is_last or self.stopped_by:
            skipped = gather_object(self.source.skipped())
            self.saved = self.on_main(lambda: self._write_checkpoint(step, skipped))

    def end_if_stopped(self, step: int) -> None:
        """End a run that was asked to stop, and whose checkpoint is written.

        Args:
            step: 1 is the first.

        Raises:
            TrainingStoppedError: a signal asked for it, and there are steps left.
        """
        if self.stopped_by and step < self.options.steps:
            raise TrainingStoppedError(
                f"training was stopped by {self.stopped_by} after {step} of {self.options.steps} "
                f"steps; the checkpoint of this step is in {self.out}",
                remedy="Go on with it by --resume",
            )

    def _write_checkpoint(self, step: int, skipped: list[tuple[str, str]]) -> Path:
        write_skipped(self.out, skipped)
        return write_checkpoint(
            self.out,
            self.learner.state(),
            step=step,
            seconds=self.seconds,
            run=self.about,
            keep=self.options.keep_checkpoints,
        )

    def finish(self) -> TrainingResult:
        """Save the regressor and the account of the run."""
        skipped = gather_object(self.source.skipped())
        result: TrainingResult = self.on_main(lambda: self._save(skipped))
        return result

    def _save(self, skipped: list[tuple[str, str]]) -> TrainingResult:
        seconds = self.seconds
        result = TrainingResult(
            regressor=save_regressor(self.learner.trained, self.out),
            steps=self.done,
            figures=self.figures,
            seconds=seconds,
            images_per_second=self.done * self.global_batch / seconds,
            skipped=write_skipped(self.out, skipped),
        )
        write_account(
            self.out,
            {
                "bundle": self.bundle_name,
                "source": self.source.name,
                "fingerprint": self.source.fingerprint,
                "pictures": len(self.source),
                "options": asdict(self.options),
                "processes": self.accelerator.num_processes,
                "device": str(self.accelerator.device),
                **asdict(result),
                "regressor": result.regressor.name,
            },
        )
        return result

    def on_main(self, do: Callable[[], Any]) -> Any:
        """Do something on the main process; return, or raise, on all what came of it.

        Args:
            do: what can be sent to the other processes, or an HbsdkError, comes of it.

        Raises:
            HbsdkError: what the main process raised.
        """
        came: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                came = [do(), None]
            except HbsdkError as error:
                came = [None, error]
        result, failure = broadcast_object_list(came)
        if failure is not None:
            raise failure
        return result
