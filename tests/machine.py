"""Machines that are not there: what is installed, and which GPU, as hbsdk sees them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import pytest

from hbsdk import doctor
from hbsdk.backends import choose, precision
from hbsdk.errors import MissingDependencyError
from hbsdk.runtimes import Gpu
from tests.engine_files import CAPABILITY, VERSIONS

CARD = Gpu("NVIDIA GeForce RTX 4090", "24564", "580.65.06", CAPABILITY)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    *,
    gpu: Gpu | None = None,
    runtimes: Mapping[str, str] = VERSIONS,
    providers: Sequence[str] = (CPU,),
    torch: bool = True,
    torch_cuda: str | None = None,
    cuda_python: bool = True,
    listed: bool = True,
    bfloat16: bool = False,
) -> None:
    """Make hbsdk see this machine until the test ends.

    nvidia-smi shows a GPU if it is `listed`; `bfloat16` says what the CPU has.
    """
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: bfloat16)
    capability = None if gpu is None else gpu.compute_capability
    versions = dict(runtimes) | ({"torch": "2.13.0"} if torch else {})
    monkeypatch.setattr(choose, "compute_capability", lambda: capability)
    monkeypatch.setattr(choose, "installed_runtimes", lambda: dict(runtimes))
    monkeypatch.setattr(choose, "installed_version", versions.get)
    monkeypatch.setattr(choose, "torch_cuda_version", lambda: torch_cuda)
    monkeypatch.setattr(doctor, "torch_cuda_version", lambda: torch_cuda)
    monkeypatch.setattr(doctor, "compute_capability", lambda: capability)
    monkeypatch.setattr(doctor, "gpus", lambda: (gpu,) if gpu is not None and listed else ())
    monkeypatch.setattr(doctor, "installed_version", versions.get)
    found = SimpleNamespace(get_available_providers=lambda: list(providers))
    monkeypatch.setitem(sys.modules, "onnxruntime", found if "onnxruntime" in runtimes else None)
    if not torch:
        monkeypatch.setitem(sys.modules, "torch", None)  # importing it is an ImportError
    monkeypatch.setattr("hbsdk.backends.cuda_device.load_cudart", _cudart(found=cuda_python))


def _cudart(*, found: bool) -> object:
    def load() -> None:
        if not found:
            raise MissingDependencyError(
                "cuda-python", remedy="Install it: pip install cuda-python"
            )

    return load
