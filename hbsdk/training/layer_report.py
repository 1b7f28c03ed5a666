"""What the layer importance came to, summed up: means, a table in words, and a plot."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hbsdk.whole_file import write_whole


def means_of(rows: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return measure -> its mean and standard error over the rows.

    Args:
        rows: with the same measures.
    """
    kept = list(rows)
    count = len(kept)
    means = {}
    for key in kept[0] if kept else ():
        values = np.array([row[key] for row in kept])
        error = values.std(ddof=1) / math.sqrt(count) if count > 1 else 0.0
        means[key] = {"mean": float(values.mean()), "standard_error": float(error)}
    return means


def in_words(results: Mapping[str, Any]) -> str:
    """Return the groups' means as a table for a person to read.

    Args:
        results: of `layer_importance`.
    """
    measures = ("cosine_distance", "relative_change", "loss_decrease", "other_picture_decrease")
    head = ("cosine", "relative", "loss fall", "other picture")
    lines = [f"{'':24}{'parameters':>12}" + "".join(f"{title:>16}" for title in head)]
    for name, group in results["groups"].items():
        cells = "".join(f"{group[key]['mean']:>16.3g}" for key in measures)
        lines.append(f"{name:24}{group['parameters']:>12,}{cells}")
    whole = results["whole"]
    falls = "".join(f"{whole[key]['mean']:>16.3g}" for key in measures[2:])
    lines.append(f"{'all of them':24}{'':12}{'':32}{falls}")
    return "\n".join(lines)


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Draw the groups' measures as bars, with standard errors.

    Args:
        results: of `layer_importance`.
        path: of the PNG to write.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = (
        ("cosine_distance", "cosine distance, all layers trained"),
        ("relative_change", "relative change, all layers trained"),
        ("loss_decrease", "loss decrease, group trained alone"),
        ("other_picture_decrease", "the same on another picture"),
    )
    groups = results["groups"]
    figure = Figure(figsize=(13, 1.2 + 0.4 * len(groups)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for axis, (key, title) in zip(axes, panels, strict=True):
        means = [group[key]["mean"] for group in groups.values()]
        errors = [group[key]["standard_error"] for group in groups.values()]
        axis.barh(list(groups), means, xerr=errors, color="tab:blue")
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.axvline(0.0, color="black", linewidth=0.8)
    axes[0].invert_yaxis()
    settings, count = results["settings"], len(results["subjects"])
    figure.suptitle(
        f"{settings['bundle']}: {count} subjects, {settings['steps']} steps", fontsize=10
    )
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(picture, format="png")
    write_whole(path, picture.getvalue())
