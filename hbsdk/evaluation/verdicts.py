"""What the project set out to show, each claim decided by the rows at hand or left open.

A claim "above" holds if the 95 % interval of the paired difference lies above zero, and is refuted
if it lies at or below zero. A claim "not below" is refuted if the interval lies below zero, and
holds if it lies above a loss of 2 % of the value. In between, the rows cannot decide. There is no
correction for the number of claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from hbsdk.evaluation.results import CEILING, NO_PERSONALIZATION, Key, Results
from hbsdk.evaluation.statistics import Comparison
from hbsdk.options import PersonalizeOptions

FULL = "hybridbooth"
PROBE = "probe"
ABLATIONS = {
    "without-probe": "without the probe",
    "without-dino": "without DINO",
    "without-clip": "without CLIP",
    "without-mask": "without the mask loss",
}
BASELINES = ("textual-inversion", "dreambooth", "custom-diffusion")  # and what begins like these
OUT_OF_DOMAIN = ("world-out", "validation-out")  # sets of identities with values never trained on
METRIC_NAMES = {
    "dino_i": "DINO-I", "attributes": "Attribute accuracy", "clip_t": "CLIP-T",
    "clip_i": "CLIP-I", "retrieved": "Retrieval",
}  # fmt: skip
IDENTITY_METRICS = ("dino_i", "attributes")
MAX_LOSS = 0.02  # of its value: what CLIP-T may lose. Source: issue 4
MIN_SPEED_UP = 40.0  # against the best baseline at its full budget. Source: issue 4
MIN_SUBJECTS, MIN_PROMPTS, MIN_SEEDS = 64, 8, 2  # Source: issue 4
Rule = Callable[[Comparison], "bool | None"]


@dataclass(frozen=True)
class Verdict:
    """A claim, and whether the rows bear it out.

    Attributes:
        topic: what it belongs to.
        claim: a sentence.
        holds: True, False, or None where the rows cannot decide.
        because: the figures in words.
        numbers: the figures, JSON-able.
    """

    topic: str
    claim: str
    holds: bool | None
    because: str
    numbers: dict[str, Any]


def label(key: Key) -> str:
    """Return a snapshot's name for people: "textual-inversion, 500 steps"."""
    method, steps = key
    return f"{method}, {steps} step{'s' if steps != 1 else ''}" if steps else method


def reference_key(results: Results, method: str = FULL) -> Key | None:
    """Return the snapshot of a method that stands for it.

    It is that of `PersonalizeOptions().steps`, hbsdk's default, or the last one where there is no
    such snapshot; None if the method drew nothing.
    """
    snapshots = results.snapshots(method)
    default = (method, PersonalizeOptions().steps)
    return default if default in snapshots else next(reversed(snapshots), None)


def final_key(results: Results, method: str) -> Key | None:
    """Return a method's snapshot at its full budget; hbsdk's own at its default steps."""
    if method == FULL or method in ABLATIONS:
        return reference_key(results, method)
    return next(reversed(results.snapshots(method)), None)


def probe_key(results: Results) -> Key | None:
    """Return the snapshot without refinement: the method "probe", or hbsdk's own at 0 steps."""
    return final_key(results, PROBE) or ((FULL, 0) if (FULL, 0) in results.pictures else None)


def is_baseline(method: str) -> bool:
    """Whether it is one of the methods that a user would otherwise pick."""
    return method == NO_PERSONALIZATION or method.startswith(BASELINES)


def above(comparison: Comparison) -> bool | None:
    """The rule of "first is above second"."""
    low, high = comparison.difference.low, comparison.difference.high
    if low is None or high is None:
        return None
    return True if low > 0.0 else False if high <= 0.0 else None


def not_below(comparison: Comparison) -> bool | None:
    """The rule of "first is not below second"."""
    low, high = comparison.difference.low, comparison.difference.high
    if low is None or high is None:
        return None
    if high < 0.0:
        return False
    return True if low >= -MAX_LOSS * abs(comparison.second) else None


def rises(comparison: Comparison) -> bool | None:
    """The rule of "rises significantly": what is not significant does not hold."""
    low = comparison.difference.low
    return None if low is None else low > 0.0


def loses_little(comparison: Comparison) -> bool | None:
    """The rule of "falls by no more than 2 % of its value", however surely it falls."""
    relative = comparison.relative
    if relative is None or relative.low is None or relative.high is None:
        return None
    return True if relative.low >= -MAX_LOSS else False if relative.high < -MAX_LOSS else None


def verdicts(results: Results) -> list[Verdict]:
    """Return every claim of the issue's "It must show" that the rows say something about."""
    found = list(_protocol(results))
    full = reference_key(results)
    if full is not None:
        for claims in (_refinement, _ablations, _equal_time, _full_budget):
            found.extend(claims(results, full))
    return found


def _protocol(results: Results) -> Iterator[Verdict]:
    """Whether every method but the real pictures drew what the protocol asks for."""
    sizes = {}
    for key, rows in results.pictures.items():
        if key[0] != CEILING:
            columns = zip(*((row.subject, row.prompt, row.seed) for row in rows), strict=True)
            sizes[key] = tuple(len(set(column)) for column in columns)
    if not sizes:
        return
    least = [min(column) for column in zip(*sizes.values(), strict=True)]
    wanted = (MIN_SUBJECTS, MIN_PROMPTS, MIN_SEEDS)
    names = ("subjects", "prompts", "seeds")
    told, found = (
        " x ".join(f"{number} {name}" for number, name in zip(numbers, names, strict=True))
        for numbers in (wanted, least)
    )
    yield Verdict(
        topic="Protocol",
        claim=f"Every method drew at least {told}",
        holds=all(got >= most for got, most in zip(least, wanted, strict=True)),
        because=f"at least {found}",
        numbers=dict(zip(names, least, strict=True)),
    )


def _refinement(results: Results, full: Key) -> Iterator[Verdict]:
    probe, steps = probe_key(results), full[1]
    if probe is None or probe == full:
        return
    asked = "" if results.run.get("set") in OUT_OF_DOMAIN else " (asked for out of domain only)"
    for metric in IDENTITY_METRICS:
        name = METRIC_NAMES[metric]
        yield from _claim(
            "Refinement",
            f"{name}: with refinement not below without",
            results, full, probe, metric, not_below,
        )  # fmt: skip
        yield from _claim(
            "Refinement",
            f"{name}: rises significantly from probe to probe + {steps} steps{asked}",
            results, full, probe, metric, rises,
        )  # fmt: skip
    yield from _claim(
        "Refinement",
        f"CLIP-T: {steps} steps take at most 2 % of it",
        results, full, probe, "clip_t", loses_little,
    )  # fmt: skip


def _ablations(results: Results, full: Key) -> Iterator[Verdict]:
    """Table 1: full > each of the ablations, and the probe alone > refinement alone."""
    for metric in IDENTITY_METRICS:
        name = METRIC_NAMES[metric]
        for method, told in ABLATIONS.items():
            other = final_key(results, method)
            if other is not None:
                yield from _claim(
                    "Ablations", f"{name}: full above {told}", results, full, other, metric, above
                )
        probe, alone = probe_key(results), final_key(results, "without-probe")
        if probe is not None and alone is not None:
            yield from _claim(
                "Ablations",
                f"{name}: without refinement above without the probe",
                results, probe, alone, metric, above,
            )  # fmt: skip


def _equal_time(results: Results, full: Key) -> Iterator[Verdict]:
    """Against each baseline's best snapshot that is no slower."""
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
            rule = above if quick else _ahead_of_more_time
            theirs = results.seconds(best)
            yield from _claim(
                "Baselines at equal wall time",
                f"{METRIC_NAMES[metric]}: ahead of {method} at equal wall time",
                results, full, best, metric, rule,
                note=f"{ours:.3g} s against {theirs:.3g} s of {label(best)}"
                + ("" if quick else ", which is its quickest"),
                seconds={"first": ours, "second": theirs},
            )  # fmt: skip


def _ahead_of_more_time(comparison: Comparison) -> bool | None:
    return above(comparison) or None  # being behind one that got more time decides nothing


def _full_budget(results: Results, full: Key) -> Iterator[Verdict]:
    """Against the best baseline at its full budget, and the best snapshot of any."""
    methods = {
        method for method, _ in results.keys if is_baseline(method) and method != NO_PERSONALIZATION
    }
    last = [key for method in methods if (key := final_key(results, method)) is not None]
    every = [key for method in methods for key in results.snapshots(method)]
    for told, candidates in (
        ("the best baseline at its full budget", last),
        ("the best snapshot of any baseline", every),
    ):
        for metric in IDENTITY_METRICS:
            yield from _in_a_fortieth(results, full, told, sorted(candidates), metric)


def _in_a_fortieth(
    results: Results, full: Key, told: str, candidates: list[Key], metric: str
) -> Iterator[Verdict]:
    ours, best = results.seconds(full), _best(results, candidates, metric)
    theirs = None if best is None else results.seconds(best)
    if best is None or ours is None or theirs is None:
        return
    ratio = theirs / ours if ours > 0.0 else float("inf")

    def rule(comparison: Comparison) -> bool | None:
        return False if ratio < MIN_SPEED_UP else not_below(comparison)

    yield from _claim(
        "Baselines at any budget",
        f"{METRIC_NAMES[metric]}: not below {told}, in at most 1/40 of its time",
        results, full, best, metric, rule,
        note=f"{ours:.3g} s against {theirs:.3g} s of {label(best)}: 1/{ratio:.3g}",
        seconds={"first": ours, "second": theirs},
    )  # fmt: skip


def _best(results: Results, keys: list[Key], metric: str) -> Key | None:
    """The snapshot of the highest mean, the earlier of two alike."""
    means = [(key, results.interval(key, metric)) for key in keys]
    known = [(key, interval.mean) for key, interval in means if interval is not None]
    return max(known, key=lambda pair: pair[1])[0] if known else None


def _claim(
    topic: str,
    claim: str,
    results: Results,
    first: Key,
    second: Key,
    metric: str,
    rule: Rule,
    *,
    note: str = "",
    seconds: dict[str, float | None] | None = None,
) -> Iterator[Verdict]:
    """The verdict on two snapshots, if any subject has the metric of both."""
    comparison = results.compare(first, second, metric)
    if comparison is None:
        return
    numbers: dict[str, Any] = {"metric": metric, "first": list(first), "second": list(second)}
    numbers["comparison"] = asdict(comparison)
    if seconds is not None:
        numbers["seconds"] = seconds
    because = told_difference(comparison)
    because = f"{because}; {note}" if note else because
    yield Verdict(topic, claim, rule(comparison), because, numbers)


def told_difference(comparison: Comparison) -> str:
    """Return a comparison in words."""
    difference = comparison.difference
    ends = "" if difference.low is None else f" [{difference.low:+.3f}, {difference.high:+.3f}]"
    share = "" if comparison.relative is None else f", {comparison.relative.mean:+.1%} of its value"
    return (
        f"{comparison.first:.3f} against {comparison.second:.3f}: {difference.mean:+.3f}{ends}"
        f"{share}, p {told_p(comparison.p_value)}, "
        f"{comparison.higher} of {difference.count} subjects higher, {comparison.lower} lower"
    )


def told_p(p_value: float) -> str:
    """Return a p-value as one writes it after "p"."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"
