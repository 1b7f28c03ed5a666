"""Builds the bridge once a test run, and mini's engines for it.

$HBSDK_TEST_ENGINES names a folder where mini's engines are kept between runs (a minute to build),
$HBSDK_TEST_BUILDS one for what is compiled.
Where a compiler or a library is missing, tests skip and say so; where $CI is set, they fail.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from hbsdk.manifest import SEAL, _seal
from tests.cpp.files_check import FilesCheck
from tests.cpp.library import Bridge

CHECKOUT = Path(__file__).parents[2]
SOURCE = CHECKOUT / "cpp_bridge"
ONNXRUNTIME_ROOT = Path(os.environ.get("ONNXRUNTIME_ROOT") or SOURCE / "build" / "onnxruntime")
_HEADERS = ("nlohmann/json.hpp", "utf8proc.h", "openssl/evp.h", "png.h")


def missing_parts() -> list[str]:
    """Return what the build needs and this machine lacks."""
    programs = [name for name in ("cmake", "ninja", "g++") if shutil.which(name) is None]
    if "g++" in programs:
        return programs
    includes = "".join(f"#include <{header}>\n" for header in _HEADERS)
    check = ["g++", "-fsyntax-only", "-std=c++17", "-x", "c++", "-"]
    run = subprocess.run(check, input=includes, capture_output=True, text=True, check=False)
    headers = [name for name in _HEADERS if f"{name}: No such file" in run.stderr]
    parts = ("include/onnxruntime_cxx_api.h", "lib/libonnxruntime.so")
    # The library is a link into a Python environment, which may be gone by now.
    onnxruntime = [str(ONNXRUNTIME_ROOT / part) for part in parts]
    return [*programs, *headers, *(part for part in onnxruntime if not Path(part).is_file())]


def refuse(what: str) -> NoReturn:
    """Skip, or fail where everything has to be there."""
    reason = f"{what}; run cpp_bridge/get_dependencies.sh"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def run_checked(command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command whose failure fails the test with all that it wrote."""
    run = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )
    assert run.returncode == 0, f"{command}: {run.returncode}\n{run.stdout}\n{run.stderr}"
    return run


@pytest.fixture(scope="session")
def build_preset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that builds a preset, and the folder of what it built."""
    missing = missing_parts()
    if missing:
        refuse(f"the C++ bridge is not built here: no {', '.join(missing)}")

    kept = os.environ.get("HBSDK_TEST_BUILDS")
    parent = Path(kept) if kept else tmp_path_factory.mktemp("bridge")

    def build(preset: str, *settings: str) -> Path:
        folder = parent / preset
        root = f"-DONNXRUNTIME_ROOT={ONNXRUNTIME_ROOT}"
        configure = ["cmake", "--preset", preset, "-B", folder, root, *settings]
        run_checked(configure, cwd=SOURCE)
        run_checked(["cmake", "--build", folder])
        return folder

    return build


@pytest.fixture(scope="session")
def bridge_build(build_preset: Callable[..., Path]) -> Path:
    """Return the folder of the release build: libhbsdk.so, hbsdk-cli, examples, test programs."""
    return build_preset("release", "-DHBSDK_BUILD_TESTS=ON")


@pytest.fixture(scope="session")
def files_check(bridge_build: Path) -> FilesCheck:
    """Return the program over the readers of files and text."""
    (program,) = bridge_build.rglob("files-check")
    return FilesCheck(program)


@pytest.fixture(scope="session")
def bridge(bridge_build: Path) -> Bridge:
    return Bridge(bridge_build / "libhbsdk.so")


@pytest.fixture(scope="session")
def mini_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of mini's engines for ONNX Runtime on the CPU; copy before changing."""
    pytest.importorskip("onnx", reason="building engines needs onnx and onnxscript")
    from export.build_engines import build
    from export.recipe import read_recipe
    from hbsdk.bundle import Bundle

    kept = os.environ.get("HBSDK_TEST_ENGINES")
    root = Path(kept) if kept else tmp_path_factory.mktemp("mini-engines")
    return build(Bundle.open(None), read_recipe("mini-cpu"), root, quiet=True).engines.folder


@pytest.fixture
def copied(mini_engines: Path, tmp_path: Path) -> Path:
    """Return a copy of the engines that may be changed."""
    return Path(shutil.copytree(mini_engines, tmp_path / mini_engines.name))


def change_manifest(folder: Path, **changes: Any) -> None:
    """Change fields of an engine folder's manifest and seal it anew."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(data | {SEAL: _seal(data)}))


def change_engines(folder: Path, file: str, change: Callable[[Any], None]) -> None:
    """Change a JSON file of an engine folder, as somebody would who also lists it anew."""
    path = folder / file
    data = json.loads(path.read_text())
    change(data)
    replace_file(folder, file, json.dumps(data).encode())


def replace_file(folder: Path, file: str, data: bytes) -> None:
    """Replace a file of an engine folder and list it anew."""
    (folder / file).write_bytes(data)
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change_manifest(folder, files=files | {file: hashlib.sha256(data).hexdigest()})


@pytest.fixture(scope="session")
def session(mini_engines: Path) -> Any:
    """Return Python's session on the same engines."""
    import hbsdk

    return hbsdk.Session(engine="onnxruntime", engines=mini_engines, device="cpu", progress=False)


@pytest.fixture(scope="session")
def context(bridge: Bridge, mini_engines: Path) -> int:
    """Return a context of mini's engines, with Python's settings; shared: do not close it."""
    return bridge.open(mini_engines, device="cpu")


@pytest.fixture(scope="session")
def cat_photo() -> np.ndarray:
    """Return (90, 120, 3) uint8: stripes on a disc, on a dark ground."""
    y, x = np.mgrid[0:90, 0:120]
    disc = (y - 45) ** 2 + (x - 70) ** 2 < 30**2
    photo = np.random.default_rng(0).integers(0, 60, (90, 120, 3)).astype(np.uint8)
    stripes = np.where(((x + y) // 6 % 2)[:, :, None] == 0, [230, 130, 40], [40, 60, 200])
    return np.where(disc[:, :, None], stripes, photo).astype(np.uint8)


@pytest.fixture(scope="session")
def cat_mask() -> np.ndarray:
    """Return where the disc is, (90, 120) uint8 in {0, 255}."""
    y, x = np.mgrid[0:90, 0:120]
    return (((y - 45) ** 2 + (x - 70) ** 2 < 30**2) * 255).astype(np.uint8)


@pytest.fixture(scope="session")
def python_subject(session: Any, cat_photo: np.ndarray, cat_mask: np.ndarray) -> Any:
    """Return the subject that Python's probe makes of the photo."""
    return session.personalize(cat_photo, cat_mask, name="cat", steps=0)


@pytest.fixture(scope="session")
def subject_file(python_subject: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_subject.save(tmp_path_factory.mktemp("subject"))
