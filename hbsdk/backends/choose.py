"""Which runtime a session takes, and why each other one was not taken."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from hbsdk.backends.base import Memory
from hbsdk.backends.precision import prefers_bfloat16
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder, default_root, scan_engines
from hbsdk.errors import EngineError, MissingDependencyError, OptionError
from hbsdk.manifest import Runtime, read_manifest
from hbsdk.runtimes import compute_capability, installed_runtimes, installed_version

if TYPE_CHECKING:
    from hbsdk.backends.base import Backend
    from hbsdk.backends.torch import TorchBackend

Engine = Literal["auto", "torch", "onnxruntime", "openvino", "tensorrt"]
ENGINES: tuple[Engine, ...] = ("auto", "torch", "onnxruntime", "openvino", "tensorrt")

# Fastest first; on a CPU as `prefers_bfloat16` says: generate_mini.json and generate_sd15.json of
# benchmarks/results.
_ON_GPU = (("tensorrt", "gpu"), ("onnxruntime", "gpu"), ("torch", "gpu"))
_ON_CPU = (("onnxruntime", "cpu"), ("openvino", "cpu"), ("torch", "cpu"))
_ON_CPU_IN_BFLOAT16 = (("openvino", "cpu"), ("torch", "cpu"), ("onnxruntime", "cpu"))
_TORCH_NEEDS = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Candidate:
    """A way to run a bundle.

    Attributes:
        engine: as a session names it.
        place: where it runs.
        folder: its engines; None in torch, and where they cannot be used.
        problem: why it cannot be taken, with what mends it; None if it can.
        path: of its engines, usable or not; None where there are none.
        remedy: what alone mends the problem, where that is known.
    """

    engine: Engine
    place: Literal["gpu", "cpu"]
    folder: EngineFolder | None = None
    problem: str | None = None
    path: Path | None = None
    remedy: str | None = None


def candidates(bundle: Bundle, engines: Path | None = None) -> list[Candidate]:
    """Return every way to run a bundle, what `auto` takes first; the unusable ones last.

    Args:
        bundle: to run.
        engines: an engine folder, or one of many; None is `engine_folder.default_root()`.

    Raises:
        EngineError: `engines` is no folder, or cannot be read.
        BundleError: the bundle's files cannot be read.
    """
    root = default_root() if engines is None else engines
    runtimes = cast("dict[Runtime, str]", installed_runtimes())
    scanned = scan_engines(root, bundle, runtimes=runtimes, compute_capability=compute_capability())
    found = [_torch_candidate(), *(_engine_candidate(path, one) for path, one in scanned)]
    named = {candidate.engine for candidate in found}
    for name in ("onnxruntime", "tensorrt"):
        if name not in named:
            found.append(_without_engines(name, root))
    if installed_version("openvino") is not None:
        found += _openvino_candidates(scanned, root)
    order = _ON_GPU + (_ON_CPU_IN_BFLOAT16 if prefers_bfloat16(bundle) else _ON_CPU)
    return sorted(
        found, key=lambda one: (one.problem is not None, order.index((one.engine, one.place)))
    )


def _torch_candidate() -> Candidate:
    missing = [name for name in _TORCH_NEEDS if find_spec(name) is None]
    if missing:
        remedy = 'Install what is missing: pip install "hbsdk[torch]"'
        problem = f"{', '.join(missing)} not installed. {remedy}."
        return Candidate("torch", "cpu", None, problem, None, remedy)
    return Candidate("torch", "gpu" if compute_capability() and torch_cuda_version() else "cpu")


def torch_cuda_version() -> str | None:
    """Return the CUDA that the installed PyTorch was built with, such as "13.0", or None.

    Read off its files: importing it takes seconds.
    """
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return None
    try:
        text = Path(torch.origin).with_name("version.py").read_text("utf-8")
    except OSError:
        return None
    stated = re.search(r"^cuda\b.*= '([\d.]+)'", text, re.MULTILINE)
    return stated[1] if stated else None


def _engine_candidate(path: Path, found: EngineFolder | EngineError) -> Candidate:
    if isinstance(found, EngineError):
        engine = _engine_of(path)
        return Candidate(engine, _usual_place(engine), None, str(found), path, found.remedy)
    if found.manifest.runtime == "onnxruntime":
        return _onnxruntime_candidate(path, found)
    from hbsdk.backends.cuda_device import load_cudart

    try:
        load_cudart()
    except MissingDependencyError as error:
        return Candidate("tensorrt", "gpu", None, str(error), path, error.remedy)
    return Candidate("tensorrt", "gpu", found, None, path)


def _onnxruntime_candidate(path: Path, found: EngineFolder) -> Candidate:
    try:
        import onnxruntime
    except ImportError as error:  # installed, else the folder were not fit, and damaged
        remedy = "Remove onnxruntime and onnxruntime-gpu, and install one of them again"
        problem = f"onnxruntime cannot be imported: {error}. {remedy}."
        return Candidate("onnxruntime", "cpu", None, problem, path, remedy)
    usable = set(found.manifest.providers) & set(onnxruntime.get_available_providers())
    on_gpu = compute_capability() is not None and usable - {"CPUExecutionProvider"}
    return Candidate("onnxruntime", "gpu" if on_gpu else "cpu", found, None, path)


def _openvino_candidates(
    scanned: Iterable[tuple[Path, EngineFolder | EngineError]], root: Path
) -> list[Candidate]:
    """Return OpenVINO on each folder of ONNX Runtime's engines, whose graphs it runs."""
    folders = [
        (path, found)
        for path, found in scanned
        if isinstance(found, EngineFolder) and found.manifest.runtime == "onnxruntime"
    ]
    if not folders:
        return [_without_engines("openvino", root)]
    if not _is_found("openvino"):  # importing it takes a quarter of a second
        remedy = "Install it again: pip install --force-reinstall openvino"
        problem = f"openvino is installed, and cannot be found. {remedy}."
        return [Candidate("openvino", "cpu", None, problem, None, remedy)]
    return [Candidate("openvino", "cpu", found, None, path) for path, found in folders]


def _is_found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # of a module that was made None, so that it cannot be imported
        return False


def _engine_of(path: Path) -> Literal["onnxruntime", "tensorrt"]:
    """Return what a folder that does not fit is for; where it does not tell, "onnxruntime"."""
    try:
        runtime = read_manifest(path).runtime
    except EngineError:
        return "onnxruntime"
    return "onnxruntime" if runtime == "onnxruntime" else "tensorrt"


def _usual_place(name: Literal["onnxruntime", "openvino", "tensorrt"]) -> Literal["gpu", "cpu"]:
    return "gpu" if name == "tensorrt" else "cpu"


def _without_engines(name: Literal["onnxruntime", "openvino", "tensorrt"], root: Path) -> Candidate:
    whose = "ONNX Runtime, which it runs," if name == "openvino" else "it"
    why = f"no engines of {whose} for this bundle in {root}"
    remedy = "Build them: python export/build_engines.py"
    if name == "tensorrt" and compute_capability() is None:
        why = f"there is no NVIDIA GPU here, and {why}"
        remedy = "Build engines for this machine: python export/build_engines.py"
    return Candidate(name, _usual_place(name), None, f"{why}. {remedy}.", None, remedy)


def allowed(
    every: Iterable[Candidate], engine: Engine, engines: Path | None, device: str | None
) -> list[Candidate]:
    """Return those of `candidates` that fit what a session is asked for, usable or not.

    Args:
        every: in order.
        engine: as of `choose`.
        engines: as of `choose`.
        device: as of `choose`.
    """
    place = None if device is None else ("cpu" if device == "cpu" else "gpu")
    return [
        one
        for one in every
        if engine in ("auto", one.engine)
        and (engines is None or one.engine != "torch")
        # Both run on a CPU too where there is a GPU, and torch knows devices of other makers.
        and (
            place in (None, one.place)
            or one.engine == "torch"
            or (one.engine, place) == ("onnxruntime", "cpu")
        )
    ]


def choose(bundle: Bundle, engine: Engine, engines: Path | None, device: str | None) -> Candidate:
    """Return the candidate that a session takes.

    Args:
        bundle: to run.
        engine: "auto" or the one to take.
        engines: as of `candidates`; if it is given, "auto" takes no torch.
        device: if it is given, only what runs there is taken.

    Raises:
        OptionError: there is no such engine.
        EngineError: none can be taken; the message says why each was not.
    """
    if engine not in ENGINES:
        raise OptionError("engine", expected=f"one of {', '.join(ENGINES)}", got=repr(engine))
    if engine == "openvino" and installed_version("openvino") is None:
        raise MissingDependencyError(
            "engine 'openvino'", expected="openvino to be installed", got="it is not",
            remedy='Install it: pip install "hbsdk[openvino]"',
        )  # fmt: skip
    if engine == "torch":
        return Candidate("torch", "cpu")
    wanted = allowed(candidates(bundle, engines), engine, engines, device)
    usable = [one for one in wanted if one.problem is None]
    if usable:
        return usable[0]
    reasons = [f"{one.engine}: {one.problem}" for one in wanted if one.problem]
    if device is not None:
        reasons.insert(0, f"none that runs on device {device!r}.")
    raise EngineError(
        f"engine {engine!r} for bundle {bundle.info.name!r}",
        expected="a runtime that is installed, built and matching",
        got=" ".join(reasons),
        remedy="`hbsdk doctor` shows every runtime, and why it was not taken",
    )


def open_backend(
    bundle: Bundle,
    candidate: Candidate,
    *,
    device: str | None,
    dtype: Any,
    memory: Memory,
) -> Backend:
    """Return the backend of a candidate; networks are loaded when first needed.

    Raises:
        OptionError: the device is not there, or an option is none of its choices.
        MissingDependencyError: what it needs is not installed.
    """
    if memory not in get_args(Memory):
        raise OptionError(
            "memory", expected=f"one of {', '.join(get_args(Memory))}", got=repr(memory)
        )
    if candidate.engine == "torch":
        return open_torch(bundle, device=device, dtype=dtype, memory=memory)
    assert candidate.folder is not None
    if candidate.engine == "openvino":
        from hbsdk.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(bundle, candidate.folder, device=device, memory=memory)
    return open_engine_backend(bundle, candidate.folder, device=device, memory=memory)


def open_engine_backend(
    bundle: Bundle, engines: EngineFolder, *, device: str | None = None, memory: Memory = "high"
) -> Backend:
    """Return the backend of an engine folder: TensorRT if it is for that and for this GPU.

    The graphs of TensorRT engines that are not, which only a build opens, run in ONNX Runtime.
    """
    if compute_capability() in engines.manifest.compute_capabilities:
        from hbsdk.backends.tensorrt import TensorRTBackend

        return TensorRTBackend(bundle, engines, device=device, memory=memory)
    from hbsdk.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, engines, device=device, memory=memory)


def open_torch(bundle: Bundle, *, device: str | None, dtype: Any, memory: Memory) -> TorchBackend:
    """Return the PyTorch backend.

    Raises:
        MissingDependencyError: PyTorch, diffusers or transformers is not installed.
    """
    try:
        from hbsdk.backends.torch import TorchBackend
    except ImportError as error:
        raise MissingDependencyError(
            "PyTorch", expected="torch, diffusers and transformers", got=str(error),
            remedy='Install them: pip install "hbsdk[torch]"',
        ) from error  # fmt: skip
    return TorchBackend(bundle, device=device, dtype=dtype, memory=memory)
