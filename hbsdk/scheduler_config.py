"""A diffusers scheduler_config.json, checked: what of it shapes a sampler's table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt

from hbsdk.errors import OptionError

Sampler = Literal["ddim", "euler", "dpm++2m"]
TimestepSpacing = Literal["leading", "linspace", "trailing"]
Floats = npt.NDArray[np.float64]
_ValueT = TypeVar("_ValueT", bool, int, float, str)

_SAMPLERS: Mapping[object, Sampler] = {
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpm++2m",
}
_MOST_TRAIN_STEPS = 100_000
_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_FINAL_SIGMAS = ("zero", "sigma_min")
# What diffusers' scheduler can do and our table cannot, with the values that ask for nothing of
# the kind. As in diffusers, keys that only another scheduler knows are ignored.
# Deviation: a missing clip_sample counts as False. diffusers' DDIM would clip, which is for pixels.
_OTHER_SIGMAS: Mapping[str, tuple[object, ...]] = {
    "use_beta_sigmas": (False,),
    "use_exponential_sigmas": (False,),
}
_ACCEPTED: Mapping[Sampler, Mapping[str, tuple[object, ...]]] = {
    "ddim": {"clip_sample": (False,), "thresholding": (False,)},
    "euler": {
        "interpolation_type": ("linear",),
        "sigma_max": (),
        "sigma_min": (),
        "timestep_type": ("discrete",),
        **_OTHER_SIGMAS,
    },
    "dpm++2m": {
        # diffusers reads the settings of its DEIS and UniPC schedulers as the first of these.
        "algorithm_type": ("dpmsolver++", "deis"),
        "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
        "lambda_min_clipped": (-math.inf,),
        "solver_order": (2,),
        "thresholding": (False,),
        "use_flow_sigmas": (False,),
        "use_lu_lambdas": (False,),
        "variance_type": (),
        **_OTHER_SIGMAS,
    },
}


@dataclass(frozen=True, eq=False)
class SchedulerConfig:
    """The keys of a scheduler_config.json that shape a table, under diffusers' names.

    Attributes:
        alphas_cumprod: (T,) float64 falling within 1..0, the signal power that is left after each
            training step of noise; 0 in the end with zero terminal SNR.
        timestep_spacing: None where the config has none; diffusers' schedulers then differ.
        has_cosine_betas: whether the betas follow `squaredcos_cap_v2`.
        ends_without_noise: whether `final_sigmas_type` is "zero".
    """

    alphas_cumprod: Floats
    has_cosine_betas: bool
    prediction_type: str
    timestep_spacing: str | None
    steps_offset: int
    set_alpha_to_one: bool
    use_karras_sigmas: bool
    ends_without_noise: bool
    lower_order_final: bool
    euler_at_final: bool


def sampler_of(config: Mapping[str, object]) -> Sampler | None:
    """Returns the sampler that a diffusers scheduler config names, None for one hbsdk lacks."""
    return _SAMPLERS.get(config.get("_class_name"))


def read_scheduler_config(config: Mapping[str, object]) -> SchedulerConfig:
    """Checks a scheduler_config.json and fills in diffusers' defaults.

    Raises:
        OptionError: a value is of the wrong type, unknown, or makes no sense.
    """
    spacing = None
    if config.get("timestep_spacing") is not None:
        spacing = _choice(config, "timestep_spacing", get_args(TimestepSpacing), default="leading")
    return SchedulerConfig(
        alphas_cumprod=_alphas_cumprod(config),
        has_cosine_betas=config.get("beta_schedule") == "squaredcos_cap_v2",
        prediction_type=_choice(config, "prediction_type", _PREDICTION_TYPES, default="epsilon"),
        timestep_spacing=spacing,
        steps_offset=_steps_offset(config),
        set_alpha_to_one=_read(config, "set_alpha_to_one", True),
        use_karras_sigmas=_read(config, "use_karras_sigmas", False),
        ends_without_noise=(
            _choice(config, "final_sigmas_type", _FINAL_SIGMAS, default="zero") == "zero"
        ),
        lower_order_final=_read(config, "lower_order_final", True),
        euler_at_final=_read(config, "euler_at_final", False),
    )


def refuse_unsupported(config: Mapping[str, object], sampler: Sampler) -> None:
    """Refuses a config with which diffusers' scheduler would do more than a table can.

    Raises:
        OptionError: it asks for clipping, thresholding, another solver or other noise levels.
    """
    for key, accepted in _ACCEPTED[sampler].items():
        value = config.get(key)
        if value is not None and value not in accepted:
            raise OptionError(
                f"scheduler config: {key}",
                expected=f"{one_of((*accepted, None))} for {sampler}",
                got=repr(value),
                remedy="Use another sampler, or diffusers' own scheduler with engine='torch'",
            )


def one_of(values: tuple[object, ...]) -> str:
    """Returns a list of values as an error message names them."""
    return " or ".join(repr(value) for value in values)


def _alphas_cumprod(config: Mapping[str, object]) -> Floats:
    """The running product of 1 - beta, moved down to end at 0 if the config says so."""
    # Rounded where diffusers rounds: in 1 - product, near t = 0, that is 2e-5 of the value.
    kept = 1 - _betas(config).astype(np.float32)
    products: Floats = np.cumprod(kept, dtype=np.float64).astype(np.float32).astype(np.float64)
    if not _read(config, "rescale_betas_zero_snr", False):
        return products
    # Lin et al. 2023, Algorithm 1. A single training step would leave nothing to rescale.
    amplitudes: Floats = np.sqrt(products)
    first, last = amplitudes[0], amplitudes[-1]
    if first == last:
        raise OptionError("scheduler config: num_train_timesteps", expected="2 or more", got="1")
    rescaled: Floats = np.square((amplitudes - last) * (first / (first - last)))
    return rescaled


def _betas(config: Mapping[str, object]) -> Floats:
    """(T,) the noise power that each training step adds, as the config describes or lists it."""
    count = _train_steps(config)
    kind = _choice(config, "beta_schedule", _BETA_SCHEDULES, default="linear")
    start, end = _read(config, "beta_start", 0.0001), _read(config, "beta_end", 0.02)
    if not 0 < start <= end < 1:
        raise OptionError(
            "scheduler config: beta_start and beta_end",
            expected="0 < beta_start <= beta_end < 1",
            got=f"{start!r} and {end!r}",
        )
    if config.get("trained_betas") is not None:
        return _trained_betas(config["trained_betas"], count)
    if kind == "linear":
        return np.linspace(start, end, count, dtype=np.float64)
    if kind == "scaled_linear":
        roots: Floats = np.linspace(math.sqrt(start), math.sqrt(end), count, dtype=np.float64)
        return roots * roots
    # Nichol and Dhariwal 2021, Eq. 17, with their cap.
    signal: Floats = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
    capped: Floats = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    return capped


def _train_steps(config: Mapping[str, object]) -> int:
    """The number of training steps, small enough to be tabulated."""
    count = _read(config, "num_train_timesteps", 1000)
    if not 1 <= count <= _MOST_TRAIN_STEPS:
        raise OptionError(
            "scheduler config: num_train_timesteps",
            expected=f"1 to {_MOST_TRAIN_STEPS}",
            got=repr(count),
        )
    return count


def _steps_offset(config: Mapping[str, object]) -> int:
    """The shift of leading timesteps, within the training range."""
    offset, count = _read(config, "steps_offset", 0), _train_steps(config)
    if not 0 <= offset < count:
        raise OptionError(
            "scheduler config: steps_offset", expected=f"0 to {count - 1}", got=repr(offset)
        )
    return offset


def _trained_betas(values: object, count: int) -> Floats:
    """The config's own betas."""
    try:
        betas = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        betas = np.empty(0)
    if betas.shape != (count,) or not ((betas > 0) & (betas < 1)).all():
        raise OptionError(
            "scheduler config: trained_betas",
            expected=f"{count} numbers within 0..1, one a training step",
            got=f"{type(values).__name__} of {np.size(betas)} numbers",
        )
    return betas


def _choice(
    config: Mapping[str, object], key: str, choices: tuple[str, ...], *, default: str
) -> str:
    """The config's value of a key that has a fixed set of values."""
    value = _read(config, key, default)
    if value not in choices:
        raise OptionError(f"scheduler config: {key}", expected=one_of(choices), got=repr(value))
    return value


def _read(config: Mapping[str, object], key: str, default: _ValueT) -> _ValueT:
    """The config's value of a key, checked to be of the default's type; null counts as missing."""
    value = config.get(key)
    if value is None:
        return default
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    if type(value) not in kinds:  # not isinstance: True is an int, and 1 is no bool
        names = " or ".join(kind.__name__ for kind in kinds)
        raise OptionError(f"scheduler config: {key}", expected=names, got=repr(value))
    return cast(_ValueT, value)
