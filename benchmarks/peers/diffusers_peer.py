"""diffusers' StableDiffusionPipeline: eager, or compiled with channels-last weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from inputs import read_inputs, save_once, timed_picture, versions_of


class Diffusers:
    """One picture from prompt embeddings and noise; text encoder and tokenizer are not loaded."""

    versions = versions_of("diffusers", "transformers", "torch", "numpy")

    def __init__(self, settings: dict[str, Any]) -> None:
        """Load; `settings["compile"]` is a mode of torch.compile's, or None."""
        self.settings = settings
        arrays = read_inputs(settings["inputs"])
        self.settings["guidance_scale"] = float(arrays["guidance_scale"])
        self.settings["pixels_a_cell"] = int(arrays["pixels_a_cell"])
        device = settings.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, settings["dtype"])
        names = ("latents", "prompt_embeds", "negative_prompt_embeds")
        self.inputs = {name: torch.from_numpy(arrays[name]).to(device, dtype) for name in names}
        self.pipeline = StableDiffusionPipeline.from_pretrained(
            settings["bundle"], torch_dtype=dtype, local_files_only=True, text_encoder=None,
            tokenizer=None, safety_checker=None, feature_extractor=None, image_encoder=None,
            requires_safety_checker=False,
        ).to(device)  # fmt: skip
        config = self.pipeline.scheduler.config
        self.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config)
        self.pipeline.set_progress_bar_config(disable=True)
        mode = settings.get("compile")
        if mode is not None:
            for name in ("unet", "vae"):
                getattr(self.pipeline, name).to(memory_format=torch.channels_last)
            self.pipeline.unet = torch.compile(self.pipeline.unet, mode=mode)
            self.pipeline.vae.decode = torch.compile(self.pipeline.vae.decode, mode=mode)

    def run(self) -> dict[str, Any]:
        """Draw once."""
        samples, picture = timed_picture(self.pipeline, self.settings, self.inputs)
        save_once(self.settings, picture)
        return {"samples": samples}
