"""What the system said where it refused a write, whatever library it was said to."""

from __future__ import annotations

import errno
import os
import re

from safetensors import SafetensorError

_FULL = (errno.ENOSPC, errno.EDQUOT)  # no room on the disk, or none left to this user
_NUMBER = re.compile(r"\(os error (\d+)\)")  # as safetensors writes it


def refusal_of(error: BaseException | None) -> OSError | None:
    """Return the system's error that another one came from.

    torch, closing its file, hides the system's error behind one of its own; safetensors tells it as
    text alone.

    Args:
        error: what a write raised.

    Returns:
        The system's error; None if `error` came from something else.
    """
    while error is not None:
        if isinstance(error, OSError):
            return error
        if isinstance(error, SafetensorError) and (found := _NUMBER.search(str(error))):
            number = int(found[1])
            return OSError(number, os.strerror(number))
        error = error.__context__
    return None


def is_full(refused: OSError) -> bool:
    """Return whether there was no room for what was to be written.

    Args:
        refused: as of `refusal_of`.
    """
    return refused.errno in _FULL
