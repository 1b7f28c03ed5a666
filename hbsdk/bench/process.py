"""A measured process, seen from outside: what it is asked, and how long it takes to answer."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hbsdk.bench.machine import code_digest, digest, files_digest

_CHILD = Path(__file__).with_name("child.py")
_ANSWER_SECONDS = 3600.0  # an answer that takes longer is a failure
_END_SECONDS = 20.0


class CaseError(Exception):
    """A case cannot be measured; the message says why."""


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        name: for the table.
        module: to import, or a file, in the process that is measured.
        task: its class.
        settings: what it takes, JSON-able.
        python: the interpreter; a peer has its own.
        environment: variables, beside this process's.
        need_bytes: of the machine's memory, as far as it is known.
        problem: why it cannot be measured here; None if it can.
        optional: where it cannot be measured here, that is no failure.
        notes: on the row, beside what is measured: dtype, operations and so on.
    """

    name: str
    module: str
    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    need_bytes: int = 0
    problem: str | None = None
    optional: bool = False
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def picture(self) -> Path | None:
        """The .npy file that its first run draws into, if it draws."""
        path = self.settings.get("picture")
        return None if path is None else Path(path)

    def key(self) -> dict[str, str]:
        """Return what its runs depend on, in short: two cases with equal keys measure the same."""
        settings = {key: value for key, value in self.settings.items() if key != "picture"}
        asked = [self.task, settings, self.python, dict(self.environment)]
        beside: tuple[Path, ...] = ()
        if self.module.endswith(".py"):
            beside = tuple(Path(self.module).parent.glob("*.py"))  # what it imports
        return {
            "settings": digest([Path(self.module).name, *asked]),
            "code": digest([code_digest(), files_digest(beside)]),
        }

    def drawing_into(self, folder: Path) -> Case:
        """Return the case with a picture in a folder, whose name tells what it is a picture of."""
        picture = folder / f"{digest(self.key())}.npy"
        return replace(self, settings={**self.settings, "picture": str(picture)})


class Worker:
    """The process of a case; it loads when it is made, and runs when it is asked."""

    def __init__(self, case: Case) -> None:
        """Start it and wait until it has loaded.

        Raises:
            CaseError: it cannot be started, or cannot load.
        """
        self.started = time.perf_counter()
        self.runs = 0
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        environment = os.environ | {"HF_HUB_OFFLINE": "1"} | dict(case.environment)
        if case.python != sys.executable:
            environment.pop("PYTHONPATH", None)
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [case.python, str(_CHILD), case.module, case.task],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
                env=environment, encoding="utf-8",
            )  # fmt: skip
        except OSError as error:
            self._stderr.close()
            raise CaseError(f"{case.python} cannot be started: {error}") from error
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.loaded = self._ask(dict(case.settings))
        except BaseException:
            self.close()
            raise

    def run(self) -> dict[str, Any]:
        """Run once and return the answer.

        The first run's has "first_s", from the start of the process to this answer.

        Raises:
            CaseError: it failed, ended, or did not answer in time.
        """
        answer = self._ask({})
        self.runs += 1
        if self.runs == 1:
            answer["first_s"] = time.perf_counter() - self.started
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()  # on which it ends
            self._process.wait(_END_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put("")

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # then there is no answer either
        try:
            line = self._answers.get(timeout=_ANSWER_SECONDS)
        except queue.Empty:
            self._process.kill()
            raise CaseError(f"no answer in {_ANSWER_SECONDS:.0f} s") from None
        if not line:
            code = self._process.wait()
            killed = ", killed: out of memory?" if code == -9 else ""
            raise CaseError(f"the process ended with code {code}{killed}: {self._said()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CaseError(answer["error"])
        return answer

    def _said(self) -> str:
        """The end of what it wrote to stderr, in one line."""
        self._stderr.seek(0)
        text = self._stderr.read().decode("utf-8", "replace")
        return " ".join(text.split())[-500:]
