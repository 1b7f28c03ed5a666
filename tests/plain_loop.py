"""Pictures drawn with diffusers' modules alone, in a loop that is written out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline


class PlainLoop:
    """Stable Diffusion over a bundle, which ends guidance and swaps deep features as it is told."""

    def __init__(self, bundle: Path, kind: Any = DPMSolverMultistepScheduler) -> None:
        self.pipe = StableDiffusionPipeline.from_pretrained(bundle, safety_checker=None)
        self.kind = kind

    @torch.no_grad()
    def draw(
        self,
        prompt: str,
        noise: np.ndarray,
        *,
        steps: int,
        scale: float,
        guided: int,
        whole: Collection[int] | None = None,
        negative: str = "",
    ) -> np.ndarray:
        """Return the latents, (N, C, h, w).

        Args:
            prompt: of all pictures.
            noise: (N, C, h, w).
            steps: of the scheduler.
            scale: of guidance.
            guided: steps with guidance, from the first on.
            whole: steps whose own deep features are used; at the others, those of the last of
                these before. None is all.
            negative: prompt.
        """
        pipe = self.pipe
        states, without = pipe.encode_prompt(prompt, "cpu", len(noise), True, negative)
        scheduler = self.kind.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        latents = torch.from_numpy(noise) * scheduler.init_noise_sigma
        kept: dict[str, torch.Tensor] = {}
        for i, time in enumerate(scheduler.timesteps):
            sample = scheduler.scale_model_input(latents, time)
            own = whole is None or i in whole
            predicted = self._predict("with", sample, time, states, kept, own)
            if i < guided:
                negated = self._predict("without", sample, time, without, kept, own)
                predicted = negated + scale * (predicted - negated)
            latents = scheduler.step(predicted, time, latents, return_dict=False)[0]
        return latents.numpy()

    def _predict(
        self, half: str, sample: Any, time: Any, states: Any, kept: dict[str, Any], own: bool
    ) -> Any:
        """One pass of diffusers' UNet; its last layer's first channels are kept, or swapped."""
        unet = self.pipe.unet
        layer = unet.up_blocks[-1].resnets[-1]
        handle = layer.register_forward_pre_hook(_hook(half, kept, own, unet.conv_in.out_channels))
        try:
            return unet(sample, time, states).sample
        finally:
            handle.remove()


def _hook(half: str, kept: dict[str, Any], own: bool, skipped: int) -> Callable[..., Any]:
    def keep_or_swap(_module: Any, inputs: tuple[Any, ...]) -> Any:
        deep, skip = inputs[0][:, :-skipped], inputs[0][:, -skipped:]
        if own:
            kept[half] = deep
            return None
        return torch.cat([kept[half], skip], dim=1), *inputs[1:]

    return keep_or_swap
