"""The trained half of a step: the regressor, its average, and what moves them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hbsdk.features import ImageFeatures
from hbsdk.regressor import PromptRegressor
from hbsdk.training.encode import use_plain_attention
from hbsdk.training.optimizer import (
    MuonAndAdamW,
    adamw,
    rate_factor,
    resume_optimizer,
    scale_rates,
)
from hbsdk.training.options import TrainOptions


class Learner:
    """A regressor that is trained on one process or many, in float32."""

    def __init__(
        self, accelerator: Accelerator, start: PromptRegressor, options: TrainOptions
    ) -> None:
        """Put a copy of a regressor on the accelerator's device.

        Args:
            accelerator: of this process.
            start: stays as it is: a bundle's weights may be mapped to its files.
            options: of the optimizer, the average and the precision.
        """
        self.accelerator, self.options = accelerator, options
        self.regressor: PromptRegressor = copy.deepcopy(start).float()
        self.regressor.requires_grad_(True).train()
        if accelerator.device.type == "cpu":
            use_plain_attention(self.regressor)
        if options.gradient_checkpointing:
            self.regressor.enable_gradient_checkpointing()
        self.average: AveragedModel | None = None
        if options.ema_decay:
            # A copy from before `prepare`, which ties the regressor's forward to its own weights.
            rule = get_ema_multi_avg_fn(options.ema_decay)
            self.average = AveragedModel(self.regressor, multi_avg_fn=rule).to(accelerator.device)
        self.model = accelerator.prepare_model(self.regressor)
        self.optimizer = accelerator.prepare_optimizer(self._optimizer())

    def _optimizer(self) -> torch.optim.Optimizer:
        options = self.options
        if options.optimizer == "adamw":
            return adamw(self.regressor, options.learning_rate, options.weight_decay)
        return MuonAndAdamW(
            self.regressor,
            learning_rate=options.learning_rate,
            muon_rate=options.muon_rate,
            weight_decay=options.weight_decay,
        )

    @property
    def trained(self) -> PromptRegressor:
        """The regressor that counts: the average, if one is kept."""
        if self.average is None:
            return self.regressor
        return cast("PromptRegressor", self.average.module)

    def words(self, latents: Tensor, features: ImageFeatures) -> Tensor:
        """Return the words of N references, (N, n, d) float32, to be trained through.

        Args:
            latents: (N, C, h, w) clean and scaled.
            features: of the same references.
        """
        words: Tensor = self.model(latents, features)
        return words.float()

    def move(self, step: int) -> dict[str, float]:
        """Change the weights by the gradients that all processes have come to.

        Args:
            step: 0 is the first.

        Returns:
            The gradients' norm before it was limited, and AdamW's rate. If the norm is not finite,
            nothing has changed.
        """
        options = self.options
        factor = rate_factor(step, options)
        scale_rates(self.optimizer, factor)
        norm = self.accelerator.clip_grad_norm_(
            self.regressor.parameters(), options.max_gradient_norm
        ).item()
        figures = {"gradient_norm": norm, "learning_rate": options.learning_rate * factor}
        if not torch.isfinite(torch.tensor(norm)) and self.accelerator.scaler is None:
            return figures
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.regressor)
        return figures

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs."""
        scaler = self.accelerator.scaler
        return {
            "regressor": self.regressor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned.

        Args:
            state: of a run with the same options.
        """
        self.regressor.load_state_dict(state["regressor"])
        resume_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
