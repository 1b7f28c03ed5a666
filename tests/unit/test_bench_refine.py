"""The plain loop of benchmarks/ is the same method as ours, and what differs is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import benchmarks.refine as question
from benchmarks.plain_loop import NETWORKS, PlainLoop
from hbsdk.bench.questions import Setup, _compare_losses, _compare_times, largest_difference
from hbsdk.bench.tasks import Personalize, draw_photo
from hbsdk.session import Session

TOLERANCE = 1e-5  # of losses, as a share: beyond rounding, below every change that is tried
OPTIONS = {"steps": 3, "timesteps_per_step": 4, "effective_step": 1e-2, "mask_loss_weight": 0.1}


def plain_losses(bundle: Path, **options: object) -> list[float]:
    settings = {"bundle": str(bundle), "engine": "torch", "options": {**OPTIONS, **options}}
    found: list[float] = PlainLoop(settings).run()["facts"]["losses"]
    return found


def our_losses(bundle: Path, **options: object) -> list[float]:
    session = Session(bundle, engine="torch", progress=False)
    photo, mask = draw_photo(session.bundle.info.image_size_px)
    report = session.personalize(photo, mask, **{**OPTIONS, **options}).report
    assert report is not None
    return list(report.losses)


@pytest.mark.parametrize("mirror", [True, False])
def test_the_plain_loop_has_our_losses(tiny_bundle: Path, mirror: bool) -> None:
    expected = plain_losses(tiny_bundle, mirror=mirror)
    for size in (1, 2, 4):
        ours = our_losses(tiny_bundle, mirror=mirror, micro_batch_size=size)
        assert largest_difference(ours, expected) < TOLERANCE
    assert len(set(expected)) == 3


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"mirror": False}, {"mask_loss_weight": 0.0}, {"background_weight": 1.0},
     {"effective_step": 0.2}],
)  # fmt: skip
def test_the_plain_loop_tells_what_differs(tiny_bundle: Path, change: dict) -> None:
    expected = plain_losses(tiny_bundle)
    assert largest_difference(our_losses(tiny_bundle, **change), expected) > TOLERANCE


def test_nothing_is_spared_in_the_plain_loop(tiny_bundle: Path) -> None:
    """Each noise level encodes the photo and the text anew, and all networks have gradients."""
    settings = {"bundle": str(tiny_bundle), "engine": "torch", "options": {**OPTIONS, "steps": 1}}
    loop = PlainLoop(settings)
    calls = dict.fromkeys(NETWORKS, 0)
    graded: set[str] = set()

    def count(name: str) -> None:
        calls[name] += 1

    for name, network in loop.nets.items():
        entrance = network.encoder if name == "vae" else network
        entrance.register_forward_pre_hook(lambda *_, name=name: count(name))
        for weight in network.parameters():
            weight.register_hook(lambda _, name=name: graded.add(name))
    (step,) = loop.refine()
    levels = OPTIONS["timesteps_per_step"]
    assert len(step.losses) == levels
    assert calls == {**dict.fromkeys(NETWORKS, levels), "vae": levels * 3 // 2}  # half mirrored
    assert graded == set(NETWORKS)


def test_the_plain_loop_follows_the_bundles_own_schedule(tiny_bundle: Path) -> None:
    settings = {"bundle": str(tiny_bundle), "engine": "torch", "options": OPTIONS}

    def timesteps(last: int) -> list[int]:
        loop, seen = PlainLoop(settings), []
        loop.scheduler.register_to_config(num_train_timesteps=last)
        loop.loss = lambda *given, **_: seen.append(given[5]) or torch.zeros((), requires_grad=True)
        next(loop.refine())
        return seen

    assert [step // 250 for step in timesteps(1000)] == [0, 1, 2, 3]
    assert [step // 100 for step in timesteps(400)] == [0, 1, 2, 3]


def test_steps_are_timed_apart_from_the_loss_before_and_after(tiny_bundle: Path) -> None:
    settings = {"bundle": str(tiny_bundle), "engine": "torch", "memory": "high"}
    with pytest.MonkeyPatch.context() as kept:
        kept.setattr("hbsdk.refine.reference_loss", question_loss := _loss())
        task = Personalize({**settings, "options": {"steps": 2, "timesteps_per_step": 2}})
        answer = task.run()
        assert question_loss.calls == 4
        samples, stages = answer["samples"], answer["stages"]
        assert len(samples["refinement step"]) == 2
        assert sum(samples["refinement step"]) == pytest.approx(stages["steps"])
        assert list(stages) == ["encode_references", "steps", "loss before and after", "host"]
        whole = samples["probe and 2 steps"][0]
        assert sum(stages.values()) == pytest.approx(whole, rel=0.02)
        assert 0.0 < stages["steps"] < whole
        assert len(task.run()["samples"]["refinement step"]) == 2


def _loss() -> SimpleNamespace:
    from hbsdk.refine import reference_loss

    class Counted(SimpleNamespace):
        def __call__(self, *given: object) -> float:
            self.calls += 1
            return reference_loss(*given)

    return Counted(calls=0)


def test_losses_are_compared_with_a_control() -> None:
    levels = [[0.5, 1.5], [1.8, 2.2]]
    entries = {
        "ours": {"facts": {"losses": [1.0, 2.0]}},
        "off": {"facts": {"losses": [1.0, 2.2]}},
        "plain": {"facts": {"losses": [1.0, 2.0], "level_losses": levels}},
    }
    report = SimpleNamespace(case=entries.__getitem__)
    _compare_losses(report, ["ours", "off"], "plain")
    assert entries["ours"]["facts"]["largest_loss_difference"] == 0.0
    assert entries["ours"]["facts"]["control_loss_difference"] == pytest.approx(1.0)
    assert "largest_loss_difference" not in entries["plain"]["facts"]
    assert question.problems({"cases": {"ours": entries["ours"]}}) == []
    (said,) = question.problems({"cases": {"off": entries["off"]}})
    assert "differ by 1.0e-01" in said
    failed = {"ours": entries["ours"], "bad": {"failed": "no memory"}}
    assert question.problems({"cases": failed}) == ["bad: no memory"]


def test_one_step_has_a_control_and_one_noise_level_has_none() -> None:
    def problems(levels: list[float]) -> list[str]:
        entries = {
            "ours": {"facts": {"losses": [1.0]}},
            "plain": {"facts": {"losses": [1.0], "level_losses": [levels]}},
        }
        _compare_losses(SimpleNamespace(case=entries.__getitem__), ["ours"], "plain")
        return question.problems({"cases": {"ours": entries["ours"]}})

    assert problems([0.9, 1.1]) == []
    (said,) = problems([1.0])
    assert "proves nothing" in said


def test_times_are_compared_by_what_was_timed() -> None:
    def entry(**medians: float) -> dict:
        return {"measures": {what: {"median_s": median} for what, median in medians.items()}}

    entries = {"ours": entry(step=2.0, other=1.0), "plain": entry(step=9.0, whole=5.0)}
    report = SimpleNamespace(case=entries.__getitem__, data={"facts": {}})
    _compare_times(report, ["ours"], "plain")
    assert report.data["facts"] == {"step: the plain loop beside ours": "4.50 times"}


def test_what_the_plain_loop_cannot_do_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    setup = Setup(source=str(tiny_bundle), output=tmp_path / "a.json", steps=1)
    assert question.plain_case(setup, "auto", {}).problem is None
    assert question.plain_case(setup, "auto", {"refined": "attention"}).problem is None
    for options in ({"refined": "words"}, {"mode": "paper"}, {"mask_loss": "paper"}):
        assert "nothing else" in (question.plain_case(setup, "auto", options).problem or "")


def test_the_estimate_grows_with_the_work(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(question, "product_rate", lambda *_: 1e9)
    found: list[str] = []
    monkeypatch.setattr(question, "duration", lambda seconds: found.append(seconds) or "")
    for steps in (1, 2):
        setup = Setup(source=str(tiny_bundle), output=tmp_path / "a.json", steps=steps, repeats=1)
        question.estimate(setup, "float32", {}, 2, with_plain=True)
    (_, plain, whole), (_, plain_of_two, whole_of_two) = found[:3], found[3:]
    assert plain_of_two == pytest.approx(2 * plain)
    assert whole < whole_of_two < 2 * whole  # the loss before and after is there once
    question.estimate(setup, "float32", {}, 2, with_plain=False)
    assert found[-1] == pytest.approx(whole_of_two - 2 * plain_of_two)
