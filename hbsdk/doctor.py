"""`hbsdk doctor`: what this machine has, and what hbsdk would use of it."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hbsdk.bundle import Bundle, Source

_PACKAGES = (
    "hbsdk", "torch", "diffusers", "transformers", "onnxruntime", "onnxruntime-gpu", "tensorrt",
    "tensorrt-rtx", "opencv-python-headless", "transparent-background",
)  # fmt: skip


def diagnose(source: Source | None = None) -> dict[str, Any]:
    """Return findings by topic, fit for JSON.

    Raises:
        BundleError: the bundle cannot be opened.
    """
    bundle = Bundle.open(source)
    weights = {name: _size_bytes(path) for name, path in bundle.components.items()}
    return {
        "system": {
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "cpu_cores": os.cpu_count(),
        },
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": _devices(),
        "bundle": {
            "name": bundle.info.name,
            "hash": bundle.hash,
            "weights_bytes": weights,
            "personalizes": {"image_encoder", "dino", "regressor"} <= set(bundle.components),
        },
    }


def in_words(findings: dict[str, Any]) -> str:
    """Return the findings for a person to read."""
    system, bundle = findings["system"], findings["bundle"]
    installed = [f"{name} {v}" for name, v in findings["packages"].items() if v]
    missing = [name for name, v in findings["packages"].items() if not v]
    megabytes = sum(bundle["weights_bytes"].values()) / 1e6
    able = "personalizes and generates" if bundle["personalizes"] else "generates only"
    return "\n".join(
        [
            f"python {system['python']}, {system['platform']}, {system['cpu_cores']} cores",
            f"installed: {', '.join(installed)}",
            f"not installed: {', '.join(missing) or 'nothing'}",
            f"runtime: torch on {findings['devices'][0]}",
            f"bundle: {bundle['name']}, {megabytes:.1f} MB, {able}, hash {bundle['hash'][:16]}",
        ]
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    """Return what PyTorch can run on, best first."""
    try:
        import torch
    except ImportError:
        return ["nothing: install torch"]
    gpus = [
        f"{torch.cuda.get_device_name(i)} (cuda:{i}, "
        f"{torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB)"
        for i in range(torch.cuda.device_count())
    ]
    return [*gpus, "cpu"]


def _size_bytes(path: Any) -> int:
    files = [path] if path.is_file() else path.rglob("*.safetensors")
    return sum(file.stat().st_size for file in files)
