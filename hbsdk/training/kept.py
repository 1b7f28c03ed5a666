"""What fixed pictures were encoded as: kept in memory, and in a file for later runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hbsdk.training.pairs import Pixels

Key = int
Encode = Callable[[Sequence[Pixels], Sequence[Pixels]], tuple[Tensor, ...]]  # pictures, masks

_ENCODED_AT_ONCE = 8  # pictures
_MOST_BYTES = 4 << 30  # that one `Kept` holds; what comes later is encoded each time


class Kept:
    """What pictures were encoded as, by key, in float16 on the CPU.

    Pictures are encoded in chunks of one size, so that a run that resumes, and so finds other ones
    kept, still computes the same bits.
    """

    def __init__(self, encode: Encode) -> None:
        """Keep nothing yet.

        Args:
            encode: turns N pictures with their masks into tensors of N rows.
        """
        self._encode = encode
        self._rows: dict[Key, tuple[Tensor, ...]] = {}
        self._bytes = 0
        self.has_more = False  # than the file that it was filled from

    def __call__(
        self, keys: Sequence[Key], pictures: Sequence[Pixels], masks: Sequence[Pixels]
    ) -> tuple[Tensor, ...]:
        """Return what N pictures are encoded as, tensors of N rows.

        Args:
            keys: what each picture is known by.
            pictures: N of them, used where a key is new.
            masks: of the pictures.
        """
        given = dict(zip(keys, zip(pictures, masks, strict=True), strict=True))
        found = {key: self._rows[key] for key in given if key in self._rows}
        missing = [key for key in given if key not in found]
        for start in range(0, len(missing), _ENCODED_AT_ONCE):
            chunk = missing[start : start + _ENCODED_AT_ONCE]
            filled = [given[key] for key in chunk]
            filled += filled[-1:] * (_ENCODED_AT_ONCE - len(chunk))
            encoded = self._encode([one for one, _ in filled], [mask for _, mask in filled])
            rows = zip(*(tensor.half().cpu() for tensor in encoded), strict=True)
            found.update(zip(chunk, rows, strict=False))
        for key in missing:
            self._keep(key, found[key])
        columns = zip(*(found[key] for key in keys), strict=True)
        with torch.autocast("cpu", enabled=False):  # it cannot stack float16
            return tuple(torch.stack(column) for column in columns)

    def _keep(self, key: Key, row: tuple[Tensor, ...]) -> None:
        size = sum(tensor.nbytes for tensor in row)
        if self._bytes + size <= _MOST_BYTES:
            self._rows[key] = tuple(tensor.clone() for tensor in row)  # not a view of its chunk
            self._bytes += size
            self.has_more = True

    def state(self) -> tuple[list[Key], list[Tensor]]:
        """Return the keys, and tensors of as many rows."""
        columns = zip(*self._rows.values(), strict=True)
        return list(self._rows), [torch.stack(column) for column in columns]

    def load_state(self, keys: list[Key], columns: list[Tensor]) -> None:
        """Take over what `state` returned.

        Args:
            keys: N of them.
            columns: tensors of N rows.

        Raises:
            ValueError: there are not as many rows as keys.
        """
        self._rows = dict(zip(keys, zip(*columns, strict=True), strict=True))
        self._bytes = sum(column.nbytes for column in columns)
        self.has_more = False


def write_kept(path: Path, parts: Mapping[str, Kept]) -> None:
    """Write what all parts keep, atomically, unless the file they were read from has it all.

    What the disk refuses is only warned about: it can be encoded again.

    Args:
        path: of the file; its folder is made.
        parts: by name.
    """
    if not any(part.has_more for part in parts.values()):
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({name: part.state() for name, part in parts.items()}, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # the second is torch's, if it cannot write
        warnings.warn(f"encoded pictures are not kept in {path}: {error}", stacklevel=3)
    finally:
        temporary.unlink(missing_ok=True)


def read_kept(path: Path, parts: Mapping[str, Kept]) -> None:
    """Fill parts from a file, mapped to memory; one that is not there, or not whole, is left.

    Args:
        path: that `write_kept` wrote.
        parts: by the same names; either all are filled or none.
    """
    if not path.exists():
        return
    try:
        state = torch.load(path, weights_only=True, mmap=True)
        filled = {name: _checked(*state[name]) for name in parts}
    except Exception:  # a damaged file makes torch raise almost anything; it is written anew
        return
    for name, part in parts.items():
        part.load_state(*filled[name])


def _checked(keys: list[Key], columns: list[Tensor]) -> tuple[list[Key], list[Tensor]]:
    """Return what `Kept.state` returned, if it can be that."""
    if not all(type(key) is int for key in keys):
        raise TypeError("keys are whole numbers")
    rows = {len(column) for column in columns if column.dtype == torch.float16}
    if rows != ({len(keys)} if keys else set()):
        raise ValueError("columns are float16, of one row a key")
    return keys, columns
