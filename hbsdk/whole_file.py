"""Files that are written whole or not at all, whatever other processes do meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any


def write_whole(path: Path, data: Any) -> None:
    """Write a file under a temporary name and rename it; makes the folder it is in.

    Two processes that write one file leave what either of them wrote, whole. What was there stays
    until the new content is on the disk.

    Args:
        path: of the file.
        data: all of its content: bytes, or what has them as a buffer.

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
