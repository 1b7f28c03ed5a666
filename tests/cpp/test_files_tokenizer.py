"""The bridge's tokenizer against hbsdk's, and so transformers', on thousands of texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from hbsdk.bundle import MINI
from hbsdk.mini.tokenizer import learn_tokenizer, save_tokenizer
from hbsdk.tokenizer import load_tokenizer
from tests.cpp.files_check import FilesCheck, is_error, status_of, write_prompt_tokenizer
from tests.cpp.library import BAD_PROMPT, DAMAGED, MISMATCH, NOT_FOUND
from tests.cpp.unicode_versions import is_alike
from tests.unit.test_tokenizer import BOS, EOS, FILES, TEXTS, random_texts, write_as_sd15

ALIKE = [text for text in TEXTS if is_alike(text)]
SPECIAL = [
    "<|endoftext|>", "<|startoftext|><|endoftext|>'s", "!<|endoftext|>!",
    "<|endoftext|><|ENDOFTEXT|>'ll",
    "<|endoftext", "<|<|endoftext|>|>", "a<|startoftext|>b", "  <|endoftext|>  ", "''s'''t'S", "'",
    "'r'e",
]  # fmt: skip
LONG = [
    "a" * 5_000, "snow" * 3_000, "ab" * 4_000, "é" * 3_000, "雪" * 4_000, "!" * 5_000, "1" * 2_000,
    "e\u0301" * 3_000, "\u200d" * 3_000, " " * 5_000, "x " * 3_000, "\u1100\u1161\u11a8" * 1_000,
    "a\u0301\u0316\u0327\u0345" * 1_000, "<" * 4_000, "<|endoftext|>" * 300, "'s" * 2_000,
]  # fmt: skip


def scripts() -> list[str]:
    """Lines of many scripts: words of letters that stand near each other in Unicode."""
    return [text for text in random_texts(9_000, seed=5) if is_alike(text)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP vocabulary of 8,000 tokens, learned from text of many scripts."""
    folder = tmp_path_factory.mktemp("large")
    save_tokenizer(learn_tokenizer(scripts() * 2, size=8_000), folder)
    return folder


@pytest.fixture(params=["mini", "large"])
def vocabulary(request, large: Path, tmp_path: Path) -> Path:
    source = {"mini": MINI / "tokenizer", "large": large}[request.param]
    return Path(shutil.copytree(source, tmp_path / "tokenizer"))


def load(folder: Path) -> Any:
    return load_tokenizer(folder, max_tokens=77, vocabulary_rows=60_000)


def wrong_texts(check: FilesCheck, tokenizer: Any, folder: Path, texts: list[str]) -> list[str]:
    """The texts whose ids are not hbsdk's."""
    got = check.ask("tokenize", texts, write_prompt_tokenizer(folder, tokenizer))
    return [text for text, ids in zip(texts, got, strict=True) if ids != tokenizer.encode(text)]


def test_the_ids_are_those_of_transformers(files_check, vocabulary: Path, tmp_path: Path) -> None:
    texts = [*ALIKE, *scripts(), *SPECIAL, *LONG]
    assert len(texts) > 11_000
    folder = write_prompt_tokenizer(tmp_path / "engines", load(vocabulary))
    got = files_check.ask("tokenize", texts, folder)
    oracle = CLIPTokenizer.from_pretrained(vocabulary, local_files_only=True)
    expected = oracle(texts, add_special_tokens=False)["input_ids"]
    assert [t for t, a, b in zip(texts, got, expected, strict=True) if a != b] == []
    ends = [oracle.bos_token_id, oracle.eos_token_id, oracle.pad_token_id, 77]
    assert files_check.one("ends", "", folder) == ends


@pytest.mark.parametrize("change", FILES, ids=lambda change: change.__name__.strip("<>"))
def test_added_tokens_follow_their_rules(files_check, large, tmp_path, change) -> None:
    folder = Path(shutil.copytree(large, tmp_path / "tokenizer"))
    change(folder)
    texts = [*ALIKE[::3], *SPECIAL]
    assert wrong_texts(files_check, load(folder), tmp_path / "engines", texts) == []


RULES = {  # what makes a difference: white space is taken from a token beside that needs it
    "SNOW": {"lstrip": True, "rstrip": True}, "a ": {"normalized": True},
    " b": {"normalized": True}, "fox": {"single_word": True}, "Σ": {"normalized": True},
}  # fmt: skip


def with_rules(data: dict[str, Any], flipped: tuple[str, str] | None = None) -> dict[str, Any]:
    """A copy of a prompt_tokenizer.json with tokens of those rules, one of them turned round."""
    data = json.loads(json.dumps(data))
    vocabulary = data["tokenizer"]["model"]["vocab"]
    next_id = max(vocabulary.values())
    for content, given in RULES.items():
        next_id += content not in vocabulary  # the library gives the new ones ids in a row
        names = ("single_word", "lstrip", "rstrip", "normalized", "special")
        token = {name: given.get(name, False) for name in names}
        if flipped and flipped[0] == content:
            token[flipped[1]] = not token[flipped[1]]
        data["tokenizer"]["added_tokens"].append(
            {"id": vocabulary.get(content, next_id), "content": content, **token}
        )
    return data


@pytest.mark.parametrize(
    "flipped",
    [("SNOW", "lstrip"), ("SNOW", "rstrip"), ("SNOW", "normalized"), ("fox", "single_word"),
     ("Σ", "normalized")],
)  # fmt: skip
def test_each_rule_makes_a_difference(files_check, large, tmp_path, flipped) -> None:
    """The control: with one rule turned round the ids are others, and still the library's."""
    texts = [
        "a SNOW b",
        "a  SNOW   b",
        "foxes, fox",
        "fox\u0301 fox_ ⓐfox fox",
        "snow a b",
        "Σ",
        "σ",
    ]
    folder = write_prompt_tokenizer(tmp_path, load(large))
    path = folder / "prompt_tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    answers = []
    for ruled in (with_rules(data), with_rules(data, flipped)):
        path.write_text(json.dumps(ruled), "utf-8")
        answers.append(files_check.ask("tokenize", texts, folder))
        oracle = Tokenizer.from_str(json.dumps(ruled["tokenizer"]))
        assert answers[-1] == [oracle.encode(t, add_special_tokens=False).ids for t in texts]
    assert answers[0] != answers[1]


def test_the_order_of_merges_makes_a_difference(files_check, large, tmp_path) -> None:
    folder = write_prompt_tokenizer(tmp_path, load(large))
    path = folder / "prompt_tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    before = files_check.ask("tokenize", ALIKE, folder)
    data["tokenizer"]["model"]["merges"].reverse()
    path.write_text(json.dumps(data), "utf-8")
    oracle = Tokenizer.from_str(json.dumps(data["tokenizer"]))
    after = [oracle.encode(text, add_special_tokens=False).ids for text in ALIKE]
    assert files_check.ask("tokenize", ALIKE, folder) == after != before


def test_unknown_bytes_are_the_unknown_token(files_check, tmp_path, large) -> None:
    """A vocabulary without most letters: each that is missing is one unknown token."""
    folder = Path(shutil.copytree(large, tmp_path / "tokenizer"))
    (folder / "tokenizer.json").unlink()
    kept = {"a": 0, "b": 1, "a</w>": 2, "ab": 3, "!</w>": 4, BOS: 5, EOS: 6}
    (folder / "vocab.json").write_text(json.dumps(kept))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    (folder / "tokenizer_config.json").unlink()
    texts = ["ab", "aba", "ababa", "abc", "xyz!", "a!", "é", "b", "aab a", *ALIKE[:200]]
    assert wrong_texts(files_check, load(folder), tmp_path / "engines", texts) == []


def test_words_of_100_000_characters_take_no_square(files_check, large, tmp_path) -> None:
    """With a square of the length these would take hours; the program is given two minutes."""
    texts = [
        "a" * 100_000, "watercolor" * 10_000, "e\u0301" * 50_000, "雪" * 50_000, "!?" * 50_000,
        "\u0345\u0301\u0323\u0334" * 25_000, " " * 100_000, "<" * 100_000, "S*" * 50_000,
    ]  # fmt: skip
    assert wrong_texts(files_check, load(large), tmp_path, texts) == []


@pytest.mark.parametrize(
    "data",
    [
        b"a \xed\xa0\x80", b"\xed\xbf\xbf", b"\xff", b"fox \xc3", b"\xc0\xaf", b"\xe0\x80\xaf",
        b"\xf4\x90\x80\x80", b"\x80", b"\xf0\x9f\xa6", b"\xf8\x88\x80\x80\x80", b"a\xe2\x28\xa1",
    ],
)  # fmt: skip
def test_what_is_no_utf8_is_refused(files_check, large, tmp_path, data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        data.decode()
    folder = write_prompt_tokenizer(tmp_path, load(large))
    good, bad = files_check.ask("tokenize", [b"a fox", data], folder)
    assert not is_error(good)
    assert status_of(bad) == BAD_PROMPT
    assert "expected Unicode text" in bad["error"]


def changed(**changes: Any) -> Any:
    def change(data: dict[str, Any]) -> None:
        for path, value in changes.items():
            *parents, key = path.split("__")
            place = data
            for parent in parents:
                place = place[parent]
            place[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (changed(schema=2), MISMATCH),
        (changed(tokenizer__normalizer=None), MISMATCH),
        (changed(tokenizer__pre_tokenizer={"type": "Whitespace"}), MISMATCH),
        (changed(tokenizer__post_processor={"type": "ByteLevel"}), MISMATCH),
        (changed(tokenizer__truncation={}), MISMATCH),
        (changed(tokenizer__model__type="Unigram"), MISMATCH),
        (changed(tokenizer__model__dropout=0.1), MISMATCH),
        (changed(tokenizer__model__byte_fallback=True), MISMATCH),
        (changed(tokenizer__model__end_of_word_suffix=""), MISMATCH),
        (changed(tokenizer__model__unk_token="no such"), DAMAGED),
        (changed(tokenizer__model__unk_token=None), DAMAGED),
        (changed(tokenizer__model__merges=[["no", "such"]]), DAMAGED),
        (changed(tokenizer__model__merges=["a b"]), DAMAGED),
        (changed(tokenizer__model__merges=[["a", "b", "c"]]), DAMAGED),
        (changed(tokenizer__model__vocab={"<|endoftext|>": -1}), DAMAGED),
        (changed(tokenizer__model__vocab={"<|endoftext|>": 2**31}), DAMAGED),
        (changed(tokenizer__model__vocab={"<|endoftext|>": 1.0}), DAMAGED),
        (changed(tokenizer__model__vocab=[]), DAMAGED),
        (changed(tokenizer__added_tokens={}), DAMAGED),
        (changed(tokenizer__added_tokens=[{"content": "a"}]), DAMAGED),
        (changed(tokenizer=3), DAMAGED),
        (changed(bos_token_id="a"), DAMAGED),
        (changed(pad_token_id=None), DAMAGED),
        (changed(model_max_length=2), DAMAGED),
        (changed(model_max_length=10**30), DAMAGED),
    ],
)
def test_another_tokenizer_is_refused(files_check, tmp_path, change, status: int) -> None:
    folder = write_prompt_tokenizer(tmp_path, load(MINI / "tokenizer"))
    path = folder / "prompt_tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    assert status_of(files_check.one("load-tokenizer", str(folder))) == 0
    change(data)
    path.write_text(json.dumps(data), "utf-8")
    answer = files_check.one("load-tokenizer", str(folder))
    assert status_of(answer) == status, answer
    assert "prompt_tokenizer.json" in answer["error"]


def test_a_missing_or_cut_file_is_refused(files_check, tmp_path) -> None:
    assert status_of(files_check.one("load-tokenizer", str(tmp_path))) == NOT_FOUND
    folder = write_prompt_tokenizer(tmp_path, load(MINI / "tokenizer"))
    path = folder / "prompt_tokenizer.json"
    path.write_bytes(path.read_bytes()[:-20])
    assert status_of(files_check.one("load-tokenizer", str(tmp_path))) == DAMAGED


def test_public_sd15_settings(files_check, large, tmp_path) -> None:
    """As in the public SD 1.5 folder: its start token is found in any case."""
    folder = Path(shutil.copytree(large, tmp_path / "tokenizer"))
    write_as_sd15(folder)
    tokenizer = load(folder)
    engines = write_prompt_tokenizer(tmp_path, tokenizer)
    got = files_check.one("tokenize", "a <|StartOfText|> b", engines)
    assert tokenizer.bos_token_id in got
