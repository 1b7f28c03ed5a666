"""A folder of pictures, with or without sub-folders and masks, as a source of pairs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from hbsdk.errors import OptionError
from hbsdk.mask import Segmenter
from hbsdk.training.folder_listing import (
    MASK_ENDINGS,
    MASK_FOLDER,
    Listing,
    join,
    list_pictures,
)
from hbsdk.training.picture_source import (
    ALONE,
    PICTURE_SUFFIXES,
    PictureSource,
    StoredPicture,
)

Group = Literal["none", "subject"]

_PICTURE_FOLDER = "images"


class FolderSource(PictureSource):
    """Pairs of the pictures in a folder and in all folders inside it.

    Masks are optional. That of `dir/x.jpg` is the first there is of

    - `dir/x.mask.png`, `dir/x_mask.png`: beside it;
    - `dir/masks/x.png`: in a folder `masks` beside it;
    - `masks/dir/x.png`: in a folder `masks` at the top, laid out as the pictures are;
    - `masks/x.png` of `images/x.jpg`: in a folder `masks` in the place of `images`.

    In a folder `masks` any picture format will do, and `x.mask.png` and `x_mask.png` too. White is
    the subject. A file so called, or in a folder so called, is never taken for a picture. Pictures
    without a mask are cut out by their alpha channel or by the segmenter.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        image_size_px: int,
        group: Group = "none",
        segmenter: Segmenter = "auto",
        cache: Path | None = None,
        flip: bool = True,
        progress: bool = True,
    ) -> None:
        """List the folder; no picture is opened yet.

        Args:
            folder: holds JPEG, PNG, WebP, BMP or TIFF files, at any depth.
            image_size_px: side of the pairs' pictures.
            group: "none": each picture is a subject of its own, and the other one of its pair is a
                variation of it; sub-folders (a class each, say) are just more pictures.
                "subject": the pictures of one sub-folder show one subject, and a pair is two of
                them; a picture that is alone in its folder, or at the top, is as with "none".
                It is never guessed, because a wrong guess would teach that different things are
                the same.
            segmenter: makes the masks of pictures that have none.
            cache: a folder to keep those masks in; None keeps none.
            flip: whether variations may be mirrored; not for writing.
            progress: show a progress bar while listing.

        Raises:
            TrainingError: there is no such folder, or no picture in it; or the cache's folder
                cannot be made.
            OptionError: an option has no meaning.
        """
        if group not in get_args(Group):
            raise OptionError("group", expected="'none' or 'subject'", got=repr(group))
        self._root = Path(os.path.expanduser(folder))
        listing = list_pictures(self._root, progress=progress)
        self._names = listing.names
        self._mask_folders = frozenset(listing.mask_folders)
        self._mask_count = listing.masks
        self._fingerprint = listing.fingerprint
        super().__init__(
            _groups(listing, group),
            image_size_px=image_size_px,
            segmenter=segmenter,
            cache=cache,
            flip=flip,
            skipped=listing.skipped,
        )
        if listing.orphans:
            warnings.warn(
                f"{len(listing.orphans)} masks have no picture beside them and are not used, such "
                f"as {listing.orphans[0]}",
                stacklevel=2,
            )

    @property
    def name(self) -> str:
        """The folder's name and what is in it."""
        name = self._root.resolve().name
        return f"folder {name} ({len(self)} pictures, {self._mask_count} masks)"

    @property
    def fingerprint(self) -> str:
        """Sha256 of the relative names and the sizes of all pictures and masks."""
        return self._fingerprint

    def _file(self, number: int) -> str:
        return self._names[number]

    def _read(self, number: int) -> StoredPicture:
        name = self._names[number]
        mask = next((path for path in self._mask_paths(name) if path.is_file()), None)
        return StoredPicture(
            content=(self._root / name).read_bytes(),
            mask=None if mask is None else mask.read_bytes(),
        )

    def _mask_paths(self, name: str) -> Iterator[Path]:
        """Where a picture's mask may be, in the order in which it is looked for."""
        folder, _, file = name.rpartition("/")
        stem = os.path.splitext(file)[0]
        for ending in MASK_ENDINGS:
            yield self._root / folder / f"{stem}{ending}.png"
        for masks in _mask_folders(folder):
            if masks in self._mask_folders:
                for ending in (*PICTURE_SUFFIXES, *(f"{ending}.png" for ending in MASK_ENDINGS)):
                    yield self._root / masks / f"{stem}{ending}"


def _mask_folders(folder: str) -> Iterator[str]:
    """The folders that may hold the masks of a folder's pictures."""
    yield join(folder, MASK_FOLDER)
    if folder:
        yield join(MASK_FOLDER, folder)
    parts = folder.split("/")
    if _PICTURE_FOLDER in parts:
        parts[parts.index(_PICTURE_FOLDER)] = MASK_FOLDER
        yield "/".join(parts)


def _groups(listing: Listing, group: Group) -> npt.NDArray[np.int64]:
    """The group of each picture: its folder's number, or ALONE."""
    groups = np.full(len(listing.names), ALONE, np.int64)
    if group == "none":
        return groups
    ends = [*listing.starts[1:], len(listing.names)]
    for number, (folder, first, end) in enumerate(
        zip(listing.folders, listing.starts, ends, strict=True)
    ):
        if folder and end - first > 1:
            groups[first:end] = number
    if (groups == ALONE).all():
        warnings.warn(
            "no sub-folder holds two pictures, so none are views of one subject: every pair is a "
            "picture and a variation of it",
            stacklevel=3,
        )
    return groups
