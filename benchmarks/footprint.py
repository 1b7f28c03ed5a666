"""How large hbsdk is without and with PyTorch, and how soon a session is ready.

    python export/build_engines.py
    python benchmarks/footprint.py --out benchmarks/results/footprint.json

Makes two virtual environments from this checkout: `.[cpu]`, which runs built engines, and
`.[torch,cpu]`, which can do everything. In each, a new process imports hbsdk, opens the mini
bundle, loads all its networks and draws one picture, as often as `--runs` says; medians count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hbsdk.engine_folder import default_root

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = {
    "without torch": ("cpu", "onnxruntime"),
    "with torch": ("torch,cpu", "torch"),
}
_NOT_COUNTED = ("pip", "setuptools")  # what every environment has
_PROGRAM = """
import json, resource, sys, time
started = time.perf_counter()
import hbsdk
imported = time.perf_counter()
engine, engines = sys.argv[1:]
session = hbsdk.Session(engine=engine, engines=engines or None, progress=False)
opened = time.perf_counter()
session.prewarm()
loaded = time.perf_counter()
session.generate("a picture of a cat", seed=0)
drawn = time.perf_counter()
print(json.dumps({
    "import_hbsdk_s": imported - started,
    "open_session_s": opened - imported,
    "load_networks_s": loaded - opened,
    "first_picture_s": drawn - loaded,
    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
}))
"""


def make_environment(folder: Path, extras: str) -> Path:
    """Install the checkout with extras into a new virtual environment; return its Python."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)  # noqa: S603
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", f"{ROOT}[{extras}]"]
    subprocess.run(command, check=True)  # noqa: S603
    return python


def installed_bytes(folder: Path) -> int:
    """Return what `du` counts in site-packages, but for pip's."""
    (packages,) = folder.glob("lib/python*/site-packages")
    return sum(
        path.lstat().st_blocks * 512
        for path in packages.rglob("*")
        if not path.relative_to(packages).parts[0].startswith(_NOT_COUNTED)
    )


def packages_of(python: Path) -> dict[str, str]:
    """Return the version of every package that is installed."""
    command = [python, "-m", "pip", "list", "--format", "json"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    listed = {one["name"]: one["version"] for one in json.loads(run.stdout)}
    return {name: number for name, number in listed.items() if name not in _NOT_COUNTED}


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make an environment and measure it."""
    extras, engine = ENVIRONMENTS[name]
    python = make_environment(folder, extras)
    engines = "" if engine == "torch" else str(arguments.engines.resolve())
    # Isolated: the checkout itself is not imported. One run more warms the disk's cache.
    command = [python, "-I", "-c", _PROGRAM, engine, engines]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603
        for _ in range(arguments.runs + 1)
    ][1:]
    medians = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
    return {
        "install": f'pip install ".[{extras}]"',
        "engine": engine,
        "installed_mb": round(installed_bytes(folder) / 1e6, 1),
        **medians,
        "runs": len(runs),
        "packages": packages_of(python),
    }


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=Path, default=default_root(), help="of the mini bundle")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = {}
    for name in ENVIRONMENTS:
        with TemporaryDirectory() as folder:
            found[name] = measure(name, arguments, Path(folder))
        shown = {key: value for key, value in found[name].items() if key != "packages"}
        print(name, json.dumps(shown), flush=True)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "environments": found,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
