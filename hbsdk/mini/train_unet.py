"""Stage 4: the denoiser, from captions to latents, as Stable Diffusion is trained."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel

from hbsdk.mini.train_clip import Tokens
from hbsdk.mini.training_loop import Plan, Stage
from hbsdk.training.world_source import VALIDATION_IDENTITIES

PLAN = Plan(steps=11_400, learning_rate=1e-3, muon_rate=1.5e-3, warmup_steps=200, ema_decay=0.999)
BATCH_SIZE = 96
UNCONDITIONAL = 0.1  # the share of captions left out, for classifier-free guidance


def noise_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise schedule, with v-prediction."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def stage(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    latents: Tensor,
    tokens: Tokens,
    empty: Tokens,
    plan: Plan = PLAN,
    *,
    compiled: bool = True,
) -> Stage:
    """Train on latents and captions.

    Args:
        unet: trained.
        text: frozen.
        latents: (identities, pictures, 16, 8, 8) float16.
        tokens: (identities, pictures, captions + 1, 77).
        empty: (77,), the empty prompt.
        plan: the schedule of the learning rate.
        compiled: use torch.compile, twice as fast after a minute.
    """
    identities, count = latents.shape[:2]
    scheduler = noise_scheduler()
    # On a CPU in bfloat16, the backward pass of plain attention is faster than of the fused one.
    unet.set_attn_processor(AttnProcessor())
    forward = torch.compile(unet) if compiled else unet
    encode = torch.compile(text) if compiled else text  # a quarter of a step

    def loss(rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        who = rng.integers(identities - VALIDATION_IDENTITIES, size=BATCH_SIZE)
        which = rng.integers(count, size=BATCH_SIZE)
        told = rng.integers(tokens.shape[2] - 1, size=BATCH_SIZE)
        ids = tokens[who, which, told].astype(np.int64)
        ids[rng.random(BATCH_SIZE) < UNCONDITIONAL] = empty
        clean = latents[torch.from_numpy(who), torch.from_numpy(which)].float()
        noise = torch.randn_like(clean)
        times = torch.randint(1000, (BATCH_SIZE,))
        noisy = scheduler.add_noise(clean, noise, times)
        target = scheduler.get_velocity(clean, noise, times)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                states = encode(torch.from_numpy(ids)).last_hidden_state
            predicted = forward(noisy, times, states, return_dict=False)[0].float()
        return (predicted - target).square().mean(), {}

    return Stage("unet", nn.ModuleDict({"unet": unet}), loss, plan)
