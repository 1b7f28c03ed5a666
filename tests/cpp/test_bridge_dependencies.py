"""get_dependencies.sh says what is wrong with a system that it cannot serve."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cpp.conftest import SOURCE, missing_parts

_PACKAGE = "#!/bin/sh\necho 'install ok installed'\n"
_VERSION = """#!/bin/sh
case "$*" in *Version*) echo {version};; *) echo 'install ok installed';; esac
"""
_ABSENT = "#!/bin/sh\nexit 1\n"


@pytest.fixture
def script(tmp_path: Path):
    """Return a function that runs the script where there are only these programs and the basic."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "dirname", "grep", "env", "mktemp", "rm", "find", "sort", "head", "dpkg"):
        found = next(path for path in map(Path, ("/usr/bin", "/bin")) if (path / name).exists())
        (folder / name).symlink_to(found / name)

    def run(**programs: str) -> subprocess.CompletedProcess[str]:
        for name, text in programs.items():
            path = folder / name.replace("_", "-")
            path.write_text(text)
            path.chmod(0o755)
        return subprocess.run(
            [SOURCE / "get_dependencies.sh", tmp_path / "onnxruntime"], capture_output=True,
            text=True, check=False, env={"PATH": str(folder), "PYTHON": "no-python"},
        )  # fmt: skip

    return run


def test_a_system_without_apt_is_told_so(script):
    done = script()
    assert done.returncode == 1
    assert done.stderr.startswith("error: apt-get is missing: this script is for Debian and Ubuntu")


def test_without_root_and_sudo_it_names_the_packages(script):
    done = script(
        apt_get=_ABSENT, dpkg_deb=_ABSENT, dpkg_query=_ABSENT, id="#!/bin/sh\necho 1000\n"
    )
    assert done.returncode == 1
    assert "installing them needs root or sudo. As root: apt-get install cmake" in done.stderr


def test_packages_that_are_not_there_are_named(script):
    done = script(apt_get=_ABSENT, dpkg_deb=_ABSENT, dpkg_query=_ABSENT, id="#!/bin/sh\necho 0\n")
    assert done.returncode != 0


def test_a_system_that_is_too_old_is_told_so(script):
    done = script(
        apt_get=_ABSENT, dpkg_deb=_ABSENT, dpkg_query=_VERSION.format(version="3.10.5-2"),
        id="#!/bin/sh\necho 1000\n",
    )  # fmt: skip
    assert done.returncode == 1
    assert "nlohmann-json 3.11 or newer is needed, this system has 3.10.5-2" in done.stderr


def test_a_python_without_onnxruntime_is_named(script, tmp_path: Path):
    include = tmp_path / "onnxruntime" / "include"
    include.mkdir(parents=True)
    (include / "onnxruntime_cxx_api.h").touch()  # the headers are there
    done = script(
        apt_get=_ABSENT, dpkg_deb=_ABSENT, dpkg_query=_VERSION.format(version="3.11.2-2"),
        id="#!/bin/sh\necho 1000\n",
    )  # fmt: skip
    assert done.returncode == 1
    assert "no-python has no onnxruntime and pip cannot install it" in done.stderr


def test_a_library_that_is_gone_is_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The headers alone are not enough: the library may have been a link into a deleted folder."""
    monkeypatch.setattr("tests.cpp.conftest.ONNXRUNTIME_ROOT", tmp_path)
    header, library = "include/onnxruntime_cxx_api.h", "lib/libonnxruntime.so"
    (tmp_path / "include").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / header).touch()
    target = tmp_path / "wheel.so"
    (tmp_path / library).symlink_to(target)
    assert str(tmp_path / library) in missing_parts()
    target.touch()
    assert not [part for part in missing_parts() if str(tmp_path) in part]
