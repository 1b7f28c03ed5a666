"""What a verdict is made of: which snapshots stand for a method, and rules over comparisons.

A claim "above" holds if the 95 % interval of the paired difference lies above zero, and is refuted
if it lies at or below zero. A claim "not below" is refuted if the interval lies below zero, and
holds if it lies above a loss of 2 % of the value. In between, the rows cannot decide. There is no
correction for the number of claims.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hbsdk.evaluation.results import NO_PERSONALIZATION, Key, Results
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
_BASELINES = ("textual-inversion", "dreambooth", "custom-diffusion")  # and what begins like these
METRIC_NAMES = {
    "dino_i": "DINO-I", "attributes": "Attribute accuracy", "clip_t": "CLIP-T",
    "clip_i": "CLIP-I", "retrieved": "Retrieval",
}  # fmt: skip
IDENTITY_METRICS = ("dino_i", "attributes")
MAX_LOSS = 0.02  # of its value: what CLIP-T may lose. Source: issue 4
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
    """Return a snapshot's name for people: "textual-inversion, 500 steps".

    Args:
        key: the snapshot.
    """
    method, steps = key
    return f"{method}, {steps} step{'s' if steps != 1 else ''}" if steps else method


def reference_key(results: Results, method: str = FULL) -> Key | None:
    """Return the snapshot of a method that stands for it.

    It is that of `PersonalizeOptions().steps`, hbsdk's default, or the last one where there is no
    such snapshot; None if the method drew nothing.

    Args:
        results: the rows.
        method: hbsdk's own, or an ablation of it.
    """
    snapshots = results.snapshots(method)
    default = (method, PersonalizeOptions().steps)
    return default if default in snapshots else next(reversed(snapshots), None)


def final_key(results: Results, method: str) -> Key | None:
    """Return a method's snapshot at its full budget; hbsdk's own at its default steps.

    Args:
        results: the rows.
        method: any.
    """
    if method == FULL or method in ABLATIONS:
        return reference_key(results, method)
    return next(reversed(results.snapshots(method)), None)


def probe_key(results: Results) -> Key | None:
    """Return the snapshot without refinement: the method "probe", or hbsdk's own at 0 steps.

    Args:
        results: the rows.
    """
    return final_key(results, PROBE) or ((FULL, 0) if (FULL, 0) in results.pictures else None)


def is_baseline(method: str) -> bool:
    """Whether it is one of the methods that a user would otherwise pick.

    Args:
        method: its name.
    """
    return method == NO_PERSONALIZATION or method.startswith(_BASELINES)


def above(comparison: Comparison) -> bool | None:
    """The rule of "first is above second".

    Args:
        comparison: of first with second.
    """
    low, high = comparison.difference.low, comparison.difference.high
    if low is None or high is None:
        return None
    return True if low > 0.0 else False if high <= 0.0 else None


def not_below(comparison: Comparison) -> bool | None:
    """The rule of "first is not below second".

    Args:
        comparison: of first with second.
    """
    low, high = comparison.difference.low, comparison.difference.high
    if low is None or high is None:
        return None
    if high < 0.0:
        return False
    return True if low >= -MAX_LOSS * abs(comparison.second) else None


def rises(comparison: Comparison) -> bool | None:
    """The rule of "rises significantly": what is not significant does not hold.

    Args:
        comparison: of after with before.
    """
    low = comparison.difference.low
    return None if low is None else low > 0.0


def loses_little(comparison: Comparison) -> bool | None:
    """The rule of "falls by no more than 2 % of its value", however surely it falls.

    Args:
        comparison: of after with before.
    """
    relative = comparison.relative
    if relative is None or relative.low is None or relative.high is None:
        return None
    return True if relative.low >= -MAX_LOSS else False if relative.high < -MAX_LOSS else None


def decide(
    topic: str,
    claim: str,
    results: Results,
    first: Key,
    second: Key,
    metric: str,
    rule: Rule,
    *,
    note: str = "",
    numbers: Mapping[str, Any] | None = None,
) -> Iterator[Verdict]:
    """Yield the verdict on two snapshots, if any subject has the metric of both.

    Args:
        topic: what the claim belongs to.
        claim: a sentence.
        results: the rows.
        first: the snapshot that the claim is about.
        second: the one that it is compared with.
        metric: that is compared.
        rule: what decides.
        note: what else to say of it.
        numbers: further figures, JSON-able.
    """
    comparison = results.compare(first, second, metric)
    if comparison is None:
        return
    because = told_difference(comparison)
    yield Verdict(
        topic, claim, rule(comparison), f"{because}; {note}" if note else because,
        {"metric": metric, "first": list(first), "second": list(second),
         "comparison": asdict(comparison), **(numbers or {})},
    )  # fmt: skip


def told_difference(comparison: Comparison) -> str:
    """Return a comparison in words.

    Args:
        comparison: of any two.
    """
    difference = comparison.difference
    ends = "" if difference.low is None else f" [{difference.low:+.3f}, {difference.high:+.3f}]"
    share = "" if comparison.relative is None else f", {comparison.relative.mean:+.1%} of its value"
    return (
        f"{comparison.first:.3f} against {comparison.second:.3f}: {difference.mean:+.3f}{ends}"
        f"{share}, p {told_p(comparison.p_value)}, "
        f"{comparison.higher} of {difference.count} subjects higher, {comparison.lower} lower"
    )


def told_p(p_value: float) -> str:
    """Return a p-value as one writes it after "p".

    Args:
        p_value: 0..1.
    """
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"
