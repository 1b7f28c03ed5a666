"""Prompts with subjects in them: from words to the text encoder's states."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hbsdk.errors import PromptError

_PLACEHOLDER = re.compile(r"<[^\s<>|]+>|(?<!\w)[Ss]\*")


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as the text encoder takes it, with the places that subjects' words fill.

    ids: (tokens,) int64, start and end tokens included, padded to the tokenizer's length.
    places: placeholder (as in the mapping given) -> positions of its words, one tuple for each
    time that it stands in the prompt.
    """

    ids: npt.NDArray[np.int64]
    places: Mapping[str, tuple[tuple[int, ...], ...]]


def placeholders(prompt: str) -> list[str]:
    """Return the placeholders in a prompt in their order, lower case: "s*" or "<name>"."""
    return [match.group().lower() for match in _PLACEHOLDER.finditer(prompt)]


def tokenize_prompt(tokenizer: Any, prompt: str, words: Mapping[str, int]) -> PromptTokens:
    """Turn a prompt into token ids with room for each subject's words.

    Args:
        tokenizer: a transformers `CLIPTokenizer`.
        prompt: text in which "S*" or "<name>", in any case, stand for subjects.
        words: lower-case placeholder -> number of words that it expands to.

    Raises:
        PromptError: a placeholder has no subject, or a subject's words would be cut off because
            the prompt is too long. Text that is cut off otherwise is warned about, as in diffusers.
    """
    pieces: list[int] = []
    places: dict[str, list[tuple[int, ...]]] = {name: [] for name in words}
    filler = tokenizer.eos_token_id  # its embedding is replaced
    for text, name in _split(prompt):
        pieces += tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        if name is None:
            continue
        if name not in words:
            known = ", ".join(words) or "no subject"
            raise PromptError(
                f"placeholder {name!r} in the prompt",
                expected=f"one of the subjects given ({known})",
                got=name,
                remedy='Pass the subject: generate(prompt, subject), or name it by "<name>".',
            )
        start = 1 + len(pieces)
        places[name].append(tuple(range(start, start + words[name])))
        pieces += [filler] * words[name]
    room = tokenizer.model_max_length - 2
    _check_length(prompt, len(pieces), room, places)
    body = pieces[:room]
    padding = [tokenizer.pad_token_id] * (room - len(body))
    ids = [tokenizer.bos_token_id, *body, tokenizer.eos_token_id, *padding]
    return PromptTokens(np.array(ids, np.int64), {k: tuple(v) for k, v in places.items()})


def _split(prompt: str) -> Iterator[tuple[str, str | None]]:
    """Yield (text, the placeholder after it or None)."""
    start = 0
    for match in _PLACEHOLDER.finditer(prompt):
        yield prompt[start : match.start()].strip(), match.group().lower()
        start = match.end()
    yield prompt[start:].strip(), None


def _check_length(
    prompt: str, length: int, room: int, places: Mapping[str, Sequence[tuple[int, ...]]]
) -> None:
    if length <= room:
        return
    cut = [name for name, where in places.items() for run in where if run[-1] > room]
    if cut:
        raise PromptError(
            f"prompt of {length} tokens",
            expected=f"the words of {cut[0]!r} within the first {room} tokens",
            got=f"the placeholder after {room} tokens, where the text encoder stops reading",
            remedy="Shorten the prompt or move the subject towards its beginning.",
        )
    warnings.warn(
        f"the prompt has {length} tokens and the text encoder reads {room}: its end is cut off "
        f"({prompt[-60:]!r})",
        stacklevel=3,
    )


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
