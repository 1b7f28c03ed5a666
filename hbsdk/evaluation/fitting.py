"""Runs one method on one subject: fits, draws, times; what fails is told, not raised."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hbsdk.errors import EvaluationError, HbsdkError
from hbsdk.evaluation.drawing import OPTIONS
from hbsdk.evaluation.methods import Method, Snapshot
from hbsdk.evaluation.rows import FitRow
from hbsdk.evaluation.subjects import EvaluationSubject, Pixels
from hbsdk.options import GenerateOptions
from hbsdk.training.machine import peak_memory_bytes, reset_peak

if TYPE_CHECKING:
    from hbsdk.session import Session


def fit_and_draw(
    method: Method,
    session: Session,
    subject: EvaluationSubject,
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: GenerateOptions = OPTIONS,
) -> Iterator[tuple[FitRow, Pixels | None]]:
    """Yield, for each of the method's budgets, what it cost and what it draws.

    Whatever a method raises ends it: the budgets that are left have rows with `failed`, and no
    pictures.

    Args:
        method: to run.
        session: its networks are loaded.
        subject: to personalize.
        prompts: with {} for the subject.
        seeds: of the noise, one a prompt.
        options: of drawing.

    Yields:
        A budget's row, its memory the most of all fitting up to it, without that of drawing; and
        (prompts, H, W, 3) uint8, None where it failed.
    """
    device = session.torch_backend.device
    waiting, peak = list(method.budgets), 0
    started = time.perf_counter()
    try:
        snapshots = iter(method.fit(session, subject))
        while waiting:
            reset_peak(device)
            snapshot = next(snapshots, None)
            peak = max(peak, peak_memory_bytes(device))
            _check_snapshot(method, snapshot, waiting[0])
            assert snapshot is not None
            begun = time.perf_counter()
            drawn = snapshot.draw(prompts, seeds, options)
            seconds = time.perf_counter() - begun
            _check_drawn(method, drawn, len(prompts))
            waiting.pop(0)
            yield (
                FitRow(method.name, snapshot.steps, subject.name, snapshot.seconds, seconds, peak),
                drawn,
            )
    except Exception as error:  # a method may raise anything; the others go on
        elapsed, peak = time.perf_counter() - started, max(peak, peak_memory_bytes(device))
        told = str(error) if isinstance(error, HbsdkError) else f"{type(error).__name__}: {error}"
        for steps in waiting:
            yield FitRow(method.name, steps, subject.name, elapsed, 0.0, peak, told), None


def _check_snapshot(method: Method, snapshot: Snapshot | None, steps: int) -> None:
    if snapshot is None or snapshot.steps != steps:
        raise EvaluationError(
            f"method {method.name!r}", expected=f"a snapshot after {steps} steps, as it promised",
            got="none" if snapshot is None else f"one after {snapshot.steps}",
        )  # fmt: skip


def _check_drawn(method: Method, drawn: Pixels, count: int) -> None:
    ok = isinstance(drawn, np.ndarray) and drawn.dtype == np.uint8 and drawn.ndim == 4
    if not ok or len(drawn) != count or drawn.shape[3] != 3:
        raise EvaluationError(
            f"pictures of method {method.name!r}", expected=f"({count}, H, W, 3) uint8",
            got=f"{getattr(drawn, 'shape', type(drawn).__name__)} {getattr(drawn, 'dtype', '')}",
        )  # fmt: skip
