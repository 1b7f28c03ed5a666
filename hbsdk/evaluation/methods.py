"""What a method of personalization is to the harness: it fits one photo, then draws prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hbsdk.evaluation.subjects import EvaluationSubject, Pixels
from hbsdk.options import GenerateOptions

if TYPE_CHECKING:
    from hbsdk.session import Session

Draw = Callable[[Sequence[str], Sequence[int], GenerateOptions], Pixels]
"""(prompts with {} for the subject, one noise seed a picture, how) -> (N, H, W, 3) uint8."""


@dataclass(frozen=True)
class Snapshot:
    """A method after some of its work: what it costs up to here, and how it draws now.

    Attributes:
        steps: optimisation steps so far; 0 for what needs none.
        seconds: wall time of fitting up to here, without loading networks and without drawing.
        draw: draws with what is fitted so far; valid until the next snapshot is asked for.
    """

    steps: int
    seconds: float
    draw: Draw


class Method(Protocol):
    """A way to personalize. Its name and settings, with the bundle's hash, say all that it does."""

    @property
    def name(self) -> str:
        """Short and unique in a run, fit for a file's name, such as "textual-inversion"."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """JSON-able; part of the hash under which results are kept."""

    @property
    def budgets(self) -> Sequence[int]:
        """The `steps` of the snapshots that `fit` yields, ascending."""

    def fit(self, session: Session, subject: EvaluationSubject) -> Iterator[Snapshot]:
        """Personalize from `subject.photo` alone, yielding one snapshot a budget.

        The session's own networks are not changed, not even for a while.

        Args:
            session: its networks are loaded.
            subject: to personalize.
        """
