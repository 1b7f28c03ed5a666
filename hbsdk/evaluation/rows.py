"""What an evaluation writes: one row a picture and one row a fit, as JSON lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class PictureRow:
    """One drawn (or real) picture and its metrics; None where a metric does not apply.

    Attributes:
        method: `Method.name`, or "real pictures".
        steps: the snapshot's.
        subject: its name.
        prompt: the prompt's number, from 0.
        seed: the seed's number, from 0.
        file: the picture, relative to the evaluation's folder.
        dino_i: mean cosine of DINO class tokens with the subject's gallery.
        dino_i_other: the same with the other subjects' galleries, the floor of dino_i.
        clip_i: mean cosine of CLIP image embeddings with the subject's gallery.
        clip_i_other: the same with the other subjects' galleries.
        clip_t: cosine of the picture and of the prompt with the class noun in place of the subject.
        retrieved: whether the nearest gallery of the set, by DINO, is the subject's own.
        attributes: share of the identity's attributes that the judge reads right, 0..1.
        attribute_values: factor -> 1 if read right, else 0.
    """

    method: str
    steps: int
    subject: str
    prompt: int
    seed: int
    file: str
    dino_i: float
    dino_i_other: float
    clip_i: float
    clip_i_other: float
    clip_t: float
    retrieved: bool
    attributes: float | None = None
    attribute_values: dict[str, int] | None = None


@dataclass(frozen=True)
class FitRow:
    """What one snapshot of one subject cost.

    Attributes:
        method: `Method.name`.
        steps: the snapshot's.
        subject: its name.
        seconds: of fitting up to it.
        draw_seconds: of drawing its pictures.
        peak_bytes: the most memory of the process (of the device on a GPU) while it was fitted.
        failed: the error, if it failed.
        device: where it was fitted; None in a row of an earlier hbsdk.
        commit: of hbsdk's code then; None where that is not known.
    """

    method: str
    steps: int
    subject: str
    seconds: float
    draw_seconds: float
    peak_bytes: int
    failed: str | None = None
    device: str | None = None
    commit: str | None = None


def is_whole(row: Any, kind: type[PictureRow] | type[FitRow]) -> bool:
    """Whether a row that was kept has all that this hbsdk reads of it.

    Args:
        row: as read from JSON.
        kind: what it is a row of.
    """
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    return isinstance(row, Mapping) and needed <= {*row}
