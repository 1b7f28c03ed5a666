"""CLIP-T, CLIP-I and DINO-I: what the checkpoints that measure say of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from hbsdk.evaluation.encoders import (
    PROJECTIONS,
    BundleClip,
    BundleDino,
    HubClip,
    HubDino,
    ImageEncoder,
    ImageTextEncoder,
)
from hbsdk.evaluation.subjects import EvaluationSubject, Pixels

if TYPE_CHECKING:
    from hbsdk.session import Session

# Source: the public protocol of DreamBooth (Ruiz et al. 2023, section 4.2).
CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Metrics:
    """What measures: clip gives CLIP-T and CLIP-I, dino gives DINO-I and retrieval."""

    clip: ImageTextEncoder
    dino: ImageEncoder

    @property
    def names(self) -> dict[str, str]:
        """The checkpoints, part of every result."""
        return {"clip": self.clip.name, "dino": self.dino.name}


def load_metrics(session: Session, clip: str | None = None, dino: str | None = None) -> Metrics:
    """Load the checkpoints that measure.

    Args:
        session: its bundle's own CLIP and DINO are taken where none are named and the bundle has
            CLIP's projections, as the embedded mini has: public checkpoints know nothing of its
            world.
        clip: a hub id or a local folder of a whole CLIP; CLIP ViT-B/32 where none is named and
            the bundle has no projections.
        dino: likewise of a DINO (ViT) or DINOv2; by default DINO ViT-S/16.

    Raises:
        EvaluationError: a checkpoint cannot be obtained.
        BundleError: the bundle's own are damaged.
    """
    folder = session.bundle.folder
    has_own = folder is not None and (folder / PROJECTIONS).is_file()
    own = has_own and "dino" in session.bundle.components
    device = session.torch_backend.device
    return Metrics(
        clip=BundleClip(session) if own and clip is None else HubClip(clip or CLIP, device),
        dino=BundleDino(session) if own and dino is None else HubDino(dino or DINO, device),
    )


@dataclass(frozen=True)
class Measured:
    """N pictures' metrics, (N,) float64 each; retrieved is bool. See `PictureRow`."""

    dino_i: Floats
    dino_i_other: Floats
    clip_i: Floats
    clip_i_other: Floats
    clip_t: Floats
    retrieved: npt.NDArray[np.bool_]


class Galleries:
    """The real pictures of all subjects of a set, embedded once and only when asked for."""

    def __init__(self, subjects: Sequence[EvaluationSubject], metrics: Metrics) -> None:
        self._subjects, self._metrics = subjects, metrics

    @cached_property
    def dino(self) -> list[Tensor]:
        """Each subject's (pictures, d)."""
        return self._embedded(self._metrics.dino)

    @cached_property
    def clip(self) -> list[Tensor]:
        """Each subject's (pictures, d)."""
        return self._embedded(self._metrics.clip)

    def _embedded(self, encoder: ImageEncoder) -> list[Tensor]:
        flat = [pixels for subject in self._subjects for pixels in subject.gallery]
        lengths = [len(subject.gallery) for subject in self._subjects]
        return list(encoder.images(flat).split(lengths))

    def measure(self, pictures: Sequence[Pixels], own: int, texts: Sequence[str]) -> Measured:
        """Compare pictures with all galleries and each with its text.

        Args:
            pictures: (H, W, 3) uint8 each.
            own: which subject of the set they should show.
            texts: one a picture, of CLIP-T.
        """
        dino = self._metrics.dino.images(pictures)
        clip = self._metrics.clip.images(pictures)
        different = list(dict.fromkeys(texts))
        embedded = self._metrics.clip.texts(different)[[different.index(text) for text in texts]]
        return _measured(dino, clip, embedded, self.dino, self.clip, own)

    def measure_left_out(self, own: int, text: str) -> Measured:
        """Compare each picture of a gallery with its others: (pictures of it,), at least two.

        Args:
            own: which subject of the set it is.
            text: of CLIP-T.
        """
        embedded = self._metrics.clip.texts([text])
        rows = []
        for left_out in range(len(self.dino[own])):
            kept = [i for i in range(len(self.dino[own])) if i != left_out]
            dino, clip = list(self.dino), list(self.clip)
            dino[own], clip[own] = dino[own][kept], clip[own][kept]
            one = slice(left_out, left_out + 1)
            rows.append(
                _measured(self.dino[own][one], self.clip[own][one], embedded, dino, clip, own)
            )
        return Measured(**{
            name: np.concatenate([getattr(row, name) for row in rows]) for name in vars(rows[0])
        })  # fmt: skip


def _measured(
    dino: Tensor,
    clip: Tensor,
    texts: Tensor,
    dino_galleries: Sequence[Tensor],
    clip_galleries: Sequence[Tensor],
    own: int,
) -> Measured:
    others = [index for index in range(len(dino_galleries)) if index != own]
    # All pairs: the mean of the cosines with each picture of a gallery, (N, subjects).
    dino_means = torch.stack([(dino @ real.T).mean(1) for real in dino_galleries], dim=1)
    clip_means = torch.stack([(clip @ real.T).mean(1) for real in clip_galleries], dim=1)
    centres = F.normalize(torch.stack([real.mean(0) for real in dino_galleries]), dim=-1)
    return Measured(
        dino_i=dino_means[:, own].double().numpy(),
        dino_i_other=dino_means[:, others].mean(1).double().numpy(),
        clip_i=clip_means[:, own].double().numpy(),
        clip_i_other=clip_means[:, others].mean(1).double().numpy(),
        clip_t=(clip * texts).sum(-1).double().numpy(),
        retrieved=((dino @ centres.T).argmax(1) == own).numpy(),
    )
