"""A small source of pairs that depend on (seed, step, index) alone, for tests of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hbsdk.training.pairs import Pair
from tests.tiny_bundle import IMAGE_SIZE

PROMPTS = ("a photo of S* in the snow", "a watercolor of S* on the beach", "S* at night")


class SquaresSource:
    """Coloured squares on noise: the square's colour is the subject."""

    name = "squares"

    def __init__(self, *, colours: int = 4, skips: Sequence[tuple[str, str]] = ()) -> None:
        self.colours = colours
        self.fingerprint = f"squares-{colours}"
        self._skips = list(skips)

    def __len__(self) -> int:
        return self.colours

    def pairs(self, seed: int, step: int, indices: Sequence[int]) -> list[Pair]:
        return [self._pair(np.random.default_rng([seed, step, index])) for index in indices]

    def skipped(self) -> list[tuple[str, str]]:
        return self._skips

    def _pair(self, rng: np.random.Generator) -> Pair:
        colour = np.random.default_rng(int(rng.integers(self.colours))).integers(60, 255, 3)
        reference, target = self._picture(rng, colour), self._picture(rng, colour)
        return Pair(*reference, *target, str(rng.choice(PROMPTS)))

    def _picture(self, rng: np.random.Generator, colour: np.ndarray) -> tuple:
        pixels = rng.integers(0, 60, (IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.uint8)
        mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        top, left = rng.integers(0, IMAGE_SIZE // 2, 2)
        where = np.s_[top : top + IMAGE_SIZE // 2, left : left + IMAGE_SIZE // 2]
        pixels[where], mask[where] = colour, 1
        return pixels, mask


class RecurringSquaresSource(SquaresSource):
    """The same, of few pictures that come again and again."""

    name = "recurring squares"

    def pairs(self, seed: int, step: int, indices: Sequence[int]) -> list[Pair]:
        numbers = _numbers(seed, step, indices)
        return [self._pair(np.random.default_rng(number)) for number in numbers]


class FixedSquaresSource(RecurringSquaresSource):
    """The same, and it says which picture is which."""

    def keys(self, seed: int, step: int, indices: Sequence[int]) -> list[tuple[int, int]]:
        return [(number, 100 + number) for number in _numbers(seed, step, indices)]


def _numbers(seed: int, step: int, indices: Sequence[int]) -> list[int]:
    return [int(np.random.default_rng([seed, step, i]).integers(4)) for i in indices]
