"""What a measurement says of where it was taken: code, machine, packages. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hbsdk.runtimes import gpus

_PACKAGES = (
    "hbsdk", "torch", "diffusers", "transformers", "accelerate", "peft", "onnxruntime",
    "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "numpy",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """Return command, date, commit, machine and versions, JSON-able."""
    cards = gpus()
    return {
        "command": command(),
        "date": now(),
        "commit": commit(),
        "device": cards[0].name if cards else cpu_model(),
        "machine": {
            "cpu": cpu_model(),
            "cores": usable_cores(),
            "memory_bytes": memory_bytes("MemTotal"),
            "gpus": [f"{card.name}, {card.memory_mib} MiB, driver {card.driver}" for card in cards],
            "system": platform.platform(),
        },
        "versions": versions(),
    }


def command() -> str:
    """Return the command line that started this process, as one would type it."""
    program = Path(sys.argv[0]).name if sys.argv[0].endswith("hbsdk") else f"python {sys.argv[0]}"
    return " ".join([program, *sys.argv[1:]])


def now() -> str:
    """Return date, time and zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


def versions() -> dict[str, str]:
    """Return the versions of what is installed here."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "python": platform.python_version()}


def cpu_model() -> str:
    """Return the processor's name as Linux tells it, or its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes(key: str = "MemAvailable") -> int | None:
    """Return the machine's memory that is free, or "MemTotal"; None where it cannot be told."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 if found else None


def commit() -> str | None:
    """Return the checkout's commit, "-dirty" if files of it were changed; None if installed."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603
            asked, cwd=folder, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def digest(value: Any) -> str:
    """Return a short name for what a JSON-able value holds: equal values have equal ones."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache  # what a process measures is the code that was there when it began
def code_digest() -> str:
    """Return the `digest` of hbsdk's own sources: it tells commits and uncommitted changes apart.

    Evaluation and training play no part in what is measured.
    """
    package, apart = Path(__file__).parents[1], ("evaluation", "training")
    return files_digest(
        path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in apart
    )


def files_digest(paths: Iterable[Path]) -> str:
    """Return the `digest` of files, by name and content."""
    return digest(
        {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}
    )
