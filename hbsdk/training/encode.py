"""From pairs of pictures to what the regressor and the objective take, by frozen networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn
from transformers import CLIPVisionModel, Dinov2Model

from hbsdk.bundle import Bundle
from hbsdk.errors import PromptError, TrainingError
from hbsdk.features import Background, ImageFeatures, extract_features
from hbsdk.objective import Denoiser, NoisyBatch, latent_mask
from hbsdk.text import tokenize_prompt
from hbsdk.tokenizer import PromptTokenizer
from hbsdk.training.kept import Kept, Key, read_kept, write_kept
from hbsdk.training.pairs import Pair, Pixels

Keys = Sequence[tuple[Key, Key]]  # of each pair: the reference's, the target's

_REMEMBERED_PROMPTS = 1 << 16
_NOISE = 1  # sets the noise's random numbers apart from those by which a source chooses


@runtime_checkable
class FixedPictures(Protocol):
    """What a `PairSource` may add if its pictures never change: by what they are known.

    Each picture is then encoded once and kept, which pays where they come again and again.
    """

    def keys(self, seed: int, step: int, indices: Sequence[int]) -> list[tuple[Key, Key]]:
        """Return the numbers of reference and target of the pairs that `pairs` returns.

        Args:
            seed: of the run.
            step: 0 is the first.
            indices: the pairs' numbers in the step's global batch.
        """


@dataclass(frozen=True)
class FrozenNetworks:
    """A bundle's networks, none of which is trained, on one device."""

    denoiser: Denoiser
    vae: AutoencoderKL
    image_encoder: CLIPVisionModel
    dino: Dinov2Model
    tokenizer: PromptTokenizer
    background: Background
    image_size_px: int

    @classmethod
    def load(cls, bundle: Bundle, device: torch.device, dtype: torch.dtype) -> FrozenNetworks:
        """Load what training needs of a bundle.

        Args:
            bundle: with both image encoders.
            device: to train on.
            dtype: of all but the text encoder: in half precision, words would not move.

        Raises:
            BundleError: a network is missing or damaged.
        """
        denoiser = Denoiser(
            bundle.load_unet(dtype, device),
            bundle.load_text_encoder(torch.float32, device),
            DDPMScheduler.from_config(bundle.scheduler_config()),
        )
        if device.type == "cpu":
            # In bfloat16 the backward pass of plain attention is faster there than of the fused.
            denoiser.text_encoder.set_attn_implementation("eager")
            use_plain_attention(denoiser.unet)
        return cls(
            denoiser=denoiser,
            vae=bundle.load_vae(dtype, device),
            image_encoder=bundle.load_image_encoder(dtype, device),
            dino=bundle.load_dino(dtype, device),
            tokenizer=bundle.load_tokenizer(),
            background=bundle.info.background,
            image_size_px=bundle.info.image_size_px,
        )


def use_plain_attention(network: nn.Module) -> None:
    """Let a diffusers network's attention be written out rather than fused."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())


@dataclass(frozen=True)
class EncodedPairs:
    """N pairs, encoded.

    latents: (N, C, h, w) float32, of the references, clean and scaled. features: of the references.
    batch: the targets, noised, with their texts.
    """

    latents: Tensor
    features: ImageFeatures
    batch: NoisyBatch


class PairEncoder:
    """Encodes pairs with a bundle's frozen networks; their noise depends on (seed, step, index)."""

    def __init__(self, networks: FrozenNetworks, num_words: int, seed: int) -> None:
        """Prepare.

        Args:
            networks: frozen, on the device to train on.
            num_words: tokens that the subject takes in a text.
            seed: of the noise and the timesteps.
        """
        self.networks = networks
        self.seed = seed
        self.device: torch.device = networks.denoiser.unet.device
        self._kept_latents = Kept(self._encode_latents)
        self._kept_features = Kept(self._encode_features)

        @lru_cache(_REMEMBERED_PROMPTS)
        def tokens(prompt: str) -> tuple[Tensor, Tensor]:
            return _tokens(networks.tokenizer, prompt, num_words)

        self._tokens = tokens

    def read_kept(self, path: Path) -> None:
        """Take over what an earlier run encoded, if its file is there and whole.

        Args:
            path: that `write_kept` wrote.
        """
        read_kept(path, {"latents": self._kept_latents, "features": self._kept_features})

    def write_kept(self, path: Path) -> None:
        """Write what pictures were encoded as, unless the file has it all.

        Args:
            path: for another run's `read_kept`.
        """
        write_kept(path, {"latents": self._kept_latents, "features": self._kept_features})

    @torch.no_grad()
    def encode(
        self, pairs: Sequence[Pair], step: int, indices: Sequence[int], keys: Keys | None = None
    ) -> EncodedPairs:
        """Encode pairs of one step.

        Args:
            pairs: N of them.
            step: its number.
            indices: each pair's number in the step's global batch.
            keys: what the pictures are known by, where they come again and again unchanged: each
                is then encoded once, and kept in float16.

        Raises:
            PromptError: a prompt does not hold "S*" once.
            TrainingError: a picture is not of the bundle's size.
        """
        latents, targets, features = self._pictures(pairs, keys)
        noise, timesteps = self._noise(step, indices, tuple(latents.shape[1:]))
        masks = _mask_tensor([pair.target_mask for pair in pairs])
        tokens = [self._tokens(pair.prompt) for pair in pairs]
        batch = NoisyBatch(
            latents=targets,
            noise=noise.to(self.device),
            timesteps=timesteps.to(self.device),
            mask=latent_mask(masks, *latents.shape[-2:]).to(self.device),
            ids=torch.stack([ids for ids, _ in tokens]).to(self.device),
            positions=torch.stack([where for _, where in tokens]).to(self.device),
        )
        return EncodedPairs(latents, features, batch)

    def _pictures(
        self, pairs: Sequence[Pair], keys: Keys | None
    ) -> tuple[Tensor, Tensor, ImageFeatures]:
        """Return the references' latents, the targets' latents, and the references' features."""
        references = [pair.reference for pair in pairs]
        targets = [pair.target for pair in pairs]
        masks = [pair.reference_mask for pair in pairs]
        self._check_size(references + targets)
        if keys is None:
            (latents,) = self._encode_latents(references + targets, [])
            clip, dino = self._encode_features(references, masks)
        else:
            reference_keys = [key for key, _ in keys]
            both = reference_keys + [key for _, key in keys]
            target_masks = [pair.target_mask for pair in pairs]
            (latents,) = self._kept_latents(both, references + targets, masks + target_masks)
            clip, dino = self._kept_features(reference_keys, references, masks)
        latents, clip, dino = (one.to(self.device).float() for one in (latents, clip, dino))
        return latents[: len(pairs)], latents[len(pairs) :], ImageFeatures(clip, dino)

    def _encode_latents(
        self, pictures: Sequence[Pixels], _: Sequence[Pixels]
    ) -> tuple[Tensor, ...]:
        vae = self.networks.vae
        mode = vae.encode(self._pixel_tensor(pictures).to(vae.dtype)).latent_dist.mode().float()
        return ((mode - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor,)

    def _encode_features(
        self, pictures: Sequence[Pixels], masks: Sequence[Pixels]
    ) -> tuple[Tensor, ...]:
        features = extract_features(
            self.networks.image_encoder,
            self.networks.dino,
            self._pixel_tensor(pictures),
            _mask_tensor(masks).to(self.device),
            background=self.networks.background,
        )
        return features.clip, features.dino

    def _pixel_tensor(self, pictures: Sequence[Pixels]) -> Tensor:
        """Return (N, 3, H, W) float32 in [-1, 1]."""
        pixels = torch.from_numpy(np.stack(pictures)).to(self.device)
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0

    def _check_size(self, pictures: Sequence[Pixels]) -> None:
        size = self.networks.image_size_px
        for picture in pictures:
            if picture.shape != (size, size, 3):
                raise TrainingError(
                    "a picture to train on",
                    expected=f"{size} x {size} px, as the bundle's",
                    got=" x ".join(map(str, picture.shape)),
                    remedy="Give the source of the data the bundle's image_size_px",
                )

    def _noise(
        self, step: int, indices: Sequence[int], shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return unit noise (N, *shape) and timesteps (N,), drawn on the CPU."""
        total = self.networks.denoiser.scheduler.config.num_train_timesteps
        noise = np.empty((len(indices), *shape), np.float32)
        timesteps = np.empty(len(indices), np.int64)
        for row, index in enumerate(indices):
            rng = np.random.default_rng([self.seed, step, index, _NOISE])
            timesteps[row] = rng.integers(total)
            rng.standard_normal(out=noise[row], dtype=np.float32)
        return torch.from_numpy(noise), torch.from_numpy(timesteps)


def _mask_tensor(masks: Sequence[Pixels]) -> Tensor:
    """Return (N, 1, H, W) float32."""
    return torch.from_numpy(np.stack(masks))[:, None].float()


def _tokens(tokenizer: PromptTokenizer, prompt: str, num_words: int) -> tuple[Tensor, Tensor]:
    """Return a prompt's ids, (tokens,), and the places of the subject's words, (n,)."""
    tokens = tokenize_prompt(tokenizer, prompt, {"s*": num_words})
    places = tokens.places["s*"]
    if len(places) != 1:
        raise PromptError(
            f"the prompt {prompt!r} of a picture to train on",
            expected='"S*" in it once',
            got=f"{len(places)} times",
            remedy='Say "S*" where the subject is named',
        )
    return torch.from_numpy(tokens.ids), torch.tensor(places[0])
