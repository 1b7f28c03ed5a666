"""The sizes that a bundle's configurations fix, and that its engines' shapes follow from."""

from __future__ import annotations

from dataclasses import dataclass

from hbsdk.bundle import Bundle
from hbsdk.bundle_check import config_of, part_of


@dataclass(frozen=True)
class NetworkSizes:
    """The sizes that a bundle's configurations fix.

    Attributes:
        image_size_px: side of the reference picture.
        latent_channels: of the VAE.
        vae_scale_factor: pixels a side of a latent cell.
        unet_scale_factor: latent cells a side of the UNet's coarsest cell.
        text_tokens: of a text.
        word_dim: width of words and of the text encoder's states.
        context_dim: width of the states that the UNet attends to.
        deep_width: channels of the UNet's deep features, of the latents' size.
        num_words: a subject's.
        image_tokens: of both image encoders, class token included.
        clip_dim: width of f_c.
        dino_dim: width of f_d.
        masked: whether the encoders see the mask (`BundleInfo.background`).
    """

    image_size_px: int
    latent_channels: int
    vae_scale_factor: int
    unet_scale_factor: int
    text_tokens: int
    word_dim: int
    context_dim: int
    deep_width: int
    num_words: int
    image_tokens: int
    clip_dim: int
    dino_dim: int
    masked: bool

    @property
    def personalizes(self) -> bool:
        """Whether the bundle has what a probe needs."""
        return self.image_tokens > 0

    @property
    def size_step_px(self) -> int:
        """What a picture's sides are multiples of."""
        return self.vae_scale_factor * self.unet_scale_factor


def network_sizes(bundle: Bundle) -> NetworkSizes:
    """Read the sizes off a bundle's configurations; no network is loaded.

    Raises:
        BundleError: a configuration cannot be read.
    """
    info, parts = bundle.info, bundle.components
    text = part_of(config_of(parts["text_encoder"], "text_encoder", bundle.configs), "text_config")
    unet = config_of(parts["unet"], "unet", bundle.configs)
    image_tokens = clip_dim = dino_dim = 0
    if {"image_encoder", "dino", "regressor"} <= set(parts):
        clip = part_of(config_of(parts["image_encoder"], "image_encoder", None), "vision_config")
        dino = config_of(parts["dino"], "dino", None)
        image_tokens = (clip["image_size"] // clip["patch_size"]) ** 2 + 1
        clip_dim, dino_dim = clip["hidden_size"], dino["hidden_size"]
    return NetworkSizes(
        image_size_px=info.image_size_px,
        latent_channels=info.latent_channels,
        vae_scale_factor=info.vae_scale_factor,
        unet_scale_factor=2 ** (len(unet["block_out_channels"]) - 1),
        text_tokens=min(77, text.get("max_position_embeddings", 77)),
        word_dim=info.word_dim,
        context_dim=text["hidden_size"],
        deep_width=unet["block_out_channels"][0],
        num_words=info.num_words,
        image_tokens=image_tokens,
        clip_dim=clip_dim,
        dino_dim=dino_dim,
        masked=info.background == "mask",
    )
