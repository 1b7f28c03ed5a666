"""Which of ONNX Runtime's session options are the fastest on this CPU, beside PyTorch.

    python export/build_engines.py
    python benchmarks/onnxruntime_options.py --out benchmarks/results/onnxruntime_options.json

Measures the mini bundle: one denoising step (UNet, guidance and sampler) of one and of four guided
pictures, and a whole picture. Each option set runs in a process of its own, all of them once a
round, so that what else goes on on the machine falls on all alike. hbsdk itself takes "spinning
within a run".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

import hbsdk
from hbsdk.backends.onnxruntime import OnnxRuntimeBackend, check_interface
from hbsdk.bench.answer import psnr_db
from hbsdk.engine_folder import EngineFolder, default_root
from hbsdk.generate import canvas_of, denoise, starting_noise, text_states
from hbsdk.options import GenerateOptions
from hbsdk.schedule import make_schedule

PROMPT = "a picture of a cat in the snow"
WARM_UP_STEPS, WARM_UP_PICTURES = 10, 2


@dataclass(frozen=True)
class Settings:
    """ONNX Runtime's; these are its own.

    spinning: how idle threads wait for work, "always" busily, "within a run" of a network, "never".
    """

    threads: int | None = None
    spinning: str = "always"
    optimization: str = "ORT_ENABLE_ALL"
    memory_pattern: bool = True

    def to_options(self) -> ort.SessionOptions:
        """Return them as ONNX Runtime takes them."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, self.optimization)
        options.enable_mem_pattern = self.memory_pattern
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self.spinning == "never":
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        elif self.spinning == "within a run":
            options.add_session_config_entry("session.force_spinning_stop", "1")
        return options


ONNX_RUNTIME = {
    "onnxruntime, default": Settings(),
    "onnxruntime, 1 thread": Settings(threads=1),
    "onnxruntime, spinning off": Settings(spinning="never"),
    "onnxruntime, spinning within a run": Settings(spinning="within a run"),
    "onnxruntime, graph optimization basic": Settings(optimization="ORT_ENABLE_BASIC"),
    "onnxruntime, graph optimization extended": Settings(optimization="ORT_ENABLE_EXTENDED"),
    "onnxruntime, memory pattern off": Settings(memory_pattern=False),
}
ORACLE, AUTOCAST = "torch, float32", "torch, bfloat16 autocast"
NAMES = (*ONNX_RUNTIME, ORACLE, AUTOCAST)


class TunedBackend(OnnxRuntimeBackend):
    """hbsdk's backend with other session options."""

    def __init__(self, bundle: hbsdk.Bundle, engines: EngineFolder, settings: Settings) -> None:
        super().__init__(bundle, engines, device="cpu")
        self.settings = settings

    def load(self, name: str) -> ort.InferenceSession:
        """Return an engine's session, made with these settings."""
        if name not in self._loaded:
            spec = self.spec(name)
            path, options = self.engines.path(spec, ".onnx"), self.settings.to_options()
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            check_interface(session, spec)
            self._loaded[name] = session
        return self._loaded[name]


def open_session(name: str, engines: Path) -> hbsdk.Session:
    """Return a session that runs as one of `NAMES` says."""
    if name not in ONNX_RUNTIME:
        return hbsdk.Session(engine="torch", device="cpu", dtype="float32", progress=False)
    session = hbsdk.Session(engine="onnxruntime", engines=engines, progress=False)
    assert isinstance(session.backend, OnnxRuntimeBackend)
    session.backend = TunedBackend(session.bundle, session.backend.engines, ONNX_RUNTIME[name])
    return session


def step_times_ms(session: hbsdk.Session, pictures: int, runs: int) -> list[float]:
    """Return how long each of `runs` guided denoising steps takes, after warming up."""
    steps = WARM_UP_STEPS + runs
    options = GenerateOptions(num_images_per_prompt=pictures, num_inference_steps=steps)
    states = text_states(session.backend, session.tokenizer, PROMPT, [], options, guided=True)
    schedule = make_schedule(
        session.bundle.scheduler_config(), sampler="ddim", num_inference_steps=steps
    )
    noise = starting_noise(canvas_of(session.bundle.info, options), options)
    ends: list[float] = []

    def on_step(_: int, latents: Any) -> Any:
        ends.append(time.perf_counter())
        return latents

    denoise(session.backend, noise, states, schedule, 7.5, on_step)
    return (np.diff(ends)[-runs:] * 1e3).tolist()


def picture_times_ms(
    session: hbsdk.Session, runs: int
) -> tuple[list[float], npt.NDArray[np.float32]]:
    """Return how long each of `runs` whole pictures of 20 guided steps takes, and the last one."""
    times = []
    for _ in range(WARM_UP_PICTURES + runs):
        started = time.perf_counter()
        (picture,) = session.generate(PROMPT, num_inference_steps=20, seed=0, output_type="np")
        times.append((time.perf_counter() - started) * 1e3)
    return times[-runs:], picture


def measure(name: str, engines: Path, runs: int, picture: Path) -> dict[str, list[float]]:
    """Measure one option set in this process; write its picture to a .npy file."""
    session = open_session(name, engines)
    mode: Callable[[], Any] = contextlib.nullcontext
    if name == AUTOCAST:
        import torch

        def mode() -> Any:
            return torch.autocast("cpu", torch.bfloat16)

    with mode():
        times = {f"step of {2 * n} rows": step_times_ms(session, n, runs) for n in (1, 4)}
        times["picture of 20 steps"], pixels = picture_times_ms(session, runs)
    np.save(picture, pixels)
    return times


def summary(rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return median and 95th percentile of all runs, and each round's median, in ms."""
    every = np.concatenate([np.asarray(one) for one in rounds])
    return {
        "runs": len(every),
        "median_ms": round(float(np.median(every)), 2),
        "p95_ms": round(float(np.percentile(every, 95)), 2),
        "round_medians_ms": [round(float(np.median(one)), 2) for one in rounds],
    }


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every option set in its own process, all of them once a round."""
    found: dict[str, list[Mapping[str, list[float]]]] = {name: [] for name in NAMES}
    with TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{number}.npy") for number, name in enumerate(NAMES)}
        for number in range(arguments.rounds):
            for name in NAMES:
                command = [
                    sys.executable, __file__, "--only", name, "--runs", str(arguments.runs),
                    "--engines", str(arguments.engines), "--out", str(files[name]),
                ]  # fmt: skip
                run = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
                found[name].append(json.loads(run.stdout))
                print(f"round {number + 1}: {name}", file=sys.stderr)
        pictures = {name: np.load(file) for name, file in files.items()}
    return {
        name: {key: summary([one[key] for one in rounds]) for key in rounds[0]}
        | {"psnr_db_to_torch": psnr_db(pictures[name], pictures[ORACLE])}
        for name, rounds in found.items()
    }


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=Path, default=default_root(), help="of the mini bundle")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--runs", type=int, default=12, help="of a round, after warming up")
    parser.add_argument("--only", choices=NAMES, help="measure this one, here, and print it")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.engines, arguments.runs, arguments.out)))
        return
    report = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{platform.machine()} CPU, {os.cpu_count()} cores, {platform.system()}",
        "versions": {
            name: version(name) for name in ("hbsdk", "onnxruntime", "torch", "diffusers")
        },
        "bundle": hbsdk.Bundle.open().info.name,
        "results": measure_all(arguments),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    for name, one in report["results"].items():
        times = ", ".join(f"{key} {one[key]['median_ms']} ms" for key in one if " of " in key)
        print(f"{name:42}{times}, {one['psnr_db_to_torch']} dB")


if __name__ == "__main__":
    main()
