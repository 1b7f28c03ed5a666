"""Residual refinement: a few steps on the regressor's cross-attention, for one photo (Eq. 5)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from hbsdk.features import ImageFeatures
from hbsdk.objective import (
    Denoiser,
    NoisyBatch,
    ObjectiveWeights,
    objective,
    stratified_timesteps,
)
from hbsdk.options import PersonalizeOptions
from hbsdk.regressor import PromptRegressor

REFINED_LAYERS = ("attn2.to_q", "attn2.to_k", "attn2.to_v")
_CHECK_TIMESTEPS = 16  # noise levels of the loss before and after, other than the steps' own
_PAPER_RATE = 2e-5  # Source: HybridBooth, section 5.1


@dataclass(frozen=True)
class EncodedReference:
    """What of one photo does not change while it is refined, computed once.

    latents: (1, C, h, w) clean and scaled. mask: (1, 1, h, w) in [0, 1]. features: N = 1.
    ids: (1, tokens) int64, the prompt. positions: (1, n) int64, the subject's places.
    """

    latents: Tensor
    mask: Tensor
    features: ImageFeatures
    ids: Tensor
    positions: Tensor


@dataclass(frozen=True)
class RefinementReport:
    """What a refinement did; one that did nothing shows it.

    loss_before, loss_after: Eq. 7 over the same 16 noise levels, none of them trained on.
    losses: Eq. 7 of each step, on that step's own noise. word_change: |e' - e| / |e|.
    weight_change: |lambda dW| / |W| over the refined layers. seconds: wall time.
    """

    steps: int
    loss_before: float
    loss_after: float
    losses: tuple[float, ...]
    word_change: float
    weight_change: float
    seconds: float

    def as_dict(self) -> dict[str, object]:
        """Return the fields by name."""
        return asdict(self)


def refined_weights(regressor: PromptRegressor) -> dict[str, Tensor]:
    """Return the weights that refinement adds dW to: Q, K and V of the cross-attention."""
    return {
        name: weight.detach()
        for name, weight in regressor.named_parameters()
        if name.endswith("weight") and any(layer in name for layer in REFINED_LAYERS)
    }


def predict_words(
    regressor: PromptRegressor,
    reference: EncodedReference,
    residuals: Mapping[str, Tensor] | None = None,
    residual_scale: float = 1.0,
) -> Tensor:
    """Return the words, (1, n, d) float32, with W + lambda dW in place of W (Eq. 5).

    The regressor itself is not changed: threads may share it.
    """
    weights = refined_weights(regressor) if residuals else {}
    changed = {name: weights[name] + residual_scale * dw for name, dw in (residuals or {}).items()}
    inputs = (reference.latents.to(regressor.dtype), reference.features)
    words: Tensor = functional_call(regressor, changed, inputs)
    return words.float()


def refine(
    regressor: PromptRegressor,
    denoiser: Denoiser,
    reference: EncodedReference,
    options: PersonalizeOptions,
    on_step: Callable[[int], None] = lambda _: None,
) -> tuple[Tensor, RefinementReport]:
    """Adapt the words to one photo.

    Deviation: taken literally, a rate of 2e-5 on dW and lambda = 1e-2 move W by 1e-6 in five steps,
    which changes nothing that can be seen. By default the rate is `effective_step / lambda`, so
    that lambda dW moves by `effective_step` a step, L_eps looks mostly at the subject, and every
    step averages stratified noise levels. `mode="paper"` keeps the literal setting.

    Args:
        regressor: in float32, so that W + lambda dW is not rounded away; not changed.
        denoiser: frozen.
        reference: the photo, encoded.
        options: `steps` >= 1.
        on_step: called with 1, 2, ... after each step.

    Returns:
        The words, (1, n, d) float32 without gradient, and the report. Source: HybridBooth, Eq. 5.
    """
    started = time.perf_counter()
    options = _settings(options)
    generator = torch.Generator().manual_seed(options.seed)
    check = _batch(denoiser, reference, _CHECK_TIMESTEPS, torch.Generator().manual_seed(2**31 - 1))
    weights = refined_weights(regressor)
    residuals = {name: torch.zeros_like(w, requires_grad=True) for name, w in weights.items()}
    scale = options.residual_scale
    optimizer = torch.optim.AdamW(
        residuals.values(),
        lr=_rate(options),
        eps=1e-12,
        weight_decay=options.weight_decay,
    )
    with torch.no_grad():
        probe = predict_words(regressor, reference)
        loss_before = _loss(denoiser, probe, check, options)
    losses = []
    for step in range(options.steps):
        words = predict_words(regressor, reference, residuals, scale)
        batch = _batch(denoiser, reference, options.timesteps_per_step, generator)
        leaf = words.detach().requires_grad_()
        losses.append(_loss(denoiser, leaf, batch, options))
        words.backward(leaf.grad, inputs=list(residuals.values()))
        optimizer.step()
        optimizer.zero_grad()
        on_step(step + 1)
    with torch.no_grad():
        refined = predict_words(regressor, reference, residuals, scale)
        loss_after = _loss(denoiser, refined, check, options)
    report = RefinementReport(
        steps=options.steps,
        loss_before=loss_before,
        loss_after=loss_after,
        losses=tuple(losses),
        word_change=((refined - probe).norm() / probe.norm()).item(),
        weight_change=_weight_change(weights, residuals, scale),
        seconds=time.perf_counter() - started,
    )
    return refined, report


def _settings(options: PersonalizeOptions) -> PersonalizeOptions:
    if options.mode == "default":
        return options
    return replace(
        options, mask_loss="paper", background_weight=1.0, timesteps_per_step=1, micro_batch_size=1
    )


def _rate(options: PersonalizeOptions) -> float:
    if options.mode == "paper":
        return _PAPER_RATE
    return options.effective_step / options.residual_scale


def _batch(
    denoiser: Denoiser, reference: EncodedReference, count: int, generator: torch.Generator
) -> NoisyBatch:
    """Noise the photo `count` times; drawn on the CPU, so that every device starts alike."""
    device = reference.latents.device
    total = denoiser.scheduler.config.num_train_timesteps
    shape = (count, *reference.latents.shape[1:])
    return NoisyBatch(
        latents=reference.latents.float().expand(shape),
        noise=torch.randn(shape, generator=generator).to(device),
        timesteps=stratified_timesteps(count, total, generator).to(device),
        mask=reference.mask.expand(count, -1, -1, -1),
        ids=reference.ids.expand(count, -1),
        positions=reference.positions.expand(count, -1),
    )


def _loss(
    denoiser: Denoiser, words: Tensor, batch: NoisyBatch, options: PersonalizeOptions
) -> float:
    """Return Eq. 7 of a batch, in micro-batches; the gradient adds up in `words.grad`."""
    weights = ObjectiveWeights(
        mask_loss=options.mask_loss_weight,
        kind=options.mask_loss,
        background=options.background_weight,
    )
    count, size, total = len(batch.timesteps), options.micro_batch_size, 0.0
    for start in range(0, count, size):
        part = batch.part(start, start + size)
        share = len(part.timesteps) / count
        repeated = words.expand(len(part.timesteps), -1, -1)
        loss = objective(denoiser, repeated, part, weights).total * share
        if words.requires_grad:
            loss.backward(inputs=[words])  # into nothing else, be it frozen or not
        total += loss.item()
    return total


def _weight_change(
    weights: Mapping[str, Tensor], residuals: Mapping[str, Tensor], scale: float
) -> float:
    moved = sum((scale * dw.detach().float()).square().sum() for dw in residuals.values())
    size = sum(w.float().square().sum() for w in weights.values())
    return float((torch.as_tensor(moved) / torch.as_tensor(size)).sqrt())
