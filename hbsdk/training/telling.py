"""Who is told of a run while it goes on; what they cannot do never ends it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch

from hbsdk.errors import HbsdkError
from hbsdk.regressor import PromptRegressor

Figures = Mapping[str, float]

# No memory comes as any of the last three: CUDA's libraries and CPUs raise plain RuntimeErrors.
_HARMLESS = (HbsdkError, OSError, MemoryError, RuntimeError)


class Observer(Protocol):
    """What is told of a run, on its main process only."""

    def on_step(self, step: int, figures: Figures) -> None:
        """Hear of every `log_steps`-th step, of the first (which is 1) and of the last."""

    def on_sample(self, step: int, regressor: PromptRegressor) -> None:
        """Look at the regressor, in evaluation mode, after every `sample_steps`-th step."""


class Listeners:
    """The observers of a run, each told what it can take.

    A full disk or too little memory keeps one from writing or drawing. Training can do without:
    it is warned of once for each observer, which is told of later steps all the same. Any other
    exception is a mistake, or meant to end the run, and is passed on.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        """Gather them.

        Args:
            observers: told in this order.
        """
        self._observers = tuple(observers)
        self._failed: set[int] = set()

    def on_step(self, step: int, figures: Figures) -> None:
        """Tell all of a step's figures.

        Args:
            step: 1 is the first.
            figures: of the step, by name.
        """
        for observer in self._observers:
            self._tell(observer, step, partial(observer.on_step, step, figures))

    @torch.no_grad()
    def on_sample(self, step: int, regressor: PromptRegressor) -> None:
        """Let all look at the regressor, which is in training mode again afterwards.

        Args:
            step: 1 is the first.
            regressor: the one that counts.
        """
        regressor.eval()
        try:
            for observer in self._observers:
                self._tell(observer, step, partial(observer.on_sample, step, regressor))
        finally:
            regressor.train()

    def _tell(self, observer: Observer, step: int, tell: Callable[[], None]) -> None:
        try:
            tell()
        except _HARMLESS as error:
            if id(observer) in self._failed:
                return
            self._failed.add(id(observer))
            warnings.warn(
                f"{type(observer).__name__} failed at step {step} "
                f"({type(error).__name__}: {' '.join(str(error).split())[:300]}): training goes "
                "on, and should it fail again, that is not told",
                stacklevel=2,
            )
