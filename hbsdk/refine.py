"""Residual refinement: a few steps on some of the regressor's weights, for one photo (Eq. 5)."""

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
    objective_of_states,
    stratified_timesteps,
)
from hbsdk.options import PersonalizeOptions, Refined
from hbsdk.regressor import PromptRegressor
from hbsdk.text_encoder import encode_with_words

REFINED_LAYERS: dict[str, tuple[str, ...]] = {
    "attention": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),  # the paper's
    "keys-values": ("attn2.to_k", "attn2.to_v"),
    "head": ("pool.", "to_words."),
}
_CHECK_TIMESTEPS = 16  # noise levels of the loss before and after, other than the steps' own
_PAPER_RATE = 2e-5  # Source: HybridBooth, section 5.1


@dataclass(frozen=True)
class EncodedReference:
    """What of photos does not change while they are refined, computed once.

    latents: (N, C, h, w) clean and scaled. mask: (N, 1, h, w) in [0, 1]. features: of N.
    ids: (N, tokens) int64, the prompt. positions: (N, n) int64, the subject's places.
    mirrored: (N, C, h, w), the latents of the photos mirrored, or None.
    """

    latents: Tensor
    mask: Tensor
    features: ImageFeatures
    ids: Tensor
    positions: Tensor
    mirrored: Tensor | None = None

    def only(self, row: int) -> EncodedReference:
        """Return one photo's, N = 1: what is refined at a time."""
        rows = slice(row, row + 1)
        return EncodedReference(
            latents=self.latents[rows],
            mask=self.mask[rows],
            features=ImageFeatures(self.features.clip[rows], self.features.dino[rows]),
            ids=self.ids[rows],
            positions=self.positions[rows],
            mirrored=None if self.mirrored is None else self.mirrored[rows],
        )


@dataclass(frozen=True)
class RefinementReport:
    """What a refinement did; one that did nothing shows it.

    loss_before, loss_after: Eq. 7 over the same 16 noise levels, none of them trained on.
    losses: Eq. 7 of each step, on that step's own noise. word_change: |e' - e| / |e|.
    weight_change: |lambda dW| / |W| over the refined layers, 0 where the words are refined.
    seconds: wall time.
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


def refined_weights(
    regressor: PromptRegressor, refined: Refined = "attention"
) -> dict[str, Tensor]:
    """Return the weights that refinement adds dW to, by name; none where the words are refined."""
    layers = REFINED_LAYERS.get(refined, ())
    return {
        name: weight.detach()
        for name, weight in regressor.named_parameters()
        if name.endswith("weight") and any(layer in name for layer in layers)
    }


def predict_words(
    regressor: PromptRegressor,
    reference: EncodedReference,
    residuals: Mapping[str, Tensor] | None = None,
    residual_scale: float = 1.0,
    regions: Tensor | None = None,
) -> Tensor:
    """Return the words, (N, n, d) float32, with W + lambda dW in place of W (Eq. 5).

    The regressor itself is not changed: threads may share it. `regions`, of the reference, are
    computed if they are not given; where only the head's W moves they stay the same.
    """
    weights = dict(regressor.named_parameters()) if residuals else {}
    changed = {
        name: weights[name].detach() + residual_scale * dw for name, dw in (residuals or {}).items()
    }
    inputs = (reference.latents.to(regressor.dtype), reference.features, regions)
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

    Deviation: the paper refines Q, K and V of the regressor's cross-attention, with a rate of 2e-5
    on dW and lambda = 1e-2. Taken literally that moves W by 1e-6 in five steps, which changes
    nothing that can be seen; the rate here is `effective_step / lambda`, so that lambda dW moves by
    `effective_step` a step. And by default the head of the regressor moves, what pools its regions
    into words: of what was tried it gains most on subjects unlike the training set
    (benchmarks/results/refinement_search.json). L_eps looks mostly at the subject, every step
    averages stratified noise levels, and half of them see the photo mirrored. `mode="paper"` keeps
    the literal setting.

    Args:
        regressor: in float32, so that W + lambda dW is not rounded away; not changed.
        denoiser: frozen.
        reference: the photo, encoded; N = 1.
        options: `steps` >= 1.
        on_step: called with 1, 2, ... after each step.

    Returns:
        The words, (1, n, d) float32 without gradient, and the report. Source: HybridBooth, Eq. 5.
    """
    started = time.perf_counter()
    options = _settings(options)
    with torch.no_grad():
        probe = predict_words(regressor, reference)
    residuals, words_with = _refinable(regressor, reference, probe, options)
    optimizer = torch.optim.AdamW(
        residuals.values(), lr=_rate(options, probe), eps=1e-12, weight_decay=options.weight_decay
    )
    generator = torch.Generator().manual_seed(options.seed)
    alone = replace(reference, mirrored=None)  # the loss before and after is the photo's own
    check_noise = torch.Generator().manual_seed(2**31 - 1)
    check = noised_reference(denoiser, alone, _CHECK_TIMESTEPS, check_noise)
    with torch.no_grad():
        loss_before = reference_loss(denoiser, probe, check, options)
    losses = []
    seen = reference if options.mirror else alone
    for step in range(options.steps):
        words = words_with()
        batch = noised_reference(denoiser, seen, options.timesteps_per_step, generator)
        leaf = words.detach().requires_grad_()
        losses.append(reference_loss(denoiser, leaf, batch, options))
        words.backward(leaf.grad, inputs=list(residuals.values()))
        optimizer.step()
        optimizer.zero_grad()
        on_step(step + 1)
    with torch.no_grad():
        refined = words_with()
        loss_after = reference_loss(denoiser, refined, check, options)
    report = RefinementReport(
        steps=options.steps,
        loss_before=loss_before,
        loss_after=loss_after,
        losses=tuple(losses),
        word_change=((refined - probe).norm() / probe.norm()).item(),
        weight_change=_weight_change(regressor, residuals, options),
        seconds=time.perf_counter() - started,
    )
    return refined, report


def _refinable(
    regressor: PromptRegressor,
    reference: EncodedReference,
    probe: Tensor,
    options: PersonalizeOptions,
) -> tuple[dict[str, Tensor], Callable[[], Tensor]]:
    """Return what moves, by name, all zeros, and the words that it gives as it stands."""
    if options.refined == "words":
        offset = torch.zeros_like(probe, requires_grad=True)
        return {"words": offset}, lambda: probe + offset
    weights = refined_weights(regressor, options.refined)
    residuals = {name: torch.zeros_like(w, requires_grad=True) for name, w in weights.items()}
    regions = None
    if options.refined == "head":  # what it pools does not move
        with torch.no_grad():
            latents = reference.latents.to(regressor.dtype)
            regions = regressor.regions(latents, reference.features)

    def words() -> Tensor:
        return predict_words(regressor, reference, residuals, options.residual_scale, regions)

    return residuals, words


def _settings(options: PersonalizeOptions) -> PersonalizeOptions:
    if options.mode == "default":
        return options
    return replace(
        options, refined="attention", mirror=False, mask_loss="paper", background_weight=1.0,
        timesteps_per_step=1, micro_batch_size=1,
    )  # fmt: skip


def _rate(options: PersonalizeOptions, probe: Tensor) -> float:
    if options.mode == "paper":
        return _PAPER_RATE
    if options.refined == "words":
        return options.word_step * probe.square().mean().sqrt().item()
    return options.effective_step / options.residual_scale


def noised_reference(
    denoiser: Denoiser, reference: EncodedReference, count: int, generator: torch.Generator
) -> NoisyBatch:
    """Noise the photo `count` times; drawn on the CPU, so that every device starts alike."""
    device = reference.latents.device
    total = denoiser.scheduler.config.num_train_timesteps
    latents, mask = reference.latents.float(), reference.mask
    if reference.mirrored is not None:
        latents = torch.cat([latents, reference.mirrored.float()])
        mask = torch.cat([mask, mask.flip(-1)])
    rows = torch.arange(count, device=device) % latents.shape[0]
    latents = latents[rows]
    return NoisyBatch(
        latents=latents,
        noise=torch.randn(latents.shape, generator=generator).to(device),
        timesteps=stratified_timesteps(count, total, generator).to(device),
        mask=mask[rows],
        ids=reference.ids.expand(count, -1),
        positions=reference.positions.expand(count, -1),
    )


def reference_loss(
    denoiser: Denoiser, words: Tensor, batch: NoisyBatch, options: PersonalizeOptions
) -> float:
    """Return Eq. 7 of one text's batch; the gradient adds up in `words.grad`.

    The text is encoded once for all noise levels, which are denoised in micro-batches.

    Args:
        denoiser: frozen.
        words: (1, n, d); if they require a gradient, it is computed.
        batch: whose rows have the same text.
        options: weights, and `micro_batch_size`.
    """
    weights = ObjectiveWeights(
        mask_loss=options.mask_loss_weight,
        kind=options.mask_loss,
        background=options.background_weight,
    )
    encoder = denoiser.text_encoder
    states = encode_with_words(encoder, batch.ids[:1], batch.positions[:1], words)
    leaf = states.detach().requires_grad_(words.requires_grad)
    count, size, total = len(batch.timesteps), options.micro_batch_size, 0.0
    for start in range(0, count, size):
        part = batch.part(start, start + size)
        share = len(part.timesteps) / count
        repeated = leaf.expand(len(part.timesteps), -1, -1)
        loss = objective_of_states(denoiser, repeated, part, weights).total * share
        if words.requires_grad:
            loss.backward(inputs=[leaf])  # into nothing else, be it frozen or not
        total += loss.item()
    if words.requires_grad:
        states.backward(leaf.grad, inputs=[words])
    return total


def _weight_change(
    regressor: PromptRegressor, residuals: Mapping[str, Tensor], options: PersonalizeOptions
) -> float:
    weights = refined_weights(regressor, options.refined)
    if not weights:
        return 0.0
    moved = [options.residual_scale * residuals[name].detach().norm() for name in weights]
    return float(
        torch.stack(moved).norm() / torch.stack([w.norm() for w in weights.values()]).norm()
    )
