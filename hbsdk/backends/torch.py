"""PyTorch: all networks, loaded when first needed, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from hbsdk.backends.base import Features, Floats, Memory, StepCoefficients
from hbsdk.backends.precision import prefers_bfloat16
from hbsdk.bundle import Bundle
from hbsdk.chunked_attention import is_faster_here, use_chunked_attention
from hbsdk.deep_features import shallow_pass, whole_pass
from hbsdk.errors import OptionError, PromptError
from hbsdk.features import extract_features
from hbsdk.image import Reference
from hbsdk.objective import Denoiser, latent_mask
from hbsdk.options import PersonalizeOptions
from hbsdk.refine import EncodedReference, RefinementReport, predict_words, refine
from hbsdk.room import fit_refinement
from hbsdk.text import PromptTokens
from hbsdk.text_encoder import encode_prompts

DType = Literal["auto", "float32", "bfloat16", "float16"]
_NETWORKS = ("text_encoder", "unet", "vae", "image_encoder", "dino", "regressor")
# Words move by parts in a thousand while they are refined, which half precision rounds away.
_ALWAYS_FLOAT32 = ("text_encoder", "regressor")


@dataclass(frozen=True)
class _Before:
    """What a step needs of the one before: its x0, (N, C, h, w), and deep features if kept."""

    x0: Tensor
    deep: Tensor | None


class TorchBackend:
    """A bundle's networks in PyTorch. Not thread-safe by itself: `Session` holds the lock."""

    name = "torch"

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str | None = None,
        dtype: DType = "auto",
        memory: Memory = "high",
    ) -> None:
        """Prepare; nothing is loaded yet.

        Args:
            bundle: where the networks are.
            device: as torch names it; None is the first GPU, or else the CPU.
            dtype: of UNet, VAE and image encoders; "auto" is, on a CPU, bfloat16 where it has
                instructions for that and the bundle is large, else float32; on a GPU bfloat16
                where it has that, else float16.
            memory: "low" releases each network after its stage.

        Raises:
            OptionError: there is no such device here, or another option is none of its choices.
        """
        _check_choice("dtype", dtype, get_args(DType))
        _check_choice("memory", memory, get_args(Memory))
        self.bundle = bundle
        self.device = _device(device)
        self.memory = memory
        self._dtype = dtype
        self._loaded: dict[str, Any] = {}
        self._scheduler: DDPMScheduler | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the UNet, the VAE and the image encoders."""
        if self._dtype != "auto":
            return {
                "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16
            }[self._dtype]  # fmt: skip
        if self.device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if prefers_bfloat16(self.bundle) else torch.float32

    def network(self, name: str) -> Any:
        """Return a network, loading it if need be."""
        if name not in self._loaded:
            dtype = torch.float32 if name in _ALWAYS_FLOAT32 else self.dtype
            load: Callable[..., Any] = getattr(self.bundle, f"load_{name}")
            network = load(dtype, self.device)
            if name == "unet" and is_faster_here(self.device, dtype):
                use_chunked_attention(network)
            self._loaded[name] = network
        return self._loaded[name]

    def has_loaded(self, name: str) -> bool:
        """Return whether a network is in memory."""
        return name in self._loaded

    def load_all(self) -> None:
        """Load every network that the bundle has."""
        for name in _NETWORKS:
            if name in self.bundle.components:
                self.network(name)

    def _release(self, *names: str) -> None:
        if self.memory == "low":
            for name in names:
                self._loaded.pop(name, None)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    @property
    def scheduler(self) -> DDPMScheduler:
        """The noise schedule that the denoiser was trained with."""
        if self._scheduler is None:
            self._scheduler = DDPMScheduler.from_config(self.bundle.scheduler_config())
        return self._scheduler

    @torch.no_grad()
    def encode_references(
        self, references: Sequence[Reference], prompt: PromptTokens, *, mirrored: bool = False
    ) -> EncodedReference:
        """Encode N photos for the probe and for refinement, `mirrored` for the latter also so.

        `prompt` holds one subject, once. The regressor is loaded first: a bundle without one
        says so before any work is done.

        Raises:
            PromptError: the prompt holds no subject, or more than one.
        """
        where, count = _only_place(prompt), len(references)
        self.network("regressor")
        pixels = torch.from_numpy(np.stack([one.pixels for one in references]))
        pixels = pixels.permute(0, 3, 1, 2).to(self.device)
        mask = torch.from_numpy(np.stack([one.mask for one in references]))[:, None].to(self.device)
        features = extract_features(
            self.network("image_encoder"), self.network("dino"), pixels, mask,
            background=self.bundle.info.background,
        )  # fmt: skip
        self._release("image_encoder", "dino")
        shown = torch.cat([pixels, pixels.flip(-1)]) if mirrored else pixels
        latents = self.encode_image(shown)
        return EncodedReference(
            latents=latents[:count],
            mirrored=latents[count:] if mirrored else None,
            mask=latent_mask(mask, *latents.shape[-2:]),
            features=features.to(torch.float32),
            ids=torch.from_numpy(prompt.ids).expand(count, -1).to(self.device),
            positions=torch.tensor([where], device=self.device).expand(count, -1),
        )

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, C, h, w) float32 latents: the mode, scaled.

        One at a time, so that a picture's latents do not depend on its company's number.
        """
        vae = self.network("vae")
        modes = [vae.encode(one[None].to(vae.dtype)).latent_dist.mode() for one in pixels]
        latents = torch.cat(modes).float()
        self._release("vae")
        scaled: Tensor = (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
        return scaled

    @torch.no_grad()
    def probe(self, reference: EncodedReference) -> Floats:
        """Return the regressor's words for N photos, (N, n, d)."""
        words = predict_words(self.network("regressor"), reference)
        self._release("regressor")
        return words.cpu().numpy()

    def refine(
        self,
        reference: EncodedReference,
        options: PersonalizeOptions,
        on_step: Callable[[int], None],
    ) -> tuple[Floats, RefinementReport]:
        """Return the refined words of one photo, (n, d), and what refinement did.

        Raises:
            OptionError: there is not enough memory for even one noise level at once.
        """
        options = fit_refinement(self, options)
        denoiser = Denoiser(self.network("unet"), self.network("text_encoder"), self.scheduler)
        with torch.enable_grad():
            words, report = refine(self.network("regressor"), denoiser, reference, options, on_step)
        self._release("regressor", "unet", "text_encoder")
        return words[0].cpu().numpy(), report

    @torch.no_grad()
    def encode_prompts(
        self, prompts: Sequence[PromptTokens], words: Mapping[str, Floats], copies: int
    ) -> Tensor:
        """Return (N * copies, tokens, d) states; see `Backend`."""
        states = encode_prompts(self.network("text_encoder"), prompts, words)
        self._release("text_encoder")
        return states.to(self.dtype).repeat_interleave(copies, dim=0)

    def prompts_only(self, states: Tensor) -> Tensor:
        """Return the second half of guided states; see `Backend`."""
        return states[len(states) // 2 :]

    def to_device(self, latents: Floats | Tensor) -> Tensor:
        """Move (N, C, h, w) latents to the device, float32."""
        return torch.as_tensor(latents, dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def denoise_step(
        self,
        latents: Tensor,
        before: _Before | None,
        states: Tensor,
        guidance_scale: float,
        coefficients: StepCoefficients,
        features: Features = "off",
    ) -> tuple[Tensor, _Before]:
        """Run the UNet, guidance and the sampler's rule once; see `Backend`."""
        k, deep = coefficients, None if before is None else before.deep
        predicted, deep = self.predict(latents, states, guidance_scale, k.timestep, features, deep)
        x0 = k.p * latents + k.q * predicted
        following = k.a * latents + k.b * x0
        if before is not None and k.c:
            following = following + k.c * before.x0
        return following, _Before(x0, deep)

    @torch.no_grad()
    def predict(
        self,
        latents: Tensor,
        states: Tensor,
        guidance_scale: float,
        timestep: float,
        features: Features = "off",
        deep: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the UNet's guided output for (N, C, h, w) latents, float32, and deep features.

        Args:
            latents: (N, C, h, w).
            states: as of `denoise_step`.
            guidance_scale: the weight of the prompt.
            timestep: that the UNet is told.
            features: as of `denoise_step`.
            deep: features that were kept, where they are to be reused.
        """
        guided = len(states) == 2 * len(latents)
        unet = self.network("unet")
        sample = (torch.cat([latents, latents]) if guided else latents).to(unet.dtype)
        predicted: Tensor
        if features == "reuse":
            assert deep is not None, "deep features are reused that were not kept"
            predicted = shallow_pass(unet, sample, timestep, states, deep)
        elif features == "keep":
            predicted, deep = whole_pass(unet, sample, timestep, states)
        else:
            predicted, deep = unet(sample, timestep, states, return_dict=False)[0], None
        predicted = predicted.float()
        if guided:
            without, with_prompt = predicted.chunk(2)
            predicted = without + guidance_scale * (with_prompt - without)
        return predicted, deep

    def shown(self, latents: Tensor) -> Tensor:
        """Return the latents as a callback gets them: themselves."""
        return latents

    def to_host(self, latents: Tensor) -> Floats:
        """Return (N, C, h, w) float32 latents."""
        self._release("unet")
        return latents.float().cpu().numpy()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Floats:
        """Return (N, H, W, 3) float32 pictures in [0, 1], decoded one at a time."""
        self._release("unet")
        vae = self.network("vae")
        scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pictures = [vae.decode(one[None].to(vae.dtype)).sample.float() for one in scaled]
        self._release("vae")
        unit = (torch.cat(pictures) / 2.0 + 0.5).clamp(0.0, 1.0)
        return unit.permute(0, 2, 3, 1).cpu().numpy()


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(name, expected=f"one of {', '.join(choices)}", got=repr(value))


def _only_place(prompt: PromptTokens) -> tuple[int, ...]:
    """Return the positions of the subject's words where it stands once."""
    places = [where for runs in prompt.places.values() for where in runs]
    if len(places) != 1:
        raise PromptError(
            "the prompt that describes the photo", expected="S* in it once",
            got=f"S* {len(places)} times", remedy='Use prompt="a photo of S*"',
        )  # fmt: skip
    return places[0]


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            "device", expected="a device of this machine", got=name,
            remedy="Use device=None: it takes the GPU if there is one, else the CPU",
        ) from error  # fmt: skip
    return device
