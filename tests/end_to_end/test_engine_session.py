"""Sessions on engines draw what sessions in PyTorch draw, and personalize alike."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hbsdk.errors import EngineError, OptionError
from hbsdk.options import PersonalizeOptions
from hbsdk.session import Session
from hbsdk.subject import Subject
from tests.tiny_bundle import WIDTH

QUICK = {"num_inference_steps": 4}
LIGHT = PersonalizeOptions(steps=1, timesteps_per_step=2, effective_step=1e-2)


@pytest.fixture(scope="module")
def torch_session(tiny_bundle: Path) -> Session:
    return Session(tiny_bundle, engine="torch", dtype="float32", progress=False)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def session(request, tiny_bundle: Path, tiny_engines: Path) -> Session:
    return Session(tiny_bundle, engine=request.param, engines=tiny_engines, progress=False)


def subject_of(seed: int, name: str) -> Subject:
    """Words large enough to show in what random networks draw."""
    words = np.random.default_rng(seed).normal(0.0, 0.5, (5, WIDTH)).astype(np.float32)
    return Subject(words=words, name=name)


FOX, OWL = subject_of(1, "fox"), subject_of(2, "owl")


def draw(session: Session, prompt="a photo of S*", subject=FOX, **settings) -> np.ndarray:
    return np.stack(
        session.generate(prompt, subject, **{**QUICK, "output_type": "latent", **settings})
    )


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference over the largest value."""
    assert one.shape == other.shape
    assert np.isfinite(one).all()
    return float(np.abs(one - other).max() / np.abs(other).max())


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(1.0 / max(np.square(one - other).mean(), 1e-12)))


@pytest.mark.parametrize(
    ("prompt", "subjects", "settings"),
    [
        ("a photo of S*", FOX, {}),
        ("a photo of a cat", None, {}),
        ("a photo of S*", FOX, {"num_images_per_prompt": 2}),
        ("a photo of S*", FOX, {"num_images_per_prompt": 3}),
        ("a photo of S*", FOX, {"guidance_scale": 1.0}),
        ("a photo of S*", FOX, {"guidance_scale": 1.0, "num_images_per_prompt": 3}),
        ("a photo of S*", FOX, {"guidance_scale": 12.5}),
        ("a photo of S*", FOX, {"negative_prompt": "a red hat"}),
        ("S* in the snow", FOX, {"negative_prompt": "S*"}),
        ("a <fox> and an <owl> at night", [FOX, OWL], {"num_images_per_prompt": 2}),
        ("S* and S*", FOX, {"height": 48}),
        ("a photo of S*", FOX, {"width": 40, "num_images_per_prompt": 2}),
        ("a photo of S*", FOX, {"height": 40, "width": 48, "guidance_scale": 1.0}),
        ("a photo of S*", FOX, {"sampler": "ddim"}),
        ("a photo of S*", FOX, {"sampler": "euler", "num_images_per_prompt": 2}),
        ("a photo of S*", FOX, {"sampler": "dpm++2m", "num_inference_steps": 20}),
        ("a photo of S*", FOX, {"sampler": "euler", "use_karras_sigmas": True}),
        ("a photo of S*", FOX, {"sampler": "ddim", "timestep_spacing": "trailing"}),
    ],
)
def test_the_same_latents_as_in_pytorch(session, torch_session, prompt, subjects, settings):
    drawn = draw(session, prompt, subjects, seed=3, **settings)
    assert drawn.dtype == np.float32
    assert apart(drawn, draw(torch_session, prompt, subjects, seed=3, **settings)) < 1e-4
    assert apart(drawn, draw(torch_session, prompt, subjects, seed=9, **settings)) > 0.1


def test_each_setting_shows(session):
    """What the comparison above would miss if both left a setting out."""
    plain = draw(session)
    for changed in (
        {"subject": Subject(words=OWL.words, name="fox")}, {"prompt": "S* at night"},
        {"guidance_scale": 1.0}, {"guidance_scale": 12.5}, {"negative_prompt": "a red hat"},
        {"sampler": "ddim"}, {"sampler": "euler"}, {"timestep_spacing": "trailing"},
        {"use_karras_sigmas": True}, {"num_inference_steps": 5},
    ):  # fmt: skip
        assert apart(draw(session, **changed), plain) > 1e-3, changed
    several = draw(session, num_images_per_prompt=3)
    assert apart(several[:1], plain) < 1e-5
    assert apart(several[1:2], plain) > 0.1


def test_the_same_pictures_as_in_pytorch(session, torch_session):
    settings = {**QUICK, "output_type": "np", "num_images_per_prompt": 2, "width": 40}
    drawn = session.generate("a photo of S*", FOX, **settings)
    expected = torch_session.generate("a photo of S*", FOX, **settings)
    assert [one.shape for one in drawn] == [(32, 40, 3)] * 2
    for one, other in zip(drawn, expected, strict=True):
        assert np.abs(one - other).max() < 1e-4
    assert psnr_db(drawn[0], expected[1]) < 30.0
    (picture,) = session.generate("a photo of S*", FOX, **QUICK)
    (other,) = torch_session.generate("a photo of S*", FOX, **QUICK)
    assert picture.size == (32, 32)
    assert np.abs(np.array(picture, int) - np.array(other, int)).max() <= 1


def test_more_unguided_pictures_than_the_vae_takes_at_once(session, torch_session):
    """Six rows may be six pictures without guidance; the decoder was built for three."""
    settings = {**QUICK, "output_type": "np", "guidance_scale": 1.0, "num_images_per_prompt": 5}
    drawn = session.generate("a photo of S*", FOX, **settings)
    expected = torch_session.generate("a photo of S*", FOX, **settings)
    assert np.abs(np.stack(drawn) - np.stack(expected)).max() < 1e-4
    assert len({one.tobytes() for one in drawn}) == 5


def test_the_probe_finds_the_same_words(session, torch_session, photo, mask):
    subject = session.personalize(photo, mask, steps=0, name="fox")
    expected = torch_session.personalize(photo, mask, steps=0, name="fox")
    assert subject.words.dtype == np.float32
    assert apart(subject.words, expected.words) < 1e-5
    assert subject.metadata == expected.metadata
    other = session.personalize(photo[::-1].copy(), mask[::-1].copy(), steps=0)
    assert apart(other.words, expected.words) > 1e-3
    assert session.personalize(photo, mask, steps=0).report is None


def test_refinement_is_pytorchs(session, torch_session, photo, mask):
    refined = session.personalize(photo, mask, options=LIGHT)
    expected = torch_session.personalize(photo, mask, options=LIGHT)
    assert np.array_equal(refined.words, expected.words)
    assert replace(refined.report, seconds=0.0) == replace(expected.report, seconds=0.0)
    probe = session.personalize(photo, mask, steps=0)
    assert apart(refined.words, probe.words) > 1e-4


def test_a_subject_refined_in_pytorch_draws_the_same_picture(session, torch_session, photo, mask):
    settings = {"output_type": "np", "guidance_scale": 5.0, "num_inference_steps": 20, "seed": 4}
    subject = torch_session.personalize(photo, mask, options=LIGHT, name="fox", steps=3)

    def picture(by: Session, one: Subject, **changes) -> np.ndarray:
        return by.generate("a <fox> in the snow", one, **{**settings, **changes})[0]

    expected = picture(torch_session, subject)
    assert psnr_db(picture(session, subject), expected) >= 30.0
    assert psnr_db(picture(session, FOX), expected) < 30.0
    assert psnr_db(picture(session, subject, seed=5), expected) < 30.0
    probe = torch_session.personalize(photo, mask, steps=0, name="fox")
    gap = psnr_db(picture(session, probe), expected)
    assert gap < psnr_db(picture(session, subject), expected) - 10.0


def test_callbacks_get_arrays_and_may_replace_the_latents(session, torch_session):
    own = session.backend.name
    told: dict[str, list] = {own: [], "torch": []}

    def callback(caller, step, timestep, values):
        latents = values["latents"]
        told[caller.backend.name].append((step, timestep, np.array(latents)))
        assert isinstance(latents, np.ndarray if caller is session else torch.Tensor)
        return {"latents": latents * 0.5 + 0.1} if step in (0, 2) else {}

    settings = {"num_images_per_prompt": 2, "callback_on_step_end": callback, "width": 40}
    drawn, expected = draw(session, **settings), draw(torch_session, **settings)
    assert apart(drawn, expected) < 1e-4
    assert apart(draw(session, num_images_per_prompt=2, width=40), expected) > 0.05
    assert [entry[:2] for entry in told[own]] == [e[:2] for e in told["torch"]]
    assert [step for step, *_ in told[own]] == [0, 1, 2, 3]
    for (*_, mine), (*_, theirs) in zip(told[own], told["torch"], strict=True):
        assert mine.shape == (2, 4, 8, 10)
        assert mine.dtype == np.float32
        assert apart(mine, theirs) < 1e-4


def test_a_callback_that_only_looks_changes_nothing(session):
    seen = []
    looked = draw(session, callback_on_step_end=lambda *given: seen.append(given[3]["latents"]))
    assert np.array_equal(looked, draw(session))
    assert np.array_equal(seen[-1], looked)
    returned = draw(session, callback_on_step_end=lambda _, __, ___, values: values)
    assert np.array_equal(returned, looked)


def test_a_callback_may_change_the_latents_in_place(session, torch_session):
    def halve(_, step, timestep, values):
        values["latents"] *= 0.5
        return values

    changed = draw(torch_session, callback_on_step_end=halve)
    assert apart(changed, draw(torch_session)) > 0.1
    assert apart(draw(session, callback_on_step_end=halve), changed) < 1e-4


def test_low_memory_draws_the_same_and_holds_no_engine_after(
    session, tiny_bundle, tiny_engines, photo, mask
):
    low = Session(
        tiny_bundle, engine=session.backend.name, engines=tiny_engines, memory="low",
        progress=False,
    )  # fmt: skip
    held, load = [], low.backend.load

    def watched(name):
        loaded = load(name)
        held.append(frozenset(low.backend._loaded))
        return loaded

    low.backend.load = watched
    subject = low.personalize(photo, mask, steps=0)
    assert low.backend._loaded == {}
    assert np.array_equal(subject.words, session.personalize(photo, mask, steps=0).words)
    assert not any({"regressor"} < names for names in held)
    held.clear()
    for output_type in ("latent", "np"):
        settings = {**QUICK, "output_type": output_type, "num_images_per_prompt": 2}
        drawn = low.generate("a photo of S*", FOX, **settings)
        assert low.backend._loaded == {}
        assert np.array_equal(drawn, session.generate("a photo of S*", FOX, **settings))
    assert set(held) == {
        frozenset({"token_embedding"}), frozenset({"token_embedding", "text_encoder_embeds"}),
        frozenset({"denoise_step"}), frozenset({"vae_decoder"}),
    }  # fmt: skip
    assert set(session.backend._loaded) >= {"denoise_step", "vae_decoder", "text_encoder_embeds"}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_prewarming_loads_what_is_run_and_no_more(tiny_bundle, tiny_engines, engine):
    fresh = Session(tiny_bundle, engine=engine, engines=tiny_engines, progress=False)
    assert fresh.backend._loaded == {}
    fresh.prewarm()
    assert set(fresh.backend._loaded) == {
        "image_features", "regressor", "vae_encoder", "token_embedding", "text_encoder_embeds",
        "denoise_step", "vae_decoder",
    }  # fmt: skip


def test_threads_that_share_a_session_draw_what_one_draws(session, photo, mask):
    def work(number: int) -> np.ndarray:
        if number % 4 == 3:
            return session.personalize(photo, mask, steps=0).words
        subject, text = (FOX, "a photo of S*") if number % 2 else (OWL, "the <owl> at night")
        return draw(session, text, subject, seed=number, num_images_per_prompt=1 + number % 3)

    alone = [work(number) for number in range(8)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(work, range(8)))
    assert all(np.array_equal(*pair) for pair in zip(together, alone, strict=True))
    assert len({one.tobytes() for one in alone}) == 7  # the words twice


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images_per_prompt": 4}, r"^rows of engine denoise_step: expected 1\.\.6, got 8"),
        (
            {"num_images_per_prompt": 7, "guidance_scale": 1.0},
            r"^rows of engine denoise_step: expected 1\.\.6, got 7",
        ),
        ({"height": 56}, r"^height of engine denoise_step: expected 8\.\.12.*got 14"),
        ({"width": 24}, r"^width of engine denoise_step: expected 8\.\.12.*got 6"),
        ({"height": 36}, r"^height of engine denoise_step: .*a multiple of 2, got 9"),
    ],
)
def test_what_the_recipe_does_not_allow_is_told(session, torch_session, settings, message):
    with pytest.raises(EngineError, match=message) as caught:
        draw(session, **settings)
    assert "engine='torch'" in str(caught.value)
    assert draw(torch_session, **settings, num_inference_steps=1).size
    assert apart(draw(session), draw(torch_session)) < 1e-4  # nothing is left behind


def test_bad_input_is_told_as_in_pytorch(session):
    with pytest.raises(OptionError, match="height: expected a multiple of 4"):
        draw(session, height=30)
    with pytest.raises(OptionError, match="latents: expected finite values of shape"):
        draw(session, latents=np.zeros((1, 4, 8, 9), np.float32))


def test_a_session_says_what_it_is(session):
    assert repr(session) == f"Session('tiny', {session.backend.name} on cpu)"
