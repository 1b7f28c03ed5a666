"""Answers one question: cases take turns, then limits, table and plot are made of the JSON."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hbsdk.bench.plot import stage_plot
from hbsdk.bench.process import Case
from hbsdk.bench.report import Report, write_whole
from hbsdk.bench.table import MACHINE, markdown
from hbsdk.bench.turns import take_turns
from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError


def answer(
    question: str,
    cases: Sequence[Case],
    bundle: Bundle,
    output: Path,
    *,
    settings: Mapping[str, Any],
    repeats: int,
    device: str | None = None,
    one_at_a_time: bool = False,
    progress: bool = True,
) -> Report:
    """Measure cases and write `output` (JSON), and a table (.md) and a plot (.png) beside it.

    A run that was stopped is gone on with where the same is asked again with the same output.

    Args:
        question: such as "generate".
        cases: the first is what the others' pictures are compared with.
        bundle: what is measured.
        output: ends in .json.
        settings: all that changes what is measured, but for the cases.
        repeats: runs of each case that count, after one to warm up; at least 5 for a figure.
        device: as torch names it, for the rates.
        one_at_a_time: one process at a time, whatever the memory.
        progress: show a bar.

    Raises:
        OptionError: the output cannot be written, or holds another measurement; two cases have the
            same name, or none is asked for.
    """
    names = [case.name for case in cases]
    if not names or len(set(names)) < len(names):
        raise OptionError("cases", expected="at least one, with different names", got=str(names))
    if output.suffix != ".json":
        raise OptionError("output", expected="a file that ends in .json", got=str(output))
    report = Report(output, question, settings, {"name": bundle.info.name, "hash": bundle.hash})
    report.write()  # what cannot be written is told before the work
    dtypes = {row["dtype"] for case in cases for row in _least(case)}
    everything = [*cases]
    if dtypes:
        # Their runs are measured beside the cases' own, and the best counts.
        notes = {"dtypes": sorted(dtypes), "device": device}
        everything.append(Case(MACHINE, "hbsdk.bench.tasks", "Rates", notes))

    def on_answer(case: Case, answered: dict[str, Any]) -> None:
        if case.name == MACHINE:
            rates = report.data["rates"]
            for name, rate in answered["facts"].pop("rates").items():
                rates[name] = max(rate, rates.get(name, 0.0))

    try:
        take_turns(
            everything, report, repeats=repeats, on_answer=on_answer, one_at_a_time=one_at_a_time,
            progress=progress,
        )  # fmt: skip
    finally:
        finish(report, cases)
    return report


def finish(report: Report, cases: Sequence[Case]) -> None:
    """Add limits and comparisons to what was measured; write JSON, table and plot."""
    for case in cases:
        _add_limits(report.case(case.name), report.data["rates"])
    _compare_pictures(report, cases)
    report.write()
    write_whole(report.path.with_suffix(".md"), markdown(report.data).encode())
    try:
        png = stage_plot(report.data)
    except ImportError:
        return
    if png is not None:
        write_whole(report.path.with_suffix(".png"), png)


def work_folder(output: Path) -> Path:
    """Return where inputs and pictures are kept until all is measured; made if need be."""
    folder = output.with_suffix(".work")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def end_work(report: Report) -> None:
    """Remove `work_folder` where every case was measured; else the next run needs it."""
    if not any("failed" in case for case in report.data["cases"].values()):
        shutil.rmtree(report.path.with_suffix(".work"), ignore_errors=True)


def _least(case: Case) -> list[Mapping[str, Any]]:
    return [row for rows in case.notes.get("least", {}).values() for row in rows]


def _add_limits(entry: dict[str, Any], rates: Mapping[str, float]) -> None:
    for what, rows in entry.get("least", {}).items():
        measured = entry.get("measures", {}).get(what)
        if measured is None or any(row["dtype"] not in rates for row in rows):
            continue
        measured["operations"] = sum(row["operations"] * row["times"] for row in rows)
        measured["limit_s"] = sum(
            row["times"]
            * max(row["operations"] / rates[row["dtype"]], row["bytes"] / rates["copy"])
            for row in rows
        )
        measured["of_limit"] = measured["limit_s"] / measured["median_s"]


def _compare_pictures(report: Report, cases: Sequence[Case]) -> None:
    """Compare each case's picture with the first one's; as a control, that one mirrored."""
    paths = {case.name: Path(case.settings.get("picture") or "") for case in cases}
    reference = paths[cases[0].name]
    if not reference.is_file():
        return
    expected = np.load(reference, allow_pickle=False)
    report.data["facts"]["psnr_db of the first case's picture mirrored, as a control"] = psnr_db(
        expected[:, ::-1], expected
    )
    for name, path in paths.items():
        if path.is_file():
            picture = np.load(path, allow_pickle=False)
            facts = report.case(name).setdefault("facts", {})
            facts["psnr_db"] = psnr_db(picture, expected)


def psnr_db(picture: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Compare two pictures of values in 0..1; equal ones are 120 dB, other sizes 0."""
    if picture.shape != expected.shape:
        return 0.0
    error = float(np.mean((picture.astype(np.float64) - expected) ** 2))
    return round(float(-10.0 * np.log10(max(error, 1e-12))), 1)
