"""Does optimum draw our picture with our engine folder, and how fast? Fails below 30 dB.

    python benchmarks/peers/optimum_check.py --engines engines/built/NAME \
        --out benchmarks/results/optimum_mini.json

optimum-onnx needs transformers < 4.58 and hbsdk needs 5, so optimum runs in a process of its own
(optimum_peer.py), in a virtual environment that is made once; 1.3 GB with torch for the CPU, which
Linux without a GPU gets by `--extra-index-url https://download.pytorch.org/whl/cpu`:

    python3.11 -m venv ~/optimum-venv
    ~/optimum-venv/bin/pip install -r benchmarks/peers/optimum-requirements.txt
    export HBSDK_PEER_PYTHON=~/optimum-venv/bin/python

Both draw from the same unit noise: for each sampler from the same states of prompt and negative
prompt, and from the text itself, where optimum's tokenizer and text_encoder/model.onnx take part;
then with IO binding, which optimum does on GPUs and where it reads the names of the graphs'
dimensions. As a control, another seed's picture of ours has to stay below 30 dB. Times are of one
picture from text to pixels, the processes taking turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `export` is not installed

import numpy as np
import numpy.typing as npt

import hbsdk
from export.picture import picture_psnr_db
from hbsdk.bench.machine import cpu_model
from hbsdk.errors import EngineError, HbsdkError
from hbsdk.generate import canvas_of, initial_noise, text_states
from hbsdk.schedule import Sampler

PEER = Path(__file__).with_name("optimum_peer.py")
LEAST_PSNR_DB = 30.0
INPUTS, PICTURE = "inputs.npz", "picture.npy"  # in the folder that both processes share
Array = npt.NDArray[Any]


class Peer:
    """optimum's process: answers each line of JSON with one; its messages go to our stderr."""

    def __init__(self, python: str, folder: Path, settings: dict[str, Any]) -> None:
        """Start it and wait until its networks are loaded.

        Args:
            python: the interpreter of the peers' virtual environment.
            folder: for `INPUTS`, which is there, and pictures.
            settings: as optimum_peer.py takes them.

        Raises:
            EngineError: it cannot be started, or it ends.
        """
        self._folder = folder
        self._python = python
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [python, str(PEER)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
        except OSError as error:
            raise self._error(str(error)) from error
        self.versions = self._ask({**settings, "folder": str(folder)})["versions"]
        self.messages: list[str] = []

    def draw(self, **how: Any) -> tuple[Array, dict[str, Any]]:
        """Return optimum's picture, (H, W, 3) in [0, 1], and its answer, with "seconds".

        Args:
            **how: "sampler", "from_text" and "io_binding".

        Raises:
            EngineError: optimum cannot draw it.
        """
        answer = self._ask(how)
        self.messages = answer["messages"]
        if "error" in answer:
            raise EngineError(
                "optimum", expected="a picture", got=answer["error"],
                remedy="Its traceback is above",
            )  # fmt: skip
        return np.load(self._folder / PICTURE, allow_pickle=False), answer

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()  # closes its stdin, on which it ends

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # then there is no answer either
        line = self._process.stdout.readline()
        if not line:
            raise self._error(f"exit code {self._process.wait()}, messages above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _error(self, got: str) -> EngineError:
        return EngineError(
            f"optimum's process, {self._python} {PEER.name}", expected="an answer", got=got,
            remedy=f"Make its virtual environment as the head of {Path(__file__).name} says",
        )  # fmt: skip


def check(arguments: argparse.Namespace) -> dict[str, Any]:
    """Draw with both, and return the report.

    Raises:
        HbsdkError: the engines cannot be used, or optimum's process ends.
    """
    session = hbsdk.Session(
        arguments.bundle, engine="onnxruntime", engines=arguments.engines, progress=False
    )
    options = hbsdk.GenerateOptions(
        negative_prompt=arguments.negative_prompt, num_inference_steps=arguments.steps,
        seed=arguments.seed, output_type="np",
    )  # fmt: skip
    prompt = arguments.prompt or f"a photo of a {session.bundle.info.class_word}"
    with tempfile.TemporaryDirectory(prefix="optimum-check-") as temporary:
        folder = Path(temporary)
        settings = write_inputs(session, prompt, options, folder)
        with Peer(arguments.peer_python, folder, settings) as peer:
            ways = [
                {"sampler": sampler, "from_text": from_text, "io_binding": False}
                for sampler in get_args(Sampler)
                for from_text in (False, True)
            ]
            ways.append({"sampler": options.sampler, "from_text": True, "io_binding": True})
            comparisons = [compare(session, peer, prompt, options, way) for way in ways]
            seconds = measure(session, peer, prompt, options, arguments.repeats)
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": f"{session.backend.device}: {cpu_model()}, {os.cpu_count()} cores",
        "versions": {
            "hbsdk": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("hbsdk", "numpy", "onnxruntime")},
            },
            "optimum": peer.versions,
        },
        "bundle": session.bundle.info.name,
        "bundle_hash": session.bundle.hash,
        "engines": Path(settings.pop("engines")).name,
        "settings": {**settings, "seed": options.seed},
        "least_psnr_db": LEAST_PSNR_DB,
        "pictures": comparisons,
        "seconds_a_picture": seconds,
        "optimum_said": peer.messages,
    }  # fmt: skip


def write_inputs(
    session: hbsdk.Session, prompt: str, options: hbsdk.GenerateOptions, folder: Path
) -> dict[str, Any]:
    """Write noise and text states for the peer; return the settings that go with them."""
    states = text_states(session.backend, session.tokenizer, prompt, [], options, guided=True)
    negative, positive = states.numpy()  # (tokens, d) each
    canvas, factor = canvas_of(session.bundle.info, options), session.bundle.info.vae_scale_factor
    np.savez(
        folder / INPUTS,
        latents=initial_noise(options.seed, 1, canvas),
        prompt_embeds=positive[None],
        negative_prompt_embeds=negative[None],
    )
    backend: Any = session.backend
    return {
        "engines": str(backend.engines.folder.resolve()),
        "prompt": prompt,
        "negative_prompt": options.negative_prompt,
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": session.bundle.info.guidance_scale,
        "height": canvas.height * factor,
        "width": canvas.width * factor,
        "provider": f"{'CPU' if backend.device == 'cpu' else 'CUDA'}ExecutionProvider",
    }


def compare(
    session: hbsdk.Session,
    peer: Peer,
    prompt: str,
    options: hbsdk.GenerateOptions,
    way: dict[str, Any],
) -> dict[str, Any]:
    """Draw one picture with each, and our other seed's; print and return how they differ."""
    sampler = way["sampler"]
    name = f"{sampler} from {'text' if way['from_text'] else 'prompt embeddings'}"
    name += ", IO binding" if way["io_binding"] else ""
    try:
        theirs, answer = peer.draw(**way)
    except EngineError as error:
        return {"name": name, "error": str(error)}
    (ours,) = session.generate(prompt, options=options, sampler=sampler)
    (other,) = session.generate(prompt, options=options, sampler=sampler, seed=options.seed + 1)
    found = {
        "name": name,
        "scheduler": answer["scheduler"],
        "psnr_db": picture_psnr_db(theirs, ours),
        "max_abs": float(np.abs(theirs - ours).max()),
        "other_seed_psnr_db": picture_psnr_db(theirs, other),
    }
    print(
        f"{name:30} PSNR {found['psnr_db']:5.1f} dB, max-abs {found['max_abs']:.1e}; "
        f"control, another seed: {found['other_seed_psnr_db']:.1f} dB"
    )
    return found


def measure(
    session: hbsdk.Session, peer: Peer, prompt: str, options: hbsdk.GenerateOptions, repeats: int
) -> dict[str, Any]:
    """Take turns at drawing one picture from text; what `compare` drew has warmed both up."""

    def hbsdk_seconds() -> float:
        start = time.perf_counter()
        session.generate(prompt, options=options)
        return time.perf_counter() - start

    def optimum_seconds() -> float:
        way = {"sampler": options.sampler, "from_text": True, "io_binding": False}
        return float(peer.draw(**way)[1]["seconds"])

    turns: dict[str, Callable[[], float]] = {"hbsdk": hbsdk_seconds, "optimum": optimum_seconds}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(repeats):
        for name in sorted(turns, reverse=number % 2 == 1):  # neither is always the first
            seconds[name].append(turns[name]())
    medians = {name: float(np.median(each)) for name, each in seconds.items()}
    print(f"seconds a picture, medians of {repeats} turns: {medians}")
    return {
        "what": f"medians of {repeats} turns, {options.sampler}, 1 picture from text to pixels",
        **medians,
        "optimum_over_hbsdk": medians["optimum"] / medians["hbsdk"],
        "turns": seconds,
    }


def failures(report: dict[str, Any]) -> list[str]:
    """Say which pictures are missing or differ too much, and which controls do not."""
    found = []
    for one in report["pictures"]:
        if "error" in one:
            found.append(f"{one['name']}: {one['error']}")
            continue
        if not one["psnr_db"] >= LEAST_PSNR_DB:
            found.append(f"{one['name']}: {one['psnr_db']:.1f} dB is below {LEAST_PSNR_DB:g} dB")
        if not one["other_seed_psnr_db"] < LEAST_PSNR_DB:
            found.append(f"{one['name']}: another seed's picture passes too; this proves nothing")
    return found


def main() -> int:
    """Read the command line, check, and write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--engines", type=Path, required=True, help="folder, of recipe mini-cpu say"
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--bundle", help="that the engines are of; default: the embedded mini")
    parser.add_argument("--peer-python", default=os.environ.get("HBSDK_PEER_PYTHON"))
    parser.add_argument("--prompt", help='default: "a photo of a" and the bundle\'s class word')
    parser.add_argument("--negative-prompt", default="blurry")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    if not arguments.peer_python:
        parser.error("--peer-python or HBSDK_PEER_PYTHON: the interpreter that has optimum")
    if arguments.repeats < 1:
        parser.error("--repeats: at least 1")
    try:
        report = check(arguments)
    except HbsdkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    wrong = failures(report)
    for line in wrong:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
