"""How the command line's errors end: in one line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from hbsdk.errors import HbsdkError, MissingDependencyError


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print an error of ours without a traceback, and exit."""
    try:
        yield
    except HbsdkError as error:
        print(f"hbsdk: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


@contextmanager
def needed_by(command: str, packages: str, extra: str) -> Iterator[None]:
    """Say which extra of hbsdk a command needs, where a package is not installed.

    Raises:
        MissingDependencyError: something in the context cannot be imported.
    """
    try:
        yield
    except MissingDependencyError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"hbsdk {command}", expected=packages, got=str(error),
            remedy=f'Install it: pip install "hbsdk[{extra}]"',
        ) from error  # fmt: skip
