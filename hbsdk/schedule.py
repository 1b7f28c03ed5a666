"""The sampler as a table, so that every runtime runs one and the same linear rule.

Step i is `x0 = p x + q model(x, t)` and then `x' = a x + b x0 + c x0_before`. DDIM, Euler and
DPM-Solver++ differ only in the noise levels that they visit and in DPM-Solver++'s look back. All
are variance preserving here: `x = alpha x0 + sigma noise` with `alpha^2 + sigma^2 = 1` is just what
the UNet is fed. diffusers' Euler keeps `x / alpha` instead and multiplies by alpha at each call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt

from hbsdk.errors import OptionError
from hbsdk.scheduler_config import (
    Floats,
    Sampler,
    SchedulerConfig,
    TimestepSpacing,
    one_of,
    read_scheduler_config,
    refuse_unsupported,
    sampler_of,
)

__all__ = [
    "Sampler",
    "Schedule",
    "TimestepSpacing",
    "alphas_cumprod",
    "make_schedule",
    "sampler_of",
    "step",
]

_ArrayT = TypeVar("_ArrayT", bound=Any)

# diffusers' schedulers do not agree on the spacing when a config names none.
_DEFAULT_SPACING: Mapping[Sampler, TimestepSpacing] = {
    "ddim": "leading",
    "euler": "linspace",
    "dpm++2m": "linspace",
}
_KARRAS_RHO = 7.0  # Karras et al. 2022, Eq. 5
# diffusers' signal power at the end of a zero-SNR schedule, for solvers that need it above 0.
_LEAST_SIGNAL = 2.0**-24
_LOWER_ORDER_STEPS = 15  # below it lower_order_final ends DPM-Solver++ with a first-order step


@dataclass(frozen=True, eq=False)
class Schedule:
    """One sampler's steps as coefficients; S steps, the noisiest first.

    Attributes:
        sampler: the sampler that it tabulates.
        timesteps: (S,) float32, what the UNet is told; fractional only for Euler.
        p: (S,) float64, weight of the sample in x0.
        q: (S,) float64, weight of the UNet's output in x0.
        a: (S,) float64, weight of the sample in the next sample.
        b: (S,) float64, weight of x0 in the next sample.
        c: (S,) float64, weight of the step before's x0; all 0 but for DPM-Solver++, c[0] always.
        initial_noise_scale: what unit noise is multiplied by to make the first sample.
    """

    sampler: Sampler
    timesteps: npt.NDArray[np.float32]
    p: Floats
    q: Floats
    a: Floats
    b: Floats
    c: Floats
    initial_noise_scale: float

    @property
    def num_inference_steps(self) -> int:
        """The number of steps, S."""
        return len(self.timesteps)


@dataclass(frozen=True, eq=False)
class _Levels:
    """Where the S steps start and end: `x = alpha x0 + sigma noise` at each place."""

    timesteps: Floats
    alpha: Floats
    sigma: Floats
    next_alpha: Floats
    next_sigma: Floats


def alphas_cumprod(config: Mapping[str, object]) -> Floats:
    """Returns the share of signal power left after each training step of noise.

    Args:
        config: a diffusers scheduler_config.json.

    Returns:
        (T,) float64, falling within 1..0: `x_t = sqrt(value) x0 + sqrt(1 - value) noise`. The last
        value is 0 where the config has `rescale_betas_zero_snr`.

    Raises:
        OptionError: the config's noise schedule is unknown or makes no sense.

    Source: Ho et al. 2020 (DDPM); Lin et al. 2023, Algorithm 1, for zero terminal SNR.
    """
    return read_scheduler_config(config).alphas_cumprod


def make_schedule(
    config: Mapping[str, object],
    *,
    sampler: Sampler,
    num_inference_steps: int,
    timestep_spacing: TimestepSpacing | None = None,
    use_karras_sigmas: bool | None = None,
) -> Schedule:
    """Tabulates a sampler for one number of steps.

    Args:
        config: a diffusers scheduler_config.json, of whichever scheduler, as for diffusers'
            `from_config`.
        sampler: `"ddim"` (eta 0), `"euler"` or `"dpm++2m"` (second order, midpoint).
        num_inference_steps: S, 1 to the config's number of training steps.
        timestep_spacing: overrides the config's. With one step `"linspace"` makes DDIM and Euler
            start at the clean end, as in diffusers.
        use_karras_sigmas: overrides the config's. DDIM has none and ignores the config's.

    Returns:
        The table. Its last step gives diffusers' final latents.

    Raises:
        OptionError: there is no such sampler, the steps are out of range, or the config asks for
            what a table cannot do (thresholding, clipping, stochastic solvers and the like).

    Source: Song et al. 2021, Eq. 12 (DDIM); Karras et al. 2022, Algorithm 1 without its second
        order (Euler); Lu et al. 2022, Algorithm 2 (DPM-Solver++ 2M).
    """
    if sampler not in get_args(Sampler):
        raise OptionError("sampler", expected=one_of(get_args(Sampler)), got=repr(sampler))
    overrides = {"timestep_spacing": timestep_spacing, "use_karras_sigmas": use_karras_sigmas}
    config = {**config, **{key: value for key, value in overrides.items() if value is not None}}
    refuse_unsupported(config, sampler)
    settings = read_scheduler_config(config)
    settings = replace(
        settings, timestep_spacing=settings.timestep_spacing or _DEFAULT_SPACING[sampler]
    )
    _check_steps(num_inference_steps, len(settings.alphas_cumprod))
    if sampler == "ddim":
        if use_karras_sigmas:
            raise OptionError("use_karras_sigmas", expected="False for ddim", got="True")
        return _tabulate(settings, sampler, _ddim_levels(settings, num_inference_steps))
    return _tabulate(settings, sampler, _solver_levels(settings, sampler, num_inference_steps))


def step(
    schedule: Schedule,
    i: int,
    sample: _ArrayT,
    model_output: _ArrayT,
    previous_x0: _ArrayT | None = None,
) -> tuple[_ArrayT, _ArrayT]:
    """Takes one step of the table; it is plain arithmetic, for numpy and torch alike.

    Args:
        schedule: the table.
        i: the step, 0 to S - 1.
        sample: the latents that the UNet was fed, of any shape and float type.
        model_output: the UNet's output after guidance, of the sample's shape.
        previous_x0: what the step before returned as x0; None at the first step.

    Returns:
        The next sample, and this step's estimate of the clean latents, x0.

    Raises:
        OptionError: the step needs the one before's x0 and got none.
    """
    # Python floats: a numpy scalar would turn half precision into double.
    columns = (schedule.p, schedule.q, schedule.a, schedule.b, schedule.c)
    p, q, a, b, c = (float(column[i]) for column in columns)
    x0 = cast(_ArrayT, p * sample + q * model_output)
    following = cast(_ArrayT, a * sample + b * x0)
    if c == 0.0:
        return following, x0
    if previous_x0 is None:
        raise OptionError("previous_x0", expected=f"step {i - 1}'s x0 at step {i}", got="None")
    return cast(_ArrayT, following + c * previous_x0), x0


def _check_steps(num_inference_steps: int, train_steps: int) -> None:
    """Refuses a number of steps that the training range cannot hold."""
    if type(num_inference_steps) is not int or not 1 <= num_inference_steps <= train_steps:
        raise OptionError(
            "num_inference_steps",
            expected=f"a whole number from 1 to {train_steps}",
            got=repr(num_inference_steps),
            remedy="20 to 50 steps are usual",
        )


def _tabulate(settings: SchedulerConfig, sampler: Sampler, levels: _Levels) -> Schedule:
    """The table over given noise levels."""
    p, q = _x0_weights(settings.prediction_type, levels)
    # A step keeps x0 and the noise: x' = alpha' x0 + sigma' (x - alpha x0) / sigma.
    a = levels.next_sigma / levels.sigma
    b = levels.next_alpha - levels.alpha * a
    c = np.zeros_like(a)
    noise_scale = 1.0
    if sampler == "dpm++2m":
        c = _look_back_weights(b, levels, _ends_first_order(settings, len(a)))
        b = b - c
    elif sampler == "euler":
        # diffusers' Euler leaves x / alpha, which shows only where some noise stays in the end.
        a[-1], b[-1] = a[-1] / levels.next_alpha[-1], b[-1] / levels.next_alpha[-1]
        if settings.timestep_spacing != "leading":
            noise_scale = float(levels.sigma[0])
    timesteps = levels.timesteps.astype(np.float32)
    for column in (timesteps, p, q, a, b, c):
        column.setflags(write=False)
    return Schedule(sampler, timesteps, p, q, a, b, c, noise_scale)


def _x0_weights(prediction_type: str, levels: _Levels) -> tuple[Floats, Floats]:
    """The weights p and q, by what the UNet was trained to say."""
    if prediction_type == "sample":
        return np.zeros_like(levels.alpha), np.ones_like(levels.alpha)
    if prediction_type == "v_prediction":
        return levels.alpha.copy(), -levels.sigma
    if not levels.alpha.all():
        raise OptionError(
            "scheduler config: prediction_type",
            expected="'v_prediction' or 'sample', as the first step starts at zero SNR",
            got="'epsilon'",
            remedy="Use timestep_spacing='leading', or a UNet trained for v-prediction",
        )
    return 1 / levels.alpha, -levels.sigma / levels.alpha


def _look_back_weights(b: Floats, levels: _Levels, ends_first_order: bool) -> Floats:
    """The weights c: x0 is extrapolated in half the log SNR. Source: DPM-Solver++, Algorithm 2."""
    with np.errstate(divide="ignore"):  # it is infinite where the noise ends
        end = np.log(levels.next_alpha) - np.log(levels.next_sigma)
    advance = end - (np.log(levels.alpha) - np.log(levels.sigma))
    c = np.zeros_like(b)
    second = slice(1, len(b) - 1 if ends_first_order else len(b))
    c[second] = -0.5 * b[second] * advance[second] / np.roll(advance, 1)[second]
    return c


def _ends_first_order(settings: SchedulerConfig, steps: int) -> bool:
    """Whether DPM-Solver++ takes its last step without looking back."""
    is_short = settings.lower_order_final and steps < _LOWER_ORDER_STEPS
    return settings.ends_without_noise or settings.euler_at_final or is_short


def _ddim_levels(settings: SchedulerConfig, steps: int) -> _Levels:
    """DDIM's levels: each step goes T // S training steps down, wherever the next one starts."""
    powers = settings.alphas_cumprod
    timesteps = _spaced_timesteps(settings, "ddim", steps)
    starts = timesteps.astype(np.int64)
    ends = starts - len(powers) // steps
    final = 1.0 if settings.set_alpha_to_one else powers[0]
    now, then = powers[starts], np.where(ends >= 0, powers[np.maximum(ends, 0)], final)
    return _Levels(timesteps, np.sqrt(now), np.sqrt(1 - now), np.sqrt(then), np.sqrt(1 - then))


def _solver_levels(settings: SchedulerConfig, sampler: Sampler, steps: int) -> _Levels:
    """The levels of Euler and DPM-Solver++, which walk a list of noise-to-signal ratios."""
    powers = settings.alphas_cumprod
    powers = np.where(powers == 0, _LEAST_SIGNAL, powers)
    ratios = np.sqrt((1 - powers) / powers)
    timesteps = _spaced_timesteps(settings, sampler, steps)
    walked = np.interp(timesteps, np.arange(len(ratios)), ratios)
    if settings.use_karras_sigmas:
        # diffusers' Euler stays within the spaced timesteps' range, its DPM++ takes all of it.
        largest, smallest = walked[[0, -1]] if sampler == "euler" else ratios[[-1, 0]]
        walked = _karras_ratios(largest, smallest, steps)
        timesteps = np.interp(np.log(walked), np.log(ratios), np.arange(len(ratios)))
        if sampler == "dpm++2m":
            timesteps = np.floor(timesteps) if settings.has_cosine_betas else timesteps.round()
    if (np.diff(walked) >= 0).any():
        raise OptionError(
            "num_inference_steps",
            expected=f"few enough that {sampler}'s noise levels differ",
            got=str(steps),
            remedy="Take fewer steps or another timestep_spacing",
        )
    walked = np.append(walked, 0.0 if settings.ends_without_noise else ratios[0])
    alpha = 1 / np.sqrt(1 + walked**2)
    sigma = walked * alpha
    return _Levels(timesteps, alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])


def _karras_ratios(largest: float, smallest: float, steps: int) -> Floats:
    """(S,) ratios evenly spread in their seventh root. Source: Karras et al. 2022, Eq. 5."""
    ends = largest ** (1 / _KARRAS_RHO), smallest ** (1 / _KARRAS_RHO)
    ratios: Floats = np.linspace(*ends, steps) ** _KARRAS_RHO
    return ratios


def _spaced_timesteps(settings: SchedulerConfig, sampler: Sampler, steps: int) -> Floats:
    """(S,) falling timesteps. Source: Lin et al. 2023, Table 2, with diffusers' rounding."""
    train_steps = len(settings.alphas_cumprod)
    places = steps + 1 if sampler == "dpm++2m" else steps  # DPM++ leaves out the cleanest
    timesteps: npt.NDArray[np.floating[Any]]
    if settings.timestep_spacing == "trailing":
        # arange may end with a place too many, made by rounding.
        timesteps = np.arange(train_steps, 0, -train_steps / steps)[:steps].round() - 1
    elif settings.timestep_spacing == "linspace":
        timesteps = np.linspace(0, train_steps - 1, places)[::-1][:steps]
        timesteps = timesteps.astype(np.float32) if sampler == "euler" else timesteps.round()
    else:
        timesteps = np.arange(places)[::-1][:steps] * float(train_steps // places)
        timesteps = timesteps + settings.steps_offset
    if timesteps.min() < 0 or timesteps.max() >= train_steps:
        raise OptionError(
            "scheduler config: steps_offset",
            expected=f"timesteps within 0..{train_steps - 1}",
            got=f"{timesteps.min():g}..{timesteps.max():g} for {steps} steps",
            remedy="Take fewer steps or another timestep_spacing",
        )
    return timesteps.astype(np.float64)
