"""WebDataset tar shards, for sets too big for a folder, as a source of pairs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hbsdk.errors import TrainingError
from hbsdk.mask import Segmenter
from hbsdk.training.cache_file import make_cache_folder
from hbsdk.training.picture_source import ALONE, PictureSource, StoredPicture
from hbsdk.training.shard_index import (
    CAPTION,
    IS_JSON,
    MASK,
    PICTURE,
    ShardIndex,
    index_shard,
    read_extent,
    read_json_object,
)
from hbsdk.training.shard_pattern import find_shards


class ShardSource(PictureSource):
    """Pairs of the pictures in WebDataset shards: tar files, not compressed.

    A sample is the members of one shard with the same key (all before the file name's first dot):

    - `key.jpg`, `.png`, `.webp`, `.bmp` or `.tiff`: the picture;
    - `key.mask.png`: its mask, optional, white on the subject;
    - `key.json`: an object, optional, of which "caption" and "subject" are read. Pictures with the
      same subject, in whatever shards, are views of it, and a pair is two of them. A caption that
      has "S*" in it once is the prompt;
    - `key.txt`: a caption, optional, which comes before that of the JSON.

    Other members, `key.cls` among them, are passed over. Samples are read from their shard by
    offset, in any order: the shards are best on a local disk.
    """

    def __init__(
        self,
        shards: str | os.PathLike[str],
        *,
        image_size_px: int,
        segmenter: Segmenter = "auto",
        cache: Path | None = None,
        flip: bool = True,
        progress: bool = True,
    ) -> None:
        """Index the shards; no picture is opened yet.

        Args:
            shards: a folder of them, a path, or a pattern, as `find_shards` takes it.
            image_size_px: side of the pairs' pictures.
            segmenter: makes the masks of pictures that have none.
            cache: a folder to keep those masks and the shards' indices in; None keeps nothing.
            flip: whether variations may be mirrored; not for writing.
            progress: show a progress bar while indexing.

        Raises:
            TrainingError: there are no shards, or no picture in them; or the cache's folder cannot
                be made.
            OptionError: an option has no meaning.
        """
        if cache is not None:
            make_cache_folder(cache)
        self._shards = find_shards(shards)
        # Names in messages, and the fingerprint, do not change when all shards are moved together.
        top = os.path.commonpath([path.parent.resolve() for path in self._shards])
        self._labels = [
            Path(os.path.relpath(path.resolve(), top)).as_posix() for path in self._shards
        ]
        self._skipped_members: list[tuple[str, str]] = []
        indices = [
            self._index(number, cache)
            for number in tqdm(
                range(len(self._shards)), desc="shards indexed", unit="", disable=not progress
            )
        ]
        self._names = [name for index in indices for name in index.names]
        if not self._names:
            raise _no_pictures(shards, self._skipped_members)
        self._extents = np.concatenate([index.extents for index in indices])
        lengths = [len(index.names) for index in indices]
        self._shard_of = np.repeat(np.arange(len(indices)), lengths)
        self._fingerprint = self._hash()
        numbers: dict[str | None, int] = {None: ALONE}
        groups = [
            numbers.setdefault(subject, len(numbers))
            for index in indices
            for subject in index.subjects
        ]
        super().__init__(
            np.array(groups, np.int64),
            image_size_px=image_size_px,
            segmenter=segmenter,
            cache=cache,
            flip=flip,
            skipped=self._skipped_members,
        )

    @property
    def name(self) -> str:
        """The shards' common name and what is in them."""
        first = self._shards[0].resolve()
        where = first.name if len(self._shards) == 1 else first.parent.name
        return f"{len(self._shards)} shards of {where} ({len(self)} pictures)"

    @property
    def fingerprint(self) -> str:
        """Sha256 of the names and sizes of all shards, pictures, masks and captions."""
        return self._fingerprint

    def _index(self, number: int, cache: Path | None) -> ShardIndex:
        """One shard's index; an empty one, and a line in the list, where it cannot be opened."""
        label = self._labels[number]
        try:
            index = index_shard(self._shards[number], cache)
        except OSError as error:
            reason = error.strerror or str(error)
            index = ShardIndex([], np.empty((0, 7), np.int64), [], [("", reason)])
        self._skipped_members += [
            (f"{label}/{member}" if member else label, why) for member, why in index.skipped
        ]
        return index

    def _hash(self) -> str:
        digest = hashlib.sha256()
        sizes = self._extents[:, [PICTURE.start + 1, MASK.start + 1, CAPTION.start + 1]]
        for number, name in enumerate(self._names):
            line = f"{self._labels[self._shard_of[number]]}/{name}\0{sizes[number].tolist()}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _file(self, number: int) -> str:
        return f"{self._labels[self._shard_of[number]]}/{self._names[number]}"

    def _read(self, number: int) -> StoredPicture:
        extents = [int(value) for value in self._extents[number]]
        picture, mask, caption = (
            (extents[columns][0], extents[columns][1]) for columns in (PICTURE, MASK, CAPTION)
        )
        with open(self._shards[self._shard_of[number]], "rb") as shard:
            text = read_extent(shard, caption) if caption[1] else None
            return StoredPicture(
                content=read_extent(shard, picture),
                mask=read_extent(shard, mask) if mask[1] else None,
                caption=None if text is None else _caption(text, bool(extents[IS_JSON])),
            )


def _caption(text: bytes, is_json: bool) -> str | None:
    """A caption as it was stored; None if it is no text."""
    try:
        if not is_json:
            return text.decode("utf-8")
        caption = read_json_object(text).get("caption")
    except ValueError:
        return None
    return caption if isinstance(caption, str) else None


def _no_pictures(shards: str | os.PathLike[str], skipped: list[tuple[str, str]]) -> TrainingError:
    first = "".join(f"; {name}: {why}" for name, why in skipped[:1])
    return TrainingError(
        f"shards {os.fspath(shards)!r}",
        expected="samples with a picture in them (key.jpg, key.png or key.webp)",
        got=f"none{first}",
        remedy="Check how they were written; unpack those that are compressed (gunzip)",
    )
