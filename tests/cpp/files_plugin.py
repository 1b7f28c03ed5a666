"""Builds files-check once a test run.

It needs no ONNX Runtime: a compiler, CMake, nlohmann-json, utf8proc and OpenSSL are enough. Test
modules take the fixture by `pytest_plugins = ("tests.cpp.files_plugin",)`. $HBSDK_TEST_BUILDS names
a folder that keeps what is compiled.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.cpp.conftest import run_checked
from tests.cpp.files_check import FilesCheck

SOURCE = Path(__file__).parents[2] / "cpp_bridge"


@pytest.fixture(scope="session")
def files_check(tmp_path_factory: pytest.TempPathFactory) -> FilesCheck:
    """Return the program, built once a test run."""
    missing = [name for name in ("cmake", "ninja", "g++") if shutil.which(name) is None]
    if missing:
        reason = f"files-check is not built here: no {', '.join(missing)}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    kept = os.environ.get("HBSDK_TEST_BUILDS")
    folder = Path(kept, "files") if kept else tmp_path_factory.mktemp("files-check")
    configure = ["cmake", "-S", SOURCE / "tests", "-B", folder, "-G", "Ninja"]
    run_checked([*configure, "-DCMAKE_BUILD_TYPE=Release"])
    run_checked(["cmake", "--build", folder])
    return FilesCheck(folder / "files-check")
