"""OpenVINO's runtime on hbsdk's ONNX graphs: the denoising step, and the VAE's decoder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from inputs import read_inputs, versions_of


class OpenVino:
    """One picture from prompt embeddings and noise, by the table of steps that hbsdk made."""

    versions = versions_of("openvino", "numpy")

    def __init__(self, settings: dict[str, Any]) -> None:
        """Compile for `settings["place"]`; `settings["precision"]` is OpenVINO's hint, or None."""
        self.settings = settings
        self.inputs = read_inputs(settings["inputs"])
        core, folder = openvino.Core(), Path(settings["engines"])
        hints = {"PERFORMANCE_HINT": "LATENCY"}
        if settings.get("precision") is not None:
            hints["INFERENCE_PRECISION_HINT"] = settings["precision"]
        place = settings.get("place", "CPU")
        noise = self.inputs["latents"].shape
        # Fixed shapes compile to faster code, as a user who measures would have them.
        step = core.read_model(folder / "unet" / "denoise_step.onnx")
        fixed = {
            "sample": (2, *noise[1:]), "previous_x0": (2, *noise[1:]), "guidance": (2, 2),
            "encoder_hidden_states": (2, *self.inputs["prompt_embeds"].shape[1:]),
        }  # fmt: skip
        step.reshape({name: list(shape) for name, shape in fixed.items()})
        decoder = core.read_model(folder / "vae_decoder" / "model.onnx")
        decoder.reshape({"latent_sample": list(noise)})
        self.step = core.compile_model(step, place, hints)
        self.decoder = core.compile_model(decoder, place, hints)
        self.types = {
            port.any_name: port.element_type.to_dtype()
            for model in (self.step, self.decoder)
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
        factor, shift = given["latent_scale"]
        decoded = self.decoder(
            {"latent_sample": self._cast("latent_sample", sample[:1] / factor + shift)}
        )["sample"]
        picture = (decoded[0].astype(np.float32) / 2 + 0.5).clip(0.0, 1.0).transpose(1, 2, 0)
        seconds = time.perf_counter() - started
        if self.settings.get("picture"):
            np.save(self.settings.pop("picture"), picture)
        samples = {f"picture of {self.settings['steps']} steps": [seconds]}
        if len(ends) > 1:
            samples["guided step"] = np.diff(ends).tolist()
        precision = self.step.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return {"samples": samples, "facts": {"precision": precision}}

    def _cast(self, name: str, value: Any) -> Any:
        return np.asarray(value, self.types[name], order="C")
