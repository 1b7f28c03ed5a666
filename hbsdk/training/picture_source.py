"""What sources of pictures share: which pictures make a pair, and what becomes of bad ones."""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hbsdk.errors import ImageError, MaskError, OptionError, TrainingError
from hbsdk.image import MIN_SIDE_PX, Photo, load_photo
from hbsdk.mask import Segmenter, find_mask
from hbsdk.training.mask_cache import MaskCache
from hbsdk.training.pairs import Pair, Pixels
from hbsdk.training.templates import choose_prompt
from hbsdk.training.variations import random_view, whole_view

_log = logging.getLogger(__name__)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MAX_FILE_BYTES = 512 * 2**20
"""The largest file that is read: 64 megapixels, uncompressed, in 16 bits and with alpha."""

ALONE = -1
"""The group of a picture that no other shows the subject of."""

# Others draw from (seed, step, index) too: noise, timesteps. The first word keeps their numbers
# and ours apart, or each picture would always come with the same timesteps.
_STREAM = int.from_bytes(b"pair", "big")
_LEAST_VARIATION_SIDE, _LEAST_JITTER_SIDE = 0.6, 0.8
_LEAST_SUBJECT_SHARE = 0.001  # of the picture's area; 16 x 16 of 512 x 512 pixels
_MOST_ATTEMPTS, _ATTEMPTS_A_PICTURE = 4096, 32


@dataclass(frozen=True)
class StoredPicture:
    """A picture as it is stored.

    Attributes:
        content: the bytes of its file.
        mask: the bytes of its mask's file, if it has one.
        caption: what the data says of it, if it says anything.
    """

    content: bytes
    mask: bytes | None = None
    caption: str | None = None


@dataclass(frozen=True, eq=False)
class _Picture:
    """A picture that was read: mask (height, width) uint8 in {0, 1}."""

    photo: Photo
    mask: Pixels
    caption: str | None


class PictureSource(ABC):
    """A `PairSource` over numbered pictures, some of which may show the same subject.

    A pair is a picture and another one of its group, or where it is alone, or no other can be
    read, a variation of itself. It depends on (seed, step, index) and on the data, never on what
    was read before. Threads may share a source.
    """

    def __init__(
        self,
        groups: npt.NDArray[np.int64],
        *,
        image_size_px: int,
        segmenter: Segmenter,
        cache: Path | None,
        flip: bool,
        skipped: Sequence[tuple[str, str]],
    ) -> None:
        """Take what a subclass found.

        Args:
            groups: (pictures,), the same number for pictures of one subject, or ALONE.
            image_size_px: side of the pairs' pictures.
            segmenter: makes the masks of pictures that have none.
            cache: a folder to keep those masks in, or None.
            flip: whether variations may be mirrored.
            skipped: (file, reason) of what was not even listed.

        Raises:
            OptionError: `image_size_px` is too small to show anything.
            TrainingError: the cache's folder cannot be made.
        """
        if image_size_px < MIN_SIDE_PX:
            raise OptionError(
                "image_size_px", expected=f"at least {MIN_SIDE_PX}", got=str(image_size_px)
            )
        self._size, self._flip = image_size_px, flip
        self._masks = MaskCache(cache, segmenter)
        self._groups = groups
        self._by_group = np.argsort(groups, kind="stable")
        self._sorted_groups = groups[self._by_group]
        self._not_listed = tuple(skipped)
        self._unreadable: dict[int, str] = {}
        if len(groups) == 1:
            warnings.warn(
                f"one picture only, {self._file(0)}: every pair is it and a variation of it, and "
                "the regressor will know nothing else",
                stacklevel=3,
            )

    @abstractmethod
    def _file(self, number: int) -> str:
        """The name of a picture for messages."""

    @abstractmethod
    def _read(self, number: int) -> StoredPicture:
        """Read a picture; raises OSError where that fails."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is, in a few words."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of the data's identity: names and sizes."""

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self._groups)

    def pairs(self, seed: int, step: int, indices: Sequence[int]) -> list[Pair]:
        """Return the pairs with these numbers of a step's global batch; see `PairSource`.

        Raises:
            TrainingError: so many pictures in a row cannot be read that hardly any can.
            MissingDependencyError: the segmenter is not installed.
        """
        return [self._pair(seed, step, index) for index in indices]

    def skipped(self) -> list[tuple[str, str]]:
        """Return (file, reason) of all that was skipped so far, in a fixed order."""
        unreadable = sorted(self._unreadable.copy().items())
        return [*self._not_listed, *((self._file(number), why) for number, why in unreadable)]

    def _pair(self, seed: int, step: int, index: int) -> Pair:
        attempts = min(_MOST_ATTEMPTS, _ATTEMPTS_A_PICTURE * len(self))
        for attempt in range(attempts):
            rng = np.random.default_rng([_STREAM, seed, step, index, attempt])
            number = int(rng.integers(len(self)))
            seen = self._picture(number)
            if seen is not None:
                return self._pair_from(number, seen, rng)
        last = self._unreadable[number]
        raise TrainingError(
            self.name,
            expected="pictures that can be read",
            got=f"{attempts} choices in a row that cannot, the last of them {self._file(number)} "
            f"({last})",
            remedy="Look at the list of skipped files; copy or download the data again",
        )

    def _pair_from(self, number: int, seen: _Picture, rng: np.random.Generator) -> Pair:
        for other in rng.permutation(self._other_views(number)):
            shown = self._picture(int(other))
            if shown is not None:
                reference = self._random_view(seen, rng, _LEAST_JITTER_SIDE)
                target = whole_view(shown.photo, shown.mask, size=self._size)
                return Pair(*reference, *target, choose_prompt(shown.caption, rng))
        reference = whole_view(seen.photo, seen.mask, size=self._size)
        target = self._random_view(seen, rng, _LEAST_VARIATION_SIDE)
        return Pair(*reference, *target, choose_prompt(seen.caption, rng))

    def _random_view(
        self, picture: _Picture, rng: np.random.Generator, least_side: float
    ) -> tuple[Pixels, Pixels]:
        return random_view(
            picture.photo,
            picture.mask,
            rng,
            size=self._size,
            least_side=least_side,
            flip=self._flip,
        )

    def _other_views(self, number: int) -> npt.NDArray[np.int64]:
        """The numbers of the other pictures of a picture's subject."""
        group = self._groups[number]
        if group == ALONE:
            return np.empty(0, np.int64)
        first, last = np.searchsorted(self._sorted_groups, [group, group + 1])
        views = self._by_group[first:last]
        others: npt.NDArray[np.int64] = views[views != number]
        return others

    def _picture(self, number: int) -> _Picture | None:
        """Read a picture and find its mask; None, and a line in the list, where that fails."""
        if number in self._unreadable:
            return None
        try:
            stored = self._read(number)
            photo = load_photo(stored.content)
            mask = self._mask(photo, stored)
        except (ImageError, MaskError, OSError) as error:
            self._unreadable[number] = str(error)
            _log.info("skipped %s: %s", self._file(number), error)
            return None
        return _Picture(photo, mask, stored.caption)

    def _mask(self, photo: Photo, stored: StoredPicture) -> Pixels:
        """The user's mask, or else alpha or the segmenter's, if there is enough subject in it."""
        if stored.mask is not None:
            mask = find_mask(photo, stored.mask).values
        else:
            mask = self._masks.find(photo, stored.content)
        share = float(mask.mean())
        if share < _LEAST_SUBJECT_SHARE:
            raise MaskError(
                "the mask",
                expected=f"a subject of at least {_LEAST_SUBJECT_SHARE:.1%} of the picture",
                got=f"{share:.3%}",
                remedy="Crop the picture closer around it",
            )
        return mask
