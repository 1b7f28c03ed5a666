"""Stage 2: the CLIP towers, contrastively on pictures and captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from hbsdk.features import CLIP_MEAN, CLIP_STD, encoder_pixels
from hbsdk.mini.cache import Pictures
from hbsdk.mini.train_vae import to_tensor
from hbsdk.mini.training_loop import Plan, Stage
from hbsdk.training.world_source import VALIDATION_IDENTITIES

PLAN = Plan(steps=900, learning_rate=2e-3, muon_rate=2e-3, warmup_steps=100)
BATCH_SIZE = 192

Tokens = npt.NDArray[np.int16]


class ClipProjections(nn.Module):
    """The projections to the space that both towers share, and the logit scale."""

    def __init__(self, width: int = 128, projection_dim: int = 64) -> None:
        super().__init__()
        self.text_projection = nn.Linear(width, projection_dim, bias=False)
        self.visual_projection = nn.Linear(width, projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tokens:
    """Return (N, 77) int16 token ids."""
    ids = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="np")
    return np.asarray(ids["input_ids"], np.int16)


def random_crop(rng: np.random.Generator, batch: Tensor) -> Tensor:
    """Crop (N, 3, 64, 64) pictures a little, each batch alike, and scale them back."""
    side = int(rng.integers(54, 65))
    top, left = rng.integers(0, 65 - side, 2)
    cropped = batch[:, :, top : top + side, left : left + side]
    return F.interpolate(cropped, size=batch.shape[-2:], mode="bilinear", align_corners=False)


def stage(
    text: CLIPTextModel,
    vision: CLIPVisionModel,
    projections: ClipProjections,
    pictures: Pictures,
    tokens: Tokens,
    plan: Plan = PLAN,
) -> Stage:
    """Train both towers; tokens: (identities, pictures, captions, 77) of `pictures.captions`."""
    identities, count = pictures.pixels.shape[:2]
    lengths = (tokens != tokens[0, 0, 0, -1]).sum(-1) + 1  # padding repeats the end token

    def embed(ids: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            texts = projections.text_projection(text(ids).pooler_output)
            images = projections.visual_projection(
                vision(encoder_pixels(pixels, pixels.shape[-1], CLIP_MEAN, CLIP_STD)).pooler_output
            )
        return F.normalize(texts.float(), dim=-1), F.normalize(images.float(), dim=-1)

    def loss(rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        who = rng.choice(identities - VALIDATION_IDENTITIES, size=BATCH_SIZE, replace=False)
        which = rng.integers(count, size=BATCH_SIZE)
        told = rng.integers(tokens.shape[2] - 1, size=BATCH_SIZE)
        # The text tower is causal: what follows the longest caption changes nothing.
        longest = int(lengths[who, which, told].max())
        ids = torch.from_numpy(tokens[who, which, told][:, :longest].astype(np.int64))
        texts, images = embed(ids, random_crop(rng, to_tensor(pictures.pixels[who, which])))
        logits = projections.logit_scale.clamp(max=np.log(50.0)).exp() * texts @ images.T
        target = torch.arange(BATCH_SIZE)
        total = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        right = (logits.argmax(1) == target).float().mean().item()
        return total, {"accuracy": right}

    @torch.no_grad()
    def figures() -> dict[str, float]:
        ids = torch.from_numpy(tokens[-VALIDATION_IDENTITIES:, -1, 0].astype(np.int64))
        texts, images = embed(ids, to_tensor(pictures.pixels[-VALIDATION_IDENTITIES:, -1]))
        right = (texts @ images.T).argmax(1) == torch.arange(VALIDATION_IDENTITIES)
        return {"held_out_accuracy_of_64": right.float().mean().item()}

    modules = nn.ModuleDict({"text": text, "vision": vision, "projections": projections})
    return Stage("clip", modules, loss, plan, figures)
