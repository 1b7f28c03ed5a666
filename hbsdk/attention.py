"""The denoiser's cross-attention at the subject's words, and the mask loss on it (Eq. 6)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

MaskLoss = Literal["area", "paper"]
Shape = tuple[int, int]  # height, width


@dataclass
class AttentionMaps:
    """What one forward pass attended to, by layer name; `clear` before the next pass.

    by_layer: name -> (N, words, h, w) probabilities in [0, 1], averaged over the heads.
    """

    positions: Tensor  # (N, words) int64: the subject's places among the text tokens
    by_layer: dict[str, Tensor] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget the maps of the last pass."""
        self.by_layer.clear()


class _Recorder:
    """Keeps each layer's queries and keys during a pass, and makes the maps of them at its end.

    The layers' own processors stay: gradient checkpointing runs a layer again in the backward
    pass, where it must save just the tensors that it saved at first.
    """

    def __init__(self, maps: AttentionMaps, layers: dict[str, tuple[Attention, Shape]]) -> None:
        self.maps, self.layers = maps, layers
        self.queries: dict[str, Tensor] = {}
        self.keys: dict[str, Tensor] = {}

    def hook(self, unet: nn.Module) -> list[RemovableHandle]:
        """Start listening; the handles stop it."""
        handles = [unet.register_forward_hook(self._record)]
        for name, (attn, _) in self.layers.items():
            handles.append(attn.to_q.register_forward_hook(partial(_keep, self.queries, name)))
            handles.append(attn.to_k.register_forward_hook(partial(_keep, self.keys, name)))
        return handles

    def _record(self, *_: object) -> None:
        for name, (attn, shape) in self.layers.items():
            query = attn.head_to_batch_dim(self.queries.pop(name))
            key = attn.head_to_batch_dim(self.keys.pop(name))
            probabilities = attn.get_attention_scores(query, key)  # (N*heads, h*w, T)
            by_head = probabilities.unflatten(0, (-1, attn.heads))
            mean = by_head.float().mean(dim=1)  # (N, h*w, T)
            where = self.maps.positions[:, None, :].expand(-1, mean.shape[1], -1)
            at_words = mean.gather(2, where).transpose(1, 2)  # (N, words, h*w)
            self.maps.by_layer[name] = at_words.unflatten(2, shape)


def _keep(kept: dict[str, Tensor], name: str, _: object, __: object, output: Tensor) -> None:
    kept[name] = output


def layer_factors(unet: UNet2DConditionModel) -> dict[str, int]:
    """Return cross-attention layer name -> downsampling factor (1, 2, 4, ...) of the latent."""
    factors: dict[str, int] = {}
    levels = len(unet.config.block_out_channels)
    for name, _ in unet.named_modules():
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
        unet: the denoiser; what it computes stays the same, to the last bit.
        positions: (N, words) int64, token positions of the subject in each text.
        height: of the latent.
        width: of the latent.

    Yields:
        The maps, filled by each forward pass: layers at half the latent's resolution and coarser.
        Source: HybridBooth, section 4.3.
    """
    maps = AttentionMaps(positions)
    layers: dict[str, tuple[Attention, Shape]] = {
        name: (unet.get_submodule(name), (-(-height // factor), -(-width // factor)))
        for name, factor in layer_factors(unet).items()
        if factor >= 2
    }
    handles = _Recorder(maps, layers).hook(unet)
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


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
