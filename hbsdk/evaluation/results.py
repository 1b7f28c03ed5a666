"""Reads what an evaluation wrote, and answers: which value has a method of a metric?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hbsdk.errors import EvaluationError
from hbsdk.evaluation.rows import FitRow, PictureRow
from hbsdk.evaluation.statistics import Comparison, Interval, compare, mean_interval

Key = tuple[str, int]
"""A method's name and the steps of its snapshot."""
Made = tuple[str | None, str | None]
"""The device and the commit of a fit; None where its row does not tell."""
Row = TypeVar("Row", PictureRow, FitRow)

CEILING = "real pictures"
NO_PERSONALIZATION = "class-word"
RESUME = "Run the same `hbsdk evaluate` command again: it goes on where it stopped"
ANEW = "Run `hbsdk evaluate` into an empty folder"


@dataclass(frozen=True)
class Results:
    """The rows of an evaluation.

    Attributes:
        run: what run.json says.
        pictures: of each method's snapshot, in the order of the file.
        fits: likewise.
    """

    run: Mapping[str, Any]
    pictures: Mapping[Key, tuple[PictureRow, ...]]
    fits: Mapping[Key, tuple[FitRow, ...]]

    @property
    def keys(self) -> list[Key]:
        """Every snapshot, methods in the order in which they were run, steps ascending."""
        order = list(dict.fromkeys(method for method, _ in (*self.pictures, *self.fits)))
        keys = {*self.pictures, *self.fits}
        return sorted(keys, key=lambda key: (order.index(key[0]), key[1]))

    def snapshots(self, method: str) -> list[Key]:
        """Return the snapshots of a method that drew pictures, steps ascending.

        Args:
            method: its name.
        """
        return sorted(key for key in self.pictures if key[0] == method)

    def by_subject(self, key: Key, metric: str) -> dict[str, float]:
        """Return the metric of each subject, averaged over its pictures.

        Args:
            key: the snapshot.
            metric: a field of `PictureRow`, or "attribute_values." and a factor's name.
        """
        name, _, factor = metric.partition(".")
        values: dict[str, list[float]] = {}
        for row in self.pictures.get(key, ()):
            value = getattr(row, name)
            if factor:
                value = (value or {}).get(factor)
            if value is not None:
                values.setdefault(row.subject, []).append(float(value))
        return {subject: math.fsum(some) / len(some) for subject, some in sorted(values.items())}

    def interval(self, key: Key, metric: str) -> Interval | None:
        """Return the metric's mean over subjects; None where no picture has it.

        Args:
            key: the snapshot.
            metric: as of `by_subject`.
        """
        values = self.by_subject(key, metric)
        return mean_interval(list(values.values())) if values else None

    def compare(self, first: Key, second: Key, metric: str) -> Comparison | None:
        """Compare on the subjects that both have; None where there are none.

        Args:
            first: a snapshot.
            second: the one that it is compared with.
            metric: as of `by_subject`.
        """
        ours, theirs = self.by_subject(first, metric), self.by_subject(second, metric)
        both = [subject for subject in ours if subject in theirs]
        if not both:
            return None
        return compare([ours[one] for one in both], [theirs[one] for one in both])

    def seconds(self, key: Key) -> float | None:
        """Return the median seconds of the fits that did not fail; None where there are none.

        Args:
            key: the snapshot.
        """
        seconds = [row.seconds for row in self.fits.get(key, ()) if row.failed is None]
        return float(np.median(seconds)) if seconds else None

    def made(self, key: Key) -> list[Made]:
        """Return on which devices and in which commits the fits that `seconds` tells of ran.

        Args:
            key: the snapshot.
        """
        made = {(row.device, row.commit) for row in self.fits.get(key, ()) if row.failed is None}
        return sorted(made, key=repr)

    def failures(self) -> list[FitRow]:
        """Return the fits that failed, in the order of `keys`."""
        return [
            row for key in self.keys for row in self.fits.get(key, ()) if row.failed is not None
        ]


def read_results(folder: Path) -> Results:
    """Read run.json, pictures.jsonl and fits.jsonl of an evaluation's folder.

    Args:
        folder: that `hbsdk evaluate` wrote.

    Raises:
        EvaluationError: a file is missing, empty or damaged, or has a row twice.
    """
    run = _json(folder / "run.json", _text(folder / "run.json"))
    if not isinstance(run, dict):
        raise EvaluationError(
            str(folder / "run.json"), expected="a JSON object", got="other JSON", remedy=RESUME
        )
    pictures = _rows(folder / "pictures.jsonl", PictureRow, ("subject", "prompt", "seed"))
    fits = _rows(folder / "fits.jsonl", FitRow, ("subject",))
    return Results(run=run, pictures=pictures, fits=fits)


def _text(path: Path) -> str:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or "bytes that are no text"
        raise EvaluationError(
            str(path), expected="what `hbsdk evaluate` writes", got=got, remedy=RESUME
        ) from error
    if not text.strip():
        raise EvaluationError(
            str(path), expected="what `hbsdk evaluate` writes", got="an empty file", remedy=RESUME
        )
    return text


def _json(what: Path | str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(
            str(what), expected="JSON", got=f"{text[:40]!r}: {error}", remedy=RESUME
        ) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _rows(path: Path, kind: type[Row], identity: tuple[str, ...]) -> dict[Key, tuple[Row, ...]]:
    """The rows of a file by snapshot, each `identity` once in a snapshot."""
    rows: dict[Key, dict[tuple[Any, ...], Row]] = {}
    for place, data in _lines(path):
        row = _row(place, kind, data)
        snapshot = rows.setdefault((row.method, row.steps), {})
        name = tuple(getattr(row, field) for field in identity)
        if name in snapshot:
            raise EvaluationError(
                place, expected="a row a picture or fit", got="a second one", remedy=ANEW
            )
        snapshot[name] = row
    return {key: tuple(snapshot.values()) for key, snapshot in rows.items()}


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            place = f"{path} line {number}"
            yield place, _json(place, line)


_CHECKS = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
    "float": lambda value: (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    ),
    "dict[str, int]": lambda value: (
        isinstance(value, dict) and all(one in (0, 1) for one in value.values())
    ),
}


def _row(place: str, kind: type[Row], data: Any) -> Row:
    """The row of a line's JSON object; fields that rows do not have are passed over."""
    if not isinstance(data, dict):
        raise EvaluationError(place, expected="a JSON object", got="other JSON", remedy=ANEW)
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in data and field.default is not MISSING:
            continue
        value = data.get(field.name)
        required, _, optional = str(field.type).partition(" | ")
        if not _CHECKS[required](value) and not (optional == "None" and value is None):
            raise EvaluationError(
                place, expected=f"{field.name}: {field.type}", got=repr(value), remedy=ANEW
            )
        values[field.name] = value
    return kind(**values)
