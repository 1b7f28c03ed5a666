"""Prompts and names of subjects: the bridge against hbsdk/text.py, generate.py and subject.py."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbsdk.bundle import Bundle
from hbsdk.errors import PromptError, SubjectError
from hbsdk.generate import name_subjects, tokenize
from hbsdk.subject import Subject, check_name, name_from_file
from hbsdk.text import placeholders, tokenize_prompt
from tests.cpp.files_check import FilesCheck, is_error, status_of, write_prompt_tokenizer
from tests.cpp.library import BAD_PROMPT, INVALID_ARGUMENT
from tests.cpp.unicode_versions import is_alike
from tests.unit.test_tokenizer import random_texts

WORDS = {"<a>": 1, "<fox>": 5, "<my-fox.2>": 3, "s*": 5}
PIECES = (
    "S*", "s*", "<fox>", "<FOX>", "<Fox>", "<a>", "<my-fox.2>", "<\u212a>", "<f ox>", "<>", "<<a>>",
    "<a|b>", "<fox", "fox>", "s", "*", "xS*", "_s*", "1S*", "éS*", "²s*", "雪s*", "\u0301S*",
    "🦊S*",
    "(S*)", "S**", "SS*", "S*S*", "\u200bS*", "\xa0S*\u3000", "\x1cs*\x1f", "<|endoftext|>",
    "<|startoftext|>", "a photo of", "in the snow", ",", "\n", "  ", "watercolor", "<unknown>",
    "ǅS*",
    "<\x85a>", "<a\x1c>", "Ⅷs*", "٣s*", "<İ>",
)  # fmt: skip


def prompts(count: int, seed: int = 1) -> list[str]:
    rng = np.random.default_rng(seed)
    texts = [text for text in random_texts(400, seed=9) if is_alike(text)]
    found = ["", " ", *PIECES]
    while len(found) < count:
        glue = ("", " ", ", ")[rng.integers(3)]
        sources = [PIECES if rng.integers(4) else texts for _ in range(rng.integers(1, 14))]
        pieces = [source[rng.integers(len(source))] for source in sources]
        found.append(glue.join(pieces))
    return found


PROMPTS = prompts(2_500)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return Bundle.open().load_tokenizer()


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> Path:
    return write_prompt_tokenizer(tmp_path_factory.mktemp("engines"), tokenizer)


def expected_of(tokenizer: Any, prompt: str, words: dict[str, int]) -> Any:
    """What Python says: ids, places and whether text was cut off; or its error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tokens = tokenize_prompt(tokenizer, prompt, words)
        except PromptError as error:
            return str(error)
    places = {name: [list(run) for run in runs] for name, runs in tokens.places.items()}
    return tokens.ids.tolist(), places, bool(caught)


def asked(prompt: str | bytes, words: dict[str, int], **more: Any) -> dict[str, Any]:
    data = prompt if isinstance(prompt, bytes) else prompt.encode()
    return {"prompt": data.hex(), "words": words, **more}


def same_error(got: str, expected: str) -> bool:
    """Whether two messages tell the same problem; the remedies name each language's own calls."""
    return re.sub(r" (Pass|Rename|Describe|Shorten) .*", "", got) == re.sub(
        r" (Pass|Rename|Describe|Shorten) .*", "", expected
    )


@pytest.mark.parametrize("words", [WORDS, {"<fox>": 5, "s*": 5}, {"<fox>": 75, "s*": 40}, {}])
def test_prompts_are_pythons(files_check: FilesCheck, tokenizer, folder, words) -> None:
    got = files_check.ask("prompt", [asked(text, words) for text in PROMPTS], folder)
    kinds = {"tokens": 0, "cut": 0, "error": 0}
    for text, answer in zip(PROMPTS, got, strict=True):
        expected = expected_of(tokenizer, text, words)
        if isinstance(expected, str):
            assert status_of(answer) == BAD_PROMPT, text
            assert same_error(answer["error"], expected), text
            kinds["error"] += 1
        else:
            assert not is_error(answer), (text, answer)
            assert (answer["ids"], answer["places"], answer["truncated"]) == expected, text
            kinds["cut" if expected[2] else "tokens"] += 1
    assert all(count > 20 for count in kinds.values()), kinds


def test_placeholders_are_pythons(files_check) -> None:
    """But for final sigma, which Python alone writes ς; no subject's name can have one."""
    got = files_check.ask("placeholders", PROMPTS)
    for text, answer in zip(PROMPTS, got, strict=True):
        assert [one.replace("ς", "σ") for one in placeholders(text)] == [
            one.replace("ς", "σ") for one in answer
        ], text
    assert sum(map(bool, got)) > 1_000


def test_another_word_count_moves_the_places(files_check, folder) -> None:
    """The control: the comparison above sees a subject of one word more."""
    lines = [asked("a photo of S* in the snow", {"s*": count}) for count in (5, 6)]
    five, six = files_check.ask("prompt", lines, folder)
    assert len(five["places"]["s*"][0]) == 5
    assert five["ids"] != six["ids"]
    assert six["places"] != five["places"]


@pytest.mark.parametrize("data", [b"a S* \xff", b"\xed\xa0\x80", b"<\xc3>"])
def test_prompts_that_are_no_utf8(files_check, folder, data: bytes) -> None:
    answer = files_check.one("prompt", asked(data, {"s*": 5, "<a>": 1}), folder)
    assert status_of(answer) == BAD_PROMPT
    assert "expected Unicode text" in answer["error"]


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000\x1c\x85", "a"])
def test_only_a_negative_prompt_may_be_empty(files_check, tokenizer, folder, text: str) -> None:
    answer = files_check.one("prompt", asked(text, {}, needs_text=True), folder)
    if text == "a":
        assert not is_error(answer)
        return
    with pytest.raises(PromptError) as caught:
        tokenize(tokenizer, text, {})
    assert same_error(answer["error"], str(caught.value))
    assert not is_error(files_check.one("prompt", asked(text, {}), folder))


@pytest.mark.parametrize("count", [0, -1, 76, 2**31 - 1])
def test_counts_of_words_that_no_subject_has(files_check, folder, count: int) -> None:
    answer = files_check.one("prompt", asked("a S*", {"s*": count}), folder)
    assert status_of(answer) == INVALID_ARGUMENT


NAMES = (["fox"], ["fox", "a"], ["a", "my-fox.2"], ["fox", "fox"], [])


@pytest.mark.parametrize("names", NAMES, ids=lambda names: "+".join(names) or "none")
def test_subjects_are_named_as_in_python(files_check, names: list[str]) -> None:
    row = np.full((1, 4), 0.02, np.float32)
    subjects = [Subject(row, name) for name in names]
    lines = [{"prompt": text.encode().hex(), "names": names} for text in PROMPTS[:800]]
    good = 0
    for text, answer in zip(PROMPTS, files_check.ask("names", lines), strict=False):
        try:
            named = name_subjects(text, subjects)
        except PromptError as error:
            assert status_of(answer) == BAD_PROMPT, text
            if "subjects: " not in str(error):  # which of the names is told differs
                shown = str(error).split(":")[-1], answer["error"].split(":")[-1]
                assert len(names) > 1 or same_error(*shown), text
        else:
            expected = {key: subjects.index(one) for key, one in named.items()}
            assert (answer or {}) == expected, text
            good += 1
    assert good > 0 or names == ["fox", "fox"]


FILE_NAMES = (
    "fox", "My Fox (1)", "", ".", "..", "-", "_", "a" * 64, "a" * 65, "a" * 63 + "..", "fox.",
    "-fox", ".fox",
    "FOX", "Füchsin", "Ｆｏｘ", "½ fox", "ﬁsh", "ſ", "K", "İ", "狐", "con", "CON", "con.txt",
    "com1", "com10",
    "lpt9.a.b", "nul", "aux.", "prn-1", "con1", "a/b", "a\\b", "a b", "fox\n", "a--b..c",
    "é\u0301x", "🦊", "🦊fox🦊",
    "x" * 70 + "é", "a" * 60 + "- . -" + "b" * 10, "\x00a", "١٢", "№5",
)  # fmt: skip


def complaint_about(name: str) -> str | None:
    """What Python says of a name; None of a good one."""
    try:
        check_name(name)
    except SubjectError as error:
        return str(error)
    return None


def test_names_are_pythons(files_check) -> None:
    texts = [*FILE_NAMES, *(text for text in random_texts(1_500, seed=4) if is_alike(text))]
    safe = files_check.ask("safe-name", texts)
    checked = files_check.ask("check-name", texts)
    refused = 0
    for text, nearest, answer in zip(texts, safe, checked, strict=True):
        stem = text.replace("/", "").replace("\0", "")
        if Path(f"x{stem}.png").stem == f"x{stem}" and stem == text and text not in ("", ".", ".."):
            assert nearest == name_from_file(f"{text}.png"), text
        expected = complaint_about(text)
        if expected is None:
            assert answer == "good", text
            continue
        refused += 1
        assert status_of(answer) == INVALID_ARGUMENT, text
        if text.isprintable() and "ς" not in expected:
            assert answer["error"] == expected
    assert 0 < refused < len(texts)
    assert all(answer == "good" for answer in files_check.ask("check-name", safe))
