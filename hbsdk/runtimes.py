"""Which runtimes are installed, and which NVIDIA GPUs are here; nothing heavy is imported."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from hbsdk.errors import MissingDependencyError

# Several distributions bring one module; the extras name what to install.
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt_rtx": ("tensorrt-rtx",),
    "tensorrt": ("tensorrt",),
    "openvino": ("openvino",),
    "torch": ("torch",),
}
_EXTRAS = {
    "onnxruntime": "cpu", "tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt",
    "openvino": "openvino", "torch": "torch",
}  # fmt: skip
_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # Intel's and AMD's, Intel's, ARM's
_QUERY = ("name", "memory.total", "driver_version", "compute_cap")


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as nvidia-smi tells: name, memory in MiB, driver, compute capability "8.9"."""

    name: str
    memory_mib: str
    driver: str
    compute_capability: str


def installed_version(runtime: str) -> str | None:
    """Return a runtime's version, or None.

    Args:
        runtime: "onnxruntime", "tensorrt_rtx", "tensorrt", "openvino" or "torch".
    """
    for distribution in _DISTRIBUTIONS[runtime]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def installed_runtimes() -> dict[str, str]:
    """Return the versions of the runtimes that engines are built for, of those installed."""
    others = ("torch", "openvino")  # which runs ONNX Runtime's
    found = {name: installed_version(name) for name in _DISTRIBUTIONS if name not in others}
    return {name: number for name, number in found.items() if number is not None}


def runtime_version(runtime: str) -> str:
    """Return a runtime's version.

    Raises:
        MissingDependencyError: it is not installed.
    """
    found = installed_version(runtime)
    if found is None:
        raise MissingDependencyError(
            runtime, expected="the runtime to be installed", got="none of "
            f"{', '.join(_DISTRIBUTIONS[runtime])}",
            remedy=f'Install it: pip install "hbsdk[{_EXTRAS[runtime]}]"',
        )  # fmt: skip
    return found


@cache
def cpu_has_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16 products, as Linux tells; else False."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return False
    named = {
        word for line in lines if line.startswith(("flags", "Features")) for word in line.split()
    }
    return not named.isdisjoint(_BFLOAT16_FLAGS)


@cache
def gpus() -> tuple[Gpu, ...]:
    """Return this machine's NVIDIA GPUs; none where there is no driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        listed = subprocess.run(  # noqa: S603
            [command, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines()]
    return tuple(Gpu(*row) for row in rows if len(row) == len(_QUERY))


def compute_capability() -> str | None:
    """Return the first GPU's compute capability, such as "8.9"; None without a GPU."""
    if gpus() and re.fullmatch(r"\d+\.\d+", gpus()[0].compute_capability):
        return gpus()[0].compute_capability
    if find_spec("cuda") is None:
        return None
    return _capability_by_cuda()


def _capability_by_cuda() -> str | None:
    """Ask CUDA itself: Jetson's nvidia-smi does not tell."""
    from cuda.bindings import runtime as cudart

    attributes = cudart.cudaDeviceAttr
    numbers = []
    for attribute in (
        attributes.cudaDevAttrComputeCapabilityMajor, attributes.cudaDevAttrComputeCapabilityMinor
    ):  # fmt: skip
        error, number = cudart.cudaDeviceGetAttribute(attribute, 0)
        if error != cudart.cudaError_t.cudaSuccess:
            return None
        numbers.append(str(number))
    return ".".join(numbers)
