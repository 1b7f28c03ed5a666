"""The loop that all stages of the mini bundle's training share: resumable, logged, seeded."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

Loss = Callable[[np.random.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Plan:
    """How a stage is trained: warm-up, constant rate, linear decay to zero at the end.

    learning_rate is AdamW's; matrices (also convolutions, as matrices) are trained by Muon at
    muon_rate, scaled to match AdamW's step (`adjust_lr_fn="match_rms_adamw"`); 0 is AdamW alone.
    """

    steps: int
    learning_rate: float = 1e-3
    muon_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    decay_fraction: float = 0.35
    ema_decay: float = 0.0  # 0: no average is kept
    checkpoint_seconds: float = 120.0
    log_steps: int = 50


@dataclass(frozen=True)
class Stage:
    """One stage: what it trains, its loss for a step's random numbers, and its figures."""

    name: str
    modules: nn.ModuleDict
    loss: Loss
    plan: Plan
    evaluate: Callable[[], dict[str, float]] | None = None


class _Optimizers:
    """Muon for matrices, AdamW for all else (embeddings, biases, norms)."""

    def __init__(self, modules: nn.Module, plan: Plan) -> None:
        trained = [(name, p) for name, p in modules.named_parameters() if p.requires_grad]
        use_muon = plan.muon_rate > 0
        self.sources = [
            p for name, p in trained if use_muon and p.ndim > 1 and "embed" not in name.lower()
        ]
        matrices = {id(p) for p in self.sources}
        # torch's Muon takes matrices only: each view shares its storage with the convolution.
        self.views = [nn.Parameter(p.data.view(len(p), -1)) for p in self.sources]
        self.optimizers: list[torch.optim.Optimizer] = []
        if self.views:
            self.optimizers.append(
                torch.optim.Muon(
                    self.views,
                    lr=plan.muon_rate,
                    weight_decay=plan.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        rest = [p for _, p in trained if id(p) not in matrices]
        if rest:
            self.optimizers.append(
                torch.optim.AdamW(
                    rest, lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
                )
            )
        self.rates = [group["lr"] for o in self.optimizers for group in o.param_groups]

    def step(self, factor: float) -> None:
        for source, view in zip(self.sources, self.views, strict=True):
            assert source.grad is not None
            view.grad = source.grad.reshape(len(source), -1)
            source.grad = None
        groups = [group for o in self.optimizers for group in o.param_groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * factor
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def rate_factor(step: int, plan: Plan) -> float:
    """Return the learning rate's factor in 0..1 at a step."""
    warm = min(1.0, (step + 1) / plan.warmup_steps)
    decay_steps = max(1.0, plan.steps * plan.decay_fraction)
    return min(warm, (plan.steps - step) / decay_steps, 1.0)


def averaged(modules: nn.ModuleDict, plan: Plan) -> AveragedModel | None:
    """Return an exponential moving average of the modules, if the plan keeps one."""
    if not plan.ema_decay:
        return None
    return AveragedModel(modules, multi_avg_fn=get_ema_multi_avg_fn(plan.ema_decay))


def save_atomically(write: Callable[[Path], object], target: Path) -> None:
    """Write to a temporary name beside `target`, then rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    write(temporary)
    os.replace(temporary, target)


def save_weights(module: nn.Module, target: Path) -> None:
    """Save a module's weights in half precision."""
    weights = {name: w.detach().half().contiguous() for name, w in module.state_dict().items()}
    save_atomically(lambda path: save_file(weights, path), target)


def run(stage: Stage, folder: Path, *, stop: Callable[[], bool] = lambda: False) -> bool:
    """Train a stage to its last step, from its checkpoint if there is one.

    Every step draws its random numbers from (stage, step) alone, so a resumed run sees the same
    batches. Returns whether the last step was reached (`stop` ends a run early, checkpointed).
    At the end the trained (averaged, if the plan says so) weights are in `stage.modules`.
    """
    checkpoint = folder / f"{stage.name}.checkpoint.pt"
    optimizers = _Optimizers(stage.modules, stage.plan)
    average = averaged(stage.modules, stage.plan)
    first = 0
    if checkpoint.exists():
        first = _restore(torch.load(checkpoint, weights_only=True), stage, optimizers, average)
    saved = time.monotonic()
    step = first
    for step in _steps(stage, first):
        metrics = _one_step(stage, optimizers, step)
        if average is not None:
            average.update_parameters(stage.modules)
        done = step + 1 == stage.plan.steps
        if done or step % stage.plan.log_steps == 0:
            _log(folder, stage, step, metrics)
        if done or stop() or time.monotonic() - saved > stage.plan.checkpoint_seconds:
            state = _state(stage, optimizers, average, step + 1)
            save_atomically(partial(torch.save, state), checkpoint)
            saved = time.monotonic()
            if stop():
                break
    if average is not None:
        stage.modules.load_state_dict(average.module.state_dict())
    if stage.evaluate is not None:
        _log(folder, stage, step, stage.evaluate())
    return step + 1 >= stage.plan.steps


def _steps(stage: Stage, first: int) -> Iterator[int]:
    steps = range(first, stage.plan.steps)
    return iter(tqdm(steps, desc=stage.name, initial=first, total=stage.plan.steps, mininterval=5))


def _one_step(stage: Stage, optimizers: _Optimizers, step: int) -> dict[str, float]:
    rng = np.random.default_rng([*stage.name.encode(), step])
    torch.manual_seed(int(rng.integers(2**31)))
    loss, metrics = stage.loss(rng)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"{stage.name}: loss {loss.item()} at step {step}")
    loss.backward()
    nn.utils.clip_grad_norm_(stage.modules.parameters(), 1.0)
    optimizers.step(rate_factor(step, stage.plan))
    return {"loss": loss.item(), **metrics}


def _state(
    stage: Stage, optimizers: _Optimizers, average: AveragedModel | None, step: int
) -> dict[str, Any]:
    return {
        "step": step,
        "modules": stage.modules.state_dict(),
        "optimizers": optimizers.state_dict(),
        "average": None if average is None else average.state_dict(),
    }


def _restore(
    state: dict[str, Any], stage: Stage, optimizers: _Optimizers, average: AveragedModel | None
) -> int:
    stage.modules.load_state_dict(state["modules"])
    optimizers.load_state_dict(state["optimizers"])
    if average is not None and state["average"] is not None:
        average.load_state_dict(state["average"])
    return int(state["step"])


def _log(folder: Path, stage: Stage, step: int, metrics: dict[str, float]) -> None:
    line = {"stage": stage.name, "step": step, "time": round(time.time(), 1), **metrics}
    with open(folder / f"{stage.name}.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
