"""Stage 1: the autoencoder, then per-channel normalisation folded into its 1x1 convolutions."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from hbsdk.mini.cache import Pixels
from hbsdk.mini.training_loop import Plan, Stage

KL_WEIGHT = 1e-4
PLAN = Plan(steps=2400, learning_rate=2e-3, muon_rate=4e-3, warmup_steps=100, weight_decay=0.0)
BATCH_SIZE = 32


def to_tensor(pixels: Pixels) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1.0


def stage(vae: AutoencoderKL, pixels: Pixels, held_out: Pixels, plan: Plan = PLAN) -> Stage:
    """Train on (N, 64, 64, 3) uint8 pictures; `held_out` ones give the figures."""

    def loss(rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = to_tensor(pixels[rng.integers(len(pixels), size=BATCH_SIZE)])
        if rng.random() < 0.5:
            batch = batch.flip(-1)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(batch).latent_dist
            drawn = vae.decode(posterior.sample()).sample.float()
        difference = drawn - batch
        squared = difference.square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        total = squared + 0.2 * difference.abs().mean() + KL_WEIGHT * kl
        return total, {"mse": squared.item(), "kl": kl.item()}

    return Stage("vae", nn.ModuleDict({"vae": vae}), loss, plan, lambda: figures(vae, held_out))


@torch.no_grad()
def figures(vae: AutoencoderKL, pixels: Pixels) -> dict[str, float]:
    """Return the mean PSNR in dB (of 8-bit pictures) over held-out pictures."""
    ratios = []
    for start in range(0, len(pixels), 32):
        batch = to_tensor(pixels[start : start + 32])
        drawn = vae.decode(vae.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
        error = (drawn - batch).square().mean(dim=(1, 2, 3)) / 4.0
        ratios.append(-10.0 * error.log10())
    return {"psnr_db": torch.cat(ratios).mean().item()}


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pixels: Pixels, *, batch_size: int = 128) -> Tensor:
    """(N, 64, 64, 3) uint8 -> the modes of their latents, (N, 16, 8, 8) float16, scaled."""
    latents = []
    for start in range(0, len(pixels), batch_size):
        with torch.autocast("cpu", torch.bfloat16):
            mode = vae.encode(to_tensor(pixels[start : start + batch_size])).latent_dist.mode()
        latents.append((mode.float() * vae.config.scaling_factor).half())
    return torch.cat(latents)


@torch.no_grad()
def fold_normalisation(vae: AutoencoderKL, latents: Tensor) -> None:
    """Make every channel of the latents zero-mean and unit-variance, in place.

    latents: (N, C, h, w), a sample of today's. The shift and scale go into `quant_conv` and their
    inverse into `post_quant_conv`, so one scaling factor, 1, is right for all channels.
    """
    latents = latents.float()
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(dim=1)
    post.weight *= std[None, :, None, None]
    quant.bias[:channels] -= mean
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] /= std
    quant.bias[channels:] -= 2.0 * std.log()  # the second half is the log variance
