"""Where engines are built: in a folder beside the target that takes its place when all is well.

Beside a target `NAME` lie, and none of them is listed as an engine folder:
    .lock-NAME       an empty file, locked by the operating system while a build runs
    .building-NAME   the build's folder
    .replaced-NAME   the older target, for the moment between two renames
A build that is killed leaves them; the next one, of whatever target, puts that right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from hbsdk.errors import EngineError
from hbsdk.manifest import MANIFEST

_LOCK, _BUILDING, _REPLACED = ".lock-", ".building-", ".replaced-"
_LOCK_SECONDS = 1.0  # sweeping another build's leftovers takes their lock for a moment
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def build_folder(target: Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """Give an empty folder to build in; when the block ends well, it becomes `target`.

    When the block fails, or is interrupted, the folder is removed and what `target` was, it stays.

    Args:
        target: the engine folder; an older one is replaced.
        needed_bytes: what the build will write, about; 0 where it is not known.

    Raises:
        EngineError: another build has the lock, `target` is something else than engines, the disk
            is full or has less than `needed_bytes`, or a folder cannot be made or renamed.
    """
    target = target.expanduser().resolve()  # a link to a folder on another disk stays a link
    root, name = target.parent, target.name
    lock = _locked(target)
    try:
        _sweep(root, name)
        _check_target(target)
        free_bytes = shutil.disk_usage(root).free
        if free_bytes < needed_bytes:
            raise _full_disk(target, needed_bytes, "too little room before the build began")
        building = _fresh(root / (_BUILDING + name))
        try:
            yield building
            assert (building / MANIFEST).is_file(), "a build ends with write_manifest"
            _put_in_place(building, target)
        except BaseException as error:
            written_bytes = _size_bytes(building)
            shutil.rmtree(building, ignore_errors=True)
            reason = _full_reason(error)
            if reason is None or not isinstance(error, Exception):
                raise
            needed_bytes = max(needed_bytes, written_bytes)
            raise _full_disk(target, needed_bytes, reason) from error
    finally:
        lock.release()


def _locked(target: Path) -> FileLock:
    """Take the lock of a target."""
    path = target.parent / (_LOCK + target.name)
    lock = FileLock(path, timeout=_LOCK_SECONDS)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise EngineError(
            f"engines {target} are being built by another process",
            expected=f"the lock {path} to be free",
            got="held",
            remedy="Wait until that build has ended, or stop it",
        ) from None
    except (OSError, NotImplementedError) as error:
        raise EngineError(
            f"lock {path}",
            expected="a folder that can be written to, on a disk that has file locks",
            got=str(error),
            remedy="Set HBSDK_ENGINES to such a folder",
        ) from error
    return lock


def _fresh(folder: Path) -> Path:
    try:
        folder.mkdir()
    except OSError as error:
        raise EngineError(
            f"{folder} cannot be made",
            expected="a folder that can be written to",
            got=str(error),
            remedy="Remove what is there, or set HBSDK_ENGINES to another folder",
        ) from error
    return folder


def _sweep(root: Path, name: str) -> None:
    """Put right what builds left that were killed; `name` is locked already."""
    _mend(root, name)
    for leftover in sorted(root.glob(".*")):
        for prefix in (_BUILDING, _REPLACED):
            other = leftover.name.removeprefix(prefix)
            if not leftover.name.startswith(prefix) or other == name:
                continue
            # A lock that is held belongs to a build that runs.
            with contextlib.suppress(Timeout, OSError), FileLock(root / (_LOCK + other), timeout=0):
                _mend(root, other)


def _mend(root: Path, name: str) -> None:
    shutil.rmtree(root / (_BUILDING + name), ignore_errors=True)
    replaced = root / (_REPLACED + name)
    if replaced.exists() and not (root / name).exists():
        os.rename(replaced, root / name)  # killed between the two renames
    shutil.rmtree(replaced, ignore_errors=True)


def _check_target(target: Path) -> None:
    """Refuse to replace what are no engines, such as a home folder given by mistake."""
    if not target.exists() or (target / MANIFEST).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise EngineError(
            f"{target} is not replaced",
            expected=f"an engine folder, with {MANIFEST}, or nothing there",
            got="something else",
            remedy="Choose another place for the engines, or move that away",
        )


def _put_in_place(building: Path, target: Path) -> None:
    replaced = target.with_name(_REPLACED + target.name)
    older = target.exists()
    try:
        if older:
            os.rename(target, replaced)
        try:
            os.rename(building, target)
        except BaseException:
            if older:
                os.rename(replaced, target)
            raise
    except OSError as error:
        raise EngineError(
            f"{target} is not replaced",
            expected="folders that can be renamed",
            got=str(error),
            remedy="Close the programs that use these engines; what was there is still there",
        ) from error
    shutil.rmtree(replaced, ignore_errors=True)


def _full_reason(error: BaseException) -> str | None:
    """What the system said if the disk was full, a quota spent, or a file too large, else None.

    Native libraries tell it in the text of errors of their own, or as what theirs came from.
    """
    texts = [os.strerror(number) for number in _FULL]
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return cause.strerror
        if isinstance(cause, Exception):
            for text in texts:
                if text in str(cause):
                    return text
        cause = cause.__cause__ or cause.__context__
    return None


def _full_disk(target: Path, needed_bytes: int, reason: str) -> EngineError:
    free_bytes = shutil.disk_usage(target.parent).free
    return EngineError(
        f"no room to build {target}: {reason}",
        expected=f"at least {_megabytes(needed_bytes)} for the engines",
        got=f"{_megabytes(free_bytes)} free in {target.parent}",
        remedy="Make room, lift a quota or file size limit, or set HBSDK_ENGINES to another disk; "
        "nothing was changed",
    )


def _size_bytes(folder: Path) -> int:
    sizes = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                sizes += Path(place, name).stat().st_size
    return sizes


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
