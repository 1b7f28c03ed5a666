"""Masks that a segmenter found, kept on disk: each picture is segmented once."""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from io import BytesIO
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from hbsdk.errors import OptionError
from hbsdk.image import Photo
from hbsdk.mask import Segmenter, find_mask
from hbsdk.training.cache_file import make_cache_folder
from hbsdk.training.pairs import Pixels
from hbsdk.whole_file import write_whole


class MaskCache:
    """Finds masks of pictures, and keeps those that took a segmenter.

    A mask's file is `masks/<2 digits>/<sha256 of the picture's bytes>.<segmenter>.png`, one bit a
    pixel. The key is the content, not path and time: the bytes are in memory to be decoded anyway
    and hashing them costs a tenth of that, while a data set that was moved, copied to another
    machine or packed into shards keeps its masks. The 256 sub-folders hold some 4000 files each
    for a million pictures. Threads and processes may share the folder: files appear whole, and who
    computes one twice writes the same.
    """

    def __init__(self, folder: Path | None, segmenter: Segmenter = "auto") -> None:
        """Open a cache.

        Args:
            folder: where masks are kept, made if it is missing; None keeps none.
            segmenter: as `hbsdk.mask.find_mask` takes it. "auto" keeps apart what it finds with
                InSPyReNet installed and without, so that installing it makes better masks.

        Raises:
            OptionError: there is no such segmenter.
            TrainingError: the folder cannot be made.
        """
        if segmenter not in get_args(Segmenter):
            raise OptionError(
                "segmenter",
                expected=f"one of {', '.join(map(repr, get_args(Segmenter)))}",
                got=repr(segmenter),
            )
        if folder is not None:
            make_cache_folder(folder)
        self._folder = folder
        self._segmenter = segmenter
        without_weights = importlib.util.find_spec("transparent_background") is None
        self._kind = "grabcut" if segmenter == "auto" and without_weights else segmenter

    def find(self, photo: Photo, content: bytes) -> Pixels:
        """Return a photo's mask: its alpha channel, one that was kept, or the segmenter's.

        Args:
            photo: the photo.
            content: the bytes of the file that it was decoded from.

        Returns:
            (height, width) uint8 in {0, 1}, neither empty nor full.

        Raises:
            MaskError: the segmenter failed.
            MissingDependencyError: the segmenter is not installed.
        """
        path = self._path(content)
        kept = None if path is None else _read(path, photo)
        if kept is not None:
            return kept
        found = find_mask(photo, segmenter=self._segmenter)
        if path is not None and found.source != "alpha":
            self._keep(path, found.values)
        return found.values

    def _path(self, content: bytes) -> Path | None:
        if self._folder is None:
            return None
        key = hashlib.sha256(content).hexdigest()
        return self._folder / "masks" / key[:2] / f"{key}.{self._kind}.png"

    def _keep(self, path: Path, values: Pixels) -> None:
        """Write a mask; without room for it training goes on, only slower."""
        encoded = BytesIO()
        Image.fromarray(values.astype(bool)).save(encoded, "PNG")
        try:
            write_whole(path, encoded.getvalue())
        except OSError as error:
            warnings.warn(
                f"masks cannot be kept in {self._folder} ({error.strerror or error}): each is made "
                "anew whenever its picture comes up",
                stacklevel=2,
            )


def _read(path: Path, photo: Photo) -> Pixels | None:
    """The mask in a file; None if there is none, or it is damaged and must be made anew."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.size != (photo.width, photo.height) or image.mode != "1":
                return None
            values = np.asarray(image).astype(np.uint8)
    except (
        Exception
    ):  # none there, or a crash of the machine left it damaged: Pillow raises anything
        return None
    return values if values.any() and not values.all() else None
