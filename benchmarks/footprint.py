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
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hbsdk.bench.arguments import run
from hbsdk.bench.machine import code_digest, digest
from hbsdk.bench.report import Report
from hbsdk.bundle import Bundle
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
    "samples": {
        "import hbsdk": [imported - started],
        "open a session": [opened - imported],
        "load all networks": [loaded - opened],
        "first picture": [drawn - loaded],
    },
    "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
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
    listed = json.loads(_output([str(python), "-m", "pip", "list", "--format", "json"]))
    return {one["name"]: one["version"] for one in listed if one["name"] not in _NOT_COUNTED}


def measure(name: str, arguments: argparse.Namespace, folder: Path, report: Report) -> None:
    """Make an environment and measure it."""
    extras, engine = ENVIRONMENTS[name]
    python = make_environment(folder, extras)
    engines = "" if engine == "torch" else str(arguments.engines.resolve())
    report.note(
        name, install=f'pip install ".[{extras}]"', engine=engine,
        installed_bytes=installed_bytes(folder), packages=packages_of(python),
    )  # fmt: skip
    # Isolated: the checkout itself is not imported. One run more warms the disk's cache.
    command = [str(python), "-I", "-c", _PROGRAM, engine, engines]
    _output(command)
    while report.turns(name) < arguments.runs:
        answer: dict[str, Any] = json.loads(_output(command))
        report.saw(name, answer)
        report.add(name, answer)
        report.write()


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


def measure_all(arguments: argparse.Namespace) -> Report:
    """Measure both environments; what an earlier run has measured is kept."""
    bundle = Bundle.open()
    report = Report(arguments.out, "footprint", {}, {"name": bundle.info.name, "hash": bundle.hash})
    for name in ENVIRONMENTS:
        settings = {"install": ENVIRONMENTS[name], "engines": str(arguments.engines.resolve())}
        key = {"settings": digest([settings, _PROGRAM]), "code": code_digest()}
        dropped = report.begin(name, key)
        if dropped:
            print(dropped, file=sys.stderr)
        if report.turns(name) < arguments.runs:
            with TemporaryDirectory() as folder:
                try:
                    measure(name, arguments, Path(folder), report)
                except subprocess.CalledProcessError as error:
                    report.fail(name, f"{error}: {error.stderr or ''}"[-1000:])
            report.write()
    return report


def main() -> int:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=Path, default=default_root(), help="of the mini bundle")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    return run(lambda: measure_all(arguments))


if __name__ == "__main__":
    sys.exit(main())
