"""Attention in chunks of queries: the same function and gradients as PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

from hbsdk import chunked_attention as module
from hbsdk.backends.torch import TorchBackend
from hbsdk.bundle import Bundle
from hbsdk.chunked_attention import (
    ChunkedAttnProcessor,
    chunked_attention,
    is_faster_here,
    use_chunked_attention,
)


def inputs(queries: int = 600, keys: int = 70) -> list[Tensor]:
    """Return q, k, v in float64 as processors make them: views across the heads."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, queries, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8))
    made = [torch.randn(one, generator=generator, dtype=torch.float64) for one in shapes]
    return [one.transpose(1, 2).requires_grad_() for one in made]


def gradients(function, arguments: list[Tensor]) -> list[Tensor]:
    upper = torch.linspace(-1, 1, arguments[0].numel(), dtype=torch.float64)
    attended = function(*arguments)
    loss = (attended * upper.view(attended.shape).to(attended.dtype)).sum()
    return [*torch.autograd.grad(loss, arguments), attended]


def test_it_is_pytorchs_function_with_its_gradients() -> None:
    # 600 queries are a whole chunk and a part of one.
    arguments = inputs()
    ours = gradients(chunked_attention, arguments)
    theirs = gradients(F.scaled_dot_product_attention, arguments)
    for mine, other in zip(ours, theirs, strict=True):
        # Gradients over queries add up in float32.
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_another_scale_would_be_noticed() -> None:
    arguments = inputs()
    theirs = F.scaled_dot_product_attention(*arguments, scale=0.3)
    assert (chunked_attention(*arguments) - theirs).abs().max() > 1e-3


def test_in_bfloat16_it_is_as_near_as_rounding_allows() -> None:
    query, key, value = inputs(600, 512)
    exact = F.scaled_dot_product_attention(query, key, value)
    rounded = [one.detach().bfloat16() for one in (query, key, value)]
    error = (chunked_attention(*rounded).double() - exact).norm() / exact.norm()
    assert error < 4 * 2**-8  # four roundings to 8 bits: of inputs, scores, shares and result
    assert error > 2**-12  # so it has been rounded at all


@pytest.fixture
def unet(tiny_bundle):
    return Bundle.open(tiny_bundle).load_unet(torch.float32, torch.device("cpu"))


def test_a_unet_keeps_what_it_predicts(unet, monkeypatch) -> None:
    monkeypatch.setattr(module, "_FEWEST_SCORES", 1)
    calls = []
    real = module.chunked_attention
    monkeypatch.setattr(
        module, "chunked_attention", lambda *qkv: calls.append(qkv[0].shape) or real(*qkv)
    )
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, unet.config.in_channels, 8, 8, generator=generator)
    states = torch.randn(2, 77, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        before = unet(sample, 500, states).sample
        use_chunked_attention(unet)
        after = unet(sample, 500, states).sample
    own = [name for name, _ in unet.named_modules() if name.endswith("attn1")]
    assert len(calls) == len(own) > 0
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_few_places_stay_with_pytorch(unet, monkeypatch) -> None:
    use_chunked_attention(unet)

    def refuse(*_: Tensor) -> Tensor:
        raise AssertionError("too few places for chunks")

    monkeypatch.setattr(module, "chunked_attention", refuse)
    width = unet.config.cross_attention_dim
    with torch.no_grad():
        unet(torch.zeros(1, unet.config.in_channels, 8, 8), 1, torch.zeros(1, 77, width))


def test_only_diffusers_default_is_replaced_and_only_within_pictures(unet) -> None:
    kept = next(name for name, _ in unet.named_modules() if name.endswith("attn1"))
    unet.get_submodule(kept).set_processor(AttnProcessor())
    use_chunked_attention(unet)
    for name, one in unet.named_modules():
        if name.endswith("attn1"):
            wanted = AttnProcessor if name == kept else ChunkedAttnProcessor
            assert type(one.processor) is wanted
        elif name.endswith("attn2"):
            assert type(one.processor) is AttnProcessor2_0


@pytest.mark.parametrize(
    ("has", "dtype", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16, True),
        ({"avx512_bf16": True}, torch.float32, False),
        ({"avx512_bf16": True, "amx_bf16": True}, torch.bfloat16, False),
        ({}, torch.bfloat16, False),
    ],
)
def test_which_cpus_take_it(has, dtype, expected, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert is_faster_here(torch.device("cpu"), dtype) is expected
    assert not is_faster_here(torch.device("meta"), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_torch_backend_takes_it_in_bfloat16_alone(tiny_bundle, dtype, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    unet = TorchBackend(Bundle.open(tiny_bundle), device="cpu", dtype=dtype).network("unet")
    kinds = {type(one) for one in unet.attn_processors.values()}
    assert (ChunkedAttnProcessor in kinds) == (dtype == "bfloat16")
