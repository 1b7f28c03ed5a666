"""What all tests share: no network, one tiny random bundle, and its engines."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from export.build_engines import Built
    from tests.simulated_gpu import Cudart


@pytest.fixture(scope="session", autouse=True)
def no_engines_of_this_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sessions of engine="auto" take what a test gives them, not what lies in engines/built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HBSDK_ENGINES", str(tmp_path_factory.mktemp("no-engines")))
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a complete bundle of random weights, shared: copy before changing."""
    from tests.tiny_bundle import write_tiny_bundle

    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def tiny_build(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the tiny bundle's engines for ONNX Runtime, in float32; shared: copy before changing.

    Takes half a minute, which the first test that asks for it is charged.
    """
    pytest.importorskip("onnx", reason="building engines needs onnx and onnxscript")
    from tests.tiny_engines import build_tiny_engines

    return build_tiny_engines(tiny_bundle, tmp_path_factory.mktemp("tiny-engines"))


@pytest.fixture(scope="session")
def tiny_engines(tiny_build: Built) -> Path:
    """Return the folder of the tiny bundle's engines, shared: copy before changing."""
    return tiny_build.engines.folder


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Return a (40, 48, 3) uint8 photo of a bright square on a dark ground."""
    pixels = np.random.default_rng(0).integers(0, 60, (40, 48, 3)).astype(np.uint8)
    pixels[8:32, 12:36] = [220, 120, 40]
    pixels[14:18, 18:30] = [20, 30, 200]
    return pixels


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    """Return where the photo's square is, (40, 48) uint8 in {0, 255}."""
    mask = np.zeros((40, 48), np.uint8)
    mask[8:32, 12:36] = 255
    return mask


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cudart:
    """Put a simulated GPU in the place of NVIDIA's runtime, and caches of kernels in a folder."""
    from hbsdk.backends import cuda_device
    from tests.simulated_gpu import Cudart

    simulated = Cudart()
    monkeypatch.setattr(cuda_device, "load_cudart", lambda: simulated)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return simulated
