"""Learns the mini bundle's own CLIP vocabulary: all bytes, and the words of captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_SUFFIX = "</w>"


def learn_tokenizer(captions: Iterable[str], *, size: int = 1100) -> CLIPTokenizer:
    """Return a CLIP tokenizer of about `size` tokens (77 a text), learned from captions.

    Every byte is a token, alone and at a word's end, so any text in any script has tokens.
    """
    base = Tokenizer(models.BPE(end_of_word_suffix=_SUFFIX))
    base.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    base.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(alphabet), initial_alphabet=alphabet, end_of_word_suffix=_SUFFIX
    )
    base.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(base.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(byte + _SUFFIX for byte in alphabet), *("".join(m) for m in merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, BOS, EOS]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write tokenizer.json and the classic vocab.json and merges.txt beside it."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""])
    (folder / "merges.txt").write_text(merges, "utf-8")
