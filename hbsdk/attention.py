"""The denoiser's cross-attention at the subject's words, and the mask loss on it (Eq. 6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

MaskLoss = Literal["area", "paper"]


@dataclass
class AttentionMaps:
    """What one forward pass attended to, by layer name; `clear` before the next pass.

    by_layer: name -> (N, words, h, w) probabilities in [0, 1], averaged over the heads. A layer
    that gradient checkpointing runs twice overwrites its own entry, so nothing counts double.
    """

    positions: Tensor  # (N, words) int64: the subject's places among the text tokens
    by_layer: dict[str, Tensor] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget the maps of the last pass."""
        self.by_layer.clear()


class _RecordingProcessor(AttnProcessor):  # type: ignore[misc]
    """diffusers' plain attention, which also records the probabilities at some text positions."""

    def __init__(self, name: str, maps: AttentionMaps, shape: tuple[int, int]) -> None:
        self.name, self.maps, self.shape = name, maps, shape

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        # A transformer block's attn2: (N, h*w, channels) in; its residual is added outside.
        assert encoder_hidden_states is not None
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states))
        probabilities = attn.get_attention_scores(query, key, attention_mask)  # (N*heads, h*w, T)
        self._record(probabilities, attn.heads)
        mixed = attn.batch_to_head_dim(probabilities @ value)
        projected: Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return projected / attn.rescale_output_factor

    def _record(self, probabilities: Tensor, heads: int) -> None:
        pictures = len(probabilities) // heads
        mean = probabilities.unflatten(0, (pictures, heads)).float().mean(dim=1)  # (N, h*w, T)
        where = self.maps.positions[:, None, :].expand(-1, mean.shape[1], -1)
        at_words = mean.gather(2, where).transpose(1, 2)  # (N, words, h*w)
        self.maps.by_layer[self.name] = at_words.unflatten(2, self.shape)


def layer_resolutions(unet: UNet2DConditionModel, height: int, width: int) -> dict[str, int]:
    """Return cross-attention layer name -> downsampling factor (1, 2, 4, ...) of the latent."""
    factors: dict[str, int] = {}
    levels = len(unet.config.block_out_channels)
    for name, module in unet.named_modules():
        if not name.endswith("attn2"):
            continue
        part = name.split(".")
        if part[0] == "down_blocks":
            level = int(part[1])
        elif part[0] == "up_blocks":
            level = levels - 1 - int(part[1])
        else:
            level = levels - 1
        factors[name] = 2**level
    return factors


@contextmanager
def recorded_attention(
    unet: UNet2DConditionModel, positions: Tensor, height: int, width: int
) -> Iterator[AttentionMaps]:
    """Record cross-attention at the subject's words while the context is open.

    Args:
        unet: the denoiser; its own attention processors come back afterwards.
        positions: (N, words) int64, token positions of the subject in each text.
        height: of the latent.
        width: of the latent.

    Yields:
        The maps, filled by each forward pass: layers at half the latent's resolution and coarser.
        Source: HybridBooth, section 4.3.
    """
    maps = AttentionMaps(positions)
    before = dict(unet.attn_processors)
    recording = dict(before)
    for name, factor in layer_resolutions(unet, height, width).items():
        if factor >= 2:
            shape = (-(-height // factor), -(-width // factor))
            recording[f"{name}.processor"] = _RecordingProcessor(name, maps, shape)
    unet.set_attn_processor(recording)
    try:
        yield maps
    finally:
        unet.set_attn_processor(before)


def mask_loss(maps: AttentionMaps, mask: Tensor, *, kind: MaskLoss = "area") -> Tensor:
    """Return L_M, low when the subject's words attend inside of the mask and not outside.

    Args:
        maps: of one forward pass of N pictures.
        mask: (N, 1, H, W) in [0, 1].
        kind: "paper" is Eq. 6 as printed: means over all places. "area" divides each sum by its
            own area, so that a small subject weighs as much as a large one (Deviation).

    Returns:
        A scalar, the mean over layers, pictures and words. Source: HybridBooth, Eq. 6.
    """
    losses = []
    for attention in maps.by_layer.values():
        inside = F.interpolate(mask.float(), attention.shape[-2:], mode="area")  # (N, 1, h, w)
        outside = 1.0 - inside
        if kind == "paper":
            difference = (attention * outside).mean((-2, -1)) - (attention * inside).mean((-2, -1))
        else:
            out_area = outside.sum((-2, -1)).clamp(min=1e-6)
            in_area = inside.sum((-2, -1)).clamp(min=1e-6)
            difference = (attention * outside).sum((-2, -1)) / out_area - (attention * inside).sum(
                (-2, -1)
            ) / in_area
        losses.append(difference.mean())
    if not losses:
        raise ValueError("expected at least one recorded layer, got none: run the UNet first")
    return sum(losses[1:], losses[0]) / len(losses)
