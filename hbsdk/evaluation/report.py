"""The report of an evaluation: results.json, the plots, and one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbsdk.errors import EvaluationError
from hbsdk.evaluation.contact_sheets import contact_sheets
from hbsdk.evaluation.plots import encode, make_plots
from hbsdk.evaluation.report_page import report_page
from hbsdk.evaluation.report_tables import markdown_table
from hbsdk.evaluation.results import ANEW, RESUME, read_results
from hbsdk.evaluation.summary import summarise_results
from hbsdk.whole_file import write_whole


def write_report(out: str | Path) -> str:
    """Write results.json, plots/*.svg, plots/*.png and report.html into an evaluation's folder.

    Args:
        out: the folder that `hbsdk evaluate` wrote.

    Returns:
        The main table in Markdown, with the checkpoints that measured.

    Raises:
        EvaluationError: a file is missing, empty or damaged, or the folder cannot be written to;
            no report is written then.
    """
    folder = Path(out)
    results = read_results(folder)
    checkpoints = _checkpoints(results.run)
    summary = summarise_results(results)
    sheets = contact_sheets(folder, results)
    plots = {
        f"{name}.{kind}": encode(figure, kind)
        for name, figure in make_plots(summary).items()
        for kind in ("svg", "png")
    }
    page = report_page(results.run, summary, plots, sheets, checkpoints)
    content = {"run": results.run, "summary": summary}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    for name, data in plots.items():
        _write(folder / "plots" / name, data)
    _write(folder / "report.html", page.encode())
    _write(folder / "results.json", f"{text}\n".encode())
    return markdown_table(summary, checkpoints)


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise EvaluationError(
            str(path), expected="a folder with room that can be written to",
            got=error.strerror or str(error), remedy=f"Make room. {RESUME}",
        ) from error  # fmt: skip


def _checkpoints(run: Mapping[str, Any]) -> str:
    """What measured, for the caption of every table."""
    metrics = run.get("metrics")
    names = [metrics.get(name) for name in ("dino", "clip")] if isinstance(metrics, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise EvaluationError(
            "run.json", expected='"metrics" with the checkpoints of "clip" and "dino"',
            got=repr(metrics), remedy=ANEW,
        )  # fmt: skip
    judge = f"; attributes by {run['judge']}" if run.get("judge") else ""
    return f"DINO-I and retrieval by {names[0]}; CLIP-I and CLIP-T by {names[1]}{judge}."
