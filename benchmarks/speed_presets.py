"""What the options that trade quality for time cost: each against exact drawing, by subject.

    hbsdk evaluate --set world --method probe --seeds 2 -o /tmp/exact
    hbsdk evaluate --set world --method probe --seeds 2 -o /tmp/nine --drawing num_inference_steps=9
    python benchmarks/speed_presets.py /tmp/exact /tmp/nine --out benchmarks/results/FILE.json

An option may be part of a preset (hbsdk/speed.py) if DINO-I, attribute accuracy and CLIP-T all stay
within 1 % of exact drawing's, the lower end of their 95 % intervals included.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hbsdk.bench.machine import describe
from hbsdk.bench.report import write_result
from hbsdk.evaluation.results import Results, read_results
from hbsdk.evaluation.statistics import compare

METRICS = ("dino_i", "attributes", "clip_t")
MOST_LOST = 0.01  # of each metric's value


def compare_drawings(exact: Results, other: Results, method: str) -> dict[str, Any]:
    """Compare one method's pictures, drawn exactly and otherwise, on the subjects that both have.

    Returns:
        For each metric the means, the relative change with its 95 % interval, and the p-value of
        the paired test; and whether all of them are within 1 %.
    """
    found: dict[str, Any] = {"drawing": other.run["drawing"], "metrics": {}}
    for metric in METRICS:
        ours, theirs = (_by_subject(results, method, metric) for results in (other, exact))
        both = sorted(set(ours) & set(theirs))
        comparison = compare([ours[one] for one in both], [theirs[one] for one in both])
        found["subjects"] = len(both)
        found["metrics"][metric] = asdict(comparison)
    found["within_one_percent"] = all(
        one["relative"]["low"] >= -MOST_LOST for one in found["metrics"].values()
    )
    return found


def _by_subject(results: Results, method: str, metric: str) -> dict[str, float]:
    (key,) = (key for key in results.keys if key[0] == method)
    return dict(results.by_subject(key, metric))


def main() -> None:
    """Compare the folders, print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exact", type=Path, help="the folder that `hbsdk evaluate` wrote")
    parser.add_argument("others", type=Path, nargs="+", help="those with --drawing")
    parser.add_argument("--method", default="probe")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    exact = read_results(arguments.exact)
    rows = [
        compare_drawings(exact, read_results(folder), arguments.method)
        for folder in arguments.others
    ]
    for row in rows:
        shares = (
            f"{name} {one['relative']['mean']:+.2%} [{one['relative']['low']:+.2%}, "
            f"{one['relative']['high']:+.2%}]"
            for name, one in row["metrics"].items()
        )
        print(row["drawing"], *shares, "within 1 %" if row["within_one_percent"] else "", sep="  ")
    report = {**describe(), "exact": exact.run["drawing"], "method": arguments.method, "rows": rows}
    write_result(arguments.out, (json.dumps(report, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
