"""Random networks of a given size, and pictures of noise, to measure what training costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
)

from hbsdk.bundle import Bundle
from hbsdk.bundle_check import config_of, part_of
from hbsdk.bundle_info import BundleInfo
from hbsdk.training.pairs import Pair

if TYPE_CHECKING:
    from hbsdk.tokenizer import PromptTokenizer

_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 768}
_ENCODER = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
# The configurations of stable-diffusion-v1-5/stable-diffusion-v1-5, openai/clip-vit-large-patch14
# and facebook/dinov2-large, as far as they decide sizes.
SD15: Mapping[str, Mapping[str, Any]] = {
    "text_encoder": {
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77,
        "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, **_CLIP,
    },
    "image_encoder": {
        **_ENCODER, "intermediate_size": 4096, "image_size": 224, "patch_size": 14, **_CLIP
    },
    "dino": {**_ENCODER, "mlp_ratio": 4, "image_size": 518, "patch_size": 14},
    "unet": {
        "sample_size": 64, "in_channels": 4, "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "layers_per_block": 2, "attention_head_dim": 8, "cross_attention_dim": 768,
    },
    "vae": {
        "sample_size": 512, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2,
    },
}  # fmt: skip
_SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "prediction_type": "epsilon",
}  # fmt: skip
_BUILDERS: Mapping[str, Any] = {
    "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
    "image_encoder": lambda config: CLIPVisionModel(CLIPVisionConfig(**config)),
    "dino": lambda config: Dinov2Model(Dinov2Config(**config)),
    "unet": UNet2DConditionModel.from_config,
    "vae": AutoencoderKL.from_config,
}
_PARTS = {"text_encoder": "text_config", "image_encoder": "vision_config"}


@dataclass(frozen=True, eq=False)
class RandomBundle(Bundle):
    """A bundle whose networks are made, with random weights, when they are loaded.

    Of its components only the configurations are read. It has no regressor.

    Attributes:
        tokenizer_of: the bundle whose tokenizer it takes; None is the embedded mini.
    """

    tokenizer_of: Bundle | None = None

    @property
    def hash(self) -> str:
        """Nothing that is kept: no two are the same."""
        return f"random-{id(self):x}"

    def load_tokenizer(self) -> PromptTokenizer:
        """Return the other bundle's tokenizer."""
        return (self.tokenizer_of or Bundle.open()).load_tokenizer()

    def _load(self, component: str, dtype: torch.dtype | None, device: torch.device | str) -> Any:
        self._require(component)
        config = config_of(self.components[component], component, self.configs)
        with default_dtype(dtype or torch.float32), torch.device(device):
            network = _BUILDERS[component](part_of(config, _PARTS.get(component, "")))
        return network.requires_grad_(False).eval()


def sd15_bundle(folder: Path) -> RandomBundle:
    """Return random networks of exactly SD 1.5's, CLIP-L/14's and DINOv2-L's sizes.

    Args:
        folder: where their configurations are written, and must stay.
    """
    for name, config in SD15.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(_SCHEDULER), "utf-8")
    info = BundleInfo(
        name="random networks of SD 1.5's size",
        class_word="cat",
        image_size_px=512,
        licence="Apache-2.0",
        trained_on="nothing: random weights",
        base="random weights",
    )
    components = {name: folder / name for name in (*SD15, "scheduler")}
    return RandomBundle(info, MappingProxyType(components))


def same_size(bundle: Bundle) -> RandomBundle:
    """Return random networks of the sizes of a bundle, without a regressor.

    Args:
        bundle: whose configurations and tokenizer they share.
    """
    components = {name: path for name, path in bundle.components.items() if name != "regressor"}
    return RandomBundle(
        replace(bundle.info, files={}),
        MappingProxyType(components),
        configs=bundle.configs,
        tokenizer_of=bundle,
    )


class RandomPictures:
    """Pairs of noise, where only their size matters."""

    name, fingerprint = "noise", "noise"

    def __init__(self, size_px: int) -> None:
        """Prepare.

        Args:
            size_px: side of the pictures.
        """
        self._size = size_px

    def __len__(self) -> int:
        """How many pictures there are."""
        return 1

    def pairs(self, seed: int, step: int, indices: Sequence[int]) -> list[Pair]:
        """Return the pairs with these numbers of a step's global batch; see `PairSource`."""
        rng = np.random.default_rng([seed, step])
        shape = (len(indices), 2, self._size, self._size, 3)
        pixels = rng.integers(0, 256, shape, np.uint8)
        mask = np.ones((self._size, self._size), np.uint8)
        return [Pair(one, mask, other, mask, "a photo of S*") for one, other in pixels]

    def skipped(self) -> list[tuple[str, str]]:
        """Return nothing."""
        return []


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make networks in their precision at once: never twice the memory.

    Args:
        dtype: of the weights that are made while the context is open.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
