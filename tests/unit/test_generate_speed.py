"""Pictures with less computed, in PyTorch, against diffusers' modules in a loop written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler

from hbsdk.errors import OptionError
from hbsdk.generate import Canvas, initial_noise
from hbsdk.options import GenerateOptions
from hbsdk.session import Session
from hbsdk.speed import PRESETS
from tests.plain_loop import PlainLoop

PROMPT, NEGATIVE = "a photo of a cat in the snow", "a red hat"
STEPS, SCALE = 8, 5.0
NOISE = initial_noise(0, 2, Canvas(channels=4, height=8, width=8))
EVERY = range(STEPS)


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Session:
    return Session(tiny_bundle, engine="torch", device="cpu", dtype="float32", progress=False)


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> PlainLoop:
    return PlainLoop(tiny_bundle)


def draw(session: Session, **settings) -> np.ndarray:
    given = {
        "num_inference_steps": STEPS, "guidance_scale": SCALE, "negative_prompt": NEGATIVE,
        "latents": NOISE, "num_images_per_prompt": 2, "output_type": "latent",
    }  # fmt: skip
    return np.stack(session.generate(PROMPT, **given | settings))


def expected(plain: PlainLoop, guided: int = STEPS, whole=EVERY, **changes) -> np.ndarray:
    given = {"steps": STEPS, "scale": SCALE, "negative": NEGATIVE}
    return plain.draw(PROMPT, NOISE, guided=guided, whole=whole, **given | changes)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    assert np.isfinite(one).all()
    return float(np.abs(one - other).max() / np.abs(other).max())


CASES = [
    ({}, STEPS, EVERY),
    ({"guidance_stop": 0.5}, 4, EVERY),
    ({"guidance_stop": 0.7}, 5, EVERY),
    ({"guidance_stop": 0.0}, 0, EVERY),
    ({"feature_interval": 2}, STEPS, (0, 2, 4, 6)),
    ({"feature_interval": 3}, STEPS, (0, 3, 6)),
    ({"guidance_stop": 0.5, "feature_interval": 3}, 4, (0, 3, 4, 7)),
]


@pytest.mark.parametrize(("settings", "guided", "whole"), CASES)
def test_it_is_the_plain_loop(session, plain, settings, guided, whole):
    drawn = draw(session, **settings)
    assert apart(drawn, expected(plain, guided, whole)) < 1e-4
    # Guidance one step longer or shorter, or another step whole, is another picture.
    assert apart(drawn, expected(plain, guided + (1 if guided < STEPS else -1), whole)) > 1e-3
    assert apart(drawn, expected(plain, guided, [*({*whole} ^ {5})])) > 1e-5
    if settings:
        assert apart(drawn, expected(plain)) > 1e-4


def test_tables_and_diffusers_schedulers_leave_out_the_same(session, tiny_bundle):
    settings = {"guidance_stop": 0.5, "feature_interval": 3}
    for sampler, kind in (
        ("ddim", DDIMScheduler), ("UniPCMultistepScheduler", UniPCMultistepScheduler)
    ):  # fmt: skip
        other = PlainLoop(tiny_bundle, kind)
        drawn = draw(session, sampler=sampler, **settings)
        assert apart(drawn, expected(other, 4, (0, 3, 4, 7))) < 1e-4
        assert apart(drawn, expected(other)) > 1e-4


def test_a_share_is_of_the_schedulers_own_steps(session):
    """Heun calls the UNet 2 S - 1 times: guidance of all but the last differs from all."""
    every = draw(session, sampler="HeunDiscreteScheduler")
    calls = 2 * STEPS - 1
    assert np.array_equal(every, draw(session, sampler="HeunDiscreteScheduler", guidance_stop=1.0))
    last = draw(session, sampler="HeunDiscreteScheduler", guidance_stop=(calls - 0.5) / calls)
    assert apart(last, every) > 0.0


def test_off_is_the_same_to_the_last_bit(session):
    drawn = draw(session)
    for same in (
        {"guidance_stop": 1.0}, {"feature_interval": 1}, {"speed": "exact"},
        {"speed": "fast", "num_inference_steps": round(STEPS / PRESETS["fast"].steps),
         "guidance_stop": 1.0, "feature_interval": 1},
    ):  # fmt: skip
        assert np.array_equal(draw(session, **same), drawn), same
    assert not np.array_equal(draw(session, feature_interval=2), drawn)


@pytest.mark.parametrize("speed", ["balanced", "fast"])
def test_a_speed_is_its_options(session, speed):
    preset = PRESETS[speed]
    drawn = draw(session, speed=speed, num_inference_steps=20)
    given = {
        "num_inference_steps": round(20 * preset.steps),
        "guidance_stop": preset.guidance_stop, "feature_interval": preset.feature_interval,
    }  # fmt: skip
    assert np.array_equal(drawn, draw(session, **given))
    as_options = session.generate(
        PROMPT, latents=NOISE,
        options=GenerateOptions(
            speed=speed, guidance_scale=SCALE, negative_prompt=NEGATIVE, num_images_per_prompt=2,
            output_type="latent",
        ),
    )  # fmt: skip
    assert np.array_equal(np.stack(as_options), drawn)
    assert not np.array_equal(drawn, draw(session, num_inference_steps=20))


def test_without_guidance_its_end_means_nothing(session):
    plain = draw(session, guidance_scale=1.0)
    assert np.array_equal(draw(session, guidance_scale=1.0, guidance_stop=0.3), plain)
    shallow = draw(session, guidance_scale=1.0, feature_interval=3)
    assert np.array_equal(
        draw(session, guidance_scale=1.0, feature_interval=3, guidance_stop=0.3), shallow
    )
    assert not np.array_equal(shallow, plain)


def test_after_its_end_the_batch_halves(session):
    seen = []
    unet = session.torch_backend.network("unet")
    handle = unet.conv_in.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    try:
        draw(session, guidance_stop=0.25)
    finally:
        handle.remove()
    assert seen == [4, 4, 2, 2, 2, 2, 2, 2]


def test_a_callback_may_replace_latents_on_the_way(session):
    given = torch.from_numpy(NOISE[::-1].copy())

    def callback(_session, step, _time, values):
        assert values["latents"].shape == given.shape
        return {"latents": given} if step == 6 else None

    settings = {"guidance_stop": 0.5, "feature_interval": 2}
    drawn = draw(session, callback_on_step_end=callback, **settings)
    assert not np.array_equal(drawn, draw(session, **settings))
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_stop": 1.5}, "guidance_stop: expected a number from 0 to 1, got 1.5"),
        ({"feature_interval": 0}, "feature_interval: expected a whole number from 1"),
        ({"speed": "faster"}, "speed: expected one of exact, balanced, fast, got 'faster'"),
    ],
)
def test_bad_values_are_told_before_the_work(session, settings, message, monkeypatch):
    monkeypatch.setattr(session.backend, "encode_prompts", None)
    with pytest.raises(OptionError, match=message):
        draw(session, **settings)
