"""What the project set out to show, each claim decided by the rows at hand or left open.

The rules are those of `hbsdk.evaluation.claims`.
"""

from __future__ import annotations

from collections.abc import Iterator

from hbsdk.evaluation.against_baselines import at_any_budget, at_equal_time
from hbsdk.evaluation.claims import (
    ABLATIONS,
    IDENTITY_METRICS,
    METRIC_NAMES,
    PROBE,
    Verdict,
    above,
    decide,
    final_key,
    loses_little,
    not_below,
    probe_key,
    reference_key,
    rises,
)
from hbsdk.evaluation.results import CEILING, Key, Results
from hbsdk.evaluation.subjects import OUT_OF_DOMAIN

MIN_SUBJECTS, MIN_PROMPTS, MIN_SEEDS = 64, 8, 2  # Source: issue 4


def verdicts(results: Results) -> list[Verdict]:
    """Return every claim of the issue's "It must show" that the rows say something about.

    Args:
        results: of `read_results`.
    """
    found = list(_protocol(results))
    full = reference_key(results)
    if full is not None:
        for claims in (_refinement, _ablations, at_equal_time, at_any_budget):
            found.extend(claims(results, full))
        if (PROBE, 0) in results.pictures and full != (PROBE, 0):
            found.extend(at_any_budget(results, (PROBE, 0)))
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
        yield from decide(
            "Refinement",
            f"{name}: with refinement not below without",
            results, full, probe, metric, not_below,
        )  # fmt: skip
        yield from decide(
            "Refinement",
            f"{name}: rises significantly from probe to probe + {steps} steps{asked}",
            results, full, probe, metric, rises,
        )  # fmt: skip
    yield from decide(
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
                yield from decide(
                    "Ablations", f"{name}: full above {told}", results, full, other, metric, above
                )
        probe, alone = probe_key(results), final_key(results, "without-probe")
        if probe is not None and alone is not None:
            yield from decide(
                "Ablations",
                f"{name}: without refinement above without the probe",
                results, probe, alone, metric, above,
            )  # fmt: skip
