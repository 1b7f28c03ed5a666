"""An evaluation's rows as figures: every method, its ceiling and floors, and what they decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hbsdk.errors import EvaluationError
from hbsdk.evaluation.claims import probe_key, reference_key
from hbsdk.evaluation.results import (
    CEILING,
    NO_PERSONALIZATION,
    Key,
    Made,
    Results,
    read_results,
)
from hbsdk.evaluation.statistics import CONFIDENCE, RESAMPLES
from hbsdk.evaluation.verdicts import verdicts

METRICS = ("dino_i", "clip_i", "clip_t", "attributes", "retrieved")
OF_OTHERS = ("dino_i_other", "clip_i_other")
COMPARED = ("dino_i", "attributes", "clip_t")
Pair = tuple[Key, Key]


def summarise(out: str | Path, pairs: Sequence[Pair] | None = None) -> dict[str, Any]:
    """Return the figures of an evaluation's folder; JSON-able.

    Args:
        out: the folder with run.json, pictures.jsonl and fits.jsonl.
        pairs: snapshots to compare, the first with the second; by default every method with
            "hybridbooth", and that with "probe".

    Returns:
        "methods": one entry a snapshot, each metric {"mean", "low", "high", "count"} over subjects,
        or None. "ceiling", "floors": the same of real pictures, of another identity and of no
        personalization. "comparisons", "curves" (quality against seconds), "made" (devices and
        commits of the fits), "verdicts" ("holds" is null where the rows cannot decide), "failures".

    Raises:
        EvaluationError: a file is missing, empty or damaged; a snapshot of `pairs` is not there.
    """
    return summarise_results(read_results(Path(out)), pairs)


def summarise_results(results: Results, pairs: Sequence[Pair] | None = None) -> dict[str, Any]:
    """Return the figures of rows that are read already; see `summarise`.

    Args:
        results: of `read_results`.
        pairs: as of `summarise`.
    """
    drawn = {key: rows for key, rows in results.pictures.items() if key[0] != CEILING}
    rows = [row for some in (drawn or results.pictures).values() for row in some]
    return {
        "subjects": len({row.subject for row in rows}),
        "prompts": len({row.prompt for row in rows}),
        "seeds": len({row.seed for row in rows}),
        "interval": {"confidence": CONFIDENCE, "resamples": RESAMPLES, "resampled": "subjects"},
        "methods": [_method(results, key) for key in results.keys if key[0] != CEILING],
        "ceiling": _ceiling(results),
        "floors": _floors(results),
        "comparisons": _comparisons(results, default_pairs(results) if pairs is None else pairs),
        "curves": _curves(results),
        "made": [list(place) for place in _places(results)],
        "verdicts": [asdict(verdict) for verdict in verdicts(results)],
        "failures": [
            {"method": row.method, "steps": row.steps, "subject": row.subject, "error": row.failed}
            for row in results.failures()
        ],
    }


def _places(results: Results) -> list[Made]:
    """Where and in which commits all fits were made."""
    return sorted({place for key in results.keys for place in results.made(key)}, key=repr)


def default_pairs(results: Results) -> list[Pair]:
    """Return ("hybridbooth", "probe"), then every other snapshot with "hybridbooth".

    Args:
        results: of `read_results`.
    """
    full, probe = reference_key(results), probe_key(results)
    if full is None:
        return []
    first = [] if probe is None or probe == full else [(full, probe)]
    others = [key for key in results.pictures if key not in (full, probe) and key[0] != CEILING]
    return first + [(key, full) for key in results.keys if key in others]


def _measured(results: Results, key: Key, metrics: Sequence[str]) -> dict[str, Any]:
    found = {metric: results.interval(key, metric) for metric in metrics}
    return {
        metric: None if interval is None else asdict(interval) for metric, interval in found.items()
    }


def _method(results: Results, key: Key) -> dict[str, Any]:
    rows, fits = results.pictures.get(key, ()), results.fits.get(key, ())
    done = [row for row in fits if row.failed is None]
    seconds = [row.seconds for row in done]
    return {
        "method": key[0],
        "steps": key[1],
        "subjects": len({row.subject for row in rows}),
        "pictures": len(rows),
        **_measured(results, key, (*METRICS, *OF_OTHERS)),
        "factors": _factors(results, key),
        "fits": len(fits),
        "failed": len(fits) - len(done),
        "seconds_median": float(np.median(seconds)) if seconds else None,
        "seconds_p95": float(np.percentile(seconds, 95)) if seconds else None,
        "draw_seconds_median": float(np.median([r.draw_seconds for r in done])) if done else None,
        "peak_bytes": max((row.peak_bytes for row in done), default=None),
    }


def _factors(results: Results, key: Key) -> dict[str, Any]:
    rows = results.pictures.get(key, ())
    names = dict.fromkeys(name for row in rows for name in row.attribute_values or {})
    measured = _measured(results, key, [f"attribute_values.{name}" for name in names])
    return {name: measured[f"attribute_values.{name}"] for name in names}


def _ceiling(results: Results) -> dict[str, Any] | None:
    snapshots = results.snapshots(CEILING)
    if not snapshots:
        return None
    (key, *_) = snapshots
    return {
        "prompts": len({row.prompt for row in results.pictures[key]}),
        **_measured(results, key, METRICS),
        "factors": _factors(results, key),
    }


def _floors(results: Results) -> dict[str, Any]:
    """The floors of each metric: pictures of somebody else, and of the class alone."""
    shown = [*results.snapshots(CEILING), *filter(None, [reference_key(results)]), *results.keys]
    real = next((key for key in shown if key in results.pictures), None)
    floors: dict[str, Any] = {"another identity": None, "no personalization": None}
    if real is not None:
        others = _measured(results, real, OF_OTHERS)
        floors["another identity"] = {
            "of": real[0], "dino_i": others["dino_i_other"], "clip_i": others["clip_i_other"]
        }  # fmt: skip
    for key in results.snapshots(NO_PERSONALIZATION)[:1]:
        floors["no personalization"] = {
            **_measured(results, key, METRICS), "factors": _factors(results, key)
        }  # fmt: skip
    return floors


def _comparisons(results: Results, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    for key in (key for pair in pairs for key in pair):
        if key not in results.pictures:
            known = ", ".join(f"{method} {steps}" for method, steps in results.pictures)
            raise EvaluationError(
                f"comparison with {key[0]} after {key[1]} steps",
                expected=f"one of {known}",
                got="a snapshot that drew no picture",
                remedy="Run `hbsdk evaluate` with this method too, or compare another",
            )
    listed = []
    for first, second in pairs:
        found = {metric: results.compare(first, second, metric) for metric in COMPARED}
        listed.append({
            "first": {"method": first[0], "steps": first[1]},
            "second": {"method": second[0], "steps": second[1]},
            **{metric: None if one is None else asdict(one) for metric, one in found.items()},
        })  # fmt: skip
    return listed


def _curves(results: Results) -> dict[str, list[dict[str, Any]]]:
    """Quality against seconds of every method that was fitted, snapshots ascending."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for key in results.keys:
        seconds = results.seconds(key)
        if key in results.pictures and seconds is not None:
            point = {"steps": key[1], "seconds": seconds, **_measured(results, key, METRICS)}
            curves.setdefault(key[0], []).append(point)
    return curves
