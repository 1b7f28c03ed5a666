"""Image features: CLIP says what it is, DINOv2 what its details are (Eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, Dinov2Model

Background = Literal["keep", "mask"]
Encoders = Literal["both", "clip", "dino"]

# The statistics each encoder was trained with (CLIP's preprocessor, DINOv2's: ImageNet).
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageFeatures:
    """Tokens of one crop from both encoders, class token first.

    clip: (N, 1 + patches, clip width). dino: (N, 1 + patches, DINO width); as many tokens.
    """

    clip: Tensor
    dino: Tensor

    def to(self, dtype: torch.dtype) -> ImageFeatures:
        """Return both in another precision."""
        return ImageFeatures(self.clip.to(dtype), self.dino.to(dtype))


def encoder_pixels(
    pixels: Tensor,
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    mask: Tensor | None = None,
) -> Tensor:
    """Resize and normalise pictures for an encoder.

    Args:
        pixels: (N, 3, H, W) in [-1, 1].
        size: the encoder's side in pixels.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        mask: (N, 1, H, W) in [0, 1]; where it is 0 the picture becomes `mean`, the neutral colour.

    Returns:
        (N, 3, size, size).
    """
    shift = pixels.new_tensor(mean)[:, None, None]
    scale = pixels.new_tensor(std)[:, None, None]
    normal = ((pixels + 1.0) / 2.0 - shift) / scale
    if mask is not None:
        normal = normal * mask
    if normal.shape[-2:] == (size, size):
        return normal
    return F.interpolate(normal, (size, size), mode="bicubic", antialias=True)


def extract_features(
    image_encoder: CLIPVisionModel,
    dino: Dinov2Model,
    pixels: Tensor,
    mask: Tensor | None = None,
    *,
    background: Background = "keep",
) -> ImageFeatures:
    """Run both encoders on the same crop.

    Args:
        image_encoder: CLIP's vision tower.
        dino: a DINOv2 without registers; it sees CLIP's size, scaled so that both grids agree.
        pixels: (N, 3, H, W) in [-1, 1], square.
        mask: (N, 1, H, W) in [0, 1], of the subject.
        background: "mask" blanks what is outside of the mask.

    Returns:
        f_c and f_d of Eq. 3, before merging. Source: HybridBooth, section 4.1.
    """
    clip_size = int(image_encoder.config.image_size)
    grid = clip_size // int(image_encoder.config.patch_size)
    dino_size = grid * int(dino.config.patch_size)
    shown = mask if background == "mask" else None
    clip_pixels = encoder_pixels(pixels, clip_size, CLIP_MEAN, CLIP_STD, shown)
    dino_pixels = encoder_pixels(pixels, dino_size, DINO_MEAN, DINO_STD, shown)
    return ImageFeatures(
        clip=image_encoder(clip_pixels.to(image_encoder.dtype)).last_hidden_state,
        dino=dino(dino_pixels.to(dino.dtype)).last_hidden_state,
    )


class FeatureMerge(nn.Module):
    """f = Linear([f_c, MLP(f_d)]), MLP = LayerNorm-Linear-GELU-Linear (Eq. 3)."""

    def __init__(
        self, clip_dim: int, dino_dim: int, merged_dim: int, encoders: Encoders = "both"
    ) -> None:
        super().__init__()
        self.encoders = encoders  # of an ablation: the other one's tokens are zeros
        self.mlp = nn.Sequential(
            nn.LayerNorm(dino_dim),
            nn.Linear(dino_dim, clip_dim),
            nn.GELU(),
            nn.Linear(clip_dim, clip_dim),
        )
        self.linear = nn.Linear(2 * clip_dim, merged_dim)

    def forward(self, clip: Tensor, dino: Tensor) -> Tensor:
        """(N, T, clip), (N, T, dino) -> (N, T, merged)."""
        if self.encoders == "clip":
            dino = torch.zeros_like(dino)
        if self.encoders == "dino":
            clip = torch.zeros_like(clip)
        merged: Tensor = self.linear(torch.cat([clip, self.mlp(dino)], dim=-1))
        return merged
