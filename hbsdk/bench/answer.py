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
from hbsdk.bench.report import Report, write_result
from hbsdk.bench.table import MACHINE, markdown
from hbsdk.bench.turns import start_rows, take_turns
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
    warm_up: bool = True,
    runs_a_turn: int = 1,
    progress: bool = True,
) -> Report:
    """Measure cases and write `output` (JSON), and a table (.md) and a plot (.png) beside it.

    A run that was stopped is gone on with where the same is asked again with the same output;
    rows that were measured with other settings or code are started anew, which is said.

    Args:
        question: such as "generate".
        cases: the first is what the others' pictures are compared with.
        bundle: what is measured.
        output: ends in .json.
        settings: all that changes what is measured, but for the cases.
        repeats: runs of each case that count, after one to warm up; at least 5 for a figure.
        device: as torch names it, for the rates.
        one_at_a_time: one process at a time, whatever the memory.
        warm_up: without, a process's first run counts too.
        runs_a_turn: how often a case is measured before the next one's turn.
        progress: show a bar.

    Raises:
        OptionError: the output cannot be written, or holds another measurement; two cases have the
            same name, or none is asked for.
    """
    names = [case.name for case in cases]
    if not names or len(set(names)) < len(names):
        raise OptionError("cases", expected="at least one, with different names", got=str(names))
    _check_output(output)
    whole = {**settings, "warm_up": warm_up}
    report = Report(output, question, whole, {"name": bundle.info.name, "hash": bundle.hash})
    report.write()  # what cannot be written is told before the work
    dtypes = {row["dtype"] for case in cases for row in _least(case)}
    everything = [*cases]
    if dtypes:
        # Their runs are measured beside the cases' own, and the best counts.
        notes = {"dtypes": sorted(dtypes), "device": device}
        everything.append(Case(MACHINE, "hbsdk.bench.tasks", "Rates", notes))

    start_rows(everything, report)
    if not report.turns(MACHINE):
        report.data["rates"] = {}

    def on_answer(case: Case, answered: dict[str, Any]) -> None:
        if case.name == MACHINE:
            rates = report.data["rates"]
            for name, rate in answered["facts"].pop("rates").items():
                rates[name] = max(rate, rates.get(name, 0.0))

    try:
        take_turns(
            everything, report, repeats=repeats, on_answer=on_answer, one_at_a_time=one_at_a_time,
            warm_up=warm_up, runs_a_turn=runs_a_turn, again=_without_reference(cases),
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
    write_result(report.path.with_suffix(".md"), markdown(report.data).encode())
    try:
        png = stage_plot(report.data)
    except ImportError:
        return
    if png is not None:
        write_result(report.path.with_suffix(".png"), png)


def work_folder(output: Path) -> Path:
    """Return where inputs and pictures are kept until all is measured; made if need be.

    Raises:
        OptionError: it cannot be made.
    """
    _check_output(output)
    folder = output.with_suffix(".work")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            str(folder), expected="a folder that can be written to",
            got=error.strerror or str(error), remedy="Write elsewhere",
        ) from error  # fmt: skip
    return folder


def _check_output(output: Path) -> None:
    if output.suffix != ".json":
        raise OptionError("output", expected="a file that ends in .json", got=str(output))


def end_work(report: Report) -> None:
    """Remove `work_folder` where every case was measured; else the next run needs it.

    A case that is measured later has the first one drawn once more, to be compared with.
    """
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


def _without_reference(cases: Sequence[Case]) -> list[str]:
    """Name the first case if the picture is gone that others are to be compared with."""
    picture = cases[0].picture
    return [] if picture is None or picture.is_file() else [cases[0].name]


def _compare_pictures(report: Report, cases: Sequence[Case]) -> None:
    """Compare each case's picture with the first one's; as a control, that one mirrored."""
    first, path = cases[0].name, cases[0].picture
    if path is None or not path.is_file():
        return
    expected = np.load(path, allow_pickle=False)
    # Latents, (C, h, w), have no range of their own; a picture's is 0..1.
    peak = float(np.ptp(expected)) if expected.shape[-1] > 4 else 1.0
    across = -1 if expected.shape[-1] > 4 else 1
    control = psnr_db(np.flip(expected, across), expected, peak)
    report.data["facts"]["psnr_db of the first case's mirrored, as a control"] = control
    for case in cases:
        facts = report.case(case.name).setdefault("facts", {})
        facts["reference"] = first
        if case.name == first:
            facts.pop("psnr_db", None)
        elif case.picture is not None and case.picture.is_file():
            picture = np.load(case.picture, allow_pickle=False)
            facts["psnr_db"] = psnr_db(picture, expected, peak)


def psnr_db(
    picture: npt.NDArray[Any], expected: npt.NDArray[Any], peak: float = 1.0
) -> float | None:
    """Compare two pictures of values in 0..peak; equal ones are 120 dB, of other sizes None."""
    if picture.shape != expected.shape:
        return None
    error = float(np.mean((picture.astype(np.float64) - expected) ** 2)) / peak**2
    return round(float(-10.0 * np.log10(max(error, 1e-12))), 1)
