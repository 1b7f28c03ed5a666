"""The options of a training run, with the paper's probe stage as their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hbsdk.options import MAX_SEED, _check_choice, _check_range, check_whole

MixedPrecision = Literal["no", "bf16", "fp16"]
OptimizerKind = Literal["adamw", "muon"]

_MAX_STEPS = 100_000_000
_MAX_BATCH = 65_536


@dataclass(frozen=True)
class TrainOptions:
    """How the regressor is trained.

    One step of the optimizer sees batch_size * processes * gradient_accumulation_steps examples,
    the global batch; the losses depend on its size alone, not on how it is divided (but for
    `background_weight`, whose mean is taken over each `batch_size` examples).

    Raises:
        OptionError: a value is out of its range.
    """

    steps: int = 20_000  # of the optimizer
    learning_rate: float = 2e-5  # of AdamW. Source: HybridBooth, section 5.1
    batch_size: int = 8  # examples at once in each process. Source: HybridBooth, section 5.1
    gradient_accumulation_steps: int = 1  # batches of each process that make up one step
    optimizer: OptimizerKind = "adamw"  # "muon": Muon for matrices, AdamW for all else
    muon_rate: float = 1e-3  # of Muon, scaled to match AdamW's step
    weight_decay: float = 1e-2  # of AdamW alone, or of Muon. Source: HybridBooth, section 5.1
    warmup_steps: int = 0  # over which the rates rise from zero
    decay_fraction: float = 0.0  # of all steps, over which the rates fall to zero at the end
    mask_loss_weight: float = 1e-3  # alpha of Eq. 7
    mask_loss: Literal["area", "paper"] = "area"  # how Eq. 6 takes its means
    background_weight: float = 1.0  # of L_eps outside of the mask; 1 is Eq. 1
    ema_decay: float = 0.0  # of the average of the weights that is saved; 0 saves the last ones
    mixed_precision: MixedPrecision = "no"
    gradient_checkpointing: bool = False  # less memory for a third more time, same result
    max_gradient_norm: float = 1.0
    seed: int = 0
    checkpoint_steps: int = 500
    keep_checkpoints: int = 2  # while one is written, there is room needed for one more
    log_steps: int = 10
    sample_steps: int = 0  # between pictures drawn for a look; 0 is none

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, _MAX_STEPS),
            ("batch_size", 1, _MAX_BATCH),
            ("gradient_accumulation_steps", 1, _MAX_BATCH),
            ("warmup_steps", 0, _MAX_STEPS),
            ("seed", 0, MAX_SEED),
            ("checkpoint_steps", 1, _MAX_STEPS),
            ("keep_checkpoints", 1, _MAX_STEPS),
            ("log_steps", 1, _MAX_STEPS),
            ("sample_steps", 0, _MAX_STEPS),
        ):
            check_whole(name, getattr(self, name), low, high)
        for name, least, most in (
            ("learning_rate", 0.0, 1.0),
            ("muon_rate", 0.0, 1.0),
            ("weight_decay", 0.0, 1.0),
            ("decay_fraction", 0.0, 1.0),
            ("mask_loss_weight", 0.0, 1000.0),
            ("background_weight", 0.0, 1.0),
            ("ema_decay", 0.0, 1.0 - 1e-9),
            ("max_gradient_norm", 1e-6, 1e6),
        ):
            _check_range(name, getattr(self, name), least, most)
        _check_choice("optimizer", self.optimizer, ("adamw", "muon"))
        _check_choice("mask_loss", self.mask_loss, ("area", "paper"))
        _check_choice("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        _check_choice("gradient_checkpointing", self.gradient_checkpointing, (False, True))
