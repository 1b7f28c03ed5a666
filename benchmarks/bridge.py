"""The C++ bridge against Python on the same engines: start-up, host time and memory.

    python benchmarks/bridge.py --engines engines/built/mini-cpu-... --cli BUILD/hbsdk-cli --out F

Fresh processes, C++ and Python in turns, each drawing one picture and ending. Wall time is from
before the process starts until its picture is written. `os.wait4` tells each one's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

from hbsdk.bench.answer import psnr_db
from hbsdk.bench.machine import describe
from hbsdk.bench.report import write_result
from hbsdk.bench.summary import summary

PROMPT = "a picture of a cat in the snow"

# As short as a user of Python would write it.
_PYTHON = """
import sys
import hbsdk
engines, bundle, prompt, steps, side, out = sys.argv[1:]
session = hbsdk.Session(bundle or None, engine="onnxruntime", engines=engines, device="cpu",
                        progress=False)
side = int(side) or None
drawn = session.generate(prompt, seed=1, num_inference_steps=int(steps), height=side, width=side)
drawn[0].save(out)
"""


def run(command: list[str]) -> tuple[str, float, float]:
    """Run a process; return what it printed, its seconds, and its peak memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"{command} ended with {status}")
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return printed, seconds, usage.ru_maxrss * unit_bytes / 1e6


def commands(arguments: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Return each side's command line."""
    engines = str(arguments.engines)
    bundle = "" if arguments.bundle is None else str(arguments.bundle)
    steps, side = str(arguments.steps), str(arguments.side_px)
    cpp = [
        str(arguments.cli), "generate", "--engines", engines, "--prompt", PROMPT, "--steps", steps,
        "--height", side, "--width", side, "--seed", "1", "--device", "cpu", "--quiet", "--stats",
        "--out", str(folder / "cpp.png"),
    ]  # fmt: skip
    out = str(folder / "python.png")
    python = [sys.executable, "-c", _PYTHON, engines, bundle, PROMPT, steps, side, out]
    return {"cpp": cpp, "python": python}


def middle(values: list[float], digits: int) -> dict[str, float]:
    """Return median and 95th percentile, rounded."""
    found = summary(values)
    return {"median": round(found["median_s"], digits), "p95": round(found["p95_s"], digits)}


def compare(folder: Path) -> dict[str, float | None]:
    """Compare the two pictures; as a control, one with its own mirror image."""
    from PIL import Image

    cpp, python = (
        np.asarray(Image.open(folder / f"{name}.png"), np.float64) / 255.0
        for name in ("cpp", "python")
    )
    return {
        "psnr_db": psnr_db(cpp, python),
        "psnr_db_mirrored_as_control": psnr_db(python[:, ::-1], python),
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run both in turns, every other round the other way; the first only warms the disk's cache."""
    seconds: dict[str, list[float]] = {"cpp": [], "python": []}
    memory_mb: dict[str, list[float]] = {"cpp": [], "python": []}
    shares, stats = [], []
    with TemporaryDirectory() as name:
        both = commands(arguments, Path(name))
        for repeat in tqdm(range(arguments.repeats + 1), disable=arguments.quiet):
            for side in ("cpp", "python") if repeat % 2 == 0 else ("python", "cpp"):
                printed, spent, peak = run(both[side])
                if repeat == 0:
                    continue
                seconds[side].append(spent)
                memory_mb[side].append(peak)
                if side == "cpp":
                    stats.append(json.loads(printed.splitlines()[-1]))
                    one = stats[-1]
                    drawing_ms = one["total_ms"] - one["loading_ms"]
                    shares.append(1.0 - one["graphs_ms"] / drawing_ms)
        quality = compare(Path(name))
    return {
        "start_to_picture_s": {side: middle(values, 4) for side, values in seconds.items()},
        "peak_memory_mb": {side: middle(values, 1) for side, values in memory_mb.items()},
        "cpp_host_share_of_drawing": middle(shares, 5),
        "cpp_ms": {key: middle([one[key] for one in stats], 2) for key in stats[0]},
        **quality,
        "runs": {"start_to_picture_s": seconds, "peak_memory_mb": memory_mb},
    }


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", type=Path, required=True, help="an engine folder")
    parser.add_argument("--bundle", type=Path, help="that they are of; mini by default")
    parser.add_argument("--cli", type=Path, required=True, help="hbsdk-cli of a release build")
    parser.add_argument("--repeats", type=int, default=7, help="at least 5")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side-px", type=int, default=0, help="0 is the bundle's own")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.repeats < 5:
        parser.error("--repeats: expected at least 5")
    measured = measure(arguments)
    report = {
        **describe(),
        "engines": arguments.engines.name,
        "steps": arguments.steps,
        "side_px": arguments.side_px or "the bundle's own",
        **measured,
    }
    write_result(arguments.out, (json.dumps(report, indent=2) + "\n").encode())
    print(json.dumps({key: measured[key] for key in measured if key != "runs"}, indent=2))


if __name__ == "__main__":
    main()
