"""What moves the weights: AdamW, or Muon and AdamW as one, and the rates' rise and fall."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

_RATE = "initial_lr"  # torch's schedulers keep a group's full rate under this name too


class RatePlan(Protocol):
    """What the rates follow: a linear rise, then full rates, then a linear fall to zero."""

    @property
    def steps(self) -> int:
        """Of the whole run."""

    @property
    def warmup_steps(self) -> int:
        """Of the rise."""

    @property
    def decay_fraction(self) -> float:
        """Of all steps that the fall takes."""


def rate_factor(step: int, plan: RatePlan) -> float:
    """Return the rates' factor in 0..1 at a step.

    Args:
        step: 0 is the first.
        plan: of the run; without `warmup_steps` the first step has full rates.
    """
    warm = (step + 1) / max(1, plan.warmup_steps)
    decay_steps = max(1.0, plan.steps * plan.decay_fraction)
    return min(warm, (plan.steps - step) / decay_steps, 1.0)


def scale_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every rate of an optimizer to `factor` times its full one.

    Args:
        optimizer: of this file.
        factor: as of `rate_factor`.
    """
    for group in optimizer.param_groups:
        group["lr"] = group[_RATE] * factor


def resume_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a checkpoint's state, but for its rates.

    Args:
        optimizer: of this file.
        state: of an optimizer over the same weights.
    """
    rates = [group[_RATE] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group[_RATE] = rate


def adamw(module: nn.Module, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW over what is trained of a module, with its authors' settings.

    Args:
        module: on its device.
        rate: the full one.
        weight_decay: of all weights.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    group = {"params": parameters, _RATE: rate}
    return torch.optim.AdamW([group], lr=rate, weight_decay=weight_decay, fused=True)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for matrices, AdamW without decay for all else (embeddings, biases, norms).

    Convolutions count as matrices of (outputs, everything else). Make it where the weights lie
    for good: it holds views of them.
    """

    def __init__(
        self, module: nn.Module, *, learning_rate: float, muon_rate: float, weight_decay: float
    ) -> None:
        """Take over what is trained of a module.

        Args:
            module: on its device.
            learning_rate: of AdamW.
            muon_rate: of Muon, scaled to match AdamW's step (`adjust_lr_fn="match_rms_adamw"`);
                0 is AdamW alone.
            weight_decay: of Muon.
        """
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self._sources = [
            p for name, p in trained if muon_rate > 0 and p.ndim > 1 and "embed" not in name.lower()
        ]
        matrices = {id(p) for p in self._sources}
        rest = [p for _, p in trained if id(p) not in matrices]
        # torch's Muon takes matrices only: each view shares its storage with the convolution.
        self._views = [nn.Parameter(p.data.view(len(p), -1)) for p in self._sources]
        groups: list[dict[str, Any]] = []
        self._parts: list[torch.optim.Optimizer] = []
        if self._sources:
            groups.append({"params": self._sources, "lr": muon_rate, _RATE: muon_rate})
            self._parts.append(
                torch.optim.Muon(
                    self._views,
                    lr=muon_rate,
                    weight_decay=weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if rest:
            groups.append({"params": rest, "lr": learning_rate, _RATE: learning_rate})
            self._parts.append(
                torch.optim.AdamW(
                    rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
                )
            )
        super().__init__(groups, {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move the weights by their gradients, at the rates of `param_groups`."""
        assert closure is None, "this optimizer evaluates the loss once a step"
        for source, view in zip(self._sources, self._views, strict=True):
            assert source.grad is not None
            view.grad = source.grad.reshape(len(source), -1)
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()
        for view in self._views:
            view.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the state of both parts."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
