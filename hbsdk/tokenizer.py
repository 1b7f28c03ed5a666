"""CLIP's tokenizer: from text to ids, built as transformers builds it, without transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from hbsdk.bundle_info import read_json
from hbsdk.errors import BundleError, PromptError

# transformers adds them in this order, and of two with one text the later one's rules count.
_NAMED = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_DEFAULTS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_SUFFIX = "</w>"
_WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_FEWEST_TOKENS = 3  # the start, one that says something, and the end


@dataclass(frozen=True, eq=False)
class PromptTokenizer:
    """Turns text into ids as transformers' `CLIPTokenizer` does; threads may share it.

    Attributes:
        bos_token_id: the start of a text.
        eos_token_id: its end.
        pad_token_id: what fills it up to the text encoder's length.
        model_max_length: that length in tokens, start and end included.
        model: the tokenizer of the `tokenizers` library, with its added tokens.
    """

    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    model_max_length: int
    model: Tokenizer = field(repr=False)

    def encode(self, text: str) -> list[int]:
        """Return a text's ids, any number of them, without start and end.

        A special token that is written in the text, such as "<|endoftext|>", becomes that token.

        Raises:
            PromptError: the text is not Unicode: half of a surrogate pair is in it.
        """
        try:
            ids: list[int] = self.model.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise PromptError(
                "prompt", expected="Unicode text", got=repr(text)[:100],
                remedy='Decode it anew, for example by bytes.decode("utf-8", errors="replace")',
            ) from error  # fmt: skip
        return ids


def load_tokenizer(folder: Path, max_tokens: int, vocabulary_rows: int) -> PromptTokenizer:
    """Load a CLIP tokenizer whose texts have at most as many tokens as the text encoder takes.

    Args:
        folder: of its files: tokenizer.json, or vocab.json and merges.txt; beside them, where they
            are, tokenizer_config.json, special_tokens_map.json and added_tokens.json.
        max_tokens: the text encoder's positions.
        vocabulary_rows: of its token embedding.

    Raises:
        BundleError: it is damaged, or has a token that the text encoder has no row for.
    """
    try:
        settings, listed = _read_settings(folder)
        names = {key: _text_of((_DEFAULTS | settings)[key]) for key in _DEFAULTS}
        tokenizer = _build(*_read_vocabulary(folder), unknown=names["unk_token"])
        tokenizer.add_tokens(list(_added_tokens(settings, listed)))
        tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens", False))
        loaded = PromptTokenizer(
            bos_token_id=_id_of(tokenizer, names["bos_token"]),
            eos_token_id=_id_of(tokenizer, names["eos_token"]),
            pad_token_id=_id_of(tokenizer, names["pad_token"]),
            model_max_length=_length(settings, max_tokens),
            model=tokenizer,
        )
        highest = max(tokenizer.get_vocab(with_added_tokens=True).values())
        fits = highest < vocabulary_rows
    except Exception as error:  # the library raises a plain Exception of what is damaged
        raise BundleError(
            f"tokenizer in {folder}",
            expected="files that are whole and fit their configuration",
            got=f"{type(error).__name__}: {error}"[:300],
            remedy="Copy it again from where it came",
        ) from error
    if not fits:
        raise BundleError(
            f"tokenizer in {folder}",
            expected=f"token ids below {vocabulary_rows}, the rows of the text encoder",
            got=str(highest),
            remedy="Take the tokenizer that the text encoder was trained with",
        )
    return loaded


def _build(vocabulary: dict[str, int], merges: list[tuple[str, str]], *, unknown: str) -> Tokenizer:
    """Return the byte-pair encoding over words, as transformers' `CLIPTokenizer` has it."""
    if unknown not in vocabulary:
        raise ValueError(f"{unknown!r}, which stands for unknown text, is not in the vocabulary")
    model = BPE(
        vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=False,
        continuing_subword_prefix="", end_of_word_suffix=_SUFFIX,
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the tokens' ids and the merges in order, from tokenizer.json if it is there."""
    whole = folder / "tokenizer.json"
    if not whole.exists():
        vocabulary, merges = BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        return vocabulary, merges
    model = read_json(whole)["model"]
    # Files of older releases of the library hold a merge as one text, "a b".
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return model["vocab"], [(left, right) for left, right in pairs]


def _read_settings(folder: Path) -> tuple[dict[str, Any], dict[int, AddedToken]]:
    """Return the tokenizer's settings, and the added tokens that its files list, by their ids."""
    settings = _read_if_there(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in settings:
        stated = settings["added_tokens_decoder"]
        return settings, {int(index): AddedToken(**token) for index, token in stated.items()}
    for key, value in _read_if_there(folder / "special_tokens_map.json").items():
        # Tokens of this file are special whatever they say of themselves.
        settings[key] = {**value, "special": True} if isinstance(value, dict) else value
    named = [settings[key] for key in _NAMED if settings.get(key)]
    special = {_text_of(token) for token in (*named, *_extra_tokens(settings))}
    listed = {
        index: AddedToken(text, special=text in special, normalized=text not in special)
        for text, index in _read_if_there(folder / "added_tokens.json").items()
    }
    for token in _read_if_there(folder / "tokenizer.json").get("added_tokens", []):
        rules = {key: value for key, value in token.items() if key != "id"}
        listed[token["id"]] = AddedToken(**rules)
    return settings, listed


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _added_tokens(
    settings: Mapping[str, Any], listed: Mapping[int, AddedToken]
) -> Iterator[AddedToken]:
    """Yield the tokens that are found in a text before it is split, in transformers' order."""
    stated = {key: value for key, value in settings.items() if key.endswith("_token")}
    named = _DEFAULTS | {k: value for k, value in stated.items() if isinstance(value, str | dict)}
    adding = [listed[index] for index in sorted(listed)]
    known = {token.content for token in adding}
    in_order = [named[key] for key in dict.fromkeys((*_NAMED, *named)) if key in named]
    for value in (*in_order, *_extra_tokens(settings)):
        token = _as_added_token(value)
        if token.content not in known and token not in adding:
            adding.append(token)
    special = {_text_of(value) for value in in_order}
    for token in adding:
        token.special = token.special or token.content in special
        yield token


def _extra_tokens(settings: Mapping[str, Any]) -> list[Any]:
    """The special tokens that have no role, or one that CLIP does not know."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    return list(extra.values() if isinstance(extra, dict) else extra)


def _as_added_token(token: Any) -> AddedToken:
    if not isinstance(token, dict):
        return AddedToken(_text_of(token), special=True)
    return AddedToken(**{key: value for key, value in token.items() if key != "__type"})


def _text_of(token: Any) -> str:
    """A token's text; its files hold one as text, or as an object that states rules with it."""
    text = token["content"] if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise TypeError(f"a token that is no text: {text!r}")
    return text


def _id_of(tokenizer: Tokenizer, text: str) -> int:
    found: int | None = tokenizer.token_to_id(text)
    if found is None:
        raise ValueError(f"token {text!r} has no id")
    return found


def _length(settings: Mapping[str, Any], max_tokens: int) -> int:
    """The tokens of a text, start and end included: as stated, if the text encoder takes them."""
    stated = settings.get("model_max_length", settings.get("max_len"))
    length = int(max_tokens if stated is None else min(stated, max_tokens))
    if length < _FEWEST_TOKENS:
        raise ValueError(f"texts of {length} tokens, start and end included")
    return length
