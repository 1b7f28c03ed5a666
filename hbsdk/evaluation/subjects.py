"""What is evaluated: subjects, the prompts that each is drawn in, and the real pictures of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Domain = Literal["in", "out", "validation-in", "validation-out"]
"""Which identities of the embedded world: see `hbsdk.evaluation.world_set`."""

WORLDS: Mapping[str, Domain] = {
    "world": "in", "world-out": "out", "validation-in": "validation-in",
    "validation-out": "validation-out",
}  # fmt: skip
"""The embedded world's sets: a set's name -> its domain."""
OUT_OF_DOMAIN = ("world-out", "validation-out")
"""Sets of identities with values never trained on."""


@dataclass(frozen=True, eq=False)
class EvaluationSubject:
    """One subject.

    Attributes:
        name: lower case, fit for a file's name.
        photo: (H, W, 3) uint8, the one picture that methods see.
        class_noun: such as "backpack"; prompts without the subject say "a backpack".
        prompts: with {} for the subject, the same number for every subject of a set.
        gallery: (N, H, W, 3) uint8 each, real pictures that drawn ones are compared with.
        real: (prompts, H, W, 3) uint8, a real picture of the subject in each prompt's context,
            the ceiling; None where there is none (photos).
        attributes: factor -> index of the identity's value, of the embedded world; else None.
    """

    name: str
    photo: Pixels
    class_noun: str
    prompts: tuple[str, ...]
    gallery: tuple[Pixels, ...]
    real: tuple[Pixels, ...] | None = None
    attributes: Mapping[str, int] | None = None


@dataclass(frozen=True)
class EvaluationSet:
    """Subjects under a name."""

    name: str
    subjects: tuple[EvaluationSubject, ...]
