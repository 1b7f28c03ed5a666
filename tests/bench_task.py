"""Tasks for the harness's tests; run by child.py in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path


class Counting:
    """Returns 1.0, 2.0, ... as seconds; can fail while it loads, at a run, or end the process."""

    versions = {"counting": "1"}  # noqa: RUF012 - as a task of one file writes it

    def __init__(self, settings: dict) -> None:
        self.settings, self.runs = settings, 0
        print("not an answer")  # what libraries print
        os.system("echo nor this")
        if settings.get("fail") == "load":
            raise ValueError("cannot load")

    def run(self) -> dict:
        self.runs += 1
        with Path(self.settings["log"]).open("a") as log:
            log.write(f"{self.settings['name']} {self.runs}\n")
        if self.settings.get("fail") == "run" and self.runs == 3:
            raise ValueError("cannot run | twice")
        if self.settings.get("fail") == "end" and self.runs == 2:
            os._exit(3)
        return {"samples": {"count": [float(self.runs)]}, "facts": {"last": self.runs}}
