"""An evaluation's figures: every name is there, whole, and tells its curve apart."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hbsdk.evaluation.plots import make_plots

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "evaluation_baselines.json"
NAME = "quality-against-seconds"


@pytest.fixture(scope="module")
def summary():
    return json.loads(RESULTS.read_text("utf-8"))["summary"]


def names_outside(figure) -> list[str]:
    """The legend's names that the figure's edge cuts."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (legend,) = figure.legends
    whole = figure.bbox
    boxes = {text.get_text(): text.get_window_extent() for text in legend.get_texts()}
    return [
        name for name, box in boxes.items()
        if box.x0 < whole.x0 or box.x1 > whole.x1 or box.y0 < whole.y0 or box.y1 > whole.y1
    ]  # fmt: skip


def test_the_legend_is_whole_and_names_every_method_once(summary):
    figure = make_plots(summary)[NAME]
    assert names_outside(figure) == []
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == len(set(names))
    fitted = [name for name in summary["curves"] if name not in ("class-word", "hybridbooth")]
    for method in fitted:
        kind = method.partition("-budgets=")[0].partition("-learning_rate=")[0]
        assert any(name.startswith(kind) for name in names), method
    assert not any("budgets" in name for name in names)


def test_a_name_that_cannot_fit_is_seen_to_be_cut(summary):
    changed = deepcopy(summary)
    changed["curves"]["textual-inversion-initializer=" + "x" * 300] = summary["curves"]["probe"]
    assert names_outside(make_plots(changed)[NAME])


def test_methods_differ_in_colour_or_marker(summary):
    axes = make_plots(summary)[NAME].axes[0]
    handles, names = axes.get_legend_handles_labels()
    styles = {}
    for handle, name in zip(handles, names, strict=True):
        line = handle[0] if isinstance(handle, tuple) else handle
        line = line.lines[0] if hasattr(line, "lines") else line
        style = (line.get_color(), line.get_marker(), line.get_linestyle())
        assert style not in styles, (name, styles.get(style))
        styles[style] = name
