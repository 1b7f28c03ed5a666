"""What this machine is to a training: its device, its free memory, its speed at products."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from hbsdk.training.options import MixedPrecision

DTYPES: Mapping[MixedPrecision, torch.dtype] = {
    "no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16
}  # fmt: skip
_PRODUCT_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is timed
_PRODUCT_SECONDS = 1.0


def training_device() -> torch.device:
    """Return where one process trains: the accelerator that torch finds (CUDA, MPS, XPU) or CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return what to call a device.

    Args:
        device: the CPU, or one of this machine's accelerators.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"the CPU with {torch.get_num_threads()} threads"
    return f"the accelerator {device.type}"


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the speed of a large matrix product, measured now for a second.

    Args:
        device: to measure.
        dtype: of the matrices.

    Returns:
        Floating-point operations a second.
    """
    side = _PRODUCT_SIDE.get(device.type, 2048)
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    left @ right
    count = 0
    _wait_for(device)
    started = time.perf_counter()
    while time.perf_counter() - started < _PRODUCT_SECONDS:
        left @ right
        _wait_for(device)
        count += 1
    return 2.0 * side**3 * count / (time.perf_counter() - started)


def _kib_of(path: str, key: str) -> int | None:
    """Return a line of a /proc file in bytes."""
    try:
        lines = Path(path).read_text("ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(found[0]) * 1024 if found else None


def reset_peak(device: torch.device) -> None:
    """Let `peak_memory_bytes` begin anew, where the system can.

    Args:
        device: to measure.
    """
    if device.type != "cpu":
        with contextlib.suppress(RuntimeError):  # as above
            torch.accelerator.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # VmHWM begins anew
    except OSError:
        return  # the peak is then the process's since its start


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory: of torch on an accelerator that counts it, else of the process.

    Args:
        device: to measure.

    Returns:
        Bytes; 0 where the system does not tell.
    """
    if device.type != "cpu":
        with contextlib.suppress(RuntimeError):
            return int(torch.accelerator.max_memory_allocated(device))
    peak = _kib_of("/proc/self/status", "VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:  # on Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
