"""The fuzzers' corpus is run once more: every input that ever broke something is kept there."""

from __future__ import annotations

from pathlib import Path

import pytest

CORPUS = Path(__file__).parents[2] / "cpp_bridge" / "fuzz" / "corpus"


@pytest.mark.parametrize("harness", ["subject", "manifest", "prompt", "tokenizer"])
def test_the_corpus_breaks_nothing(files_check, harness: str) -> None:
    files = sorted((CORPUS / harness).iterdir())
    assert len(files) >= 10
    answers = files_check.ask("replay", [{"harness": harness, "file": str(file)} for file in files])
    assert answers == ["survived"] * len(files)


def test_the_corpus_is_small() -> None:
    sizes = [file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()]
    assert sum(sizes) < 200_000
    assert len(sizes) < 150
