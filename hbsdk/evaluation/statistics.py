"""How sure a mean over subjects is, and whether two methods differ on the same subjects.

The subject is the unit that is drawn at random: pictures of one subject are alike, so they are
averaged before anything here sees them. Resamples are drawn from a fixed seed, so that the same
rows always give the same intervals.

The intervals are those of `scipy.stats.bootstrap` with method="percentile", which the tests compare
them with. It is not called since it draws resamples anew in each call: here one draw serves every
metric, both methods of a pair, and a ratio's numerator and denominator, so that figures of the
same subjects move together; and they stay as published however scipy's own draws may change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
_SAME_WITHIN = 1e-12  # rounding of means over the same pictures in another order is no difference


@dataclass(frozen=True)
class Interval:
    """A mean over subjects and its bootstrap interval.

    Attributes:
        mean: over `count` subjects.
        low: lower end of the 95 % interval; None with one subject, which says nothing of others.
        high: upper end, likewise.
        count: subjects.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same subjects.

    Attributes:
        first: mean of the first method over the subjects that both have.
        second: mean of the second.
        difference: first - second, averaged over subjects.
        relative: `difference` as a share of `second`, resampled together; None where the second
            mean, or that of any resample, is not above zero.
        p_value: of Wilcoxon's signed-rank test, two-sided; 1 where no subject differs.
        higher: subjects of which the first method's value is higher.
        lower: subjects of which it is lower.
    """

    first: float
    second: float
    difference: Interval
    relative: Interval | None
    p_value: float
    higher: int
    lower: int


@lru_cache(maxsize=4)
def _resampled_shares(count: int, resamples: int, seed: int) -> Array:
    """The weight of each subject in each resample, (resamples, count); rows sum to 1."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(count, np.full(count, 1.0 / count), size=resamples)
    shares: Array = counts / count
    shares.flags.writeable = False
    return shares


def mean_interval(
    values: Sequence[float] | Array, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the mean over subjects with its 95 % percentile bootstrap interval.

    Args:
        values: (S,) one finite number a subject.
        resamples: how often S subjects are drawn from the S with replacement.
        seed: of the resamples; subjects of one number are resampled alike for every metric.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite.
    """
    checked = _checked(values)
    means = _resampled_shares(len(checked), resamples, seed) @ checked
    return _interval(float(checked.mean()), means, len(checked))


def compare(
    first: Sequence[float] | Array,
    second: Sequence[float] | Array,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two methods on the same subjects, in the same order.

    Args:
        first: (S,) one number a subject.
        second: (S,) the other method's.
        resamples: how often S subjects are drawn from the S with replacement.
        seed: of the resamples.

    Raises:
        ValueError: an array is empty, not finite, or the two differ in length.
    """
    ours, theirs = _checked(first), _checked(second)
    if len(ours) != len(theirs):
        raise ValueError(f"expected as many subjects in both, got {len(ours)} and {len(theirs)}")
    changes = ours - theirs
    changes[np.abs(changes) < _SAME_WITHIN] = 0.0
    shares = _resampled_shares(len(ours), resamples, seed)
    means = shares @ changes
    bases = shares @ theirs
    base = float(theirs.mean())
    comparable = base > 0.0 and bool(np.all(bases > 0.0))
    return Comparison(
        first=float(ours.mean()),
        second=base,
        difference=_interval(float(changes.mean()), means, len(changes)),
        relative=(
            _interval(float(changes.mean()) / base, means / bases, len(changes))
            if comparable
            else None
        ),
        p_value=_signed_rank_p(changes),
        higher=int((changes > 0.0).sum()),
        lower=int((changes < 0.0).sum()),
    )


def _checked(values: Sequence[float] | Array) -> Array:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"expected one finite number a subject, got an array of {array.shape}")
    return array


def _interval(mean: float, resampled: Array, count: int) -> Interval:
    if count < 2:
        return Interval(mean, None, None, count)
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(resampled, (tail, 1.0 - tail))
    return Interval(mean, float(low), float(high), count)


def _signed_rank_p(changes: Array) -> float:
    from scipy.stats import wilcoxon

    moved = changes[changes != 0.0]  # Wilcoxon's own treatment of ties; scipy has no p for none
    return float(wilcoxon(moved).pvalue) if len(moved) else 1.0
