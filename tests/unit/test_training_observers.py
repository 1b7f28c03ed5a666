"""Observers that have no room or no memory end no training; what they look at is kept first."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hbsdk.bundle import Bundle
from hbsdk.errors import BundleError
from hbsdk.regressor import PromptRegressor
from hbsdk.session import Session
from hbsdk.training import observers as module
from hbsdk.training.loop import train
from hbsdk.training.observers import SampleSheets, TensorBoard
from hbsdk.training.options import TrainOptions
from hbsdk.training.telling import Listeners
from tests.pair_source import SquaresSource

OPTIONS = TrainOptions(
    steps=3, batch_size=1, learning_rate=1e-3, log_steps=1, sample_steps=1, checkpoint_steps=1
)
FULL = OSError(errno.ENOSPC, "No space left on device")
REFUSALS = [
    FULL,
    MemoryError("none left"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    BundleError("the bundle cannot draw"),
]


class Failing:
    """Fails at all steps but the last; notes what it was told and what was kept by then."""

    def __init__(self, error: Exception, out: Path) -> None:
        self.error, self.out = error, out
        self.heard: list[tuple[str, int, bool]] = []

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        self._fail("step", step)

    def on_sample(self, step: int, regressor: PromptRegressor) -> None:
        assert not regressor.training
        self._fail("sample", step)

    def _fail(self, what: str, step: int) -> None:
        kept = (self.out / "checkpoints" / f"step-{step:06d}" / "about.json").exists()
        self.heard.append((what, step, kept))
        if step < OPTIONS.steps:
            raise self.error


def run(tiny_bundle: Path, out: Path, *observers: object) -> None:
    bundle = Bundle.open(tiny_bundle)
    start = bundle.load_regressor()
    train(
        bundle, SquaresSource(), out, OPTIONS, regressor=start, progress=False, observers=observers
    )


def test_training_goes_on_and_each_step_is_kept_before_it_is_told(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    broken, sound = Failing(FULL, tmp_path / "run"), Failing(FULL, tmp_path / "run")
    sound.error = BundleError("never raised")
    sound._fail = lambda what, step: sound.heard.append((what, step, True))  # type: ignore
    with pytest.warns(UserWarning, match=r"Failing failed at step 1 \(OSError: .*No space") as told:
        run(tiny_bundle, tmp_path / "run", broken, sound)
    assert len(told) == 1
    all_kept = [(what, step, True) for step in (1, 2, 3) for what in ("step", "sample")]
    assert broken.heard == all_kept
    assert sound.heard == all_kept  # though another one failed before it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tiny_bundle, tmp_path / "unwatched")
    written = [
        PromptRegressor.from_pretrained(tmp_path / name / "regressor").state_dict()
        for name in ("run", "unwatched")
    ]
    for name, weight in written[0].items():
        assert torch.equal(weight, written[1][name]), name


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: type(error).__name__)
def test_what_an_observer_may_lack_is_told_once(error: Exception, tmp_path: Path) -> None:
    regressor, watcher = torch.nn.Linear(1, 1), Failing(error, tmp_path)
    listeners = Listeners([watcher])
    with pytest.warns(UserWarning, match=type(error).__name__):
        listeners.on_step(1, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listeners.on_sample(1, regressor)  # type: ignore[arg-type]
        listeners.on_step(2, {})
        listeners.on_sample(2, regressor)  # type: ignore[arg-type]
    assert regressor.training
    assert len(watcher.heard) == 4


def test_a_mistake_of_an_observer_is_not_hidden(tmp_path: Path) -> None:
    """The control: so are the exceptions by which an observer ends a run on purpose."""
    regressor = torch.nn.Linear(1, 1)
    listeners = Listeners([Failing(KeyError("typo"), tmp_path)])
    with pytest.raises(KeyError):
        listeners.on_step(1, {})
    with pytest.raises(KeyError):
        listeners.on_sample(1, regressor)  # type: ignore[arg-type]
    assert regressor.training


def test_a_sheet_that_cannot_be_drawn_leaves_nothing_and_the_next_one_is_drawn(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = Session.generate

    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    bundle = Bundle.open(tiny_bundle)
    regressor = bundle.load_regressor()
    sheets = SampleSheets(bundle, SquaresSource(), tmp_path / "sheets", prompts=["S*"])
    listeners = Listeners([sheets])
    monkeypatch.setattr(module, "_STEPS", 1)
    monkeypatch.setattr(Session, "generate", no_memory)
    with pytest.warns(UserWarning, match="SampleSheets failed at step 1 .*out of memory"):
        listeners.on_sample(1, regressor)
    assert not (tmp_path / "sheets").exists()
    monkeypatch.setattr(Session, "generate", generate)
    listeners.on_sample(2, regressor)
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["step-000002.png"]
    with Image.open(tmp_path / "sheets" / "step-000002.png") as sheet:
        assert len(np.unique(np.asarray(sheet))) > 10


def test_tensorboard_without_room_is_only_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: object, **__: object) -> None:
        raise FULL

    board = TensorBoard(tmp_path / "board")
    listeners = Listeners([board])
    listeners.on_step(1, {"loss": 1.0})
    size = sum(path.stat().st_size for path in (tmp_path / "board").iterdir())
    assert size > 0  # the control
    monkeypatch.setattr(SummaryWriter, "flush", full)
    monkeypatch.setattr(SummaryWriter, "close", full)
    with pytest.warns(UserWarning, match="TensorBoard failed at step 2 .*No space left"):
        listeners.on_step(2, {"loss": 1.0})
    with pytest.warns(UserWarning, match="board is not complete: .*No space left"):
        board.close()


def test_tensorboard_that_cannot_begin_is_not_begun_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    begun: list[str] = []

    def full(folder: str, **_: object) -> None:
        begun.append(folder)
        raise FULL

    monkeypatch.setattr(tensorboard, "SummaryWriter", full)
    board = TensorBoard(tmp_path / "board")
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            board.on_step(step, {"loss": 1.0})
    board.close()
    assert begun == [str(tmp_path / "board")]
