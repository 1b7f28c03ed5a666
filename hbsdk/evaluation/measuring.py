"""From pictures to rows: metrics and judged attributes of drawn and of real pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from hbsdk.evaluation.drawing import article, with_noun
from hbsdk.evaluation.judge import IMAGE_SIZE_PX
from hbsdk.evaluation.metrics import Galleries, Measured, Metrics
from hbsdk.evaluation.rows import PictureRow
from hbsdk.evaluation.store import content_hash, pixels_hash
from hbsdk.evaluation.subjects import EvaluationSubject, Pixels

_METRICS = ("dino_i", "dino_i_other", "clip_i", "clip_i_other", "clip_t")
Judged = tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[np.bool_]]]


class AttributeJudge(Protocol):
    """What reads attributes; `hbsdk.evaluation.judge.Judge` is one."""

    @property
    def name(self) -> str:
        """Which one, with a hash of its weights."""

    def accuracy(self, pixels: Pixels, attributes: Sequence[Mapping[str, int]]) -> Judged:
        """Return (N,) shares read right and, for each factor, (N,) whether it was.

        Args:
            pixels: (N, 64, 64, 3) uint8.
            attributes: what each picture's identity has.
        """


class Measurer:
    """Measures pictures of a set's subjects against all of its galleries."""

    def __init__(
        self,
        subjects: Sequence[EvaluationSubject],
        metrics: Metrics,
        judge: AttributeJudge | None = None,
    ) -> None:
        self._subjects, self._metrics, self._judge = subjects, metrics, judge
        self._galleries = Galleries(subjects, metrics)

    @cached_property
    def _gallery_hash(self) -> str:
        names = content_hash({"names": [subject.name for subject in self._subjects]})
        return names + pixels_hash(one for subject in self._subjects for one in subject.gallery)

    def key(self, subject: EvaluationSubject, pictures: Mapping[str, str]) -> str:
        """Return the hash of all that the rows of a subject's pictures (file -> hash) hang on.

        Args:
            subject: that the pictures are of.
            pictures: file -> hash.
        """
        return content_hash({
            "pictures": dict(pictures),
            "subject": subject.name,
            "class_noun": subject.class_noun,
            "prompts": list(subject.prompts),
            "attributes": dict(subject.attributes or {}),
            "metrics": self._metrics.names,
            "judge": None if self._judge is None else self._judge.name,
            "galleries": self._gallery_hash,
        })  # fmt: skip

    def rows(
        self, grid: Pixels, index: int, method: str, steps: int, file: str
    ) -> list[PictureRow]:
        """Measure pictures of a subject in its prompts.

        Args:
            grid: (seeds, prompts, H, W, 3) uint8.
            index: of the subject.
            method: of the rows.
            steps: of the rows.
            file: of the rows.

        Returns:
            One a picture, seed by seed and within a seed prompt by prompt. Pictures of another
            side than the judge reads are resized for it.

        Raises:
            EvaluationError: the judge does not know the subject's attributes.
        """
        subject = self._subjects[index]
        texts = [with_noun(prompt, subject.class_noun) for prompt in subject.prompts]
        flat = list(grid.reshape(-1, *grid.shape[2:]))
        measured = self._galleries.measure(flat, index, texts * len(grid))
        places = [(p, s) for s in range(len(grid)) for p in range(len(texts))]
        judged = self._judged(flat, subject)
        return list(_rows(measured, judged, places, method, steps, subject.name, file))

    def rows_left_out(self, index: int, method: str, file: str) -> list[PictureRow]:
        """Measure each picture of a gallery against its others, as prompt 0 and seed 0, 1, ...

        Args:
            index: of the subject.
            method: of the rows.
            file: of the rows.

        Returns:
            One a picture of the gallery, without attributes, which belong to drawn subjects; none
            where it is the only one.
        """
        subject = self._subjects[index]
        if len(subject.gallery) < 2:
            return []
        noun = subject.class_noun
        measured = self._galleries.measure_left_out(index, f"a photo of {article(noun)}{noun}")
        places = [(0, number) for number in range(len(subject.gallery))]
        return list(_rows(measured, None, places, method, 0, subject.name, file))

    def _judged(self, pictures: Sequence[Pixels], subject: EvaluationSubject) -> Judged | None:
        if self._judge is None or subject.attributes is None:
            return None
        side = (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
        shown = [
            one if one.shape[:2] == side else np.asarray(Image.fromarray(one).resize(side))
            for one in pictures
        ]
        return self._judge.accuracy(np.stack(shown), [subject.attributes] * len(shown))


def _rows(
    measured: Measured,
    judged: Judged | None,
    places: Sequence[tuple[int, int]],
    method: str,
    steps: int,
    subject: str,
    file: str,
) -> Iterator[PictureRow]:
    for number, (prompt, seed) in enumerate(places):
        values: dict[str, Any] = {
            name: round(float(getattr(measured, name)[number]), 6) for name in _METRICS
        }
        if judged is not None:
            values["attributes"] = round(float(judged[0][number]), 6)
            values["attribute_values"] = {
                factor: int(right[number]) for factor, right in judged[1].items()
            }
        yield PictureRow(
            method=method, steps=steps, subject=subject, prompt=prompt, seed=seed, file=file,
            retrieved=bool(measured.retrieved[number]), **values,
        )  # fmt: skip
