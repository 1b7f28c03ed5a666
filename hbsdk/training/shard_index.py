"""Where each sample of a tar shard is in its file, so that any one is read without the others."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hbsdk.training.picture_source import MAX_FILE_BYTES, PICTURE_SUFFIXES
from hbsdk.whole_file import write_whole

PICTURE, MASK, CAPTION = slice(0, 2), slice(2, 4), slice(4, 6)
"""Columns of `ShardIndex.extents`: offset and size of a member; the size is 0 where it has none."""
IS_JSON = 6
"""The column that is 1 where the caption is in a JSON object."""

_COLUMNS = 7
_BLOCK_BYTES = 512
_MAX_TEXT_BYTES = 2**20
_VERSION = 1  # of what is stored

Extent = tuple[int, int]


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """What a shard holds.

    Attributes:
        names: the members that are pictures.
        extents: (samples, 7) int64: offsets and sizes of picture, mask and caption, and IS_JSON.
        subjects: who each picture shows, as its JSON says; None where it does not.
        skipped: (member, reason) of what cannot be used; an empty member is the shard itself.
    """

    names: list[str]
    extents: npt.NDArray[np.int64]
    subjects: list[str | None]
    skipped: list[tuple[str, str]]


def index_shard(path: Path, cache: Path | None) -> ShardIndex:
    """Return a shard's index: the one in the cache, or else a new one, which goes there.

    It is kept under the shard's path, size and time of change, so one that was changed is indexed
    anew. A truncated or damaged shard is indexed as far as it can be read.

    Args:
        path: an uncompressed tar file.
        cache: a folder, or None to keep nothing.

    Raises:
        OSError: the shard cannot be opened.
    """
    status = path.stat()
    kept = None if cache is None else _kept_path(path, status, cache)
    index = None if kept is None else _load(kept, status.st_size)
    if index is None:
        index = _build(path)
        if kept is not None:
            _store(kept, index)
    return index


def read_extent(file: BinaryIO, extent: Extent) -> bytes:
    """Read a member of a shard.

    Args:
        file: the shard, opened.
        extent: the member's offset and size in bytes.

    Raises:
        OSError: the file ends before it.
    """
    offset, size = extent
    file.seek(offset)
    content = file.read(size)
    if len(content) != size:
        raise OSError(f"expected {size} bytes at {offset}, got {len(content)}: the shard changed")
    return content


def read_json_object(content: bytes) -> dict[str, object]:
    """Read a JSON object.

    Args:
        content: of its file, in UTF-8.

    Raises:
        ValueError: it is none.
    """
    try:
        data = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("expected a JSON object, got one nested too deep") from error
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {type(data).__name__}")
    return data


def _build(path: Path) -> ShardIndex:
    """Read all headers of a shard, and the JSON files in it, and nothing else."""
    skipped: list[tuple[str, str]] = []
    samples: dict[str, dict[str, tuple[str, Extent]]] = {}
    size = path.stat().st_size
    for member, extent in _members(path, skipped):
        folder, _, file = member.removeprefix("./").rpartition("/")
        stem, _, kind = file.partition(".")
        if not stem:  # hidden: what macOS adds to its archives
            continue
        problem = _problem(extent, size)
        if problem:
            skipped.append((member, problem))
        else:
            samples.setdefault(f"{folder}/{stem}", {})[kind.lower()] = (member, extent)
    names, rows, subjects = [], [], []
    with open(path, "rb") as shard:
        for key, members in samples.items():
            picture = next((members[s[1:]] for s in PICTURE_SUFFIXES if s[1:] in members), None)
            if picture is None:
                skipped.append((key.removeprefix("/"), _no_picture(members)))
                continue
            mask = members.get("mask.png", ("", (0, 0)))[1]
            caption, is_json, subject = _texts(shard, members, skipped)
            names.append(picture[0])
            rows.append([*picture[1], *mask, *caption, int(is_json)])
            subjects.append(subject)
    extents = np.array(rows, np.int64).reshape(-1, _COLUMNS)
    return ShardIndex(names, extents, subjects, skipped)


def _problem(extent: Extent, shard_bytes: int) -> str | None:
    """Why a member cannot be read, if so."""
    if sum(extent) > shard_bytes:
        return f"expected {extent[1]:,} bytes, got the end of the shard"
    if extent[1] > MAX_FILE_BYTES:
        return f"expected at most {MAX_FILE_BYTES:,} bytes, got {extent[1]:,}"
    return None


def _no_picture(members: dict[str, tuple[str, Extent]]) -> str:
    wanted = " ".join(PICTURE_SUFFIXES)
    return f"expected a picture ({wanted}), got only {' '.join(f'.{kind}' for kind in members)}"


def _members(path: Path, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, Extent]]:
    """Yield (name, (offset, size)) of each ordinary file, up to the end or to what is damaged."""
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.size < 0 or archive.offset <= end:  # a made-up size leads in circles
                    raise tarfile.ReadError(f"a member of {member.size} bytes")
                end = archive.offset
                if member.isreg() and not member.issparse():
                    yield member.name, (member.offset_data, member.size)
            end = archive.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        reason = "expected a whole tar file that is not compressed, got "
        skipped.append(("", f"{reason}{error} after {end:,} bytes; what is before it is used"))
        return
    if not _is_end(path, end):
        # tarfile takes anything that is no header for the end.
        reason = f"expected the end mark of a tar file after {end:,} bytes, got something else"
        skipped.append(("", f"{reason}: it is truncated or damaged; what is before it is used"))


def _is_end(path: Path, offset: int) -> bool:
    """Whether a block of zeros, which closes a tar file, is at an offset."""
    with open(path, "rb") as shard:
        shard.seek(offset)
        return shard.read(_BLOCK_BYTES) == bytes(_BLOCK_BYTES)


def _texts(
    shard: BinaryIO, members: dict[str, tuple[str, Extent]], skipped: list[tuple[str, str]]
) -> tuple[Extent, bool, str | None]:
    """Where a sample's caption is, whether that is JSON, and the subject its JSON names."""
    caption, is_json, subject = (0, 0), False, None
    if "json" in members:
        name, extent = members["json"]
        try:
            if extent[1] > _MAX_TEXT_BYTES:
                raise ValueError(f"expected at most {_MAX_TEXT_BYTES:,} bytes, got {extent[1]:,}")
            data = read_json_object(read_extent(shard, extent))
        except ValueError as error:
            skipped.append((name, f"{error}; its picture is used without it"))
        else:
            if isinstance(data.get("caption"), str):
                caption, is_json = extent, True
            named = data.get("subject")
            is_name = isinstance(named, (str, int)) and not isinstance(named, bool) and named != ""
            subject = str(named) if is_name else None
    if "txt" in members and 0 < members["txt"][1][1] <= _MAX_TEXT_BYTES:
        caption, is_json = members["txt"][1], False
    return caption, is_json, subject


def _kept_path(path: Path, status: os.stat_result, cache: Path) -> Path:
    identity = f"{_VERSION}\0{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    return cache / "shards" / key[:2] / f"{key}.json"


def _store(kept: Path, index: ShardIndex) -> None:
    """Write an index; without room for it the shard is indexed anew next time."""
    data = {
        "names": index.names,
        "extents": index.extents.tolist(),
        "subjects": index.subjects,
        "skipped": index.skipped,
    }
    try:
        write_whole(kept, json.dumps(data).encode("ascii"))
    except OSError:
        return


def _load(kept: Path, shard_bytes: int) -> ShardIndex | None:
    """Read an index; None if there is none, or it is damaged and must be made anew."""
    try:
        data = read_json_object(kept.read_bytes())
        index = ShardIndex(
            names=[str(name) for name in _list(data["names"])],
            extents=np.array(data["extents"], np.int64).reshape(-1, _COLUMNS),
            subjects=[None if s is None else str(s) for s in _list(data["subjects"])],
            skipped=[(str(name), str(why)) for name, why in _list(data["skipped"])],
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    ends = index.extents[:, [0, 2, 4]] + index.extents[:, [1, 3, 5]]
    fits = bool((index.extents >= 0).all() and (ends <= shard_bytes).all())
    same = len(index.names) == len(index.subjects) == len(index.extents)
    return index if fits and same else None


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return value
