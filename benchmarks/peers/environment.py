"""The peers' virtual environments: one for each requirements file, made once."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def environment_of(requirements: str, folder: Path) -> Path:
    """Return the interpreter that has what a requirements file names, installing it if need be.

    Args:
        requirements: a file beside this one.
        folder: where environments are; each is named by its requirements' hash.

    Raises:
        RuntimeError: it cannot be made; the message is the end of what pip says.
    """
    text = (HERE / requirements).read_text("utf-8") + sys.version
    stem = requirements.partition("-")[0]
    place = folder / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    python = place / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    ready = place / "ready"
    if ready.exists():
        return python
    shutil.rmtree(place, ignore_errors=True)  # what an interrupted run left
    place.parent.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, "-m", "venv", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "-r", str(HERE / requirements)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())[-500:]
            raise RuntimeError(f"{requirements} cannot be installed: {said}")
    ready.touch()
    return python
