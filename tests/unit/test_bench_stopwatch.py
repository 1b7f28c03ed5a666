"""Where the time goes: stages, and what is inside of networks, which run as without a stopwatch."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hbsdk.bench.stopwatch as module
from hbsdk.bench.stopwatch import Stopwatch, _Timed
from hbsdk.bench.tasks import Generate, draw_photo
from hbsdk.session import Session


def draw(session: Session, **options: Any) -> Any:
    (picture,) = session.generate("a photo", num_inference_steps=4, output_type="np", **options)
    return picture


def test_stages_add_up_to_the_whole(tiny_bundle: Path) -> None:
    session = Session(tiny_bundle, engine="torch", progress=False)
    draw(session)
    watch = Stopwatch(session)
    watch.start()
    draw(session)
    stages = watch.stages()
    assert list(stages) == ["encode_prompts", "denoise", "decode", "host"]
    assert all(seconds >= 0.0 for seconds in stages.values())
    assert watch.inside_s is not None
    assert 0.0 < watch.inside_s < sum(stages.values())
    photo, mask = draw_photo(32)
    watch.start()
    session.personalize(photo, mask, steps=1, timesteps_per_step=2)
    assert list(watch.stages()) == ["encode_references", "refine", "host"]


@pytest.mark.parametrize("options", [{}, {"feature_interval": 2}, {"guidance_stop": 0.5}])
def test_a_watched_session_draws_the_same(tiny_bundle: Path, options: dict) -> None:
    session = Session(tiny_bundle, engine="torch", progress=False)
    expected = draw(session, **options)
    watch = Stopwatch(session)
    watch.start()
    np.testing.assert_array_equal(draw(session, **options), expected)
    assert watch.inside_s is not None
    assert watch.inside_s > 0.0
    if options:  # else options that play no part would pass
        assert np.abs(draw(session) - expected).max() > 0.0


def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let time pass only where `now[0]` is moved."""
    now = [0.0]
    fake = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(module, "time", fake)
    return now


@pytest.mark.parametrize(("interval", "whole", "shallow"), [(1, 4, 0), (2, 2, 2)])
def test_time_inside_is_all_passes_and_nothing_else(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, interval: int, whole: int, shallow: int
) -> None:
    """Every pass takes 1 s in the middle or not at all; each step 100 s outside of networks."""
    now = clock(monkeypatch)
    session = Session(tiny_bundle, engine="torch", progress=False)
    unet, seen = session.torch_backend.network("unet"), {"middle": 0, "last": 0}

    def middle(*_: Any) -> None:
        seen["middle"] += 1
        now[0] += 1.0

    def last(*_: Any) -> None:
        seen["last"] += 1
        now[0] += 0.25

    unet.mid_block.resnets[0].register_forward_pre_hook(middle)
    unet.conv_out.register_forward_pre_hook(last)
    watch = Stopwatch(session)
    watch.start()

    def between(*_: Any) -> dict[str, Any]:
        now[0] += 100.0
        return {}

    draw(session, feature_interval=interval, callback_on_step_end=between)
    assert seen == {"middle": whole, "last": whole + shallow}
    assert watch.inside_s == pytest.approx(whole + 0.25 * (whole + shallow))
    assert watch.stages()["denoise"] == pytest.approx(400.0 + watch.inside_s)


def test_the_autoencoder_counts_although_it_is_not_called_itself(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock(monkeypatch)
    session = Session(tiny_bundle, engine="torch", progress=False)

    def pass_time(*_: Any) -> None:
        now[0] += 3.0

    session.torch_backend.network("vae").decoder.conv_in.register_forward_pre_hook(pass_time)
    watch = Stopwatch(session)
    draw(session)
    assert watch.inside_s == pytest.approx(3.0)


def test_a_failing_network_leaves_nothing_open(tiny_bundle: Path) -> None:
    session = Session(tiny_bundle, engine="torch", progress=False)
    watch = Stopwatch(session)
    unet = session.torch_backend.network("unet")
    handle = unet.conv_out.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        draw(session)
    handle.remove()
    assert watch._depth == 0
    watch.start()
    draw(session)
    assert watch.inside_s is not None
    assert 0.0 < watch.inside_s < sum(watch.stages().values())


def test_networks_that_are_loaded_anew_are_watched_and_freed(tiny_bundle: Path) -> None:
    session = Session(tiny_bundle, engine="torch", memory="low", progress=False)
    watch = Stopwatch(session)
    for _ in range(2):
        watch.start()
        draw(session)
        assert watch.inside_s is not None
        assert watch.inside_s > 0.0
    unet = weakref.ref(session.torch_backend.network("unet"))
    assert unet() is not None
    session.torch_backend._release("unet")
    gc.collect()
    assert unet() is None


def test_an_engines_runs_are_timed_and_it_stays_as_it_is() -> None:
    inner = SimpleNamespace(
        run=lambda value: value + 1, run_with_iobinding=lambda _: None, name="x"
    )
    calls: list[str] = []

    def inside(call: Any) -> Any:
        return lambda *given: (calls.append("in"), call(*given))[1]

    timed = _Timed(inner, inside)
    assert timed.run(1) == 2
    assert timed.run_with_iobinding(None) is None
    assert timed.name == "x"
    assert calls == ["in", "in"]
    assert inner.run(1) == 2
    assert len(calls) == 2


@pytest.mark.parametrize(("interval", "steps"), [(1, 3), (2, 0)])
def test_steps_are_told_only_where_they_are_alike(
    tiny_bundle: Path, interval: int, steps: int
) -> None:
    """The median of whole and shallow steps would be of neither."""
    options = {"num_inference_steps": 4, **({"feature_interval": 2} if interval == 2 else {})}
    settings = {"bundle": str(tiny_bundle), "engine": "torch", "options": options, "prompt": "a"}
    answer = Generate(settings).run()
    assert len(answer["samples"].get("guided step", ())) == steps
    assert len(answer["samples"]["picture of 4 steps"]) == 1
    assert 0.0 < answer["shares"]["host_share"] < 1.0


def test_one_guided_step_is_drawn_without_decoding(tiny_bundle: Path, tmp_path: Path) -> None:
    options = {"num_inference_steps": 2, "seed": 3}
    settings = {"bundle": str(tiny_bundle), "engine": "torch", "options": options, "prompt": "a"}
    picture = tmp_path / "a.npy"
    task = Generate({**settings, "guided_step": True, "picture": str(picture)})
    answer = task.run()
    assert list(answer["samples"]) == ["guided step"]
    assert len(answer["samples"]["guided step"]) == 1
    assert 0.0 < answer["shares"]["host_share"] < 1.0
    assert "vae" not in task.session.torch_backend._loaded
    (expected,) = task.session.generate("a", output_type="latent", **options)
    np.testing.assert_array_equal(np.load(picture), expected)
    assert list(tmp_path.iterdir()) == [picture]
