"""The library under the address, undefined behaviour and thread sanitizers: no report."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.cpp.conftest import SOURCE
from tests.cpp.files_check import FilesCheck
from tests.cpp.test_files_corpus import HARNESSES, check_corpus

PICTURES = 200
SETTINGS = {
    "asan": {
        "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    "tsan": {
        "TSAN_OPTIONS": f"suppressions={SOURCE / 'cmake' / 'tsan.supp'}:halt_on_error=0"
        ":second_deadlock_stack=1"
    },
}


@cache
def without_random_addresses() -> tuple[str, ...]:
    """Return how to start a program so, or nothing where that is not permitted.

    The shadow memory of GCC 12's thread sanitizer and many random bits of addresses do not agree.
    """
    start = ("setarch", "-R")
    if shutil.which("setarch") is None:
        return ()
    tried = subprocess.run([*start, "true"], capture_output=True, check=False)
    return start if tried.returncode == 0 else ()


def run_program(preset: str, program: Path, *arguments: object) -> None:
    """Run a program of a preset; a report fails the test."""
    command = [*without_random_addresses(), *map(str, [program, *arguments])]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | SETTINGS[preset]
    )
    assert "unexpected memory mapping" not in run.stderr, (
        "the thread sanitizer needs fewer random bits in addresses: permit `setarch -R` (a "
        "container's seccomp profile may forbid it), or set sysctl vm.mmap_rnd_bits=28"
    )
    assert run.returncode == 0, f"{run.returncode}\n{run.stdout}\n{run.stderr[-6000:]}"
    assert "Sanitizer" not in run.stderr


@pytest.mark.slow
def test_no_memory_is_misused(
    build_preset: Callable[..., Path], mini_engines: Path, subject_file: Path, tmp_path: Path
):
    folder = build_preset("asan")
    run_program("asan", folder / "test-sanitized", mini_engines, subject_file, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("harness", HARNESSES)
def test_no_memory_is_misused_by_the_corpus(harness: str, build_preset: Callable[..., Path]):
    (program,) = build_preset("asan").rglob("files-check")
    check_corpus(FilesCheck(program, SETTINGS["asan"]), harness)


@pytest.mark.slow
def test_threads_share_a_context(
    build_preset: Callable[..., Path], mini_engines: Path, subject_file: Path
):
    folder = build_preset("tsan")
    run_program("tsan", folder / "test-threads", mini_engines, subject_file, PICTURES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "kind", "report"),
    [
        ("asan", "address", "AddressSanitizer: heap-buffer-overflow"),
        ("asan", "undefined", "signed integer overflow"),
        ("asan", "leak", "LeakSanitizer: detected memory leaks"),
        ("tsan", "thread", "ThreadSanitizer: data race"),
    ],
)
def test_the_sanitizers_do_report(preset, kind, report, build_preset, mini_engines: Path):
    """The control: what is wrong is found in a program that is built and run the same way."""
    folder = build_preset(preset)
    run_program(preset, folder / "test-wrong", "nothing", mini_engines)
    with pytest.raises(AssertionError, match=report):
        run_program(preset, folder / "test-wrong", kind, mini_engines)
