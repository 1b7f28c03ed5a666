"""What all engine runtimes share: the host's side of probe, text and decoding. No torch."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbsdk.backends.base import Features, Memory
from hbsdk.backends.engine_math import (
    Array,
    Floats,
    batches,
    cast,
    decoder_latents,
    latent_mode,
    latent_scale,
    place_words,
    reference_mask,
    reference_pixels,
    token_ids,
    unit_pictures,
)
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder
from hbsdk.engine_spec import RUNTIME_ENGINES, SHALLOW_STEP, TO_PERSONALIZE, EngineSpec
from hbsdk.errors import EngineError
from hbsdk.image import Reference
from hbsdk.text import PromptTokens


@dataclass(frozen=True)
class EngineReference:
    """Photos as the regressor's engine takes them.

    latents: (N, C, h, w). clip, dino: (N, T, width).
    """

    latents: Floats
    clip: Array
    dino: Array


@dataclass(frozen=True)
class Rows:
    """Latents in the loop: a device array of one or two rows for each of `count` pictures."""

    value: Any
    count: int


@dataclass(frozen=True)
class Before:
    """What a step needs of the one before: x0 of the latents' rows, and deep features if kept."""

    x0: Any
    deep: Any | None


class EngineBackend(ABC):
    """A bundle's engines on one runtime; each is loaded, and its files hashed, when first needed.

    Subclasses run one engine on host arrays, and the denoising loop on the device.
    """

    name: str
    device: str

    def __init__(self, bundle: Bundle, engines: EngineFolder, memory: Memory) -> None:
        self.bundle = bundle
        self.engines = engines
        self.memory = memory
        self._scale = latent_scale(bundle)
        self._loaded: dict[str, Any] = {}
        self._loading = threading.Lock()

    @abstractmethod
    def _open(self, spec: EngineSpec) -> Any:
        """Load an engine's file, after its hash was checked."""

    @abstractmethod
    def run(self, name: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run an engine on host arrays, by tensor name.

        Raises:
            EngineError: the engine cannot be loaded, or does not take these shapes.
        """

    @abstractmethod
    def on_device(self, array: Array) -> Any:
        """Copy a host array to the device."""

    @abstractmethod
    def shown(self, latents: Any) -> Floats:
        """Return (N, C, h, w) float32 latents for a callback to read."""

    def load(self, name: str) -> Any:
        """Return an engine, loading it if need be."""
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = self._open(self.spec(name))
            return self._loaded[name]

    def _release(self, *names: str) -> None:
        """Forget engines whose stage is over, if memory is to be low."""
        if self.memory == "low":
            for name in names:
                self._loaded.pop(name, None)

    def spec(self, name: str) -> EngineSpec:
        """Return what an engine takes and gives.

        Raises:
            EngineError: the folder has none of this name.
        """
        if name not in self.engines.specs:
            what = "personalize" if name in TO_PERSONALIZE else "generate"
            raise EngineError(
                f"engine {name} of {self.engines.folder}",
                expected=f"one, to {what} on {self.name}",
                got=f"only {', '.join(self.engines.specs)}",
                remedy=f"Build engines of a bundle that has all networks: {self.engines.command}",
            )
        return self.engines.specs[name]

    def step_engine(self, features: Features) -> str:
        """Return the name of the engine for a step.

        Args:
            features: as of `Backend.denoise_step`.

        Raises:
            EngineError: these engines neither keep deep features nor reuse them.
        """
        if features != "off" and SHALLOW_STEP not in self.engines.specs:
            raise EngineError(
                f"feature_interval on engines {self.engines.folder}",
                expected="1, as they were built without deep features", got="more",
                remedy="Add the line deep_features = true to the recipe, above its tables, and "
                f"build again: {self.engines.command}. Or use engine='torch'",
            )  # fmt: skip
        return SHALLOW_STEP if features == "reuse" else "denoise_step"

    def load_all(self) -> None:
        """Load every engine that probe and generation use."""
        for name in (*RUNTIME_ENGINES, SHALLOW_STEP):
            if name in self.engines.specs:
                self.load(name)

    def encode_references(
        self, references: Sequence[Reference], prompt: PromptTokens
    ) -> EngineReference:
        """Encode N photos for the probe; the prompt plays no part in that."""
        del prompt
        feeds: dict[str, Array] = {"pixels": reference_pixels(references)}
        if any(tensor.name == "mask" for tensor in self.spec("image_features").inputs):
            feeds["mask"] = reference_mask(references)
        features = self._run_in_batches("image_features", "photos", feeds)
        sample = {"sample": feeds["pixels"]}
        encoded = self._run_in_batches("vae_encoder", "photos", sample)["latent_parameters"]
        self._release("image_features", "vae_encoder")
        return EngineReference(
            latent_mode(encoded, self._scale), features["clip"], features["dino"]
        )

    def probe(self, references: EngineReference) -> Floats:
        """Return the regressor's words for N photos, (N, n, d)."""
        feeds = {
            "latents": references.latents, "clip": references.clip, "dino": references.dino
        }  # fmt: skip
        words = self._run_in_batches("regressor", "photos", feeds)["words"]
        self._release("regressor")
        return words.astype(np.float32)

    def _run_in_batches(self, name: str, axis: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run an engine on as many rows at once as it takes, whatever number there is."""
        count = len(next(iter(feeds.values())))
        parts = [
            self.run(name, {key: value[rows] for key, value in feeds.items()})
            for rows in batches(self.spec(name), axis, count)
        ]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def encode_prompts(
        self, prompts: Sequence[PromptTokens], words: Mapping[str, Floats], copies: int
    ) -> Any:
        """Return the text encoder's states on the device; see `Backend`."""
        ids, states = token_ids(prompts), []
        for part in batches(self.spec("token_embedding"), "texts", len(prompts)):
            embedded = self.run("token_embedding", {"input_ids": ids[part]})["inputs_embeds"]
            placed = place_words(embedded, prompts[part], words)
            feeds = {"inputs_embeds": placed}
            states.append(self.run("text_encoder_embeds", feeds)["last_hidden_state"])
        self._release("token_embedding", "text_encoder_embeds")
        (tensor,) = (
            one for one in self.spec("denoise_step").inputs if one.name == "encoder_hidden_states"
        )
        repeated = np.repeat(np.concatenate(states), copies, axis=0)
        return self.on_device(cast(repeated, tensor))

    def to_host(self, latents: Any) -> Floats:
        """Return (N, C, h, w) float32 latents."""
        values = self.shown(latents)
        self._release("denoise_step", SHALLOW_STEP)
        return values

    def decode(self, latents: Any) -> Floats:
        """Return (N, H, W, 3) float32 pictures in [0, 1]."""
        samples = {"latent_sample": decoder_latents(self.to_host(latents), self._scale)}
        pictures = self._run_in_batches("vae_decoder", "images", samples)["sample"]
        self._release("vae_decoder")
        return unit_pictures(pictures)
