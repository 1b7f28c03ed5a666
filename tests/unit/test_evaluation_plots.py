"""An evaluation's figures: every name is there, whole, and tells its curve apart."""

from __future__ import annotations

from copy import deepcopy

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hbsdk.evaluation.plots import make_plots
from tests.evaluation_rows import CLASS_WORD, FULL, PROBE, REAL, summary_of

NAME = "quality-against-seconds"
# Names as long as they become, and what the legend says of each.
FITTED = {
    "textual-inversion-learning_rate=0.002-budgets=10+30+100+300":
        "textual-inversion, learning_rate=0.002",
    "dreambooth-learning_rate=0.001-budgets=10+30+100-class_pictures=8":
        "dreambooth, learning_rate=0.001, class_pictures=8",
    "dreambooth-lora-learning_rate=0.0001-budgets=10+30": "dreambooth-lora, learning_rate=0.0001",
    "dreambooth-lora-learning_rate=0.004-budgets=10+30": "dreambooth-lora, learning_rate=0.004",
    "custom-diffusion-learning_rate=5e-05-budgets=30+250-class_pictures=8-augment=False":
        "custom-diffusion, learning_rate=5e-05, class_pictures=8, augment=False",
    "custom-diffusion": "custom-diffusion",
}  # fmt: skip


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    effects = {
        REAL: (0.3, 0.25, 0.02, None),
        CLASS_WORD: (-0.2, -0.3, 0.03, 0.0),
        PROBE: (0.0, 0.0, 0.0, 0.1),
        FULL: (0.1, 0.05, -0.001, 1.0),
    }
    for number, method in enumerate(FITTED):
        for steps in (10, 100):
            effects[method, steps] = (0.01 * number, 0.0, 0.0, 0.1 * steps)
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    return summary_of(folder, effects, subjects=["a", "b", "c"])


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
    levels = ["real pictures (ceiling)", "class word (floor)", "another identity (floor)"]
    assert sorted(names) == sorted([*levels, FULL[0], PROBE[0], *FITTED.values()])


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
