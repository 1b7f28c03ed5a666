"""Cases take turns, so that what else goes on on the machine falls on all alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from tqdm import tqdm

from hbsdk.bench.machine import memory_bytes
from hbsdk.bench.process import Case, CaseError, Worker
from hbsdk.bench.report import Report

OnAnswer = Callable[[Case, dict[str, Any]], None]
_SPARE_BYTES = 1_000_000_000  # what stays free when another process is started


class Workers:
    """Processes that stay alive as long as memory allows; the longest idle one ends first."""

    def __init__(self, *, one_at_a_time: bool = False) -> None:
        self._one_at_a_time = one_at_a_time
        self._alive: dict[str, Worker] = {}  # the longest idle one first

    def take(self, case: Case, on_load: Callable[[Worker], None]) -> Worker:
        """Return a case's process, started if need be.

        Raises:
            CaseError: it needs more memory than there is, or cannot be started.
        """
        if case.name in self._alive:
            worker = self._alive.pop(case.name)
        else:
            self._make_room(case)
            worker = Worker(case)
            on_load(worker)
        self._alive[case.name] = worker
        return worker

    def end(self, name: str | None = None) -> None:
        """End a case's process, or all."""
        for one in [name] if name is not None else list(self._alive):
            if one in self._alive:
                self._alive.pop(one).close()

    def _make_room(self, case: Case) -> None:
        if self._one_at_a_time:
            self.end()
        while self._alive and not _fits(case.need_bytes + _SPARE_BYTES):
            self.end(next(iter(self._alive)))
        if not _fits(case.need_bytes):
            free = memory_bytes() or 0
            raise CaseError(
                f"it needs {case.need_bytes / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are "
                f"free. {case.notes.get('remedy', 'Free some, or take a smaller dtype')}."
            )


def _fits(need_bytes: int) -> bool:
    free = memory_bytes()
    return free is None or need_bytes <= free


def take_turns(
    cases: Sequence[Case],
    report: Report,
    *,
    repeats: int,
    on_answer: OnAnswer | None = None,
    one_at_a_time: bool = False,
    warm_up: bool = True,
    runs_a_turn: int = 1,
    again: Collection[str] = (),
    progress: bool = True,
) -> None:
    """Measure every case `repeats` times; the report is written after each measurement.

    A process's first run is its warm-up: of it only the time with loading counts. What the report
    has already is not measured again, unless it was measured otherwise (see `Report.begin`); a case
    that failed is tried again.

    Args:
        cases: in order; every other round they go backwards, so that none is always the first.
        report: to add to.
        repeats: runs of each that count.
        on_answer: told of every answer, the first ones too, before it is kept.
        one_at_a_time: one process at a time, whatever the memory.
        warm_up: without, a process's first run counts too.
        runs_a_turn: how often a case is measured before the next one's turn.
        again: names of cases that run at least once more if any other does.
        progress: show a bar.
    """
    start_rows(cases, report)
    workers, failed = Workers(one_at_a_time=one_at_a_time), set()
    wanted = {case.name: repeats for case in cases}
    if any(report.turns(name) < repeats for name in wanted):
        wanted |= {name: max(repeats, report.turns(name) + 1) for name in again}

    def is_left(case: Case) -> bool:
        return case.name not in failed and report.turns(case.name) < wanted[case.name]

    total = sum(max(0, count - report.turns(name)) for name, count in wanted.items())
    order = list(cases)
    with tqdm(total=total, disable=not progress, unit="run", leave=False) as bar:
        try:
            while any(is_left(case) for case in order):
                for case in (case for case in order for _ in range(runs_a_turn)):
                    if not is_left(case):
                        continue
                    bar.set_description(case.name)
                    try:
                        _measure(case, workers, report, on_answer, warm_up=warm_up)
                    except CaseError as error:
                        failed.add(case.name)
                        skipped = case.optional and case.problem is not None
                        (report.skip if skipped else report.fail)(case.name, str(error))
                        workers.end(case.name)
                    report.write()
                    bar.update()
                order.reverse()
        finally:
            workers.end()


def start_rows(cases: Sequence[Case], report: Report) -> None:
    """Drop what the report has of these cases but was measured otherwise, and say so."""
    for case in cases:
        _say(report.begin(case.name, case.key()))


def _measure(
    case: Case, workers: Workers, report: Report, on_answer: OnAnswer | None, *, warm_up: bool
) -> None:
    if case.problem is not None:
        raise CaseError(case.problem)

    def on_load(worker: Worker) -> None:
        _say(report.loaded(case.name, {**case.notes, **worker.loaded}))

    worker = workers.take(case, on_load)
    for _ in range(2 if worker.runs == 0 and warm_up else 1):
        answer = worker.run()
        if on_answer is not None:
            on_answer(case, answer)
        report.saw(case.name, answer)
    report.add(case.name, answer)


def _say(what: str | None) -> None:
    if what is not None:
        tqdm.write(what, file=sys.stderr)
