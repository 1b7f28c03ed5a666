"""Where training keeps what is computed once."""

from __future__ import annotations

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
