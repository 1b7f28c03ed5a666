"""Eq. 3 and the encoders' pixels against numpy; both encoders give as many tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from hbsdk.features import (
    CLIP_MEAN,
    CLIP_STD,
    DINO_MEAN,
    DINO_STD,
    FeatureMerge,
    ImageFeatures,
    encoder_pixels,
    extract_features,
)
from tests.tiny_bundle import tiny_dino, tiny_image_encoder

TOLERANCE = 1e-5


def merged_by_hand(merge: FeatureMerge, clip: np.ndarray, dino: np.ndarray, *, swapped: bool):
    """Linear([f_c, Linear(GELU(Linear(LayerNorm(f_d))))]) in numpy, of the module's weights."""
    weights = {name: value.detach().double().numpy() for name, value in merge.named_parameters()}
    mean, variance = dino.mean(-1, keepdims=True), dino.var(-1, keepdims=True)
    hidden = (dino - mean) / np.sqrt(variance + 1e-5)
    hidden = hidden * weights["mlp.0.weight"] + weights["mlp.0.bias"]
    hidden = hidden @ weights["mlp.1.weight"].T + weights["mlp.1.bias"]
    hidden = hidden * 0.5 * (1.0 + np.vectorize(math.erf)(hidden / math.sqrt(2.0)))
    hidden = hidden @ weights["mlp.3.weight"].T + weights["mlp.3.bias"]
    parts = [hidden, clip] if swapped else [clip, hidden]
    return np.concatenate(parts, -1) @ weights["linear.weight"].T + weights["linear.bias"]


@pytest.fixture
def merge() -> FeatureMerge:
    torch.manual_seed(0)
    merge = FeatureMerge(clip_dim=12, dino_dim=20, merged_dim=8)
    with torch.no_grad():  # so that the norm's own weights matter
        for weights in merge.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    return merge


def test_merge_is_eq_3_by_hand(merge):
    clip, dino = torch.randn(2, 5, 12), 3.0 * torch.randn(2, 5, 20) + 1.0
    merged = merge(clip, dino).detach().numpy()
    assert merged.shape == (2, 5, 8)
    expected = merged_by_hand(merge, clip.double().numpy(), dino.double().numpy(), swapped=False)
    assert np.abs(merged - expected).max() < TOLERANCE
    wrong = merged_by_hand(merge, clip.double().numpy(), dino.double().numpy(), swapped=True)
    assert np.abs(merged - wrong).max() > 0.01


def test_merge_sees_both_encoders(merge):
    clip, dino = torch.randn(1, 5, 12), torch.randn(1, 5, 20)
    merged = merge(clip, dino)
    assert not torch.allclose(merge(clip.flip(1), dino), merged, atol=0.01)
    assert not torch.allclose(merge(clip, dino.flip(1)), merged, atol=0.01)


@pytest.mark.parametrize(
    ("mean", "std"), [(CLIP_MEAN, CLIP_STD), (DINO_MEAN, DINO_STD)], ids=["clip", "dino"]
)
def test_pixels_are_normalised_by_channel(mean, std):
    bytes_ = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    pixels = torch.from_numpy(bytes_ / 127.5 - 1.0).float().permute(2, 0, 1)[None]
    normal = encoder_pixels(pixels, 16, mean, std)[0].numpy()
    for channel in range(3):
        expected = (bytes_[..., channel] / 255.0 - mean[channel]) / std[channel]
        assert np.abs(normal[channel] - expected).max() < TOLERANCE
        other = (bytes_[..., channel] / 255.0 - mean[channel - 1]) / std[channel - 1]
        assert np.abs(normal[channel] - other).max() > 0.01


def test_the_statistics_are_those_of_the_encoders_own_preprocessors():
    from transformers.utils import constants

    assert list(CLIP_MEAN) == constants.OPENAI_CLIP_MEAN
    assert list(CLIP_STD) == constants.OPENAI_CLIP_STD
    assert list(DINO_MEAN) == constants.IMAGENET_DEFAULT_MEAN
    assert list(DINO_STD) == constants.IMAGENET_DEFAULT_STD


def test_a_masked_background_is_exactly_neutral():
    pixels = torch.rand(1, 3, 16, 16) * 2.0 - 1.0
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1.0
    shown = encoder_pixels(pixels, 16, CLIP_MEAN, CLIP_STD, mask)
    kept = encoder_pixels(pixels, 16, CLIP_MEAN, CLIP_STD)
    inside = mask.bool().expand_as(shown)
    assert (shown[~inside] == 0.0).all()
    assert torch.equal(shown[inside], kept[inside])
    assert (kept[~inside] != 0.0).any()  # the mask did it


def test_resizing_is_bicubic_with_antialiasing():
    # One white column in four: antialiasing gives the mean, plain bicubic picks columns.
    stripes = torch.full((1, 3, 64, 64), -1.0)
    stripes[..., ::4] = 1.0
    unit = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    small = encoder_pixels(stripes, 14, *unit)
    assert small.shape == (1, 3, 14, 14)
    middle = small[..., 3:-3, 3:-3]
    assert (middle - 0.25).abs().max() < 0.1
    plain = torch.nn.functional.interpolate((stripes + 1.0) / 2.0, (14, 14), mode="bicubic")
    assert (plain[..., 3:-3, 3:-3] - 0.25).abs().max() > 0.3
    # Bicubic overshoots at an edge when it enlarges; bilinear never does.
    edge = torch.full((1, 3, 8, 8), -1.0)
    edge[..., 4:] = 1.0
    assert encoder_pixels(edge, 32, *unit).max() > 1.01


@pytest.mark.parametrize(("size", "patch"), [(32, 8), (48, 8), (32, 4)])
def test_both_encoders_give_as_many_tokens_at_any_patch_size(size, patch):
    torch.manual_seed(0)
    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            image_size=size, patch_size=patch,
        )
    )  # fmt: skip
    features = extract_features(clip, tiny_dino(), torch.rand(2, 3, 40, 40))
    tokens = 1 + (size // patch) ** 2
    assert features.clip.shape == features.dino.shape == (2, tokens, 32)


def test_features_are_the_encoders_own_tokens():
    torch.manual_seed(0)
    clip, dino = tiny_image_encoder().eval(), tiny_dino().eval()
    pixels = torch.rand(1, 3, 40, 40) * 2.0 - 1.0
    features = extract_features(clip, dino, pixels)
    seen = encoder_pixels(pixels, 32, CLIP_MEAN, CLIP_STD)
    detail = encoder_pixels(pixels, 56, DINO_MEAN, DINO_STD)
    assert torch.equal(features.clip, clip(pixel_values=seen)[0])
    assert torch.equal(features.dino, dino(pixel_values=detail)[0])
    swapped = encoder_pixels(pixels, 32, DINO_MEAN, DINO_STD)
    assert not torch.allclose(features.clip, clip(pixel_values=swapped)[0], atol=1e-4)


def test_the_background_counts_only_where_it_is_kept():
    torch.manual_seed(0)
    clip, dino = tiny_image_encoder().eval(), tiny_dino().eval()
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1.0
    photo = torch.rand(1, 3, 32, 32) * 2.0 - 1.0
    elsewhere = torch.where(mask > 0, photo, -photo)
    masked = [extract_features(clip, dino, p, mask, background="mask") for p in (photo, elsewhere)]
    kept = [extract_features(clip, dino, p, mask, background="keep") for p in (photo, elsewhere)]
    for name in ("clip", "dino"):
        assert torch.equal(getattr(masked[0], name), getattr(masked[1], name))
        assert not torch.allclose(getattr(kept[0], name), getattr(kept[1], name), atol=1e-3)


def test_features_change_precision_together():
    features = ImageFeatures(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)).to(torch.bfloat16)
    assert features.clip.dtype == features.dino.dtype == torch.bfloat16
