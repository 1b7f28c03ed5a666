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

from hbsdk.training.optimizer import MuonAndAdamW, rate_factor, scale_rates

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
    optimizer = MuonAndAdamW(
        stage.modules,
        learning_rate=stage.plan.learning_rate,
        muon_rate=stage.plan.muon_rate,
        weight_decay=stage.plan.weight_decay,
    )
    average = averaged(stage.modules, stage.plan)
    first = 0
    if checkpoint.exists():
        first = _restore(torch.load(checkpoint, weights_only=True), stage, optimizer, average)
    saved = time.monotonic()
    step = first
    for step in _steps(stage, first):
        metrics = _one_step(stage, optimizer, step)
        if average is not None:
            average.update_parameters(stage.modules)
        done = step + 1 == stage.plan.steps
        if done or step % stage.plan.log_steps == 0:
            _log(folder, stage, step, metrics)
        if done or stop() or time.monotonic() - saved > stage.plan.checkpoint_seconds:
            state = _state(stage, optimizer, average, step + 1)
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


def _one_step(stage: Stage, optimizer: torch.optim.Optimizer, step: int) -> dict[str, float]:
    rng = np.random.default_rng([*stage.name.encode(), step])
    torch.manual_seed(int(rng.integers(2**31)))
    loss, metrics = stage.loss(rng)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"{stage.name}: loss {loss.item()} at step {step}")
    loss.backward()
    nn.utils.clip_grad_norm_(stage.modules.parameters(), 1.0)
    scale_rates(optimizer, rate_factor(step, stage.plan))
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss.item(), **metrics}


def _state(
    stage: Stage, optimizer: MuonAndAdamW, average: AveragedModel | None, step: int
) -> dict[str, Any]:
    return {
        "step": step,
        "modules": stage.modules.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state_dict(),
    }


def _restore(
    state: dict[str, Any], stage: Stage, optimizer: MuonAndAdamW, average: AveragedModel | None
) -> int:
    stage.modules.load_state_dict(state["modules"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None and state["average"] is not None:
        average.load_state_dict(state["average"])
    return int(state["step"])


def _log(folder: Path, stage: Stage, step: int, metrics: dict[str, float]) -> None:
    line = {"stage": stage.name, "step": step, "time": round(time.time(), 1), **metrics}
    with open(folder / f"{stage.name}.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
