"""How training writes its files: whole or not at all, whatever other processes do meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from hbsdk.errors import TrainingError


def make_cache_folder(cache: Path) -> None:
    """Make the folder of a cache, and those above it.

    Args:
        cache: may be there already.

    Raises:
        TrainingError: it cannot be made.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"cache {str(cache)!r}",
            expected="a folder, or a place where one can be made",
            got=error.strerror or str(error),
            remedy="Pass another folder, or none to keep nothing",
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it; makes the folder it is in.

    Two processes that write one file leave what either of them wrote, whole. What was there stays
    until the new content is on the disk.

    Args:
        path: of the file.
        data: all of its content.

    Raises:
        OSError: the disk is full or cannot be written to; nothing is left of the attempt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
