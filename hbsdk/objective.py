"""The objective of probe training and of refinement: L = L_eps + alpha L_M (Eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from hbsdk.attention import MaskLoss, mask_loss, recorded_attention
from hbsdk.text_encoder import encode_with_words


@dataclass(frozen=True)
class Denoiser:
    """The frozen half of Stable Diffusion: what turns words and noise into a prediction."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    scheduler: DDPMScheduler  # its noise schedule and prediction type


@dataclass(frozen=True)
class NoisyBatch:
    """N noised pictures and the texts that describe them.

    latents, noise: (N, C, h, w), clean and scaled, and what is added to it.
    timesteps: (N,) int64. mask: (N, 1, h, w) in [0, 1], the subject at the latent's size.
    ids: (N, tokens) int64. positions: (N, n) int64, the subject's places in them.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    mask: Tensor
    ids: Tensor
    positions: Tensor

    def part(self, start: int, end: int) -> NoisyBatch:
        """Return pictures `start` to `end` as a batch."""
        return NoisyBatch(**{name: value[start:end] for name, value in vars(self).items()})


@dataclass(frozen=True)
class ObjectiveWeights:
    """How the objective's parts weigh.

    mask_loss: alpha of Eq. 7. kind: how Eq. 6 takes its means. background: the weight of L_eps
    outside of the subject's mask, relative to 1 inside; 1 is the paper's plain L_eps.
    """

    mask_loss: float = 1e-3
    kind: MaskLoss = "area"
    background: float = 1.0


@dataclass(frozen=True)
class ObjectiveParts:
    """Scalars: total = denoising + alpha * mask."""

    total: Tensor
    denoising: Tensor
    mask: Tensor


def objective(
    denoiser: Denoiser, words: Tensor, batch: NoisyBatch, weights: ObjectiveWeights
) -> ObjectiveParts:
    """Return Eq. 7 for a batch, differentiable in the words.

    Args:
        denoiser: frozen networks.
        words: (N, n, d), e of Eq. 4.
        batch: pictures, noise and texts.
        weights: alpha and the like.

    Source: HybridBooth, Eq. 1, 6 and 7.
    """
    states = encode_with_words(denoiser.text_encoder, batch.ids, batch.positions, words)
    return objective_of_states(denoiser, states, batch, weights)


def objective_of_states(
    denoiser: Denoiser, states: Tensor, batch: NoisyBatch, weights: ObjectiveWeights
) -> ObjectiveParts:
    """Return Eq. 7 for a batch whose texts are encoded, differentiable in their states.

    Args:
        denoiser: frozen networks.
        states: (N, tokens, d), of the texts with the words in them.
        batch: pictures, noise, and where the subject stands in each text.
        weights: as of `objective`.
    """
    unet = denoiser.unet
    noisy, target = noised(denoiser.scheduler, batch)
    inputs: dict[str, Any] = {
        "sample": noisy.to(unet.dtype),
        "timestep": batch.timesteps,
        "encoder_hidden_states": states.to(unet.dtype),
        "return_dict": False,
    }
    if weights.mask_loss == 0.0:
        predicted = unet(**inputs)[0]
        attention = noisy.new_zeros(())
    else:
        height, width = noisy.shape[-2:]
        with recorded_attention(unet, batch.positions, height, width) as maps:
            predicted = unet(**inputs)[0]
        attention = mask_loss(maps, batch.mask, kind=weights.kind)
    denoising = _weighted_error(predicted.float(), target, batch.mask, weights.background)
    return ObjectiveParts(denoising + weights.mask_loss * attention, denoising, attention)


def noised(scheduler: DDPMScheduler, batch: NoisyBatch) -> tuple[Tensor, Tensor]:
    """Return the noisy latents and what the UNet should say of them, both (N, C, h, w)."""
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    kind = scheduler.config.prediction_type
    if kind == "v_prediction":
        return noisy, scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
    return noisy, batch.noise if kind == "epsilon" else batch.latents


def latent_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """(N, 1, H, W) in [0, 1] -> (N, 1, height, width), averaged over areas."""
    return F.interpolate(mask.float(), (height, width), mode="area")


def _weighted_error(predicted: Tensor, target: Tensor, mask: Tensor, background: float) -> Tensor:
    squared = (predicted - target.float()).square()
    if background == 1.0:
        return squared.mean()
    weight = (background + (1.0 - background) * mask.float()).expand_as(squared)
    return (squared * weight).sum() / weight.sum()


def stratified_timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """Return `count` timesteps, one drawn from each of `count` equal parts of [0, total)."""
    offsets = torch.rand(count, generator=generator)
    return ((torch.arange(count) + offsets) * (total / count)).long().clamp(max=total - 1)
