"""Stage 5: the prompt regressor (Eq. 7), from one picture of an identity to another of it."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from hbsdk.features import ImageFeatures
from hbsdk.mini.cache import REFERENCES, Pictures
from hbsdk.mini.train_clip import Tokens
from hbsdk.mini.training_loop import Plan, Stage
from hbsdk.objective import Denoiser, NoisyBatch, ObjectiveWeights, latent_mask, objective
from hbsdk.regressor import PromptRegressor

PLAN = Plan(steps=4400, learning_rate=1e-3, muon_rate=1e-3, warmup_steps=100, ema_decay=0.998)
BATCH_SIZE = 64
WEIGHTS = ObjectiveWeights(mask_loss=1e-3, kind="area", background=0.25)


def stage(
    regressor: PromptRegressor,
    denoiser: Denoiser,
    pictures: Pictures,
    latents: Tensor,
    features: ImageFeatures,
    tokens: Tokens,
    positions: Tokens,
    plan: Plan = PLAN,
) -> Stage:
    """Train on pairs: a reference in cartoon style, and any other picture of its identity.

    Args:
        regressor: trained.
        denoiser: frozen.
        pictures: for their masks.
        latents: (identities, pictures, C, h, w) float16.
        features: of the references, (identities, REFERENCES, tokens, width) float16 each.
        tokens: (identities, pictures, 77), captions that say "S*".
        positions: (identities, pictures, n), where S* stands in them.
        plan: the schedule of the learning rate.
    """
    identities, count = latents.shape[:2]
    # On a CPU in bfloat16, the backward pass of plain attention is faster than of the fused one.
    denoiser.text_encoder.set_attn_implementation("eager")
    for module in (*denoiser.unet.modules(), *regressor.modules()):
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())

    def loss(rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        who = rng.integers(identities - 64, size=BATCH_SIZE)
        shown = rng.integers(REFERENCES, size=BATCH_SIZE)
        # Any other picture than the reference itself.
        drawn = (shown + rng.integers(1, count, size=BATCH_SIZE)) % count
        clean = latents[who, drawn].float()
        masks = torch.from_numpy(pictures.masks[who, drawn]).unsqueeze(1)
        batch = NoisyBatch(
            latents=clean,
            noise=torch.randn_like(clean),
            timesteps=torch.randint(1000, (BATCH_SIZE,)),
            mask=latent_mask(masks, *clean.shape[-2:]),
            ids=torch.from_numpy(tokens[who, drawn].astype(np.int64)),
            positions=torch.from_numpy(positions[who, drawn].astype(np.int64)),
        )
        with torch.autocast("cpu", torch.bfloat16):
            seen = ImageFeatures(features.clip[who, shown], features.dino[who, shown])
            seen = seen.to(torch.float32)
            words = regressor(latents[who, shown].float(), seen)
            parts = objective(denoiser, words.float(), batch, WEIGHTS)
        metrics = {"denoising": parts.denoising.item(), "mask": parts.mask.item()}
        return parts.total, metrics

    return Stage("regressor", nn.ModuleDict({"regressor": regressor}), loss, plan)
