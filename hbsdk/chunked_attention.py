"""Self-attention over many places in bfloat16 on a CPU, faster than PyTorch's fused kernel.

PyTorch's CPU kernel computes its exponentials in float32 and multiplies small blocks; over SD 1.5's
4,096 places at 40 channels a head that is a third of the UNet's time. Here the same sum is taken by
a few hundred queries at a time with the library's large products and bfloat16 scores. A guided step
takes 4.1 s on two cores with AVX-512 BF16 where diffusers takes 4.9 s
(benchmarks/results/generate_sd15.json). The backward pass computes the scores anew, so that memory
stays linear in the places.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

_QUERIES_AT_ONCE = 512  # x 4,096 keys x 2 bytes: 4 MB of scores
_FEWEST_SCORES = 256 * 256  # a head; below, PyTorch's kernel is as fast


def is_faster_here(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether this CPU has bfloat16 products, and not the tiles PyTorch's kernel can use."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16")) and not has.get("amx_bf16")


def use_chunked_attention(unet: nn.Module) -> None:
    """Let a UNet's self-attentions run by `chunked_attention`, which keeps their results."""
    for name, module in unet.named_modules():
        if name.endswith("attn1") and type(module.get_processor()) is AttnProcessor2_0:
            module.set_processor(ChunkedAttnProcessor())


def chunked_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query key^T / sqrt(d)) value, differentiable, as PyTorch's function does.

    Args:
        query: (N, heads, T, d).
        key: (N, heads, S, d).
        value: (N, heads, S, d).

    Returns:
        (N, heads, T, d), a view of (N, T, heads, d). Scores and probabilities are of the inputs'
        dtype: in bfloat16 the error is about four times that of rounding the result.
    """
    attended: Tensor = _ChunkedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return attended


def _probabilities(queries: Tensor, keys: Tensor) -> Tensor:
    """(T', d), (S, d) -> (T', S); scaled before the products are rounded."""
    scale = queries.shape[-1] ** -0.5
    scores = torch.addmm(queries.new_zeros(()), queries, keys.t(), beta=0, alpha=scale)
    return scores.softmax(-1)


class _ChunkedAttention(torch.autograd.Function):
    """Head by head, and a chunk of queries at a time."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        number, heads, places, width = query.shape
        attended = query.new_empty(number, places, heads, width).transpose(1, 2)
        for n in range(number):
            for h in range(heads):
                keys, values = key[n, h], value[n, h].contiguous()
                for start in range(0, places, _QUERIES_AT_ONCE):
                    rows = slice(start, start + _QUERIES_AT_ONCE)
                    attended[n, h, rows] = _probabilities(query[n, h, rows], keys) @ values
        ctx.save_for_backward(query, key, value, attended)
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, attended = ctx.saved_tensors
        (gradient,) = gradients
        to_query, to_key, to_value = (torch.empty_like(one) for one in (query, key, value))
        for n in range(query.shape[0]):
            for h in range(query.shape[1]):
                to_query[n, h], to_key[n, h], to_value[n, h] = _head_gradients(
                    query[n, h], key[n, h], value[n, h], attended[n, h], gradient[n, h]
                )
        return to_query, to_key, to_value


def _head_gradients(
    query: Tensor, key: Tensor, value: Tensor, attended: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one head's gradients, (T, d), (S, d), (S, d); those over queries add in float32."""
    scale = query.shape[-1] ** -0.5
    key, transposed_value = key.contiguous(), value.contiguous().t()
    # Of each row: sum_s p_s (dp_s), which softmax's derivative takes off.
    shared = (gradient.float() * attended.float()).sum(-1, keepdim=True).to(query.dtype)
    to_query = torch.empty_like(query)
    to_key = key.new_zeros(key.shape, dtype=torch.float32)
    to_value = torch.zeros_like(to_key)
    for start in range(0, query.shape[0], _QUERIES_AT_ONCE):
        rows = slice(start, start + _QUERIES_AT_ONCE)
        queries, upper = query[rows], gradient[rows].contiguous()
        probabilities = _probabilities(queries, key)
        to_value += probabilities.t() @ upper
        to_scores = (upper @ transposed_value).sub_(shared[rows]).mul_(probabilities)
        to_query[rows] = (to_scores @ key) * scale
        to_key += to_scores.t() @ queries
    return to_query, (to_key * scale).to(key.dtype), to_value.to(value.dtype)


class ChunkedAttnProcessor(AttnProcessor2_0):  # type: ignore[misc]  # diffusers has no types
    """diffusers' processor with `chunked_attention` where it is faster and nothing is masked."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        is_plain = encoder_hidden_states is None and attention_mask is None
        if not is_plain or not _is_of_transformer(attn) or not _is_large(hidden_states):
            whole: Tensor = super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
            return whole
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        attended = chunked_attention(query, key, value).transpose(1, 2).flatten(2)
        projection, dropout = attn.to_out
        projected: Tensor = dropout(projection(attended))
        return projected


def _is_of_transformer(attn: Attention) -> bool:
    """Return whether an attention is as a transformer block's: no norms or residual of its own."""
    own = (attn.spatial_norm, attn.group_norm, attn.norm_q, attn.norm_k)
    rescaled = attn.residual_connection or attn.rescale_output_factor != 1.0
    return all(one is None for one in own) and not rescaled


def _is_large(hidden_states: Tensor) -> bool:
    return hidden_states.ndim == 3 and hidden_states.shape[1] ** 2 >= _FEWEST_SCORES
