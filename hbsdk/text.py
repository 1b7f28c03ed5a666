"""Prompts with subjects in them: from text to token ids and the places of subjects' words."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hbsdk.errors import PromptError
from hbsdk.tokenizer import PromptTokenizer

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


def tokenize_prompt(
    tokenizer: PromptTokenizer, prompt: str, words: Mapping[str, int]
) -> PromptTokens:
    """Turn a prompt into token ids with room for each subject's words.

    Args:
        tokenizer: the bundle's.
        prompt: text in which "S*" or "<name>", in any case, stand for subjects.
        words: lower-case placeholder -> number of words that it expands to.

    Raises:
        PromptError: a placeholder has no subject, or a subject's words would be cut off because
            the prompt is too long, or the text is no Unicode. Text that is cut off otherwise is
            warned about, as in diffusers.
    """
    pieces: list[int] = []
    places: dict[str, list[tuple[int, ...]]] = {name: [] for name in words}
    filler = tokenizer.eos_token_id  # its embedding is replaced
    for text, name in _split(prompt):
        pieces += tokenizer.encode(text)
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
