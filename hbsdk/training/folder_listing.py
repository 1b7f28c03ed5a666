"""Lists a folder's pictures, however many: their names, their masks' folders, a fingerprint."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from hbsdk.errors import TrainingError
from hbsdk.training.picture_source import MAX_FILE_BYTES, PICTURE_SUFFIXES

if TYPE_CHECKING:
    from hashlib import _Hash

MASK_FOLDER = "masks"
MASK_ENDINGS = (".mask", "_mask")


@dataclass
class Listing:
    """What a folder holds; names are relative to it, with "/".

    Attributes:
        names: of the pictures, sorted by folder, then by name.
        starts: the number of the first picture of each folder that has any.
        folders: those folders, "" for the top one.
        mask_folders: the folders of masks among all folders.
        masks: how many files are masks by their name or folder.
        orphans: masks beside the pictures whose picture is not there.
        skipped: (file, reason) of what cannot be used.
        fingerprint: sha256 of names and sizes of all pictures and masks.
    """

    names: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    mask_folders: set[str] = field(default_factory=set)
    masks: int = 0
    orphans: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    fingerprint: str = ""


def list_pictures(root: Path, *, progress: bool) -> Listing:
    """List the pictures in a folder and all those inside it, without opening any.

    Hidden files and folders, and files whose names do not end as pictures' do, are passed over.
    `X.mask.png` and `X_mask.png` are masks, and so is all that is in a folder called "masks".

    Args:
        root: the folder.
        progress: show how many were found so far.

    Raises:
        TrainingError: there is no such folder, it cannot be read, or it holds no picture.
    """
    _check_folder(root)
    listing, digest = Listing(), hashlib.sha256()
    with tqdm(desc="pictures found", unit="", disable=not progress) as bar:
        for folder, files in _walk(root, listing):
            _add(listing, digest, folder, files)
            bar.update(len(listing.names) - bar.n)
    listing.fingerprint = digest.hexdigest()
    if not listing.names:
        first = "".join(f"; {name}: {why}" for name, why in listing.skipped[:1])
        raise TrainingError(
            f"folder {str(root)!r}",
            expected=f"pictures ({' '.join(PICTURE_SUFFIXES)}) in it or in its sub-folders",
            got=f"none{first}",
            remedy="Check the path; shards of pictures (.tar) are read as shards",
        )
    return listing


def is_mask_name(name: str) -> bool:
    """Whether a file beside pictures is the mask of one, by its name."""
    stem, suffix = os.path.splitext(name.lower())
    return suffix == ".png" and stem.endswith(MASK_ENDINGS)


def join(folder: str, name: str) -> str:
    """Put a name behind a relative folder, which is "" at the top."""
    return f"{folder}/{name}" if folder else name


def _check_folder(root: Path) -> None:
    if root.is_dir():
        return
    raise TrainingError(
        f"folder {str(root)!r}",
        expected="a folder of pictures",
        got="a file" if root.is_file() else "no such folder",
        remedy="Check the path; pass the folder that holds the pictures, not one of them",
    )


def _walk(root: Path, listing: Listing) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Yield (folder, [(name, size)] of its usable files, sorted), each folder once, sorted."""
    waiting, seen = [""], set()
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:  # links can lead in circles
                continue
            seen.add((status.st_dev, status.st_ino))
            files, inside = _scan(root, folder, listing)
        except OSError as error:
            listing.skipped.append((folder or str(root), _reason(error)))
            continue
        yield folder, files
        waiting += sorted(inside, reverse=True)


def _scan(root: Path, folder: str, listing: Listing) -> tuple[list[tuple[str, int]], list[str]]:
    """The usable files of one folder, sorted, as (name, size), and the folders in it."""
    files, inside = [], []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                inside.append(join(folder, entry.name))
            elif os.path.splitext(entry.name.lower())[1] in PICTURE_SUFFIXES:
                size = _usable_size(entry, join(folder, entry.name), listing)
                if size is not None:
                    files.append((entry.name, size))
    return sorted(files), inside


def _usable_size(entry: os.DirEntry[str], name: str, listing: Listing) -> int | None:
    """A file's size in bytes; None, and a line in the list, where it must not be opened."""
    try:
        status = entry.stat()
    except OSError as error:  # a link to nothing, or deleted meanwhile
        listing.skipped.append((name, _reason(error)))
        return None
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        listing.skipped.append((name, "expected a file, got a pipe or a device"))
        return None
    if status.st_size > MAX_FILE_BYTES:
        why = f"expected at most {MAX_FILE_BYTES:,} bytes, got {status.st_size:,}"
        listing.skipped.append((name, why))
        return None
    return status.st_size


def _add(listing: Listing, digest: _Hash, folder: str, files: list[tuple[str, int]]) -> None:
    """Put one folder's files into the list."""
    for name, size in files:
        line = f"{join(folder, name)}\0{size}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    if MASK_FOLDER in folder.split("/"):
        listing.mask_folders.add(folder)
        listing.masks += len(files)
        return
    pictures = [name for name, _ in files if not is_mask_name(name)]
    masks = [name for name, _ in files if is_mask_name(name)]
    stems = {os.path.splitext(name)[0] for name in pictures}
    listing.masks += len(masks)
    listing.orphans += [
        join(folder, name) for name in masks if name[: -len(".mask.png")] not in stems
    ]
    if pictures:
        listing.folders.append(folder)
        listing.starts.append(len(listing.names))
        listing.names += [join(folder, name) for name in pictures]


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
