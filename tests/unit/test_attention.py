"""The recorded attention against numpy, and Eq. 6, by hand and as something to descend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from hbsdk.attention import AttentionMaps, layer_factors, mask_loss, recorded_attention
from hbsdk.mini.tokenizer import learn_tokenizer
from hbsdk.text_encoder import encode_with_words
from tests.tiny_bundle import CAPTIONS, WIDTH, tiny_text_encoder, tiny_unet

TOKENS = 12
POSITIONS = torch.tensor([[1, 2, 3], [4, 7, 9]])


def make_unet(layout: tuple[str, ...]) -> UNet2DConditionModel:
    up = tuple(name.replace("Down", "Up") for name in reversed(layout))
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64, 64, 64)[: len(layout)], layers_per_block=2,
        down_block_types=layout, up_block_types=up, cross_attention_dim=WIDTH,
        attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip


def sd15_layout() -> UNet2DConditionModel:
    return make_unet(("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",))


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny_unet().requires_grad_(False).eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 8), torch.tensor([10, 700]), torch.randn(2, TOKENS, WIDTH)


def run(unet: UNet2DConditionModel, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return unet(*inputs).sample


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attention_by_hand(attn, hidden: np.ndarray, text: np.ndarray) -> np.ndarray:
    """softmax(Q K^T / sqrt(d)) of each head, averaged: (N, h*w, tokens)."""
    query = hidden @ attn.to_q.weight.detach().double().numpy().T
    key = text @ attn.to_k.weight.detach().double().numpy().T
    width = query.shape[-1] // attn.heads
    heads = [slice(i * width, (i + 1) * width) for i in range(attn.heads)]
    scores = [query[..., h] @ key[..., h].transpose(0, 2, 1) / np.sqrt(width) for h in heads]
    return np.mean([softmax(one) for one in scores], axis=0)


def test_maps_are_the_softmax_by_hand(inputs):
    unet = make_unet(("CrossAttnDownBlock2D",) * 2).requires_grad_(False).eval()
    seen = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_, args, keywords):
            seen[name] = args[0].double().numpy(), keywords["encoder_hidden_states"].double()

        return hook

    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            with torch.no_grad():  # as sharp as a trained layer
                module.to_q.weight.mul_(4.0)
            module.register_forward_pre_hook(keep(name), with_kwargs=True)
    with recorded_attention(unet, POSITIONS, 8, 8) as maps:
        run(unet, inputs)
    assert len(maps.by_layer) == 6  # 2 down, 1 in the middle, 3 up
    for name, recorded in maps.by_layer.items():
        hidden, text = seen[name]
        everywhere = attention_by_hand(unet.get_submodule(name), hidden, text.numpy())
        side = int(np.sqrt(hidden.shape[1]))
        assert recorded.shape == (2, 3, side, side)
        for picture in range(2):
            for word in range(3):
                place = POSITIONS[picture, word]
                expected = everywhere[picture, :, place].reshape(side, side)
                got = recorded[picture, word].numpy()
                assert np.abs(got - expected).max() < 1e-6
                wrong = everywhere[picture, :, place - 1].reshape(side, side)
                assert np.abs(got - wrong).max() > 1e-4
                assert np.abs(got - expected.T).max() > 1e-4  # rows are rows


@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0])
def test_recording_does_not_change_what_the_unet_says(unet, inputs, processor):
    unet.set_attn_processor(processor())
    plain = run(unet, inputs)
    with recorded_attention(unet, POSITIONS, 8, 8) as maps:
        recorded = run(unet, inputs)
    assert maps.by_layer
    assert torch.equal(recorded, plain)
    unet.set_attn_processor(AttnProcessor())
    assert torch.allclose(run(unet, inputs), recorded, atol=1e-5)


def test_a_place_attends_once_to_all_tokens_together(unet, inputs):
    with recorded_attention(unet, POSITIONS, 8, 8) as maps:
        run(unet, inputs)
    everything = torch.arange(TOKENS).expand(2, -1)
    with recorded_attention(unet, everything, 8, 8) as whole:
        run(unet, inputs)
    for name in whole.by_layer:
        words, tokens = maps.by_layer[name], whole.by_layer[name]
        assert (words >= 0.0).all()
        assert words.sum(1).max() < 1.0
        assert torch.allclose(tokens.sum(1), torch.ones_like(tokens[:, 0]), atol=1e-5)


def test_layers_at_half_the_latent_and_coarser_are_recorded():
    unet = sd15_layout()
    factors = layer_factors(unet)
    assert len(factors) == 16
    levels = {name: ".".join(name.split(".")[:2]) for name in factors}
    finest = {"down_blocks.0", "up_blocks.3"}
    chosen = {name for name, factor in factors.items() if factor >= 2}
    assert chosen == {name for name, level in levels.items() if level not in finest}
    assert len(chosen) == 11
    expected = {"down_blocks.1": 32, "down_blocks.2": 16, "mid_block.attentions": 8}
    expected |= {"up_blocks.1": 16, "up_blocks.2": 32}
    assert {levels[name]: 64 // factors[name] for name in chosen} == expected


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 8), (9, 11)])
def test_maps_have_the_layers_own_resolution(height, width):
    unet = sd15_layout().requires_grad_(False)
    places = {}
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.register_forward_hook(
                lambda _, args, __, n=name: places.update({n: args[0].shape[1]})
            )
    with recorded_attention(unet, POSITIONS[:1], height, width) as maps:
        unet(torch.randn(1, 4, height, width), 3, torch.randn(1, TOKENS, WIDTH))
    assert len(maps.by_layer) == 11
    for name, recorded in maps.by_layer.items():
        assert recorded.shape[-2] * recorded.shape[-1] == places[name]
        factor = layer_factors(unet)[name]
        assert recorded.shape[-2:] == (-(-height // factor), -(-width // factor))
    assert {p for n, p in places.items() if n not in maps.by_layer} == {height * width}


def test_gradient_checkpointing_neither_doubles_nor_changes_anything(unet, inputs):
    sample, timesteps, text = inputs
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1.0
    found = []
    for on in (False, True):
        if on:
            unet.enable_gradient_checkpointing()
            unet.train()
        text = text.detach().requires_grad_()
        with recorded_attention(unet, POSITIONS, 8, 8) as maps:
            predicted = run(unet, (sample, timesteps, text))
        layers = set(maps.by_layer)
        loss = predicted.square().mean() + mask_loss(maps, mask)
        (gradient,) = torch.autograd.grad(loss, text)
        assert set(maps.by_layer) == layers
        found.append((layers, loss.item(), gradient))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6)
    assert torch.allclose(found[0][2], found[1][2], rtol=1e-4, atol=1e-8)
    assert found[0][2].norm() > 0.0


def hooks_of(unet: UNet2DConditionModel) -> int:
    return sum(len(module._forward_hooks) for module in unet.modules())


def test_nothing_is_left_behind_after_an_exception(unet, inputs):
    processors = dict(unet.attn_processors)
    kept = []

    def fail() -> None:
        with recorded_attention(unet, POSITIONS, 8, 8) as maps:
            kept.append((maps, hooks_of(unet)))
            raise RuntimeError("by a test")

    with pytest.raises(RuntimeError, match="by a test"):
        fail()
    ((maps, hooks_inside),) = kept
    assert hooks_inside > hooks_of(unet) == 0
    assert unet.attn_processors == processors
    run(unet, inputs)
    assert maps.by_layer == {}


def test_each_pass_replaces_the_maps_of_the_one_before(unet, inputs):
    with recorded_attention(unet, POSITIONS, 8, 8) as maps:
        run(unet, inputs)
        first = dict(maps.by_layer)
        run(unet, (inputs[0] * 2.0, *inputs[1:]))
        assert set(maps.by_layer) == set(first)
        assert all(not torch.equal(maps.by_layer[name], first[name]) for name in first)
        maps.clear()
        assert maps.by_layer == {}


def some_maps() -> AttentionMaps:
    torch.manual_seed(2)
    maps = AttentionMaps(POSITIONS)
    maps.by_layer["fine"] = torch.rand(2, 3, 8, 8) * 0.2
    maps.by_layer["coarse"] = torch.rand(2, 3, 4, 4) * 0.2
    return maps


def some_mask() -> torch.Tensor:
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, 0, 1:4, 2:5] = 1.0  # not aligned to the coarse grid
    mask[1, 0, :, 3:] = 1.0
    return mask


def blocks(mask: np.ndarray, side: int) -> np.ndarray:
    """Means over equal blocks: (H, W) -> (side, side)."""
    block = len(mask) // side
    return mask.reshape(side, block, side, block).mean((1, 3))


def eq_6_by_hand(maps: AttentionMaps, mask: torch.Tensor, kind: str) -> float:
    layers = []
    for attention in maps.by_layer.values():
        values = []
        for picture in range(len(attention)):
            inside = blocks(mask[picture, 0].double().numpy(), attention.shape[-1])
            for word in attention[picture].double().numpy():
                if kind == "paper":
                    value = np.mean(word * (1.0 - inside)) - np.mean(word * inside)
                else:
                    value = np.sum(word * (1.0 - inside)) / np.sum(1.0 - inside)
                    value -= np.sum(word * inside) / np.sum(inside)
                values.append(value)
        layers.append(np.mean(values))
    return float(np.mean(layers))


@pytest.mark.parametrize("kind", ["paper", "area"])
def test_the_mask_loss_is_eq_6_by_hand(kind):
    maps, mask = some_maps(), some_mask()
    loss = mask_loss(maps, mask, kind=kind).item()
    assert loss == pytest.approx(eq_6_by_hand(maps, mask, kind), abs=1e-6)
    other = "area" if kind == "paper" else "paper"
    assert abs(loss - eq_6_by_hand(maps, mask, other)) > 1e-3
    assert abs(loss - eq_6_by_hand(maps, 1.0 - mask, kind)) > 1e-3


def test_the_area_variant_does_not_mind_how_large_the_subject_is():
    for side in (1, 2, 6):
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., :side, :side] = 1.0
        maps = AttentionMaps(POSITIONS)
        maps.by_layer["all"] = (0.1 + 0.3 * mask).expand(1, 3, 8, 8)
        assert mask_loss(maps, mask).item() == pytest.approx(-0.3, abs=1e-6)
        assert mask_loss(maps, mask, kind="paper").item() != pytest.approx(-0.3, abs=1e-2)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_an_empty_or_full_mask_gives_a_finite_loss(fill):
    assert torch.isfinite(mask_loss(some_maps(), torch.full((2, 1, 8, 8), fill)))


def test_a_loss_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="got none"):
        mask_loss(AttentionMaps(POSITIONS), some_mask())


def moved(direction: str, steps: int = 8) -> tuple[float, float]:
    """L_M before and after steps on the words alone, each a tenth of their norm."""
    torch.manual_seed(0)
    tokenizer = learn_tokenizer(CAPTIONS, size=600)
    text_encoder = tiny_text_encoder(tokenizer).requires_grad_(False).eval()
    unet = tiny_unet().requires_grad_(False).eval()
    ids = torch.full((1, 77), tokenizer.eos_token_id)
    positions = torch.tensor([[3, 4, 5, 6, 7]])
    latents, mask = torch.randn(1, 4, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 1:5] = 1.0
    words = torch.randn(1, 5, WIDTH) * 0.1

    def loss_of(words: torch.Tensor) -> torch.Tensor:
        states = encode_with_words(text_encoder, ids, positions, words)
        with recorded_attention(unet, positions, 8, 8) as maps:
            unet(latents, 400, states)
        return mask_loss(maps, mask)

    before = loss_of(words).item()
    for _ in range(steps):
        words = words.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(words), words)
        assert (gradient.flatten(2).norm(dim=2) > 0.0).all()  # each word counts
        step = torch.randn_like(gradient) if direction == "random" else gradient
        step = step / step.norm() * 0.1 * words.norm()
        words = words + step if direction == "up" else words - step
    return before, loss_of(words).item()


def test_descending_the_mask_loss_moves_attention_into_the_mask():
    before, down = moved("down")
    _, up = moved("up")
    _, random = moved("random")
    assert down < before < up
    assert before - down > 5.0 * abs(random - before)
