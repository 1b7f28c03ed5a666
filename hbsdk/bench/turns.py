"""Cases take turns, so that what else goes on on the machine falls on all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    progress: bool = True,
) -> None:
    """Measure every case `repeats` times; the report is written after each measurement.

    A process's first run is its warm-up: of it only the time with loading counts. What the report
    has already is not measured again; a case that failed is tried again.

    Args:
        cases: in order; every other round they go backwards, so that none is always the first.
        report: to add to.
        repeats: runs of each that count.
        on_answer: told of every answer, the first ones too, before it is kept.
        one_at_a_time: one process at a time, whatever the memory.
        progress: show a bar.
    """
    workers, failed = Workers(one_at_a_time=one_at_a_time), set()
    left = {case.name: max(0, repeats - report.turns(case.name)) for case in cases}
    with tqdm(total=sum(left.values()), disable=not progress, unit="run", leave=False) as bar:
        try:
            for turn in range(max(left.values(), default=0)):
                for case in cases if turn % 2 == 0 else reversed(cases):
                    if turn >= left[case.name] or case.name in failed:
                        continue
                    bar.set_description(case.name)
                    try:
                        _measure(case, workers, report, on_answer)
                    except CaseError as error:
                        failed.add(case.name)
                        report.fail(case.name, str(error))
                        workers.end(case.name)
                    report.write()
                    bar.update()
        finally:
            workers.end()


def _measure(case: Case, workers: Workers, report: Report, on_answer: OnAnswer | None) -> None:
    if case.problem is not None:
        raise CaseError(case.problem)

    def on_load(worker: Worker) -> None:
        report.note(case.name, **{**case.notes, **worker.loaded})

    worker = workers.take(case, on_load)
    for _ in range(2 if worker.runs == 0 else 1):
        answer = worker.run()
        if on_answer is not None:
            on_answer(case, answer)
        report.saw(case.name, answer)
    report.add(case.name, answer)
