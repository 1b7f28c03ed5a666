"""How long, and how much memory, one personalization takes at the size of SD 1.5.

    python benchmarks/sd15_bundle.py /tmp/sd15
    python benchmarks/personalize_sd15.py /tmp/sd15 --out benchmarks/results/sd15_cpu.json

The weights are random (none can be downloaded here), so the pictures are noise; the work is real.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import hbsdk
from hbsdk.mini import world


@contextmanager
def measured(name: str, into: dict[str, Any]) -> Iterator[None]:
    """Record a stage's wall time and the process's peak memory so far."""
    started = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    into[name] = {
        "seconds": round(time.perf_counter() - started, 2),
        "peak_rss_gb": round(peak_bytes / 1e9, 2),
    }
    print(name, into[name], flush=True)


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--steps", type=int, default=5, help="refinement steps")
    parser.add_argument("--generate-steps", type=int, default=4)
    parser.add_argument("--timesteps-per-step", type=int, default=8)
    parser.add_argument("--micro-batch-size", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    identity = world.identity(world.HELD_OUT_SEEDS[0])
    photo, mask = world.render(
        identity, world.NEUTRAL_VIEW, world.Context("forest"), height=512, width=512
    )
    stages: dict[str, Any] = {}
    with measured("open", stages):
        session = hbsdk.Session(arguments.bundle, engine="torch", memory="low")
    with measured("probe, first use (loads its networks)", stages):
        session.personalize(photo, mask * 255, steps=0)
    with measured(f"probe + {arguments.steps} refinement steps", stages):
        subject = session.personalize(
            photo,
            mask * 255,
            steps=arguments.steps,
            timesteps_per_step=arguments.timesteps_per_step,
            micro_batch_size=arguments.micro_batch_size,
        )
    with measured(f"one picture, {arguments.generate_steps} guided steps", stages):
        session.generate("a photo of S*", subject, num_inference_steps=arguments.generate_steps)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "device": str(session.backend.device),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "dtype": str(session.backend.dtype),
        "versions": {"hbsdk": hbsdk.__version__, "torch": torch.__version__},
        "timesteps_per_step": arguments.timesteps_per_step,
        "micro_batch_size": arguments.micro_batch_size,
        "refinement": subject.report.as_dict() if subject.report else None,
        "stages": stages,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
