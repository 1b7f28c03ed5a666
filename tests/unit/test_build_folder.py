"""A build ends as a whole engine folder or as nothing, whatever stops it."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from export.build_folder import build_folder
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import scan_engines
from hbsdk.errors import EngineError
from tests.engine_files import CAPABILITY, VERSIONS, reopen, write_engines

ROOT = Path(__file__).parents[2]
OLD, NEW = b"graph of unet, old", b"graph of unet, new"
# What each build of another process begins with; it says "ready" in the middle of its build.
BUILD = """
import os, signal, sys
from pathlib import Path
from export.build_folder import build_folder
from hbsdk.bundle import Bundle
from tests.engine_files import write_engines
signal.signal(signal.SIGINT, signal.default_int_handler)
with build_folder(Path(sys.argv[1])) as folder:
    write_engines(folder, Bundle.open(), mark=", new")
"""
WAIT = """
    (folder / "unet" / "half").write_bytes(b"half")
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "built" / "mini-cpu-0123456789ab"


def build(target: Path, bundle: Bundle, mark: str) -> Path:
    with build_folder(target) as folder:
        write_engines(folder, bundle, mark=mark)
    return target


def stop(target: Path, bundle: Bundle, error: BaseException) -> None:
    """A build that fails when all is written but the end."""
    with build_folder(target) as folder:
        write_engines(folder, bundle, mark=", new")
        raise error


def graph(target: Path, bundle: Bundle) -> bytes:
    opened = reopen(target, bundle)
    opened.verify()
    return opened.path("unet").read_bytes()


def leftovers(target: Path) -> list[str]:
    """All beside the target but its lock, which stays: removing it would split those who wait."""
    names = {path.name for path in target.parent.iterdir()} - {target.name}
    return sorted(name for name in names if not name.startswith(".lock-"))


@contextmanager
def other_build(target: Path, code: str = WAIT) -> Iterator["subprocess.Popen[str]"]:
    """Another process in the middle of building the target."""
    with subprocess.Popen(
        [sys.executable, "-c", BUILD + code, str(target)],
        cwd=ROOT, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


# Well.


def test_a_build_takes_its_place(target: Path, bundle: Bundle) -> None:
    with build_folder(target) as folder:
        assert folder.parent == target.parent
        assert list(folder.iterdir()) == []
        write_engines(folder, bundle, mark=", new")
        assert not target.exists()
        found = scan_engines(
            target.parent, bundle, runtimes=VERSIONS, compute_capability=CAPABILITY
        )
        assert found == []  # half-built engines are not seen
    assert graph(target, bundle) == NEW
    assert leftovers(target) == []


def test_a_second_build_replaces_the_first(target: Path, bundle: Bundle) -> None:
    build(target, bundle, ", old")
    (target / "unet" / "mine").write_bytes(b"")
    build(target, bundle, ", new")
    assert graph(target, bundle) == NEW
    assert not (target / "unet" / "mine").exists()
    assert leftovers(target) == []


def test_a_link_to_another_disk_stays_a_link(target: Path, bundle: Bundle, tmp_path: Path) -> None:
    real = build(tmp_path / "disk" / "engines", bundle, ", old")
    target.parent.mkdir()
    target.symlink_to(real)
    build(target, bundle, ", new")
    assert target.is_symlink()
    assert graph(real, bundle) == NEW


# Failures.


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, EngineError])
@pytest.mark.parametrize("with_older", [True, False])
def test_a_failed_build_leaves_what_was(
    target: Path, bundle: Bundle, error: type[BaseException], with_older: bool
) -> None:
    if with_older:
        build(target, bundle, ", old")
    with pytest.raises(error, match="stop"):
        stop(target, bundle, error("stop"))
    assert leftovers(target) == []
    assert target.exists() == with_older
    if with_older:
        assert graph(target, bundle) == OLD


def test_a_build_without_a_manifest_is_none(target: Path, bundle: Bundle) -> None:
    build(target, bundle, ", old")
    with pytest.raises(AssertionError, match="write_manifest"), build_folder(target):
        pass
    assert graph(target, bundle) == OLD


@pytest.mark.parametrize("failing", [0, 1])
def test_what_cannot_be_renamed_stays(
    target: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    build(target, bundle, ", old")
    rename, calls = os.rename, []

    def refuse(old: Path, new: Path) -> None:
        calls.append(old)
        if len(calls) == failing + 1:
            raise PermissionError(errno.EACCES, "in use")
        rename(old, new)

    monkeypatch.setattr("export.build_folder.os.rename", refuse)
    with pytest.raises(EngineError, match=r"not replaced.*in use.*still there"):
        build(target, bundle, ", new")
    assert graph(target, bundle) == OLD
    assert leftovers(target) == []


def test_what_is_no_engine_folder_is_not_replaced(target: Path, bundle: Bundle) -> None:
    target.mkdir(parents=True)
    build(target, bundle, ", old")  # an empty folder is
    shutil.rmtree(target)
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(EngineError, match=r"is not replaced.*manifest.json"):
        build(target, bundle, ", new")
    assert (target / "thesis.txt").read_text() == "years of work"
    shutil.rmtree(target)
    target.write_text("a file")
    with pytest.raises(EngineError, match=r"is not replaced"):
        build(target, bundle, ", new")
    assert target.read_text() == "a file"


def test_a_place_that_cannot_be_written_to(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"lock .*HBSDK_ENGINES"):
        build(tmp_path / "file" / "engines", bundle, "")


# Interrupted builds.


def test_an_interrupted_build_leaves_what_was(target: Path, bundle: Bundle) -> None:
    build(target, bundle, ", old")
    with other_build(target) as process:
        assert leftovers(target) == [f".building-{target.name}"]
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate()
    assert "KeyboardInterrupt" in messages
    assert graph(target, bundle) == OLD
    assert leftovers(target) == []


def test_a_killed_build_leaves_what_was_and_is_swept(target: Path, bundle: Bundle) -> None:
    build(target, bundle, ", old")
    with other_build(target) as process:
        process.kill()
        process.wait()
    assert leftovers(target) == [f".building-{target.name}"]
    assert graph(target, bundle) == OLD
    build(target, bundle, ", new")
    assert graph(target, bundle) == NEW
    assert leftovers(target) == []


def test_a_killed_build_of_another_target_is_swept_and_a_running_one_is_not(
    target: Path, bundle: Bundle
) -> None:
    killed, running = target.with_name("killed"), target.with_name("running")
    with other_build(running):
        with other_build(killed) as process:
            process.kill()
            process.wait()
        assert leftovers(target) == [".building-killed", ".building-running"]
        build(target, bundle, ", new")
        assert leftovers(target) == [".building-running"]
        assert (target.parent / ".building-running" / "unet" / "half").exists()
    build(target, bundle, ", newer")
    assert leftovers(target) == []


@pytest.mark.parametrize("name", ["mini-cpu-0123456789ab", "another"])
def test_killed_between_the_renames_the_older_comes_back(
    target: Path, bundle: Bundle, name: str
) -> None:
    older = target.with_name(name)
    build(older, bundle, ", old")
    older.rename(older.with_name(f".replaced-{name}"))
    with pytest.raises(ValueError, match="stop"):
        stop(target, bundle, ValueError("stop"))
    assert graph(older, bundle) == OLD
    assert leftovers(older) == []


def test_killed_after_the_renames_the_newer_stays(target: Path, bundle: Bundle) -> None:
    build(target, bundle, ", new")
    write_engines(target.with_name(f".replaced-{target.name}"), bundle, mark=", old")
    with pytest.raises(ValueError, match="stop"):
        stop(target, bundle, ValueError("stop"))
    assert graph(target, bundle) == NEW
    assert leftovers(target) == []


# Two at once.


def test_the_second_of_two_builds_is_refused(target: Path, bundle: Bundle) -> None:
    with other_build(target) as process:
        with pytest.raises(EngineError) as raised:
            build(target, bundle, ", old")
        assert str(target) in raised.value.what
        assert f".lock-{target.name}" in str(raised.value.expected)
        (target.parent / f".building-{target.name}" / "unet" / "half").unlink()
        process.communicate("")
        assert process.returncode == 0
    assert graph(target, bundle) == NEW
    build(target, bundle, ", old")  # now the lock is free
    assert graph(target, bundle) == OLD


def test_two_builds_in_one_process_are_two(target: Path, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="being built by another"), build_folder(target):
        build(target, bundle, "")
    assert leftovers(target) == []


def test_different_targets_are_built_at_once(target: Path, bundle: Bundle) -> None:
    with other_build(target):
        build(target.with_name("other"), bundle, ", new")
    assert graph(target.with_name("other"), bundle) == NEW


# A full disk.

FILL = """
    import resource
    if sys.argv[2] == "limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    with (folder / "unet" / "more").open("wb") as file:
        for _ in range(4):
            file.write(bytes(1 << 19))
            file.flush()
    (folder / "unet" / "more").unlink()
"""


def fill(target: Path, limit: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", BUILD + FILL, str(target), limit], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_full_disk_in_the_middle_of_a_build(target: Path, bundle: Bundle) -> None:
    build(target, bundle, ", old")
    result = fill(target, "limited")
    message = result.stderr.splitlines()[-1]
    assert result.returncode == 1
    assert message.startswith(f"hbsdk.errors.EngineError: no room to build {target}: File too")
    assert "expected at least 1.1 MB for the engines, got " in message  # 1 MiB had been written
    assert f" MB free in {target.parent}" in message
    assert graph(target, bundle) == OLD
    assert leftovers(target) == []


def test_without_the_limit_the_same_build_goes_through(target: Path, bundle: Bundle) -> None:
    assert fill(target, "unlimited").returncode == 0
    assert graph(target, bundle) == NEW


def disk_full() -> Exception:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def told_by_another() -> Exception:
    try:
        try:
            raise disk_full()
        except OSError as error:
            raise RuntimeError("cannot save") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        disk_full(),
        OSError(errno.EDQUOT, "quota"),
        told_by_another(),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["full", "quota", "cause", "text"],
)
def test_a_full_disk_is_told_however_it_shows(
    target: Path, bundle: Bundle, error: Exception
) -> None:
    match = r"no room to build .*at least 5.0 MB"
    with pytest.raises(EngineError, match=match), build_folder(target, needed_bytes=5_000_000):
        raise error
    assert leftovers(target) == []


def test_another_error_of_the_system_is_not_a_full_disk(target: Path) -> None:
    with pytest.raises(PermissionError), build_folder(target):
        raise PermissionError(errno.EACCES, "no")


def test_too_little_room_is_told_before_the_build(target: Path) -> None:
    match = r"before the build began: expected at least 1,000,000"
    with pytest.raises(EngineError, match=match), build_folder(target, needed_bytes=10**24):
        raise AssertionError("the build began")
    assert leftovers(target) == []
