"""What the regressor learns from: two pictures of one subject, and a source of such pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Pair:
    """One example: the reference that the regressor sees, and the picture its words must explain.

    Attributes:
        reference: (size, size, 3) uint8.
        reference_mask: (size, size) uint8, 1 on the subject.
        target: (size, size, 3) uint8, another view of the same subject, or a variation of the
            reference where the data has no other.
        target_mask: (size, size) uint8, 1 on the subject.
        prompt: what the target shows, with "S*" for the subject, once.
    """

    reference: Pixels
    reference_mask: Pixels
    target: Pixels
    target_mask: Pixels
    prompt: str


class PairSource(Protocol):
    """A source of pairs that depend on (seed, step, index) alone.

    So a run that resumes sees what it would have seen, and every process of a distributed run can
    take its share of a step's global batch without talking to the others.
    """

    @property
    def name(self) -> str:
        """What it is, in a few words, for logs and the model card."""

    @property
    def fingerprint(self) -> str:
        """A hash of the data's identity (names, sizes), which a resumed run must find again."""

    def __len__(self) -> int:
        """How many pictures there are."""

    def pairs(self, seed: int, step: int, indices: Sequence[int]) -> list[Pair]:
        """Return the pairs with these numbers of a step's global batch.

        A picture that cannot be read is skipped, counted and listed by the source, and another
        one (also chosen by seed, step and index alone) stands in for it.

        Args:
            seed: of the run.
            step: 0 is the first.
            indices: the pairs' numbers in the step's global batch.
        """

    def skipped(self) -> list[tuple[str, str]]:
        """Return (file, reason) of all that was skipped so far."""
