"""Writes tiny random CLIP and DINO folders that measure, and subjects drawn by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from hbsdk.evaluation.subjects import EvaluationSet, EvaluationSubject
from hbsdk.mini.tokenizer import learn_tokenizer, save_tokenizer
from tests.tiny_bundle import CAPTIONS

SIDE = 32  # px, as the tiny bundle's
PROMPTS = ("a photo of {}", "a watercolor of {} on the beach", "a photo of {} in the snow")
_SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def write_tiny_clip(folder: Path, *, seed: int = 0) -> Path:
    """Write a whole CLIP of random weights, with its tokenizer, of 32 px pictures."""
    tokenizer = learn_tokenizer(CAPTIONS, size=600)
    text = {
        **_SMALL,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**_SMALL, "image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def write_tiny_vit(folder: Path, *, seed: int = 0) -> Path:
    """Write a ViT of random weights as the DINO checkpoints are, of 28 px pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTModel(ViTConfig(**_SMALL, image_size=28, patch_size=7), add_pooling_layer=False)
    model.save_pretrained(folder)
    return folder


def drawn_subject(number: int, *, real: bool = True, pictures: int = 2) -> EvaluationSubject:
    """Return a coloured square on noise, of another colour for every number."""
    rng = np.random.default_rng(number)
    colour = rng.integers(60, 256, 3)

    def picture() -> np.ndarray:
        pixels = rng.integers(0, 50, (SIDE, SIDE, 3)).astype(np.uint8)
        top, left = rng.integers(2, 10, 2)
        pixels[top : top + 20, left : left + 20] = colour
        return pixels

    return EvaluationSubject(
        name=f"square-{number}",
        photo=picture(),
        class_noun="person",
        prompts=PROMPTS,
        gallery=tuple(picture() for _ in range(pictures)),
        real=tuple(picture() for _ in PROMPTS) if real else None,
        attributes={"colour": number} if real else None,
    )


def drawn_set(count: int = 2, **how: bool | int) -> EvaluationSet:
    return EvaluationSet("squares", tuple(drawn_subject(i, **how) for i in range(count)))
