"""Every character: what the bridge takes it for, against Python and the library `tokenizers`."""

from __future__ import annotations

import re
import unicodedata

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from tests.cpp.files_check import FilesCheck
from tests.cpp.unicode_versions import (
    COMPOSED_BY_UTF8PROC,
    DIFFERING,
    LATER_THAN_RUST_FORM_C,
    LATER_THAN_UTF8PROC,
    points_of,
)

# All that Unicode 17 has assigned; of the rest, which is alike, each 97th.
POINTS = [
    point
    for point in range(0x110000)
    if not 0xD800 <= point < 0xE000
    and (point < 0x33500 or 0xE0000 <= point < 0xE0200 or point % 97 == 0)
]
EVERY = "".join(map(chr, POINTS))
LETTER, NUMBER, SPACE, RUST_WORD, PYTHON_WORD, PYTHON_SPACE = (1 << bit for bit in range(6))
LATER = points_of(LATER_THAN_UTF8PROC)


@pytest.fixture(scope="module")
def properties(files_check: FilesCheck) -> list[int]:
    return files_check.one("properties", [])


def differing(properties: list[int], bit: int, expected: set[int]) -> set[int]:
    return expected ^ {point for point in POINTS if properties[point] & bit}


def matched_by_tokenizers(pattern: str) -> set[int]:
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    rest = {p for _, (low, high) in split.pre_tokenize_str(EVERY) for p in POINTS[low:high]}
    return set(POINTS) - rest


@pytest.mark.parametrize(
    ("pattern", "bit"), [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)]
)
def test_classes_are_those_of_tokenizers(properties, pattern: str, bit: int) -> None:
    expected = matched_by_tokenizers(pattern)
    assert len(expected) > 20
    assert differing(properties, bit, expected) <= LATER


def test_words_are_those_of_pythons_re(properties) -> None:
    """Its tables are older or newer than utf8proc's: what only one of them knows is left out."""
    unknown = {point for point in POINTS if unicodedata.category(chr(point)) == "Cn"} | LATER
    words = {point for point in POINTS if re.match(r"\w", chr(point))}
    assert differing(properties, PYTHON_WORD, words) <= unknown
    spaces = {point for point in POINTS if re.match(r"\s", chr(point))}
    assert differing(properties, PYTHON_SPACE, spaces) == set()
    assert {point for point in POINTS if not chr(point).strip()} == spaces


def test_words_are_those_of_rusts_regex(properties) -> None:
    """An added token that must be a single word tells whether a character goes on a word."""
    mark = "\ue000"
    tokenizer = Tokenizer(BPE(vocab={"a": 0}, merges=[]))
    tokenizer.add_tokens([AddedToken(mark, single_word=True, normalized=False)])
    step = [p for p in POINTS if p < 0x3000 or p % 7 == 0 or properties[p] & RUST_WORD == 0]
    step = [p for p in step if p < 0x20000 and chr(p) != mark]
    found = tokenizer.encode_batch([f"{chr(p)}{mark}" for p in step])
    wrong = {
        p for p, one in zip(step, found, strict=True)
        if (1 in one.ids) == bool(properties[p] & RUST_WORD)
    }  # fmt: skip
    assert wrong <= LATER


def test_lower_case_is_rusts(files_check: FilesCheck) -> None:
    lower = normalizers.Lowercase()
    texts = [chr(point) for point in POINTS if point < 0x20000]
    got = files_check.ask("lower", texts)
    wrong = {ord(t) for t, one in zip(texts, got, strict=True) if lower.normalize_str(t) != one}
    assert wrong <= LATER
    assert files_check.one("lower", "İΣ") == "i̇σ"


@pytest.mark.parametrize("pattern", ["{}", "a{}\u0334", "a\u0345{}", "a{}\u0345\u0301"])
def test_normal_form_c_is_rusts(files_check: FilesCheck, pattern: str) -> None:
    form = normalizers.NFC()
    points = [point for point in POINTS if point < 0x20000 or 0x2F800 <= point < 0x2FA20]
    texts = [pattern.format(chr(point)) for point in points]
    got = files_check.ask("nfc", texts)
    wrong = {
        point for point, text, one in zip(points, texts, got, strict=True)
        if form.normalize_str(text) != one
    }  # fmt: skip
    assert wrong <= points_of(LATER_THAN_RUST_FORM_C) | LATER


def test_what_is_taken_apart_is_composed_as_rust_does(files_check: FilesCheck) -> None:
    form = normalizers.NFC()
    texts = [unicodedata.normalize("NFD", chr(p)) for p in POINTS]
    texts = [text for text in texts if len(text) > 1]
    assert len(texts) > 12_000
    got = files_check.ask("nfc", texts)
    wrong = [t for t, one in zip(texts, got, strict=True) if form.normalize_str(t) != one]
    assert {ord(letter) for text in wrong for letter in text} <= points_of(COMPOSED_BY_UTF8PROC)


def test_the_lists_say_something() -> None:
    """The control: they are short, and hold nothing that prompts are usually made of."""
    assert len(DIFFERING) < 5_500
    assert not DIFFERING & {ord(letter) for letter in "".join(map(chr, range(0x250)))}
    assert not DIFFERING & set(range(0x4E00, 0xA000))
    assert not DIFFERING & set(range(0x1F300, 0x1FB00))


@pytest.mark.parametrize("size", [100_000])
def test_a_long_row_of_marks_is_ordered_in_time(files_check: FilesCheck, size: int) -> None:
    """By falling class, as utf8proc's own ordering would take the square of their number."""
    marks = "".join(chr(p) for p in (0x345, 0x301, 0x323, 0x334)) * (size // 4)
    assert files_check.one("nfc", f"a{marks}") == normalizers.NFC().normalize_str(f"a{marks}")
