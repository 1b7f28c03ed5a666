"""Deep features against diffusers' plain forward, in which a hook keeps or swaps them."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from diffusers import UNet2DConditionModel

from hbsdk.deep_features import deep_width, shallow_pass, whole_pass
from tests.tiny_bundle import tiny_unet

ATTENTION, PLAIN = "CrossAttn", ""
WIDTHS = (32, 48, 64, 64)


def four_levels(first: str) -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet, small; its first level with attention or without."""
    kinds = (first, ATTENTION, ATTENTION, PLAIN)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    )


UNETS = {
    "two levels": tiny_unet,
    "four levels": lambda: four_levels(ATTENTION),
    "no attention at the end": lambda: four_levels(PLAIN),
}


@pytest.fixture(params=UNETS)
def unet(request) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNETS[request.param]().eval().requires_grad_(False)


@contextmanager
def last_layer(unet: UNet2DConditionModel, given: torch.Tensor | None = None):
    """Yield the inputs that the last layer had; `given` takes the place of its first channels."""
    seen: list[torch.Tensor] = []

    def hook(_module, inputs):
        seen.append(inputs[0].clone())
        if given is None:
            return None
        return torch.cat([given, inputs[0][:, given.shape[1] :]], dim=1), *inputs[1:]

    handle = unet.up_blocks[3 if len(unet.up_blocks) == 4 else 1].resnets[-1]
    handle = handle.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def inputs(seed: int, rows: int = 2):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(rows, 4, 16, 24, generator=generator)
    return sample, 100.0 + seed, torch.randn(rows, 7, 32, generator=generator)


def test_a_whole_pass_is_the_unet_to_the_last_bit_and_keeps_what_comes_in_last(unet):
    given = inputs(0)
    predicted, deep = whole_pass(unet, *given)
    with last_layer(unet) as seen:
        expected = unet(*given).sample
    assert torch.equal(predicted, expected)
    assert deep.shape == (2, deep_width(unet), 16, 24)
    assert deep.shape[1] == 32
    assert torch.equal(deep, seen[0][:, :32])
    assert not torch.equal(deep, seen[0][:, -32:])


def test_a_shallow_pass_is_the_unet_with_the_deep_features_swapped(unet):
    _, deep = whole_pass(unet, *inputs(0))
    later = inputs(1)
    with last_layer(unet, deep):
        expected = unet(*later).sample
    got = shallow_pass(unet, *later, deep)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    full = unet(*later).sample
    assert (got - full).abs().max() > 1e-2 * full.abs().max()  # it does leave something out
    _, other = whole_pass(unet, *inputs(2))
    wrong = shallow_pass(unet, *later, other)
    assert (wrong - expected).abs().max() > 1e-2 * expected.abs().max()


def test_a_shallow_pass_over_its_own_features_is_the_whole(unet):
    given = inputs(0)
    predicted, deep = whole_pass(unet, *given)
    torch.testing.assert_close(shallow_pass(unet, *given, deep), predicted, rtol=1e-5, atol=1e-6)


def test_a_shallow_pass_runs_the_first_convolution_and_the_last_layer_alone(unet):
    ran: list[str] = []
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    _, deep = whole_pass(unet, *inputs(0))
    every, last = len(ran), len(unet.up_blocks) - 1
    ran.clear()
    shallow_pass(unet, *inputs(1), deep)
    layer = len(unet.up_blocks[-1].resnets) - 1
    allowed = ("conv_in", "conv_out", f"up_blocks.{last}.resnets.{layer}.",
               f"up_blocks.{last}.attentions.{layer}.")  # fmt: skip
    assert all(name.startswith(allowed) for name in ran)
    assert 4 <= len(ran) < every / 2


def test_the_unet_stays_as_it_was(unet):
    before = {name: id(module) for name, module in unet.named_modules()}
    weights = {name: one.data_ptr() for name, one in unet.state_dict().items()}
    _, deep = whole_pass(unet, *inputs(0))
    shallow_pass(unet, *inputs(1), deep)
    assert {name: id(module) for name, module in unet.named_modules()} == before
    assert {name: one.data_ptr() for name, one in unet.state_dict().items()} == weights
    assert not any(module._forward_pre_hooks for module in unet.modules())
    assert len(unet.up_blocks) == len(unet.down_blocks)
    assert unet.mid_block is not None
