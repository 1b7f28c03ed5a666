"""The embedded world as training data: pairs of pictures of one drawn identity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hbsdk.errors import OptionError
from hbsdk.mini import world
from hbsdk.mini.cache import PICTURES, REFERENCES, draw_picture, load_cache
from hbsdk.training.pairs import Pair, Pixels

VALIDATION_IDENTITIES = 64  # the last ones, never trained on
_DRAWN_SIZE = 64  # px
_PROBES = ((0, 0), (0, PICTURES - 1), (1, REFERENCES))  # of the fingerprint: identity, picture


class WorldSource:
    """Pairs from `hbsdk.mini.world`: a plain picture, and any other one of the same identity.

    The reference is one of an identity's first `REFERENCES` pictures, in cartoon style and without
    accessories; the target is any other of its pictures, with a caption that says "S*".
    """

    name = "the embedded world"

    def __init__(
        self, identities: int = 12_000, cache: Path | None = None, *, size: int = _DRAWN_SIZE
    ) -> None:
        """Prepare.

        Args:
            identities: how many there are, the last 64 of which are never trained on.
            cache: folder of `hbsdk.mini.cache.draw_cache` with at least as many, loaded in its
                files of 500 (0.15 MB each); None draws each picture when it is asked for.
            size: side of the pictures in pixels, scaled from 64.

        Raises:
            OptionError: there are too few identities to train on, or more than the world has.
        """
        most = len(world.TRAIN_SEEDS)
        if type(identities) is not int or not VALIDATION_IDENTITIES < identities <= most:
            raise OptionError(
                "identities",
                expected=f"a whole number from {VALIDATION_IDENTITIES + 1} to {most}",
                got=repr(identities),
                remedy=f"The last {VALIDATION_IDENTITIES} are kept for validation: use 12000",
            )
        self.identities = identities
        self._pictures = None if cache is None else load_cache(cache, identities)
        self._size = size
        self.fingerprint = self._fingerprint()

    def __len__(self) -> int:
        """How many pictures are trained on."""
        return (self.identities - VALIDATION_IDENTITIES) * PICTURES

    def pairs(self, seed: int, step: int, indices: Sequence[int]) -> list[Pair]:
        """Return the pairs with these numbers of a step's global batch; see `PairSource`."""
        return [self._pair(*self._chosen(seed, step, index)) for index in indices]

    def keys(self, seed: int, step: int, indices: Sequence[int]) -> list[tuple[int, int]]:
        """Return the numbers of the pairs' pictures, (reference, target); see `FixedPictures`."""
        chosen = [self._chosen(seed, step, index) for index in indices]
        return [(who * PICTURES + shown, who * PICTURES + drawn) for who, shown, drawn in chosen]

    def skipped(self) -> list[tuple[str, str]]:
        """Return nothing: every picture can be drawn."""
        return []

    def _chosen(self, seed: int, step: int, index: int) -> tuple[int, int, int]:
        """Return the identity, and which of its pictures are reference and target."""
        rng = np.random.default_rng([seed, step, index])
        who = int(rng.integers(self.identities - VALIDATION_IDENTITIES))
        shown = int(rng.integers(REFERENCES))
        return who, shown, (shown + int(rng.integers(1, PICTURES))) % PICTURES

    def _pair(self, who: int, shown: int, drawn: int) -> Pair:
        reference, reference_mask, _ = self._picture(who, shown)
        target, target_mask, caption = self._picture(who, drawn)
        return Pair(reference, reference_mask, target, target_mask, caption)

    def _picture(self, who: int, index: int) -> tuple[Pixels, Pixels, str]:
        """Return a picture, its mask and its caption."""
        if self._pictures is None:
            pixels, mask, captions = draw_picture(world.TRAIN_SEEDS[who], index)
            caption = captions[-1]
        else:
            pixels, mask = self._pictures.pixels[who, index], self._pictures.masks[who, index]
            caption = str(self._pictures.captions[who, index, -1])
        if self._size != _DRAWN_SIZE:
            shape = (self._size, self._size)
            pixels = np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.BICUBIC))
            mask = np.asarray(Image.fromarray(mask).resize(shape, Image.Resampling.NEAREST))
        return pixels, mask, caption

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"world {self.identities} {self._size}".encode())
        for who, index in _PROBES:
            pixels, mask, caption = self._picture(who, index)
            digest.update(pixels.tobytes() + mask.tobytes() + caption.encode())
        return digest.hexdigest()
