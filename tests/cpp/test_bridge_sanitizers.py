"""The library under the address, undefined behaviour and thread sanitizers: no report."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cpp.conftest import SOURCE

PICTURES = 200


def run_program(program: Path, *arguments: object, **settings: str) -> None:
    command = list(map(str, [program, *arguments]))
    if shutil.which("setarch"):  # the shadow memory of GCC 12 and many random bits do not agree
        command = ["setarch", "-R", *command]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | settings
    )
    assert run.returncode == 0, f"{run.returncode}\n{run.stdout}\n{run.stderr[-6000:]}"
    assert "Sanitizer" not in run.stderr


@pytest.mark.slow
def test_no_memory_is_misused(
    build_preset: Callable[..., Path], mini_engines: Path, subject_file: Path, tmp_path: Path
):
    folder = build_preset("asan")
    run_program(
        folder / "test-sanitized", mini_engines, subject_file, tmp_path,
        ASAN_OPTIONS="detect_leaks=1:detect_stack_use_after_return=1",
        UBSAN_OPTIONS="print_stacktrace=1",
    )  # fmt: skip


@pytest.mark.slow
def test_threads_share_a_context(
    build_preset: Callable[..., Path], mini_engines: Path, subject_file: Path
):
    folder = build_preset("tsan")
    suppressions = SOURCE / "cmake" / "tsan.supp"
    run_program(
        folder / "test-threads", mini_engines, subject_file, PICTURES,
        TSAN_OPTIONS=f"suppressions={suppressions}:halt_on_error=0:second_deadlock_stack=1",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address", "thread"])
def test_the_sanitizers_do_report(kind, build_preset, tmp_path: Path):
    """The control: what is wrong is found in a program that is built and run the same way."""
    sources = {
        "address": "int main(int n, char**) { int* p = new int[4]; delete[] p; return p[n]; }",
        "thread": "#include <thread>\nint x; int main() { std::thread t([] { ++x; }); ++x;"
        " t.join(); }",
    }
    program = tmp_path / "wrong"
    command = ["g++", "-g", "-x", "c++", "-", f"-fsanitize={kind}", "-o", str(program)]
    subprocess.run(command, input=sources[kind], text=True, check=True)
    with pytest.raises(AssertionError, match="Sanitizer"):
        run_program(program)
