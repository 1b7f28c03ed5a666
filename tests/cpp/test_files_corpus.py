"""The fuzzers' corpus is run once more: every input that ever broke something is kept there.

Under the address sanitizer too: test_bridge_sanitizers.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cpp.files_check import FilesCheck

CORPUS = Path(__file__).parents[2] / "cpp_bridge" / "fuzz" / "corpus"
HARNESSES = ("subject", "manifest", "prompt", "tokenizer")


def check_corpus(files_check: FilesCheck, harness: str) -> None:
    """Run a harness on each file of its corpus."""
    files = sorted((CORPUS / harness).iterdir())
    assert len(files) >= 10
    answers = files_check.ask("replay", [{"harness": harness, "file": str(file)} for file in files])
    assert answers == ["survived"] * len(files)


@pytest.mark.parametrize("harness", HARNESSES)
def test_the_corpus_breaks_nothing(files_check: FilesCheck, harness: str) -> None:
    check_corpus(files_check, harness)


def test_the_corpus_is_small() -> None:
    sizes = [file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()]
    assert sum(sizes) < 200_000
    assert len(sizes) < 150
