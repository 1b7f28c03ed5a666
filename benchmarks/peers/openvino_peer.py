"""OpenVINO's runtime on hbsdk's ONNX graphs: the denoising step, and the VAE's decoder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from inputs import read_inputs, samples_of, save_once, versions_of


class OpenVino:
    """One picture from prompt embeddings and noise, by the table of steps that hbsdk made."""

    versions = versions_of("openvino", "numpy")

    def __init__(self, settings: dict[str, Any]) -> None:
        """Compile for the CPU; `settings["precision"]` is OpenVINO's hint, or None."""
        self.settings = settings
        self.inputs = read_inputs(settings["inputs"])
        core, folder = openvino.Core(), Path(settings["engines"])
        hints = {"PERFORMANCE_HINT": "LATENCY"}
        if settings.get("precision") is not None:
            hints["INFERENCE_PRECISION_HINT"] = settings["precision"]
        noise = self.inputs["latents"].shape
        # Fixed shapes compile to faster code, as a user who measures would have them.
        step = core.read_model(folder / "unet" / "denoise_step.onnx")
        fixed = {
            "sample": (2, *noise[1:]), "previous_x0": (2, *noise[1:]), "guidance": (2, 2),
            "encoder_hidden_states": (2, *self.inputs["prompt_embeds"].shape[1:]),
        }  # fmt: skip
        step.reshape({name: list(shape) for name, shape in fixed.items()})
        self.step = core.compile_model(step, "CPU", hints)
        self.decoder = None
        if not settings["guided_step"]:
            decoder = core.read_model(folder / "vae_decoder" / "model.onnx")
            decoder.reshape({"latent_sample": list(noise)})
            self.decoder = core.compile_model(decoder, "CPU", hints)
        self.types = {
            port.any_name: port.element_type.to_dtype()
            for model in (self.step, self.decoder)
            if model is not None
            for port in model.inputs
        }

    def run(self) -> dict[str, Any]:
        """Draw once."""
        given = self.inputs
        scale = np.float32(given["guidance_scale"])
        states = np.concatenate([given["negative_prompt_embeds"], given["prompt_embeds"]])
        guidance = np.array([[1 - scale, scale]] * 2, np.float32)
        started = time.perf_counter()
        latents = given["latents"] * np.float32(given["initial_noise_scale"])
        sample = np.concatenate([latents, latents])
        previous, ends = sample, []
        for timestep, *row in given["table"]:
            feeds = {
                "sample": sample, "timestep": np.array(timestep), "encoder_hidden_states": states,
                "previous_x0": previous, "guidance": guidance, "coefficients": np.array(row),
            }  # fmt: skip
            found = self.step({name: self._cast(name, value) for name, value in feeds.items()})
            sample, previous = found["next_sample"], found["x0"]
            ends.append(time.perf_counter())
        drawn = sample[0] if self.decoder is None else self._decode(sample[:1])
        seconds = time.perf_counter() - started
        save_once(self.settings, drawn)
        precision = self.step.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        samples = samples_of(self.settings, seconds, ends)
        return {"samples": samples, "facts": {"precision": precision}}

    def _decode(self, latents: Any) -> Any:
        """Return the picture, (H, W, 3) in 0..1."""
        factor, shift = self.inputs["latent_scale"]
        scaled = self._cast("latent_sample", latents / factor + shift)
        (decoded,) = self.decoder({"latent_sample": scaled})["sample"]
        return (decoded.astype(np.float32) / 2 + 0.5).clip(0.0, 1.0).transpose(1, 2, 0)

    def _cast(self, name: str, value: Any) -> Any:
        return np.asarray(value, self.types[name], order="C")
