"""The measured process: loads what it is told to, and answers each line of JSON with one.

    python child.py MODULE CLASS     MODULE is importable, or a file

Only the standard library is imported, so that a peer's interpreter can run it, in an environment
without hbsdk. The first line is the task's settings; `CLASS(settings)` loads, and every line after
that is one `run()`, which returns {"samples": {what: [seconds]}, ...}. On a failure the answer is
{"error": ...}. What libraries print goes to stderr.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from typing import Any


def load_class(module: str, name: str) -> Any:
    """Return a class of a module, or of a file, whose folder can then be imported from."""
    if not module.endswith(".py"):
        return getattr(importlib.import_module(module), name)
    sys.path.insert(0, os.path.dirname(os.path.abspath(module)))
    spec = importlib.util.spec_from_file_location("measured", module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["measured"] = loaded  # dataclasses look their module up
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)


def peak_rss_bytes() -> int | None:
    """Return the most memory that this process held; None where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            found = [line.split()[1] for line in status if line.startswith("VmHWM:")]
        return int(found[0]) * 1024 if found else None
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def peak_device_bytes() -> int | None:
    """Return the most GPU memory: torch's own count, else what the driver says is held now."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_reserved():
        return int(torch.cuda.max_memory_reserved())
    command = [
        "nvidia-smi",
        "--query-compute-apps=pid,used_memory",
        "--format=csv,noheader,nounits",
    ]
    try:
        listed = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=20, check=True
        ).stdout
        rows = [line.split(",") for line in listed.splitlines()]
        held = [int(mib) * 2**20 for pid, mib in rows if int(pid) == os.getpid()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return sum(held) or None


def threads() -> int:
    """Return how many threads compute: torch's own number, else the cores this process may use."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> None:
    """Answer until stdin is closed."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # also what C libraries print

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    task = None
    for line in sys.stdin:
        started = time.perf_counter()
        try:
            if task is None:
                task = load_class(*sys.argv[1:3])(json.loads(line))
                seconds = time.perf_counter() - started
                answer(load_s=seconds, threads=threads(), versions=getattr(task, "versions", {}))
                continue
            found = task.run()
        except BaseException as error:
            traceback.print_exc()
            answer(error=f"{type(error).__name__}: {error}"[:1000])
            if not isinstance(error, Exception):
                raise
            continue
        answer(peak_rss_bytes=peak_rss_bytes(), peak_device_bytes=peak_device_bytes(), **found)


if __name__ == "__main__":
    main()
