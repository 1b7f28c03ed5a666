"""Stopping a run by a signal (Ctrl-C, a scheduler's SIGTERM) at the end of a step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from hbsdk.errors import TrainingError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A launcher passes on a signal that the terminal has sent to its processes already.
_ECHO_SECONDS = 3.0


class TrainingStoppedError(TrainingError):
    """Someone asked a run to stop, by a signal, and it did, at the end of a step."""


@dataclass
class StopRequest:
    """Whether someone asked the run to stop: the signal's name, or None."""

    by: str | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note a signal while the context is open; another one, later, does what it always does.

    Only the main thread may listen to signals: in another one, none is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    noted_at = float("inf")

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        nonlocal noted_at
        noted_at = min(noted_at, time.monotonic())
        request.by = request.by or signal.Signals(number).name
        if time.monotonic() - noted_at > _ECHO_SECONDS:
            restore()
            signal.raise_signal(number)

    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
