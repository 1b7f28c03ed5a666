"""The regressor: its shapes, its start, what it looks at, its file, and that all of it learns."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from hbsdk.features import ImageFeatures
from hbsdk.regressor import PromptRegressor
from tests.tiny_bundle import WIDTH, tiny_unet

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
LAYOUTS = {
    "text above": (CROSS, PLAIN),
    "text below": (PLAIN, CROSS),
    "text at both": (CROSS, CROSS),
    "Stable Diffusion 1.5": (CROSS, CROSS, CROSS, PLAIN),
}
SIZES = {"clip_dim": 24, "dino_dim": 40, "pool_dim": 32, "num_pool_heads": 2}


def make_unet(layout: tuple[str, ...]) -> UNet2DConditionModel:
    up = tuple(name.replace("Down", "Up") for name in reversed(layout))
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64, 64, 64)[: len(layout)], layers_per_block=1,
        down_block_types=layout, up_block_types=up, cross_attention_dim=WIDTH,
        attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip


def make_regressor(unet: UNet2DConditionModel, **config) -> PromptRegressor:
    return PromptRegressor.from_unet(unet, torch.randn(WIDTH) * 0.07, **{**SIZES, **config})


def make_inputs(count: int = 1, size: int = 8) -> tuple[torch.Tensor, ImageFeatures]:
    features = ImageFeatures(torch.randn(count, 17, 24), torch.randn(count, 17, 40))
    return torch.randn(count, 4, size, size), features


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_words_have_the_shape_asked_for(layout):
    regressor = make_regressor(make_unet(layout), num_words=3)
    assert regressor(*make_inputs(count=2)).shape == (2, 3, WIDTH)
    assert len(regressor.region_norms) == len(layout) + 1


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_each_level_is_pooled_at_its_own_resolution(layout):
    regressor = make_regressor(make_unet(layout))
    seen = {}
    for scale, norm in enumerate(regressor.region_norms):
        norm.register_forward_hook(lambda _, inputs, __, s=scale: seen.update({s: inputs[0].shape}))
    regressor(*make_inputs())
    channels = (32, 64, 64, 64)[: len(layout)]
    expected = {level: (1, (8 >> level) ** 2, width) for level, width in enumerate(channels)}
    expected[len(layout)] = (1, (8 >> (len(layout) - 1)) ** 2, channels[-1])  # the middle
    assert seen == expected


def test_large_latents_are_pooled_over_at_most_16_x_16_regions():
    regressor = make_regressor(make_unet(LAYOUTS["text above"]))
    seen = []
    regressor.region_norms[0].register_forward_hook(lambda _, i, __: seen.append(i[0].shape[1]))
    regressor(*make_inputs(size=24))
    regressor(*make_inputs(size=12))
    assert seen == [16 * 16, 12 * 12]


@pytest.mark.parametrize("width", [32, 768])
def test_words_start_near_the_class_word_at_any_width(width):
    class_word, other = torch.randn(2, width) * 0.4 / width**0.5
    regressor = PromptRegressor.from_unet(
        tiny_unet(), class_word, **{**SIZES, "pool_dim": 256, "num_pool_heads": 4}
    )
    words = regressor(*make_inputs())[0]
    distance = (words - class_word).norm(dim=-1) / class_word.norm()
    assert distance.max() < 0.35
    assert distance.min() > 0.01  # the photo shows from the start
    assert ((words - other).norm(dim=-1) / class_word.norm()).min() > 1.0


def test_it_starts_from_a_copy_of_the_unet():
    unet = tiny_unet()
    regressor = make_regressor(unet)
    state = unet.state_dict()
    shared = {name: w for name, w in regressor.state_dict().items() if name in state}
    parts = {name.split(".")[0] for name in shared}
    assert parts == {"conv_in", "time_embedding", "down_blocks", "mid_block"}
    expected = [name for name in state if name.split(".")[0] in parts]
    assert sorted(shared) == sorted(expected)
    for name, weight in shared.items():
        assert torch.equal(weight, state[name]), name
        assert weight.data_ptr() != state[name].data_ptr(), name
    before = state["conv_in.weight"].clone()
    with torch.no_grad():
        regressor.conv_in.weight.add_(1.0)
    assert torch.equal(unet.conv_in.weight, before)
    assert not torch.equal(regressor.conv_in.weight, before)


def test_its_blocks_compute_what_the_unet_computes():
    unet = tiny_unet().eval()
    regressor = make_regressor(unet).eval()
    middle = []
    for network in (unet, regressor):
        network.mid_block.register_forward_hook(lambda _, __, output: middle.append(output))
    latents, features = make_inputs()
    regressor(latents, features)
    merged = regressor.feature_merge(features.clip, features.dino)
    unet(latents, 0, merged)
    assert torch.allclose(middle[0], middle[1], atol=1e-6)
    unet(latents, 500, merged)  # the time matters
    assert not torch.allclose(middle[0], middle[2], atol=1e-3)


def test_all_that_goes_in_changes_the_words():
    regressor = make_regressor(tiny_unet()).eval()
    latents, features = make_inputs(count=2)
    words = regressor(latents, features)
    again = regressor(latents, features)
    assert torch.equal(words, again)
    moved = regressor(latents, ImageFeatures(features.clip.flip(0), features.dino))
    details = regressor(latents, ImageFeatures(features.clip, features.dino.flip(0)))
    places = regressor(latents.flip(0), features)
    for other in (moved, details, places):
        assert (other - words).norm() / words.norm() > 1e-3
    assert torch.allclose(moved.flip(0)[0], regressor(latents[1:], ImageFeatures(
        features.clip[:1], features.dino[1:]))[0], atol=1e-5)  # fmt: skip


def test_pictures_of_a_batch_do_not_mix():
    regressor = make_regressor(tiny_unet()).eval()
    latents, features = make_inputs(count=3)
    together = regressor(latents, features)
    for i in range(3):
        one = ImageFeatures(features.clip[i : i + 1], features.dino[i : i + 1])
        assert torch.allclose(regressor(latents[i : i + 1], one)[0], together[i], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_saved_and_loaded_it_gives_the_same_words(tmp_path):
    regressor = make_regressor(make_unet(LAYOUTS["text at both"]), num_words=4).eval()
    regressor.save_pretrained(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    loaded = PromptRegressor.from_pretrained(tmp_path).eval()
    inputs = make_inputs()
    words = regressor(*inputs)
    assert torch.equal(loaded(*inputs), words)
    other = make_regressor(make_unet(LAYOUTS["text at both"]), num_words=4).eval()
    assert not torch.allclose(other(*inputs), words, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_parameter_learns(layout):
    regressor = make_regressor(make_unet(layout))
    words = regressor(*make_inputs(count=2))
    (words * torch.randn_like(words)).sum().backward()
    unused = {name for name, p in regressor.named_parameters() if p.grad is None}
    assert unused == set()
    still = {name for name, p in regressor.named_parameters() if not p.grad.abs().max() > 0.0}
    assert still == set()
    assert {name.split(".")[0] for name, _ in regressor.named_parameters()} == {
        "conv_in", "time_embedding", "down_blocks", "mid_block", "feature_merge", "region_norms",
        "region_projections", "feature_projection", "queries", "pool", "to_words", "base_words",
    }  # fmt: skip
    assert any("attn2.to_k" in name for name, _ in regressor.named_parameters())


def test_a_parameter_that_is_not_used_would_be_found():
    regressor = make_regressor(tiny_unet())
    regressor.spare = torch.nn.Linear(2, 2)
    regressor(*make_inputs()).sum().backward()
    unused = {name for name, p in regressor.named_parameters() if p.grad is None}
    assert unused == {"spare.weight", "spare.bias"}


def test_gradient_checkpointing_changes_nothing():
    regressor = make_regressor(tiny_unet()).train()
    inputs = make_inputs()
    gradients = []
    for on in (False, True):
        if on:
            regressor.enable_gradient_checkpointing()
        regressor.zero_grad()
        regressor(*inputs).square().sum().backward()
        gradients.append([p.grad.clone() for p in regressor.parameters()])
    assert any(getattr(m, "gradient_checkpointing", False) for m in regressor.modules())
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.allclose(plain, checkpointed, rtol=1e-4, atol=1e-6)
