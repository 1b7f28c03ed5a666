"""Whether hbsdk's method is ahead of the baselines: at equal wall time, and in a fortieth of it.

Seconds are compared where no two fits are known to be of different devices; a fit that was kept
from an earlier run may have been made elsewhere. Commits are told, and are no reason against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hbsdk.evaluation.claims import (
    FULL,
    IDENTITY_METRICS,
    METRIC_NAMES,
    Rule,
    Verdict,
    above,
    decide,
    final_key,
    is_baseline,
    label,
    loses_little,
    not_below,
)
from hbsdk.evaluation.results import NO_PERSONALIZATION, Key, Made, Results
from hbsdk.evaluation.statistics import Comparison

MIN_SPEED_UP = 40.0  # against the best baseline. Source: issue 4
LARGEST_BUDGET = "at the largest budget swept"


def at_equal_time(results: Results, full: Key) -> Iterator[Verdict]:
    """Yield verdicts against each baseline's best snapshot that is no slower.

    Args:
        results: the rows.
        full: the snapshot that stands for hbsdk's method.
    """
    ours = results.seconds(full)
    if ours is None:
        return
    for method in dict.fromkeys(method for method, _ in results.keys if is_baseline(method)):
        timed = [(results.seconds(key), key) for key in results.snapshots(method)]
        known = [(seconds, key) for seconds, key in timed if seconds is not None]
        if not known:
            continue
        quick = [key for seconds, key in known if seconds <= ours]
        # Without one, the quickest stands in: it got more time, so being ahead of it decides.
        for metric in IDENTITY_METRICS:
            best = _best(results, quick or [min(known)[1]], metric)
            if best is None:
                continue
            yield from _timed(
                "Baselines at equal wall time",
                f"{METRIC_NAMES[metric]}: ahead of {method} at equal wall time",
                results, full, best, metric,
                rule=above if quick else _ahead_of_more_time,
                note="" if quick else ", which is its quickest",
            )  # fmt: skip


def _ahead_of_more_time(comparison: Comparison) -> bool | None:
    return above(comparison) or None  # being behind one that got more time decides nothing


def at_any_budget(results: Results, full: Key) -> Iterator[Verdict]:
    """Yield verdicts against the best baseline of each metric.

    The best is looked for among the last snapshots, each method's largest budget that was swept,
    and then among all. Beside each stands CLIP-T, since a method that draws its photo again and
    again is like the subject whatever the prompt says.

    Args:
        results: the rows.
        full: the snapshot that stands for hbsdk's method, or its probe alone.
    """
    methods = {
        method for method, _ in results.keys if is_baseline(method) and method != NO_PERSONALIZATION
    }
    last = [key for method in methods if (key := final_key(results, method)) is not None]
    every = [key for method in methods for key in results.snapshots(method)]
    for told, candidates in ((LARGEST_BUDGET, last), ("at any budget swept", every)):
        for metric in IDENTITY_METRICS:
            best = _best(results, sorted(candidates), metric)
            if best is not None:
                yield from _against_the_best(results, full, best, metric, told)


def _against_the_best(
    results: Results, full: Key, best: Key, metric: str, told: str
) -> Iterator[Verdict]:
    topic = "Baselines at any budget"
    who = "" if full[0] == FULL else f"{label(full)} "
    ours, theirs = results.seconds(full), results.seconds(best)
    if ours is None or theirs is None:
        return
    ratio = theirs / ours if ours > 0.0 else float("inf")

    def rule(comparison: Comparison) -> bool | None:
        return False if ratio < MIN_SPEED_UP else not_below(comparison)

    yield from _timed(
        topic,
        f"{METRIC_NAMES[metric]}: {who}not below the best baseline {told}, in at most 1/40 of its "
        "time",
        results, full, best, metric, rule=rule, note=f": 1/{ratio:.3g} of its time",
        more=f"; that baseline {_following_prompts(results, full, best)}",
    )  # fmt: skip
    yield from decide(
        topic,
        f"CLIP-T: {who}not below that of the baseline best in {METRIC_NAMES[metric]} {told}",
        results, full, best, "clip_t", not_below, note=f"of {_told(results, best)}",
    )  # fmt: skip


def _timed(
    topic: str,
    claim: str,
    results: Results,
    first: Key,
    second: Key,
    metric: str,
    *,
    rule: Rule,
    note: str,
    more: str = "",
) -> Iterator[Verdict]:
    """As `decide`, of a claim that speaks of time: left open where times cannot be compared.

    `note` is said right after the two times, `more` whatever they are.
    """
    numbers: dict[str, Any] = {"learning_rate": _learning_rate(results, second)}
    made = [results.made(first), results.made(second)]
    if len({device for places in made for device, _ in places if device is not None}) > 1:
        told = " and ".join(
            f"{label(key)} was fitted {_place(places)}"
            for key, places in zip((first, second), made, strict=True)
        )
        numbers["made"] = {
            name: [list(place) for place in places]
            for name, places in zip(("first", "second"), made, strict=True)
        }
        yield from decide(
            topic, claim, results, first, second, metric, lambda _: None,
            note=f"not comparable: {told}{more}", numbers=numbers,
        )  # fmt: skip
        return
    ours, theirs = results.seconds(first), results.seconds(second)
    numbers["seconds"] = {"first": ours, "second": theirs}
    yield from decide(
        topic, claim, results, first, second, metric, rule,
        note=f"{ours:.3g} s against {theirs:.3g} s of {_told(results, second)}{note}{more}",
        numbers=numbers,
    )  # fmt: skip


def _place(places: Sequence[Made]) -> str:
    return " and ".join(
        f"on {device or 'an unknown device'} in commit {(code or 'unknown')[:12]}"
        for device, code in places
    )


def _told(results: Results, key: Key) -> str:
    """A baseline's snapshot with the learning rate that it was given."""
    rate = _learning_rate(results, key)
    return label(key) if rate is None else f"{label(key)} at learning rate {rate:g}"


def _learning_rate(results: Results, key: Key) -> float | None:
    methods = results.run.get("methods")
    settings = methods.get(key[0]) if isinstance(methods, dict) else None
    rate = settings.get("learning_rate") if isinstance(settings, dict) else None
    return rate if isinstance(rate, (int, float)) else None


def _following_prompts(results: Results, full: Key, best: Key) -> str:
    """Whether a baseline still does what its prompts say, by its CLIP-T beside hbsdk's."""
    comparison = results.compare(best, full, "clip_t")
    if comparison is None:
        return "has no CLIP-T"
    told = {
        True: "follows prompts as well",
        False: "follows prompts less",
        None: "may or may not follow prompts as well",
    }[loses_little(comparison)]
    figures = f"CLIP-T {comparison.first:.3f} against {comparison.second:.3f} of {FULL}"
    return f"{told} ({figures})"


def _best(results: Results, keys: list[Key], metric: str) -> Key | None:
    """The snapshot of the highest mean, the earlier of two alike."""
    means = [(key, results.interval(key, metric)) for key in keys]
    known = [(key, interval.mean) for key, interval in means if interval is not None]
    return max(known, key=lambda pair: pair[1])[0] if known else None
