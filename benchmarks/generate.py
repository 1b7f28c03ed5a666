"""One guided step and one 20-step picture: hbsdk's engines, its options, and what else one has.

    python benchmarks/generate.py --environments /tmp/peers --out benchmarks/results/generate.json
    python benchmarks/generate.py --bundle DIR --engines FOLDER --peer diffusers-float32 \
        --peer-python diffusers=/venv/bin/python --out FILE
    python benchmarks/generate.py --case torch,dtype=bfloat16 \
        --case "fast=onnxruntime,speed=fast" --out FILE
    python benchmarks/generate.py --guided-step --bundle DIR --one-at-a-time --out FILE

Every peer has the same weights, the same prompt embeddings and noise, the same sampler and steps,
in a virtual environment of its own from its requirements file in benchmarks/peers. hbsdk's own
time also holds tokenizing and encoding the prompt. Pictures are compared with the first case's.
`host_share` is the share of our time outside of the networks, the median of all runs.

With `--guided-step` no picture is drawn: each run takes two steps (`--steps` says otherwise), of
which all but the first count, and latents are compared. Without it, a picture is timed, and all of
its steps but the first.

Exits with 1 if a case failed. Peers that are not asked for by name and cannot run here are no
failure: their rows say why.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hbsdk.backends.choose import candidates
from hbsdk.bench.answer import work_folder
from hbsdk.bench.arguments import parser_of, run, setup_of
from hbsdk.bench.cases import built, least_of_generation
from hbsdk.bench.machine import code_digest, digest
from hbsdk.bench.process import Case, CaseError, Worker
from hbsdk.bench.questions import Setup, ask_generate, drawing_prompt
from hbsdk.bench.report import Report
from hbsdk.bundle import Bundle
from hbsdk.room import TO_DRAW, engines_need, generation_need
from hbsdk.runtimes import compute_capability

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))

from environment import environment_of  # noqa: E402 - beside the peers


@dataclass(frozen=True)
class Peer:
    """What one could use in place of hbsdk: a script, its requirements, its settings."""

    script: str
    task: str
    requirements: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs_gpu: bool = False
    needs_engines: bool = False


@dataclass(frozen=True)
class Interpreters:
    """What runs peers: interpreters that are given by name, else environments in a folder."""

    given: Mapping[str, str]
    environments: Path | None

    def python(self, peer: Peer) -> str:
        """Return a peer's interpreter; its environment is made if need be.

        Raises:
            RuntimeError: there is none, or it cannot be made.
        """
        stem = peer.requirements.removesuffix("-requirements.txt")
        if stem in self.given:
            return self.given[stem]
        if self.environments is None:
            raise RuntimeError(
                f"no environment: pass --environments DIR, or --peer-python {stem}=PYTHON"
            )
        return str(environment_of(peer.requirements, self.environments))


def _diffusers(*, needs_gpu: bool = False, **settings: Any) -> Peer:
    requirements = "diffusers-requirements.txt"
    return Peer("diffusers_peer.py", "Diffusers", requirements, settings, needs_gpu)


def _optimum(provider: str, *, io_binding: bool) -> Peer:
    settings = {"provider": f"{provider}ExecutionProvider", "io_binding": io_binding}
    name = "optimum-requirements.txt" if provider == "CPU" else "optimum-gpu-requirements.txt"
    return Peer(
        "optimum_picture.py", "Optimum", name, settings, provider != "CPU", needs_engines=True
    )


def _openvino(precision: str | None) -> Peer:
    settings = {"precision": precision}
    name = "openvino-requirements.txt"
    return Peer("openvino_peer.py", "OpenVino", name, settings, needs_engines=True)


CATALOGUE: Mapping[str, Peer] = {
    "diffusers-float32": _diffusers(dtype="float32"),
    "diffusers-bfloat16": _diffusers(dtype="bfloat16"),
    "diffusers-compiled-float32": _diffusers(dtype="float32", compile="default"),
    "diffusers-compiled-bfloat16": _diffusers(dtype="bfloat16", compile="default"),
    "diffusers-max-autotune": _diffusers(needs_gpu=True, dtype="bfloat16", compile="max-autotune"),
    "optimum-onnxruntime": _optimum("CPU", io_binding=False),
    "optimum-onnxruntime-cuda": _optimum("CUDA", io_binding=True),
    "optimum-onnxruntime-tensorrt": _optimum("Tensorrt", io_binding=True),
    "openvino": _openvino(None),
    "openvino-float32": _openvino("f32"),
}


def peer_case(
    name: str, bundle: Bundle, common: Mapping[str, Any], options: Mapping[str, Any],
    where: Interpreters,
) -> Case:  # fmt: skip
    """Return a peer as a case; where it cannot run, the case says why.

    Args:
        name: in the catalogue.
        bundle: what it draws with.
        common: settings of all peers.
        options: what all cases draw with.
        where: what runs it.
    """
    peer = CATALOGUE[name]
    settings = {**common, **peer.settings}
    problem, python = None, sys.executable
    if peer.needs_gpu and compute_capability() is None:
        problem = "no GPU"
    elif peer.needs_engines and settings.get("engines") is None:
        problem = "no engines: python export/build_engines.py makes them"
    else:
        try:
            python = where.python(peer)
        except (RuntimeError, OSError) as error:
            problem = str(error)
    dtype = settings.get("dtype", "float32")
    least, peak = least_of_generation(bundle, options, dtype, with_text=False)
    need = generation_need(bundle, dtype, peak, ("unet", "vae"))
    if peer.needs_engines and settings.get("engines") is not None:
        # optimum loads the text encoder with the others; OpenVINO's script does not.
        loaded = TO_DRAW if peer.task == "Optimum" else ("unet", "vae_decoder")
        need = engines_need(Path(settings["engines"]), peak, loaded)
    if peer.task == "OpenVino" and peer.settings["precision"] is None:
        least = {}  # which precision that is, OpenVINO decides: its row says it
    return Case(
        name, str(PEERS / peer.script), peer.task, settings, python=python, problem=problem,
        need_bytes=need,
        notes={"settings": dict(peer.settings), "dtype": dtype, "least": least},
    )  # fmt: skip


def peers_of(setup: Setup, names: list[str], where: Interpreters) -> list[Case]:
    """Write what the peers start from, and return them as cases.

    Raises:
        CaseError: the inputs cannot be written.
    """
    if not names:
        return []
    bundle, options = Bundle.open(setup.source), setup.drawing_options()
    usable = [one for one in candidates(bundle, setup.engines) if one.folder is not None]
    engines = next((one.folder for one in usable if one.engine == "onnxruntime"), None)
    common = {
        "bundle": str(bundle.folder), "engines": None if engines is None else str(engines.folder),
        "built": built(engines),
        "inputs": str(write_inputs(setup, bundle, options)),
        "steps": options["num_inference_steps"], "guided_step": setup.guided_step,
        "device": setup.device,
    }  # fmt: skip
    return [peer_case(name, bundle, common, options, where) for name in names]


def write_inputs(setup: Setup, bundle: Bundle, options: Mapping[str, Any]) -> Path:
    """Write noise, states and the table of steps, unless they are there; return the file.

    Its name tells what is in it: what was written for other settings or by other code stays unused.
    """
    wanted = {"bundle": setup.source, "prompt": drawing_prompt(bundle), "options": dict(options)}
    told = digest([wanted, bundle.hash, code_digest()])
    path = work_folder(setup.output) / f"inputs-{told}.npz"
    if not path.exists():
        settings = {**wanted, "inputs": str(path)}
        Worker(Case("inputs", "hbsdk.bench.tasks", "Inputs", settings)).close()
    return path


def asked_peers(arguments: argparse.Namespace, setup: Setup) -> list[Case]:
    """Return the peers that the arguments name; by default all, which then need not run here.

    Raises:
        CaseError: what they start from cannot be written.
    """
    given = dict(pair.split("=", 1) for pair in arguments.peer_python)
    where = Interpreters(given, arguments.environments)
    if arguments.peer:
        return peers_of(setup, [name for name in arguments.peer if name != "none"], where)
    return [replace(one, optional=True) for one in peers_of(setup, list(CATALOGUE), where)]


def main() -> int:
    """Measure, compare and write JSON, table and plot."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--peer", action="append", choices=[*CATALOGUE, "none"], help="may repeat; default: all"
    )
    parser.add_argument("--environments", type=Path, help="where the peers' environments are made")
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="NAME=PYTHON",
        help="an interpreter that has diffusers, optimum or openvino",
    )  # fmt: skip
    parser.add_argument("--guided-step", action="store_true", help="one step alone, no picture")
    parser.add_argument("--height", type=int, help="px, of every case and peer")
    parser.add_argument("--width", type=int, help="px, as well")
    arguments = parser.parse_args()
    if any("=" not in pair for pair in arguments.peer_python):
        parser.error("--peer-python: expected NAME=PYTHON")
    setup = replace(
        setup_of(arguments), guided_step=arguments.guided_step, height=arguments.height,
        width=arguments.width,
    )  # fmt: skip

    def ask() -> Report:
        return ask_generate(setup, asked_peers(arguments, setup))

    try:
        return run(ask)
    except CaseError as error:
        print(f"error: what the peers start from cannot be written: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
