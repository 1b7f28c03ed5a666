"""hbsdk's own methods for the harness: no personalization, probe, refinement, and ablations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from hbsdk.backends.torch import TorchBackend
from hbsdk.bundle import Bundle
from hbsdk.bundle_source import find_piece
from hbsdk.errors import BundleError, EvaluationError
from hbsdk.evaluation.drawing import (
    DrawingNetworks,
    Floats,
    draw_prompts,
    fill,
    with_noun,
)
from hbsdk.evaluation.methods import Draw, Snapshot
from hbsdk.evaluation.results import NO_PERSONALIZATION
from hbsdk.evaluation.store import files_hash
from hbsdk.evaluation.subjects import EvaluationSubject, Pixels
from hbsdk.options import GenerateOptions, PersonalizeOptions
from hbsdk.regressor import PromptRegressor
from hbsdk.session import Session

_UNTRAINED_SEED = 0  # of the untrained regressor's weights


class NoPersonalization:
    """The class word in the subject's place: the floor of every likeness."""

    name = NO_PERSONALIZATION
    settings: Mapping[str, Any] = {}
    budgets = (0,)
    only_base_model = True

    def fit(self, session: Session, subject: EvaluationSubject) -> Iterator[Snapshot]:
        """Yield once: there is nothing to fit.

        Args:
            session: that draws.
            subject: whose class is drawn.
        """

        def draw(
            prompts: Sequence[str], seeds: Sequence[int], options: GenerateOptions | None = None
        ) -> Pixels:
            texts = [with_noun(prompt, subject.class_noun) for prompt in prompts]
            networks = DrawingNetworks.of(session)
            return draw_prompts(session, networks, texts, seeds, options=options)

        yield Snapshot(steps=0, seconds=0.0, draw=draw)


class HybridBooth:
    """`Session.personalize`, as users call it, once for each number of steps."""

    def __init__(
        self,
        name: str,
        *,
        budgets: Sequence[int] | None = None,
        regressor: Path | None = None,
        **changes: Any,
    ) -> None:
        """Prepare.

        Args:
            name: of the method.
            budgets: refinement steps, each fitted anew from the probe; None is `steps` alone.
            regressor: a folder of another regressor than the bundle's, for ablations.
            **changes: settings of `PersonalizeOptions`.

        Raises:
            OptionError: a setting is out of its range.
            EvaluationError: there is no such setting, or no regressor in the folder.
        """
        unknown = set(changes) - set(asdict(PersonalizeOptions()))
        if unknown:
            raise EvaluationError(
                f"method {name!r}", expected=f"options among {_option_names()}",
                got=sorted(unknown)[0],
            )  # fmt: skip
        self.name = name
        self.options = PersonalizeOptions(**changes)
        self.budgets = tuple(sorted({*(budgets or [self.options.steps])}))
        self._all = [replace(self.options, steps=steps) for steps in self.budgets]
        self._regressor = None if regressor is None else _find_regressor(name, regressor)
        self._opened: tuple[Session, Session] | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """All options, and the other regressor's hash."""
        settings = {**asdict(self.options), "budgets": list(self.budgets)}
        del settings["steps"]
        if self._regressor is not None:
            settings["regressor"] = files_hash(self._regressor)
        return settings

    def fit(self, session: Session, subject: EvaluationSubject) -> Iterator[Snapshot]:
        """Yield one snapshot a budget; each has the time of its own fit, mask finding included.

        Args:
            session: that personalizes, or whose base model does with another regressor.
            subject: to personalize.
        """
        own = self._session(session)
        for options in self._all:
            started = time.perf_counter()
            made = own.personalize(subject.photo, options=options)
            seconds = time.perf_counter() - started
            yield Snapshot(options.steps, seconds, _with_words(own, made.words))

    def _session(self, session: Session) -> Session:
        """The session, or one with the other regressor, made once."""
        if self._opened is None or self._opened[0] is not session:
            self._opened = session, self._open(session)
        return self._opened[1]

    def _open(self, session: Session) -> Session:
        if self._regressor is None:
            return session
        folder = session.bundle.folder
        if folder is None:
            raise EvaluationError(
                f"method {self.name!r}", expected="a bundle that is one folder",
                got="one that is composed", remedy="Write it into one folder with `hbsdk pack`",
            )  # fmt: skip
        bundle = Bundle.compose(base=folder, regressor=self._regressor)
        device = session.torch_backend.device
        return _with_regressor(session, bundle, bundle.load_regressor(torch.float32, device))


class WithoutProbe(HybridBooth):
    """The paper's ablation "w/o probe": an untrained regressor, refined on the photo alone.

    It starts as training does: blocks of the UNet, words near the class word, the rest random.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """All options, and what the regressor is."""
        return {**super().settings, "regressor": f"untrained, seed {_UNTRAINED_SEED}"}

    def _open(self, session: Session) -> Session:
        return _with_regressor(session, session.bundle, untrained_regressor(session))


def untrained_regressor(session: Session) -> PromptRegressor:
    """Return a regressor as training would begin with, of the sizes of the bundle's, frozen.

    Args:
        session: its bundle has a regressor, whose sizes are taken.
    """
    backend = session.torch_backend
    rows = backend.network("text_encoder").get_input_embeddings().weight
    class_word = rows[session.tokenizer.encode(session.bundle.info.class_word)].mean(dim=0)
    trained = backend.network("regressor").config
    sizes = {
        key: trained[key]
        for key in ("clip_dim", "dino_dim", "num_words", "pool_dim", "num_pool_heads", "encoders")
        if key in trained  # a regressor saved by an earlier hbsdk has the defaults of the others
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_UNTRAINED_SEED)
        unet = backend.network("unet")
        regressor: PromptRegressor = PromptRegressor.from_unet(unet, class_word, **sizes)
    regressor.requires_grad_(False).eval().to(backend.device)
    return regressor


class _OtherRegressor(TorchBackend):
    """A session's networks with another regressor."""

    def __init__(self, bundle: Bundle, base: TorchBackend, regressor: PromptRegressor) -> None:
        super().__init__(bundle, device=str(base.device))
        self._base, self._regressor = base, regressor

    @property
    def dtype(self) -> torch.dtype:
        """The base's."""
        return self._base.dtype

    def network(self, name: str) -> Any:
        """Return the regressor, or the base's network."""
        return self._regressor if name == "regressor" else self._base.network(name)


def _with_regressor(session: Session, bundle: Bundle, regressor: PromptRegressor) -> Session:
    other = Session(bundle, engine="torch", progress=False)
    other.backend = _OtherRegressor(bundle, session.torch_backend, regressor)
    other.tokenizer  # noqa: B018 - loaded now, so that the first fit's time is without it
    return other


def _with_words(session: Session, words: Floats) -> Draw:
    def draw(
        prompts: Sequence[str], seeds: Sequence[int], options: GenerateOptions | None = None
    ) -> Pixels:
        texts = [fill(prompt, "S*") for prompt in prompts]
        networks = DrawingNetworks.of(session)
        return draw_prompts(session, networks, texts, seeds, {"s*": words}, options)

    return draw


def _find_regressor(name: str, folder: Path) -> Path:
    try:
        return find_piece(folder, "regressor")[0]
    except BundleError as error:
        raise EvaluationError(
            f"regressor of method {name!r}: {error.what}", expected=error.expected, got=error.got,
            remedy="Pass the folder that `hbsdk train` wrote",
        ) from error  # fmt: skip


def _option_names() -> str:
    return ", ".join(asdict(PersonalizeOptions()))
