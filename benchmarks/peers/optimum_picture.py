"""optimum's ONNX Runtime pipeline on hbsdk's engine folder, which is in its layout."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from inputs import read_inputs, save_once, timed_picture, versions_of
from optimum.onnxruntime import ORTStableDiffusionPipeline


class Optimum:
    """One picture from prompt embeddings and noise."""

    versions = versions_of(
        "optimum-onnx", "optimum", "onnxruntime", "onnxruntime-gpu", "diffusers", "torch", "numpy"
    )

    def __init__(self, settings: dict[str, Any]) -> None:
        """Load with `settings["provider"]`, with IO binding or without."""
        self.settings = settings
        arrays = read_inputs(settings["inputs"])
        self.settings["guidance_scale"] = float(arrays["guidance_scale"])
        self.settings["pixels_a_cell"] = int(arrays["pixels_a_cell"])
        names = ("latents", "prompt_embeds", "negative_prompt_embeds")
        self.inputs = {name: torch.from_numpy(arrays[name]) for name in names}
        self.pipeline = ORTStableDiffusionPipeline.from_pretrained(
            settings["engines"], export=False, provider=settings["provider"], local_files_only=True
        )
        self.pipeline.use_io_binding = settings["io_binding"]
        config = self.pipeline.scheduler.config
        self.pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config)
        self.pipeline.set_progress_bar_config(disable=True)

    def run(self) -> dict[str, Any]:
        """Draw once."""
        samples, picture = timed_picture(self.pipeline, self.settings, self.inputs)
        save_once(self.settings, picture)
        return {"samples": samples}
