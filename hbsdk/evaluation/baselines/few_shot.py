"""What the baselines share: options, the loop, its time, snapshots, the class's own pictures.

All of them minimise a diffusion loss on few pictures with AdamW and differ in what they train, on
which texts, and in their settings. Times are of fitting alone: preparing the photo, drawing the
class's pictures and the steps; copying networks counts as loading them.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from hbsdk.errors import EvaluationError, OptionError
from hbsdk.evaluation.baselines.examples import PLACEHOLDER
from hbsdk.evaluation.drawing import DrawingNetworks, draw_prompts, fill
from hbsdk.evaluation.methods import Snapshot
from hbsdk.evaluation.subjects import EvaluationSubject, Pixels
from hbsdk.options import GenerateOptions

if TYPE_CHECKING:
    from hbsdk.session import Session

_CLASS_SEED = 2**40  # of the class's first picture: far from the seeds of an evaluation
_MOST = {
    "learning_rate": 1.0, "batch_size": 256, "weight_decay": 1.0, "seed": 2**62, "num_vectors": 32,
    "rank": 256, "class_pictures": 10_000, "class_weight": 100.0,
}  # fmt: skip
_LEAST = {"batch_size": 1, "num_vectors": 1, "rank": 1}


@dataclass
class Fit:
    """A method at work on one photo.

    Attributes:
        loss: the loss of a batch whose pictures, texts and noise a CPU generator draws.
        parameters: what is trained.
        networks: what draws, trained parts included.
        noun: what stands for {} in prompts, with its article; may hold `PLACEHOLDER`.
        words: (n, d), trained in place, where the noun holds `PLACEHOLDER`.
        trained: those of the networks that are this fit's own copies.
    """

    loss: Callable[[torch.Generator], Tensor]
    parameters: Sequence[Tensor]
    networks: DrawingNetworks
    noun: str
    words: Tensor | None = None
    trained: tuple[nn.Module, ...] = ()


class Stopwatch:
    """Wall time of fitting, with the device's work waited for."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device

    @contextmanager
    def running(self) -> Iterator[None]:
        """Add the time that the block takes."""
        begun = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds += time.perf_counter() - begun


@dataclass(frozen=True)
class ClassPictures:
    """What the model itself draws of a class: (N, H, W, 3) uint8, and the seconds that took."""

    pixels: Pixels
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Baseline(ABC):
    """A method with its settings, a `hbsdk.evaluation.methods.Method`.

    Attributes:
        learning_rate: of AdamW, before what `rate` makes of it.
        budgets: steps after which a snapshot is taken, ascending.
        batch_size: pictures of the subject in a step.
        weight_decay: of AdamW.
        seed: of all that is drawn while fitting.

    Raises:
        OptionError: a setting is out of range.
    """

    kind: ClassVar[str]
    only_base_model: ClassVar[bool] = True  # another regressor changes nothing of it
    largest_gradient: ClassVar[float] = 1.0  # norm; Source: all scripts but textual_inversion.py

    learning_rate: float
    budgets: tuple[int, ...]
    batch_size: int = 1
    weight_decay: float = 1e-2  # Source: --adam_weight_decay of all four scripts
    seed: int = 0
    # Drawn once a class; every fit is charged the seconds that they took.
    _class_pictures: dict[tuple[str, str, int], ClassPictures] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name, value in self._options().items():
            _check_option(name, value, type(_default(type(self), name)))

    @property
    def rate(self) -> float:
        """The optimizer's learning rate."""
        return self.learning_rate

    @property
    def name(self) -> str:
        """The kind, with the options that differ from its defaults."""
        changed = [
            f"{name}={_shown(value)}"
            for name, value in self._options().items()
            if value != _default(type(self), name)
        ]
        return "-".join([self.kind, *changed])

    @property
    def settings(self) -> Mapping[str, Any]:
        """All options, JSON-able."""
        options = {**self._options(), "budgets": list(self.budgets)}
        return {"kind": self.kind, **options}

    def _options(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.init}

    @abstractmethod
    def begin(self, session: Session, subject: EvaluationSubject, watch: Stopwatch) -> Fit:
        """Prepare to fit `subject.photo`; `watch` runs while that is work of the method's.

        Args:
            session: whose networks are used; those that are trained are copied.
            subject: to personalize.
            watch: of the seconds that a fit is charged.
        """

    def fit(self, session: Session, subject: EvaluationSubject) -> Iterator[Snapshot]:
        """Personalize; see `Method.fit`.

        Args:
            session: whose networks are used.
            subject: to personalize.

        Raises:
            EvaluationError: the loss is no number any more, or a snapshot is drawn too late.
        """
        watch = Stopwatch(session.torch_backend.device)
        fit = self.begin(session, subject, watch)
        advance = self.steps(fit)
        done = 0
        for budget in self.budgets:
            with watch.running():
                for network in fit.trained:
                    network.train()
                for _ in range(budget - done):
                    loss = next(advance)
            done = budget
            if not math.isfinite(loss):
                raise EvaluationError(
                    f"{self.name} on {subject.name}", expected=f"a finite loss at step {done}",
                    got=str(float(loss)), remedy="Lower its learning_rate",
                )  # fmt: skip
            for network in fit.trained:
                network.eval()
            drawing = _Drawing(session, fit)
            try:
                yield Snapshot(done, watch.seconds, drawing)
            finally:
                drawing.expire()

    def steps(self, fit: Fit) -> Iterator[Tensor]:
        """Take a step each time that the next loss is asked for, without end.

        Args:
            fit: as `begin` returns it.
        """
        optimizer = torch.optim.AdamW(
            fit.parameters, lr=self.rate, weight_decay=self.weight_decay, fused=True
        )
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            with torch.enable_grad():
                loss = fit.loss(generator)
                loss.backward()
            nn.utils.clip_grad_norm_(fit.parameters, self.largest_gradient)
            optimizer.step()
            optimizer.zero_grad()
            yield loss.detach()

    def class_pictures_of(
        self, session: Session, prompt: str, count: int, watch: Stopwatch
    ) -> Tensor:
        """Return (count, 3, H, W) pictures of the class in -1..1, and charge what drawing took.

        Args:
            session: whose networks draw, once for all fits of this method.
            prompt: of the class.
            count: pictures.
            watch: is charged.
        """
        key = session.bundle.hash, prompt, count
        if key not in self._class_pictures:
            drawing = Stopwatch(session.torch_backend.device)
            with drawing.running():
                seeds = range(_CLASS_SEED, _CLASS_SEED + count)
                networks = DrawingNetworks.of(session)
                pixels = draw_prompts(session, networks, [prompt] * count, seeds)
            self._class_pictures[key] = ClassPictures(pixels, drawing.seconds)
        kept = self._class_pictures[key]
        watch.seconds += kept.seconds
        return torch.from_numpy(kept.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0


class _Drawing:
    """Draws with what is fitted so far, until it is fitted on."""

    def __init__(self, session: Session, fit: Fit) -> None:
        self._session, self._fit = session, fit
        self._expired = False

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], options: GenerateOptions | None = None
    ) -> Pixels:
        if self._expired:
            raise EvaluationError(
                "snapshot", expected="to be drawn before the next is asked for", got="a later call",
                remedy="Draw it within the loop over fit()",
            )  # fmt: skip
        fit = self._fit
        words = {} if fit.words is None else {PLACEHOLDER: fit.words.detach().cpu().numpy()}
        texts = [fill(prompt, fit.noun) for prompt in prompts]
        return draw_prompts(self._session, fit.networks, texts, seeds, words, options)

    def expire(self) -> None:
        """Let go of the networks."""
        self._expired = True
        del self._fit, self._session


def _default(kind: type[Baseline], name: str) -> Any:
    return next(one.default for one in fields(kind) if one.name == name)


def _shown(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check_option(name: str, value: Any, kind: type) -> None:
    if kind is tuple:
        whole = isinstance(value, tuple) and all(type(steps) is int for steps in value)
        fits = whole and bool(value) and value[0] > 0 and list(value) == sorted({*value})
        expected = "numbers of steps, ascending, such as 10+100"
    elif kind in (int, float):
        least, most = _LEAST.get(name, 0), _MOST[name]
        fits = type(value) in (int, kind) and least <= value <= most
        expected = f"{'a whole' if kind is int else 'a'} number from {least:g} to {most:g}"
    else:
        fits = type(value) is bool if kind is bool else isinstance(value, str) and value.isalnum()
        expected = "True or False" if kind is bool else "letters and digits"
    if not fits:
        raise OptionError(name, expected=expected, got=repr(value)[:100])
