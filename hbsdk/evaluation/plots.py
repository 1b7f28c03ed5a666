"""The figures of an evaluation's report, drawn from its summary."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from hbsdk.evaluation.claims import ABLATIONS, FULL, METRIC_NAMES, PROBE, is_baseline
from hbsdk.evaluation.results import CEILING, NO_PERSONALIZATION
from hbsdk.options import PersonalizeOptions

Summary = Mapping[str, Any]
# Okabe and Ito's colours, which stay apart for colour-blind eyes; markers tell them apart in print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C510A")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_CEILING, _FLOOR, _OTHER = "#555555", "#999999", "#BBBBBB"
_STYLE: Any = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222", "axes.titlesize": 10.0, "axes.titleweight": "bold",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.8,
    "xtick.color": "#444444", "ytick.color": "#444444", "legend.frameon": False,
    "svg.fonttype": "path", "svg.hashsalt": "hbsdk",
}  # fmt: skip
_LEGEND_LETTERS = 145  # that fit side by side below two panels
_HANDLE_LETTERS = 8
_LEGEND_ROW_INCHES = 0.2
_LEAST_SECONDS = 1e-3  # a fit that takes no time has no place on a log axis


def make_plots(summary: Summary) -> dict[str, Figure]:
    """Draw what the figures allow; a plot that would be empty is left out.

    Args:
        summary: what `hbsdk.evaluation.summary.summarise` returns.

    Returns:
        File stem -> figure: "quality-against-seconds", "ablations", "factors".
    """
    with rc_context(_STYLE):
        made = {
            "quality-against-seconds": _quality_against_seconds(summary),
            "ablations": _ablations(summary),
            "factors": _factors(summary),
        }
    return {name: figure for name, figure in made.items() if figure is not None}


def encode(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file: "svg" (letters as outlines, no date in it) or "png".

    Args:
        figure: of `make_plots`.
        kind: "svg" or "png".
    """
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    with rc_context(_STYLE):
        metadata = {"Date": None, "Creator": "hbsdk"} if kind == "svg" else {"Software": "hbsdk"}
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata, facecolor="white")
    return buffer.getvalue()


def _quality_against_seconds(summary: Summary) -> Figure | None:
    """One panel a metric, one line a method, on a log axis of seconds."""
    curves = {
        method: points
        for method, points in summary["curves"].items()
        if method in (FULL, PROBE) or (is_baseline(method) and method != NO_PERSONALIZATION)
    }
    metrics = _known(("dino_i", "attributes"), [one for some in curves.values() for one in some])
    if not metrics:
        return None
    order = sorted(curves, key=lambda method: (method != FULL, method != PROBE))
    figure, panels = _panels(len(metrics), height=3.8)
    for axes, metric in zip(panels, metrics, strict=True):
        _levels(axes, summary, metric, along="x")
        for number, method in enumerate(order):
            _curve(axes, method, curves[method], metric, number)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("seconds to fit one subject (median, log)")
        axes.set_title(METRIC_NAMES[metric], loc="left")
    _legend(figure, panels[0])
    return figure


def _curve(
    axes: Axes, method: str, points: Sequence[Mapping[str, Any]], metric: str, number: int
) -> None:
    shown = [point for point in points if point[metric] is not None]
    values = [point[metric] for point in shown]
    axes.errorbar(
        [max(point["seconds"], _LEAST_SECONDS) for point in shown],
        [value["mean"] for value in values],
        yerr=_bars(values),
        label=_told(method), capsize=2.5, elinewidth=1.0,
        color=_COLOURS[number % len(_COLOURS)], marker=_MARKERS[number % len(_MARKERS)],
        linewidth=2.4 if method == FULL else 1.4, markersize=7.5 if method == FULL else 5.0,
        zorder=5 if method == FULL else 3,
    )  # fmt: skip


def _ablations(summary: Summary) -> Figure | None:
    """Table 1: one panel a metric, one bar a variant."""
    rows = list(_ablation_rows(summary))
    metrics = _known(("dino_i", "attributes", "clip_t"), [row for _, row in rows])
    if len(rows) < 2 or not metrics:
        return None
    figure, panels = _panels(len(metrics), height=1.7 + 0.42 * len(rows), share=True)
    for axes, metric in zip(panels, metrics, strict=True):
        _levels(axes, summary, metric, along="y")
        values = [row[metric] for _, row in rows]
        places = [place for place, value in enumerate(values) if value is not None]
        known = [value for value in values if value is not None]
        axes.barh(
            places, [value["mean"] for value in known], xerr=_bars(known), height=0.62,
            color=[_COLOURS[0] if place == 0 else _COLOURS[5] for place in places],
            error_kw={"ecolor": "#222222", "capsize": 2.5, "elinewidth": 1.0},
        )  # fmt: skip
        for place, value in zip(places, known, strict=True):
            axes.text(
                0.015, place, f"{value['mean']:.3f}", transform=axes.get_yaxis_transform(),
                va="center", ha="left", fontsize=8.5, fontweight="bold",
                color="white" if place == 0 else "#10222E",
            )  # fmt: skip
        axes.set_title(METRIC_NAMES[metric], loc="left")
        axes.grid(visible=False, axis="y")
        axes.set_xlim(left=0.0)
    panels[0].set_yticks(range(len(rows)), [name for name, _ in rows])
    panels[0].invert_yaxis()
    _legend(figure, panels[0])
    return figure


def _ablation_rows(summary: Summary) -> Iterator[tuple[str, Mapping[str, Any]]]:
    names = {FULL: "full", PROBE: "without refinement", **ABLATIONS}
    for method, told in names.items():
        row = standing_for(summary, method)
        if row is not None:
            yield told, row


def standing_for(summary: Summary, method: str) -> Mapping[str, Any] | None:
    """Return the entry of a method's default steps, or of its last snapshot; None without one.

    Args:
        summary: of `summarise`.
        method: its name.
    """
    rows = [row for row in summary["methods"] if row["method"] == method and row["pictures"]]
    steps = PersonalizeOptions().steps
    is_own = method == FULL or method in ABLATIONS
    return next(
        (row for row in rows if is_own and row["steps"] == steps), rows[-1] if rows else None
    )


def _factors(summary: Summary) -> Figure | None:
    """A bar a factor, with marks where others stand; the hardest factors at the bottom."""
    full = standing_for(summary, FULL)
    if full is None or not full["factors"]:
        return None
    factors = sorted(full["factors"], key=lambda name: -full["factors"][name]["mean"])
    values = [full["factors"][name] for name in factors]
    figure = Figure(figsize=(9.4, 1.5 + 0.24 * len(factors)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(
        range(len(factors)), [value["mean"] for value in values], xerr=_bars(values), height=0.62,
        color=_COLOURS[5], label=FULL,
        error_kw={"ecolor": "#222222", "capsize": 2.0, "elinewidth": 0.9},
    )  # fmt: skip
    for told, marks, marker, colour in _marks(summary):
        places = [place for place, name in enumerate(factors) if marks.get(name)]
        axes.scatter(
            [marks[factors[place]]["mean"] for place in places], places, label=told,
            marker=marker, color=colour, s=34, zorder=4, linewidths=0.8 if marker in "oD" else 1.6,
            edgecolors="white" if marker in "oD" else None,
        )  # fmt: skip
    axes.set_yticks(range(len(factors)), [name.replace("_", " ") for name in factors])
    axes.set_ylim(len(factors) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of pictures of which the judge reads the factor right")
    _legend(figure, axes)
    return figure


def _marks(summary: Summary) -> Iterator[tuple[str, Mapping[str, Any], str, str]]:
    probe, baseline = standing_for(summary, PROBE), _best_baseline(summary)
    floor = summary["floors"]["no personalization"]
    if summary["ceiling"]:
        yield f"{CEILING} (ceiling)", summary["ceiling"]["factors"], "|", "#000000"
    if probe is not None:
        yield PROBE, probe["factors"], "o", _COLOURS[1]
    if baseline is not None:
        yield _told(baseline["method"]), baseline["factors"], "D", _COLOURS[2]
    if floor is not None:
        yield "class word (floor)", floor["factors"], "x", "#444444"


def _best_baseline(summary: Summary) -> Mapping[str, Any] | None:
    """The baseline with the highest attribute accuracy at the largest budget swept."""
    methods = {row["method"] for row in summary["methods"] if is_baseline(row["method"])}
    last = [standing_for(summary, method) for method in sorted(methods - {NO_PERSONALIZATION})]
    known = [row for row in last if row is not None and row["attributes"]]
    return max(known, key=lambda row: row["attributes"]["mean"], default=None)


def _levels(axes: Axes, summary: Summary, metric: str, *, along: str) -> None:
    """The ceiling and the floors as lines across the panel."""
    floors = summary["floors"]
    for told, source, colour, style in (
        (f"{CEILING} (ceiling)", summary["ceiling"], _CEILING, (0, (6, 2))),
        ("class word (floor)", floors["no personalization"], _FLOOR, (0, (3, 2))),
        ("another identity (floor)", floors["another identity"], _OTHER, (0, (1, 1.5))),
    ):
        value = (source or {}).get(metric)
        if value is not None:
            draw = axes.axhline if along == "x" else axes.axvline
            draw(value["mean"], label=told, color=colour, linestyle=style, linewidth=1.5, zorder=2)


def _known(metrics: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [metric for metric in metrics if any(row[metric] is not None for row in rows)]


def _bars(values: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """How far each interval reaches below and above its mean; 0 where there is none."""
    ends = [
        (value["mean"], value["low"], value["high"])
        if value["low"] is not None
        else (value["mean"],) * 3
        for value in values
    ]
    # Equal values have an interval that rounding may put a hair beside their mean.
    return [max(0.0, mean - low) for mean, low, _ in ends], [
        max(0.0, high - mean) for mean, _, high in ends
    ]


def _panels(count: int, *, height: float, share: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9.4 if count > 1 else 6.0, height), layout="constrained")
    grid = figure.subplots(1, count, squeeze=False, sharey=share)
    return figure, list(grid[0])


def _legend(figure: Figure, axes: Axes) -> None:
    """All names below the panels, where nothing can be covered, in columns that fit."""
    handles, names = axes.get_legend_handles_labels()
    longest = max((len(name) for name in names), default=0)
    columns = max(1, min(len(names), _LEGEND_LETTERS // (longest + _HANDLE_LETTERS)))
    rows = -(-len(names) // columns)
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW_INCHES * (rows - 1))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=2.6)


def _told(method: str) -> str:
    """A method's name without its budgets, which are the points of its curve."""
    kind, *options = re.split(r"-(?=\w+=)", method)
    kept = [option for option in options if not option.startswith("budgets=")]
    return ", ".join([kind, *kept])
