"""Statistics of measured seconds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def summary(samples_s: Sequence[float]) -> dict[str, Any]:
    """Return runs, median, mean and 95th percentile of at least one sample, and the samples."""
    return {
        "runs": len(samples_s),
        "median_s": statistics.median(samples_s),
        "mean_s": statistics.fmean(samples_s),
        "p95_s": percentile(samples_s, 95),
        "samples_s": list(samples_s),
    }


def share_summary(samples: Sequence[float]) -> dict[str, Any]:
    """Return the median of at least one share (a number without unit), and the samples."""
    return {"runs": len(samples), "median": statistics.median(samples), "samples": list(samples)}


def percentile(samples: Sequence[float], percent: int) -> float:
    """Return a percentile, 1..99, between the two nearest samples on a line."""
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]


def linear_fit(numbers: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Return the least-squares line through at least two points.

    Returns:
        seconds_each and seconds_fixed of `seconds = fixed + each * number`, and
        largest_residual: the largest distance from the line, as a share of the largest time.
    """
    each, fixed = statistics.linear_regression(numbers, seconds)
    distances = [
        abs(second - fixed - each * number) for number, second in zip(numbers, seconds, strict=True)
    ]
    return {
        "seconds_each": each,
        "seconds_fixed": fixed,
        "largest_residual": max(distances) / max(seconds),
    }
