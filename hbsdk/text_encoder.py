"""The text encoder with subjects' words in its texts: from token ids to states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hbsdk.text import PromptTokens


@contextmanager
def replaced_words(text_encoder: nn.Module, rows: Tensor, columns: Tensor, words: Tensor) -> Any:
    """Let the text encoder see `words` at some places while the context is open.

    A forward hook on the token embedding works with every transformers version and keeps the
    gradient; positions are added after it, as for any other word. A hook per thread: the encoder's
    forward must not run in two threads at once.

    Args:
        text_encoder: a transformers `CLIPTextModel`.
        rows: (places,) int64, which text of the batch.
        columns: (places,) int64, which token of it.
        words: (places, d), what stands there.
    """

    def hook(_: nn.Module, __: Any, embedded: Tensor) -> Tensor:
        return embedded.index_put((rows, columns), words.to(embedded.dtype))

    handle = text_encoder.get_input_embeddings().register_forward_hook(hook)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def encode_with_words(
    text_encoder: nn.Module, ids: Tensor, positions: Tensor, words: Tensor
) -> Tensor:
    """Encode texts that each hold one subject once.

    Args:
        text_encoder: a transformers `CLIPTextModel`.
        ids: (N, tokens) int64.
        positions: (N, n) int64, the subject's places.
        words: (N, n, d).

    Returns:
        (N, tokens, d) last hidden states after the final layer norm, as SD 1.5 uses them.
    """
    rows = torch.arange(len(ids), device=ids.device).repeat_interleave(positions.shape[1])
    with replaced_words(text_encoder, rows, positions.reshape(-1), words.flatten(0, 1)):
        states: Tensor = text_encoder(ids).last_hidden_state
    return states


def encode_prompts(
    text_encoder: nn.Module,
    prompts: Sequence[PromptTokens],
    words: Mapping[str, npt.NDArray[np.float32]],
) -> Tensor:
    """Encode prompts in which any number of subjects stand.

    Args:
        text_encoder: a transformers `CLIPTextModel`.
        prompts: N tokenized prompts.
        words: placeholder -> (n, d).

    Returns:
        (N, tokens, d) last hidden states on the encoder's device.
    """
    weight = text_encoder.get_input_embeddings().weight  # type: ignore[operator]
    rows: list[int] = []
    columns: list[int] = []
    values: list[npt.NDArray[np.float32]] = []
    for row, prompt in enumerate(prompts):
        for name, where in prompt.places.items():
            for positions in where:
                rows += [row] * len(positions)
                columns += positions
                values.append(words[name])
    ids = torch.from_numpy(np.stack([prompt.ids for prompt in prompts])).to(weight.device)
    if not values:
        return text_encoder(ids).last_hidden_state  # type: ignore[no-any-return]
    stacked = torch.from_numpy(np.concatenate(values)).to(weight.device)
    index = [torch.tensor(places, device=weight.device) for places in (rows, columns)]
    with replaced_words(text_encoder, index[0], index[1], stacked):
        states: Tensor = text_encoder(ids).last_hidden_state
    return states
