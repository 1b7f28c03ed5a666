"""A report's stages as a figure: one bar a case, one part of it a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")


def stage_plot(data: Mapping[str, Any]) -> bytes | None:
    """Return a PNG of the median seconds of each case's stages; None where there are none.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    from hbsdk.evaluation.plots import encode

    cases = {name: case["stages"] for name, case in data["cases"].items() if case.get("stages")}
    if not cases:
        return None
    stages = list(dict.fromkeys(stage for case in cases.values() for stage in case))
    figure = Figure(figsize=(9.0, 1.6 + 0.5 * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(cases)
    for number, stage in enumerate(stages):
        seconds = [case.get(stage, {}).get("median_s", 0.0) for case in cases.values()]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.barh(list(cases), seconds, left=left, label=stage, color=colour, height=0.62)
        left = [start + width for start, width in zip(left, seconds, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds (medians)")
    axes.set_title(f"{data['question']}, {data['bundle']['name']}, {data['device']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=min(7, len(stages)), frameon=False)
    return encode(figure, "png")
