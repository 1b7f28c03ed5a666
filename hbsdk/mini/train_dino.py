"""Stage 3: the DINO-class encoder: who it is from the class token, what is where from patches.

Deviation: DINOv2 distils itself without labels from 142 M pictures. With 10^5 pictures of a world
whose truth is known, identity InfoNCE, attribute labels and patch colours give the same kind of
tokens in minutes; the architecture and the interface are DINOv2's.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Model

from hbsdk.features import DINO_MEAN, DINO_STD, encoder_pixels
from hbsdk.mini import world
from hbsdk.mini.cache import REFERENCES, Pictures
from hbsdk.mini.train_clip import random_crop
from hbsdk.mini.train_vae import to_tensor
from hbsdk.mini.training_loop import Plan, Stage
from hbsdk.training.world_source import VALIDATION_IDENTITIES

PLAN = Plan(steps=1800, learning_rate=2e-3, muon_rate=2e-3, warmup_steps=100)
BATCH_SIZE = 96  # identities, two pictures of each
TEMPERATURE = 0.1
_CELL = 4  # a patch's colours are predicted as _CELL x _CELL x 3 values


class DinoHeads(nn.Module):
    """Linear heads used in training only: one a factor, and the patches' colours."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.sizes = [len(values) for values in world.FACTORS.values()]
        self.attributes = nn.Linear(width, sum(self.sizes))
        self.colours = nn.Linear(width, 3 * _CELL * _CELL)


def _attribute_loss(logits: Tensor, labels: Tensor, sizes: list[int]) -> tuple[Tensor, float]:
    losses, right = [], []
    for factor, part in enumerate(logits.split(sizes, dim=1)):
        losses.append(F.cross_entropy(part, labels[:, factor]))
        right.append((part.argmax(1) == labels[:, factor]).float().mean())
    return torch.stack(losses).mean(), torch.stack(right).mean().item()


def patch_colours(batch: Tensor, patch: int = 8) -> Tensor:
    """(N, 3, H, W) -> (N, patches, 3 * 4 * 4), each patch area-averaged to 4 x 4."""
    small = F.avg_pool2d(batch, patch // _CELL)
    return F.unfold(small, _CELL, stride=_CELL).transpose(1, 2)


def encode(dino: Dinov2Model, batch: Tensor) -> Tensor:
    """(N, 3, H, W) in [-1, 1] -> all tokens, (N, 1 + patches, width)."""
    pixels = encoder_pixels(batch, batch.shape[-1], DINO_MEAN, DINO_STD)
    tokens: Tensor = dino(pixels).last_hidden_state
    return tokens


def stage(dino: Dinov2Model, heads: DinoHeads, pictures: Pictures, plan: Plan = PLAN) -> Stage:
    """Train on all pictures but those of the last identities, which give the figures."""
    identities, count = pictures.pixels.shape[:2]

    def loss(rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        who = rng.choice(identities - VALIDATION_IDENTITIES, size=BATCH_SIZE, replace=False)
        which = np.stack([rng.permutation(count)[:2] for _ in who])
        pixels = pictures.pixels[who[:, None], which].transpose(1, 0, 2, 3, 4)  # view-major
        batch = random_crop(rng, to_tensor(pixels.reshape(-1, *pixels.shape[2:])))
        labels = torch.from_numpy(pictures.labels[who].astype(np.int64)).repeat(2, 1)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = encode(dino, batch)
            logits = heads.attributes(tokens[:, 0]).float()
            colours = heads.colours(tokens[:, 1:]).float()
        first, second = F.normalize(tokens[:, 0].float(), dim=-1).chunk(2)
        similar = first @ second.T / TEMPERATURE
        target = torch.arange(BATCH_SIZE)
        same = (F.cross_entropy(similar, target) + F.cross_entropy(similar.T, target)) / 2
        attributes, right = _attribute_loss(logits, labels, heads.sizes)
        seen = F.mse_loss(colours, patch_colours(batch))
        retrieved = (similar.argmax(1) == target).float().mean().item()
        metrics = {"retrieved": retrieved, "attributes": right, "colours": seen.item()}
        return same + 2.0 * attributes + seen, metrics

    modules = nn.ModuleDict({"dino": dino, "heads": heads})
    return Stage("dino", modules, loss, plan, lambda: figures(dino, pictures))


@torch.no_grad()
def figures(dino: Dinov2Model, pictures: Pictures) -> dict[str, float]:
    """Return how often a reference of unseen identities finds its identity's other picture."""
    queries = encode(dino, to_tensor(pictures.pixels[-VALIDATION_IDENTITIES:, -1]))[:, 0]
    gallery = encode(dino, to_tensor(pictures.pixels[-VALIDATION_IDENTITIES:, REFERENCES - 1]))[
        :, 0
    ]
    similar = F.normalize(queries, dim=-1) @ F.normalize(gallery, dim=-1).T
    right = similar.argmax(1) == torch.arange(VALIDATION_IDENTITIES)
    return {"held_out_retrieved_of_64": right.float().mean().item()}
