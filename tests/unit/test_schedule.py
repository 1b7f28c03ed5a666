"""The tables against diffusers' own schedulers, over random latents and a fixed random model."""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from hbsdk.errors import OptionError
from hbsdk.schedule import Schedule, alphas_cumprod, make_schedule, sampler_of, step

SD15 = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
    "skip_prk_steps": True,
    "trained_betas": None,
}
CLASSES = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
}
STEPS = (1, 5, 20, 50)
SPACINGS = ("leading", "linspace", "trailing")
TOLERANCE = 1e-5
SHAPE = (1, 4, 6, 5)

_numbers = np.random.default_rng(7)
_MIX = _numbers.standard_normal((4, 4)) / 2
NOISE = _numbers.standard_normal(SHAPE)


def model(sample, timestep):
    """A fixed, smooth, nonlinear stand-in for the UNet; of double precision like the oracle."""
    sample = np.asarray(sample, dtype=np.float64)
    mixed = np.einsum("ij,bjhw->bihw", _MIX, sample)
    return np.tanh(mixed) + 0.1 * np.cos(float(timestep) / 300) * sample


def run_diffusers(sampler, steps, config, told=None):
    """Final latents and the timesteps, by the scheduler's documented loop.

    `told` replaces the timesteps that the model hears of.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = CLASSES[sampler].from_config(config)
    scheduler.set_timesteps(steps)
    if sampler != "ddim":
        # Else rounded Karras timesteps that start with two equal ones make it skip the first.
        scheduler.set_begin_index(0)
    latents = torch.from_numpy(NOISE) * scheduler.init_noise_sigma
    for i, timestep in enumerate(scheduler.timesteps):
        fed = scheduler.scale_model_input(latents, timestep)
        output = torch.from_numpy(model(fed, timestep if told is None else told[i]))
        latents = scheduler.step(output, timestep, latents).prev_sample
    return latents.numpy(), scheduler.timesteps.numpy()


def run_table(schedule: Schedule):
    latents, x0 = NOISE * schedule.initial_noise_scale, None
    for i, timestep in enumerate(schedule.timesteps):
        latents, x0 = step(schedule, i, latents, model(latents, timestep), x0)
    return latents


def relative_error(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def disagreement(sampler, steps, config):
    schedule = make_schedule(config, sampler=sampler, num_inference_steps=steps)
    theirs, timesteps = run_diffusers(sampler, steps, config)
    np.testing.assert_allclose(schedule.timesteps, timesteps, rtol=0, atol=1e-2)
    return relative_error(run_table(schedule), theirs)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("sampler", CLASSES)
def test_equals_diffusers(sampler, steps, spacing, prediction_type):
    config = {**SD15, "timestep_spacing": spacing, "prediction_type": prediction_type}
    assert disagreement(sampler, steps, config) < TOLERANCE


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("sampler", ["euler", "dpm++2m"])
def test_equals_diffusers_with_karras_sigmas(sampler, steps, spacing, prediction_type):
    config = {**SD15, "timestep_spacing": spacing, "prediction_type": prediction_type}
    assert disagreement(sampler, steps, {**config, "use_karras_sigmas": True}) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"set_alpha_to_one": True},
        {"steps_offset": 0},
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False, "euler_at_final": True},
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"num_train_timesteps": 200, "beta_start": 0.004, "beta_end": 0.06},
        {"num_train_timesteps": 50, "trained_betas": list(np.geomspace(0.001, 0.3, 50))},
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
        {"timestep_spacing": None},
    ],
    ids=lambda changes: "+".join(changes),
)
@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("sampler", CLASSES)
def test_equals_diffusers_for_other_configs(sampler, steps, changes):
    config = {key: value for key, value in {**SD15, **changes}.items() if value is not None}
    assert disagreement(sampler, steps, config) < TOLERANCE


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])  # for Euler see below
def test_equals_diffusers_for_cosine_betas(sampler, prediction_type):
    config = {
        **SD15,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": prediction_type,
    }
    assert disagreement(sampler, 20, config) < TOLERANCE


@pytest.mark.parametrize("sampler", CLASSES)
def test_timesteps_equal_diffusers_for_every_number_of_steps(sampler):
    for spacing, steps in itertools.product(SPACINGS, [*range(1, 66), 100, 121, 250, 500]):
        config = {**SD15, "timestep_spacing": spacing}
        scheduler = CLASSES[sampler].from_config(config)
        scheduler.set_timesteps(steps)
        ours = make_schedule(config, sampler=sampler, num_inference_steps=steps).timesteps
        theirs = scheduler.timesteps.numpy()
        if len(theirs) == steps + 1:  # arange's rounding error: a step too many, to t = -1
            assert spacing == "trailing"
            assert theirs[-1] == -1
            theirs = theirs[:-1]
        np.testing.assert_array_equal(ours, theirs.astype(np.float32), f"{spacing} {steps}")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_euler_is_diffusers_euler_times_alpha_at_every_step(prediction_type):
    config = {**SD15, "prediction_type": prediction_type}
    schedule = make_schedule(config, sampler="euler", num_inference_steps=10)
    scheduler = EulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(10)
    theirs, ours = torch.from_numpy(NOISE) * scheduler.init_noise_sigma, NOISE
    ours = ours * schedule.initial_noise_scale
    for i, timestep in enumerate(scheduler.timesteps):
        fed = scheduler.scale_model_input(theirs, timestep)
        assert relative_error(ours, fed.numpy()) < TOLERANCE  # our sample is what the UNet is fed
        result = scheduler.step(torch.from_numpy(model(fed, timestep)), timestep, theirs)
        theirs = result.prev_sample
        ours, x0 = step(schedule, i, ours, model(ours, timestep))
        assert relative_error(x0, result.pred_original_sample.numpy()) < TOLERANCE


@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_karras_timesteps_are_cut_off_for_cosine_betas(steps):
    """diffusers cuts them off, and its rounding error makes the first 998.99999."""
    config = {
        **SD15,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "use_karras_sigmas": True,
    }
    schedule = make_schedule(config, sampler="dpm++2m", num_inference_steps=steps)
    theirs, timesteps = run_diffusers("dpm++2m", steps, config, told=schedule.timesteps)
    assert relative_error(run_table(schedule), theirs) < TOLERANCE
    np.testing.assert_array_equal(schedule.timesteps[1:], timesteps[1:])
    assert (schedule.timesteps[0], timesteps[0]) == (999, 998)


def test_euler_keeps_its_precision_where_diffusers_euler_loses_it():
    """With cosine betas its x / alpha starts at 20,000, in single precision; the oracle is its rule
    in double precision over its own noise levels."""
    config = {
        **SD15,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
    }
    scheduler = EulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(5)
    sigmas = scheduler.sigmas.double().numpy()
    theirs = NOISE * float(scheduler.init_noise_sigma)
    for timestep, here, there in zip(scheduler.timesteps, sigmas[:-1], sigmas[1:], strict=True):
        scale = np.sqrt(here**2 + 1)
        x0 = theirs / scale**2 - here / scale * model(theirs / scale, timestep)
        theirs = theirs + (there - here) / here * (theirs - x0)
    schedule = make_schedule(config, sampler="euler", num_inference_steps=5)
    assert relative_error(run_table(schedule), theirs) < TOLERANCE
    assert relative_error(run_diffusers("euler", 5, config)[0], theirs) > TOLERANCE


@pytest.mark.parametrize("column", ["p", "q", "a", "b", "c"])
@pytest.mark.parametrize("sampler", CLASSES)
def test_a_perturbed_coefficient_is_noticed(sampler, column):
    """Negative control: the tolerance tells a coefficient that is 0.1 % off."""
    config = {**SD15, "prediction_type": "v_prediction"}
    schedule = make_schedule(config, sampler=sampler, num_inference_steps=20)
    values = getattr(schedule, column).copy()
    if column == "c" and sampler != "dpm++2m":
        assert not values.any()
        return
    values[10] *= 1.001
    perturbed = dataclasses.replace(schedule, **{column: values})
    theirs, _ = run_diffusers(sampler, 20, config)
    assert relative_error(run_table(schedule), theirs) < TOLERANCE
    assert relative_error(run_table(perturbed), theirs) > TOLERANCE


@pytest.mark.parametrize("sampler", CLASSES)
@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {"timestep_spacing": "trailing"},
        {"beta_end": 0.0121},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_config_differs(sampler, changes):
    """Negative control: the comparison is not blind to what the config says."""
    config = {**SD15, "timestep_spacing": "leading"}
    schedule = make_schedule({**config, **changes}, sampler=sampler, num_inference_steps=20)
    theirs, _ = run_diffusers(sampler, 20, config)
    assert relative_error(run_table(schedule), theirs) > 100 * TOLERANCE


def test_samplers_differ_from_each_other():
    results = [
        run_table(make_schedule(SD15, sampler=sampler, num_inference_steps=10))
        for sampler in CLASSES
    ]
    for one, other in itertools.combinations(results, 2):
        assert relative_error(one, other) > 100 * TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_step_keeps_torch_tensors_and_their_type(dtype):
    schedule = make_schedule(SD15, sampler="dpm++2m", num_inference_steps=5)
    latents, x0 = torch.from_numpy(NOISE).to(dtype), None
    for i in range(5):
        latents, x0 = step(schedule, i, latents, latents * 0.5, x0)
        assert latents.dtype == x0.dtype == dtype


def test_step_leaves_its_inputs_alone_and_needs_the_last_x0():
    schedule = make_schedule(SD15, sampler="dpm++2m", num_inference_steps=5)
    sample, output = NOISE.copy(), NOISE.copy()
    step(schedule, 0, sample, output)
    np.testing.assert_array_equal(sample, NOISE)
    np.testing.assert_array_equal(output, NOISE)
    with pytest.raises(OptionError, match="previous_x0"):
        step(schedule, 1, sample, output)


def test_the_table_cannot_be_changed():
    schedule = make_schedule(SD15, sampler="euler", num_inference_steps=5)
    assert schedule.num_inference_steps == 5
    with pytest.raises(ValueError, match="read-only"):
        schedule.a[0] = 1


def test_a_perfect_model_gives_back_the_clean_latents():
    """Independent of diffusers: if the UNet always says the true noise, x0 comes out."""
    clean = np.random.default_rng(3).standard_normal(SHAPE)
    for sampler in CLASSES:
        schedule = make_schedule(
            {**SD15, "set_alpha_to_one": True}, sampler=sampler, num_inference_steps=12
        )
        alpha = 1 / schedule.p
        sigma = -schedule.q * alpha
        latents, x0 = alpha[0] * clean + sigma[0] * NOISE, None
        for i in range(12):
            noise = (latents - alpha[i] * clean) / sigma[i]
            latents, x0 = step(schedule, i, latents, noise, x0)
        np.testing.assert_allclose(latents, clean, atol=1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"num_train_timesteps": 4, "trained_betas": [0.1, 0.2, 0.3, 0.4]},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_alphas_cumprod_equals_diffusers(changes):
    config = {**SD15, **changes}
    ours = alphas_cumprod(config)
    theirs = DDPMScheduler.from_config(config).alphas_cumprod.double().numpy()
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert (np.diff(ours) < 0).all()
    assert (ours[-1] == 0) == bool(changes.get("rescale_betas_zero_snr"))


def test_sampler_of():
    for sampler, scheduler in CLASSES.items():
        assert sampler_of(dict(scheduler().config, _class_name=scheduler.__name__)) == sampler
    assert sampler_of({"_class_name": PNDMScheduler.__name__}) is None
    assert sampler_of({}) is None


def test_overrides_equal_the_config():
    named = make_schedule(
        SD15,
        sampler="euler",
        num_inference_steps=7,
        timestep_spacing="trailing",
        use_karras_sigmas=True,
    )
    config = {**SD15, "timestep_spacing": "trailing", "use_karras_sigmas": True}
    written = make_schedule(config, sampler="euler", num_inference_steps=7)
    np.testing.assert_array_equal(named.a, written.a)
    plain = make_schedule(SD15, sampler="euler", num_inference_steps=7)
    assert np.abs(named.a - plain.a).max() > 1e-3


def test_saved_diffusers_configs_are_accepted(tmp_path):
    for sampler, scheduler in CLASSES.items():
        saved = scheduler(**({"clip_sample": False} if sampler == "ddim" else {}))
        saved.save_pretrained(tmp_path / scheduler.__name__)
        config = scheduler.load_config(tmp_path / scheduler.__name__)
        make_schedule(config, sampler=sampler, num_inference_steps=4)


@pytest.mark.parametrize(
    ("sampler", "changes"),
    [
        ("ddim", {"clip_sample": True}),
        ("ddim", {"thresholding": True}),
        ("dpm++2m", {"thresholding": True}),
        ("dpm++2m", {"algorithm_type": "sde-dpmsolver++"}),
        ("dpm++2m", {"solver_order": 3}),
        ("dpm++2m", {"solver_type": "heun"}),
        ("dpm++2m", {"use_lu_lambdas": True}),
        ("dpm++2m", {"lambda_min_clipped": -5.1}),
        ("euler", {"use_beta_sigmas": True}),
        ("euler", {"use_exponential_sigmas": True}),
        ("euler", {"interpolation_type": "log_linear"}),
        ("euler", {"timestep_type": "continuous"}),
        ("euler", {"sigma_max": 20.0}),
        ("euler", {"beta_schedule": "sigmoid"}),
        ("euler", {"prediction_type": "flow_prediction"}),
        ("euler", {"timestep_spacing": "sideways"}),
        ("euler", {"timestep_spacing": ""}),
        ("euler", {"final_sigmas_type": "sigma_max"}),
        ("euler", {"num_train_timesteps": 0}),
        ("euler", {"num_train_timesteps": 10**12}),
        ("euler", {"num_train_timesteps": "1000"}),
        ("euler", {"num_train_timesteps": True}),
        ("euler", {"beta_start": -0.1}),
        ("euler", {"beta_end": math.nan}),
        ("euler", {"beta_end": 2}),
        ("euler", {"trained_betas": [0.1, 0.2]}),
        ("euler", {"trained_betas": "none"}),
        ("euler", {"trained_betas": [math.nan] * 1000}),
        ("euler", {"use_karras_sigmas": 1}),
        ("euler", {"steps_offset": 500, "timestep_spacing": "leading"}),
        ("euler", {"steps_offset": 10**400}),
        ("euler", {"beta_end": 10**400}),
        ("ddim", {"steps_offset": -3}),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ],
    ids=str,
)
def test_what_a_table_cannot_do_is_refused(sampler, changes):
    with pytest.raises(OptionError):
        make_schedule({**SD15, **changes}, sampler=sampler, num_inference_steps=10)


@pytest.mark.parametrize("steps", [0, -1, 1001, 10_000, 2.0, True, None, "20"])
@pytest.mark.parametrize("sampler", CLASSES)
def test_impossible_numbers_of_steps_are_refused(sampler, steps):
    with pytest.raises(OptionError, match="num_inference_steps"):
        make_schedule(SD15, sampler=sampler, num_inference_steps=steps)


def test_more_steps_than_noise_levels_are_refused():
    with pytest.raises(OptionError, match="noise levels differ"):
        make_schedule(SD15, sampler="dpm++2m", num_inference_steps=1000)


def test_unknown_samplers_and_karras_ddim_are_refused():
    with pytest.raises(OptionError, match=r"'ddim' or 'euler' or 'dpm\+\+2m'.*'lms'"):
        make_schedule(SD15, sampler="lms", num_inference_steps=10)
    with pytest.raises(OptionError, match="use_karras_sigmas"):
        make_schedule(SD15, sampler="ddim", num_inference_steps=10, use_karras_sigmas=True)
    make_schedule({**SD15, "use_karras_sigmas": True}, sampler="ddim", num_inference_steps=10)
