"""Finds the shards that a pattern names: a folder, a file, `*.tar`, or `{000000..000099}.tar`."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from hbsdk.errors import TrainingError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 1_000_000


def find_shards(pattern: str | os.PathLike[str]) -> list[Path]:
    """Return the shards in the order that the pattern gives, those that a wildcard finds sorted.

    Args:
        pattern: a folder (all `.tar` files in it), a file, or a pattern: `*`, `?` and `[...]` as
            in a shell, `{a,b}` for each of several texts, and `{000..099}` for each of several
            numbers, written with as many digits.

    Raises:
        TrainingError: it finds nothing, or its braces name too many. A shard that braces name is
            returned even if it is not there: whoever opens it will tell.
    """
    text = os.path.expanduser(os.fspath(pattern))
    if os.path.isdir(text):
        return _found(pattern, sorted(Path(text).glob("*.tar")))
    if os.path.isfile(text):
        return [Path(text)]
    names = _expand(text)
    found: list[Path] = []
    for name in names:
        if glob.has_magic(name):
            found += sorted(Path(match) for match in glob.glob(name, recursive=True))
        elif len(names) > 1 or os.path.isfile(name):
            found.append(Path(name))
    return _found(pattern, list(dict.fromkeys(found)))


def _found(pattern: str | os.PathLike[str], shards: list[Path]) -> list[Path]:
    if shards:
        return shards
    raise TrainingError(
        f"shards {os.fspath(pattern)!r}",
        expected="tar files: a folder of them, a path or a pattern such as train-{000..099}.tar",
        got="none",
        remedy="Check the path, and quote the pattern so that the shell leaves it as it is",
    )


def _expand(pattern: str) -> list[str]:
    """Every text that a pattern's braces stand for."""
    pieces = _BRACES.split(pattern)  # text, braces' inside, text, ...
    if any(brace in piece for piece in pieces[::2] for brace in "{}"):
        raise TrainingError(
            f"shards {pattern!r}",
            expected="braces in pairs",
            got="one without its other, or braces inside braces",
            remedy="Write the names with wildcards, or pass the folder",
        )
    choices: list[Sequence[str]] = []
    count = 1
    for position, piece in enumerate(pieces):
        choice = _choices(pattern, piece) if position % 2 else [piece]
        count *= len(choice)
        _check_count(pattern, count)
        choices.append(choice)
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(pattern: str, inside: str) -> Sequence[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    _check_count(pattern, last - first + 1)
    return [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]


def _check_count(pattern: str, count: int) -> None:
    if not 1 <= count <= _MOST_SHARDS:
        raise TrainingError(
            f"shards {pattern!r}",
            expected=f"1 to {_MOST_SHARDS:,} names from its braces",
            got=str(count) if count < 10**12 else "more",
            remedy="Write the lower number first, as in {000..099}",
        )
