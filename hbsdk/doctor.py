"""`hbsdk doctor`: what this machine has, and what hbsdk would use of it; needs no torch."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hbsdk.backends.choose import Candidate, allowed, candidates, torch_cuda_version
from hbsdk.bundle import Bundle, Source
from hbsdk.engine_folder import default_root
from hbsdk.runtimes import compute_capability, gpus, installed_version

_EXTRAS = {
    "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx", "onnxruntime": "cpu",
    "openvino": "openvino", "torch": "torch",
}  # fmt: skip
_PACKAGES = (
    "hbsdk", "diffusers", "transformers", "cuda-python", "opencv-python-headless",
    "transparent-background",
)  # fmt: skip


def diagnose(source: Source | None = None, engines: str | Path | None = None) -> dict[str, Any]:
    """Return findings by topic, fit for JSON.

    Args:
        source: of the bundle, as of `Session`.
        engines: an engine folder, or a folder of them, as of `Session`.

    Raises:
        BundleError: the bundle cannot be opened.
        EngineError: `engines` is no folder, or cannot be read.
    """
    bundle = Bundle.open(source)
    folder = None if engines is None else Path(os.path.expanduser(engines))
    every = candidates(bundle, folder)
    (torch,) = (one for one in every if one.engine == "torch")
    return {
        "system": {
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "cpu_cores": os.cpu_count(),
            "memory_bytes": _memory_bytes(),
        },
        "gpus": [asdict(gpu) for gpu in gpus()],
        "compute_capability": compute_capability(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "runtimes": {name: _runtime(name) for name in _EXTRAS},
        "bundle": _bundle(bundle),
        "engines": {
            "root": str(default_root() if folder is None else folder),
            "folders": [
                _engines(one) for one in every if one.path is not None and one.engine != "openvino"
            ],
        },
        "auto": _auto(every, folder),
        "refinement": {"engine": "torch", "place": torch.place, "problem": torch.problem},
    }


def _memory_bytes() -> int | None:
    """The machine's memory; None where the system does not tell, as on Windows."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _runtime(name: str) -> dict[str, Any] | None:
    """What is known of a runtime without loading much; None if it is not installed."""
    installed = installed_version(name)
    if installed is None:
        return None
    found: dict[str, Any] = {"version": installed}
    if name == "onnxruntime":
        try:
            import onnxruntime

            found["providers"] = onnxruntime.get_available_providers()
        except ImportError as error:
            found["problem"] = f"it cannot be imported: {error}"
    if name == "torch":
        found["cuda"] = torch_cuda_version()
    return found


def _bundle(bundle: Bundle) -> dict[str, Any]:
    weights = {name: _size_bytes(path) for name, path in bundle.components.items()}
    return {
        "name": bundle.info.name,
        "hash": bundle.hash,
        "weights_bytes": weights,
        "personalizes": {"image_encoder", "dino", "regressor"} <= set(bundle.components),
    }


def _size_bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def _engines(candidate: Candidate) -> dict[str, Any]:
    found: dict[str, Any] = {
        "folder": str(candidate.path),
        "usable": candidate.problem is None,
        "problem": candidate.problem,
        "remedy": candidate.remedy,
    }
    if candidate.folder is not None:
        manifest = candidate.folder.manifest
        found |= {
            "runtime": f"{manifest.runtime} {manifest.runtime_version}",
            "precision": sorted(set(manifest.precision.values())),
            "recipe": manifest.recipe_name,
            "engines": sorted(candidate.folder.specs),
        }
    return found


def _auto(every: Sequence[Candidate], folder: Path | None) -> dict[str, Any]:
    """What `engine="auto"` takes, and of every other candidate, why it does not."""
    asked_for = allowed(every, "auto", folder, None)
    taken = next((one for one in asked_for if one.problem is None), None)
    others = [
        _choice(one) | {"reason": _reason(one, passed_by=one not in asked_for)}
        for one in every
        if one is not taken
    ]
    return {"takes": None if taken is None else _choice(taken), "others": others}


def _choice(candidate: Candidate) -> dict[str, Any]:
    path = None if candidate.path is None else str(candidate.path)
    return {"engine": candidate.engine, "place": candidate.place, "engines": path}


def _reason(candidate: Candidate, *, passed_by: bool) -> str:
    if candidate.problem is not None:
        return candidate.problem
    if passed_by:
        return f"engines are asked for; engine={candidate.engine!r} takes it."
    asking = (
        f"engine={candidate.engine!r}" if candidate.path is None else f"engines='{candidate.path}'"
    )
    return f"usable, but what is taken comes before it, fastest first; {asking} takes it."


def in_words(findings: dict[str, Any]) -> str:
    """Return the findings for a person to read."""
    bundle = findings["bundle"]
    megabytes = sum(bundle["weights_bytes"].values()) / 1e6
    able = "personalizes and generates" if bundle["personalizes"] else "generates only"
    packages = [f"{name} {number or '-'}" for name, number in findings["packages"].items()]
    return "\n".join(
        [
            *_hardware_in_words(findings),
            f"packages: {', '.join(packages)}",
            "runtimes:",
            *(_runtime_in_words(name, one) for name, one in findings["runtimes"].items()),
            f"bundle: {bundle['name']}, {megabytes:.1f} MB, {able}, hash {bundle['hash'][:16]}",
            *_engines_in_words(findings["engines"]),
            *_auto_in_words(findings["auto"], findings["engines"]["folders"]),
            _refinement_in_words(findings["refinement"]),
        ]
    )


def _hardware_in_words(findings: dict[str, Any]) -> list[str]:
    system = findings["system"]
    memory = system["memory_bytes"]
    size = "memory unknown" if memory is None else f"{memory / 2**30:.1f} GiB memory"
    cards = [
        f"GPU {number}: {gpu['name']}, {gpu['memory_mib']} MiB, driver {gpu['driver']}, "
        f"compute capability {gpu['compute_capability']}"
        for number, gpu in enumerate(findings["gpus"])
    ]
    if not cards and findings["compute_capability"]:  # Jetson, where nvidia-smi tells little
        cards = [f"GPU: NVIDIA, compute capability {findings['compute_capability']}"]
    return [
        f"python {system['python']}, {system['platform']}, {system['cpu_cores']} cores, {size}",
        *(cards or ["GPU: no NVIDIA GPU is found"]),
    ]


def _runtime_in_words(name: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return f'  {name}: not installed (pip install "hbsdk[{_EXTRAS[name]}]")'
    words = f"  {name} {found['version']}"
    if "problem" in found:
        words += f": {found['problem']}"
    if "providers" in found:
        words += f": {', '.join(found['providers'])}"
    if "cuda" in found:
        words += f", built for CUDA {found['cuda']}" if found["cuda"] else ", built without CUDA"
    return words


def _engines_in_words(found: dict[str, Any]) -> list[str]:
    lines = [f"engines in {found['root']}:{'' if found['folders'] else ' none'}"]
    for one in found["folders"]:
        name = Path(one["folder"]).name
        if one["usable"]:
            lines.append(f"  {name}: usable, {one['runtime']}, {' and '.join(one['precision'])}")
        else:
            lines.append(f"  {name}: not usable: {one['problem']}")
    return lines


def _auto_in_words(found: dict[str, Any], folders: Sequence[dict[str, Any]]) -> list[str]:
    taken = found["takes"]
    said_above = {one["folder"] for one in folders if not one["usable"]}
    first = "nothing: none of these can run" if taken is None else _choice_in_words(taken)
    return [
        f'Session(engine="auto") takes {first}',
        *(
            f"  not {_choice_in_words(one)}: "
            f"{'not usable, see above' if one['engines'] in said_above else one['reason']}"
            for one in found["others"]
        ),
    ]


def _choice_in_words(choice: dict[str, Any]) -> str:
    name = "" if choice["engines"] is None else f" ({Path(choice['engines']).name})"
    return f"{choice['engine']} on the {choice['place'].upper()}{name}"


def _refinement_in_words(found: dict[str, Any]) -> str:
    how = found["problem"] or f"torch on the {found['place'].upper()}"
    return f"refinement (personalize with steps > 0): {how}"
