"""Samplers that are no table are diffusers' own schedulers: StableDiffusionPipeline agrees."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from hbsdk.errors import OptionError
from hbsdk.generate import Canvas, initial_noise
from hbsdk.session import Session
from tests.tiny_bundle import LATENT_SIZE

PROMPT, NEGATIVE, SEED, STEPS = "a photo of a cat in the snow", "a red hat", 7, 6
CANVAS = Canvas(4, LATENT_SIZE, LATENT_SIZE)
SAMPLERS = (
    "UniPCMultistepScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
    "PNDMScheduler", "LCMScheduler",
)  # fmt: skip
TABLES = {
    "ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
}  # fmt: skip


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Session:
    return Session(tiny_bundle, engine="torch", dtype="float32", progress=False)


@pytest.fixture(scope="module")
def engine_session(tiny_bundle: Path, tiny_engines: Path) -> Session:
    return Session(tiny_bundle, engine="onnxruntime", engines=tiny_engines, progress=False)


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_bundle, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.own_config = dict(pipe.scheduler.config)
    return pipe


def by_diffusers(
    pipe, name: str, *, seed: int = SEED, count: int = 2, scale=5.0, generator=None, **overrides
):
    """Latents of diffusers' pipeline: picture i's noise, of start and steps, is of seed + i.

    A generator draws it all instead.
    """
    start = None if generator else torch.from_numpy(initial_noise(SEED, count, CANVAS))
    each = [torch.Generator().manual_seed(seed + picture) for picture in range(count)]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.own_config, **overrides)
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    return pipe(
        prompt_embeds=embeds,
        negative_prompt_embeds=negative,
        latents=start,
        num_images_per_prompt=count,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        generator=generator or each,
        output_type="latent",
    ).images.numpy()


def by_hbsdk(session: Session, sampler: str, *, count: int = 2, scale=5.0, **settings):
    drawn = session.generate(
        PROMPT, negative_prompt=NEGATIVE, sampler=sampler, seed=SEED, num_inference_steps=STEPS,
        guidance_scale=scale, num_images_per_prompt=count, output_type="latent", **settings,
    )  # fmt: skip
    return np.stack(drawn)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    assert np.isfinite(one).all()
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_latents_of_diffusers_pipeline(sampler, session, engine_session, pipe):
    expected = by_diffusers(pipe, sampler)
    drawn = by_hbsdk(session, sampler)
    assert apart(drawn, expected) < 1e-4
    assert np.array_equal(by_hbsdk(engine_session, sampler), drawn)  # in torch as well
    other = "DDIMScheduler" if sampler != "PNDMScheduler" else "DDPMScheduler"
    assert apart(by_diffusers(pipe, other), expected) > 1e-3


@pytest.mark.parametrize("sampler", ["UniPCMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_unguided_and_one_picture_of_several(sampler, session, pipe):
    assert (
        apart(by_hbsdk(session, sampler, scale=1.0), by_diffusers(pipe, sampler, scale=1.0)) < 1e-4
    )
    first = by_hbsdk(session, sampler, count=1)
    assert apart(by_hbsdk(session, sampler, count=3)[:1], first) < 1e-5
    assert apart(by_hbsdk(session, sampler, count=3)[1:2], first) > 0.1


def test_the_noise_of_the_steps_is_of_the_seed(session, pipe):
    """The same noise to start with, another one in the steps."""
    name = "EulerAncestralDiscreteScheduler"
    assert apart(by_diffusers(pipe, name, seed=SEED + 1), by_hbsdk(session, name)) > 0.1
    assert np.array_equal(by_hbsdk(session, name), by_hbsdk(session, name))
    assert np.array_equal(by_diffusers(pipe, "HeunDiscreteScheduler", seed=SEED + 1),
                          by_diffusers(pipe, "HeunDiscreteScheduler"))  # fmt: skip


@pytest.mark.parametrize("sampler", ["EulerAncestralDiscreteScheduler", "DDPMScheduler"])
def test_a_generator_draws_all_noise_as_in_diffusers(sampler, session, pipe):
    expected = by_diffusers(pipe, sampler, generator=torch.Generator().manual_seed(3))
    drawn = by_hbsdk(session, sampler, generator=torch.Generator().manual_seed(3))
    assert apart(drawn, expected) < 1e-4
    assert apart(by_hbsdk(session, sampler), expected) > 0.1


def test_the_largest_seed_is_one_too(session):
    largest = {"seed": 2**64 - 1, "num_inference_steps": 2, "output_type": "latent"}
    first, second = session.generate(
        "a cat", sampler="EulerAncestralDiscreteScheduler", num_images_per_prompt=2, **largest
    )
    assert np.isfinite([first, second]).all()
    (after,) = session.generate(
        "a cat", sampler="EulerAncestralDiscreteScheduler", **{**largest, "seed": 0}
    )
    assert apart(second, after) < 1e-5


@pytest.mark.parametrize("sampler", [*TABLES, "UniPCMultistepScheduler"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "linspace"},
        {"use_karras_sigmas": True},
        {"timestep_spacing": "trailing", "use_karras_sigmas": True},
    ],
)
def test_spacings_and_karras_sigmas_are_diffusers(sampler, overrides, session, pipe):
    if sampler == "ddim" and "use_karras_sigmas" in overrides:
        with pytest.raises(OptionError, match="use_karras_sigmas: expected False for ddim"):
            by_hbsdk(session, sampler, **overrides)
        return
    name = TABLES.get(sampler, sampler)
    expected = by_diffusers(pipe, name, **overrides)
    assert apart(by_hbsdk(session, sampler, **overrides), expected) < 1e-4
    assert apart(by_hbsdk(session, sampler), expected) > 1e-3


def test_callbacks_of_schedulers_get_tensors_and_every_call_of_the_unet(session, engine_session):
    for one in (session, engine_session):
        told = []

        def callback(_, step, timestep, values, told=told):
            told.append((step, timestep))
            assert isinstance(values["latents"], torch.Tensor)
            return {"latents": values["latents"] * 0.0}

        zero = by_hbsdk(one, "HeunDiscreteScheduler", callback_on_step_end=callback)
        assert [step for step, _ in told] == list(range(2 * STEPS - 1))
        assert np.abs(zero).max() == 0.0
    assert np.abs(by_hbsdk(session, "HeunDiscreteScheduler")).max() > 0.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoSuchScheduler", "sampler: expected ddim, euler, dpm.*got 'NoSuchScheduler'"),
        ("StableDiffusionPipelineScheduler", "sampler: expected ddim"),
        ("FlowMatchEulerDiscreteScheduler", "got one without alphas_cumprod"),
        ("KarrasVeScheduler", "got one without alphas_cumprod"),
        ("RePaintScheduler", "got one whose step needs original_image, mask"),
        ("CogVideoXDPMScheduler", "got one whose step needs .*timestep_back"),
        ("UnCLIPScheduler", "got ValueError: UnCLIPScheduler only supports"),
        ("VQDiffusionScheduler", "got TypeError: .*num_vec_classes"),
    ],
)
def test_schedulers_that_cannot_draw_are_told_before_the_work(name, message, session, monkeypatch):
    monkeypatch.setattr(session.backend, "encode_prompts", None)
    with pytest.raises(OptionError, match=message):
        session.generate("a cat", sampler=name)
