"""Every sampler that is no table: diffusers' own scheduler around the UNet in PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor

from hbsdk.backends.base import Floats
from hbsdk.backends.torch import TorchBackend
from hbsdk.errors import OptionError
from hbsdk.speed import Pace, plan_steps


def make_scheduler(
    name: str, config: Mapping[str, object], num_inference_steps: int, **overrides: Any
) -> Any:
    """Return a diffusers scheduler, set to a number of steps.

    Args:
        name: of its class, such as "UniPCMultistepScheduler".
        config: of the bundle's scheduler.
        num_inference_steps: S; some schedulers call the UNet more often.
        **overrides: of the config; those that are None, or unknown to the class, are left out.

    Raises:
        OptionError: diffusers has no such scheduler, it refuses the settings, or it is none for a
            UNet that was trained on a noise schedule, such as those of flow matching.
    """
    kind: Any = getattr(diffusers, name, None)
    is_scheduler = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not is_scheduler:
        raise OptionError(
            "sampler", expected="ddim, euler, dpm++2m, or a scheduler class of diffusers",
            got=repr(name), remedy="See diffusers' documentation of schedulers",
        )  # fmt: skip
    known = inspect.signature(kind.__init__).parameters
    chosen = {k: v for k, v in overrides.items() if v is not None and k in known}
    try:
        scheduler = kind.from_config(dict(config), **chosen)
        scheduler.set_timesteps(num_inference_steps)
    except Exception as error:  # schedulers check little: what fails in them has many types
        raise _unfit(name, f"{type(error).__name__}: {error}"[:300]) from error
    _check_fits_loop(name, scheduler)
    return scheduler


def _check_fits_loop(name: str, scheduler: Any) -> None:
    """Refuse one that is for other noise, or whose step takes more than the loop can give."""
    parts = ("alphas_cumprod", "init_noise_sigma", "scale_model_input", "step")
    lacking = [part for part in parts if not hasattr(scheduler, part)]
    if lacking:
        raise _unfit(name, f"one without {', '.join(lacking)}")
    needed = [
        parameter.name
        for parameter in inspect.signature(scheduler.step).parameters.values()
        if parameter.default is parameter.empty and parameter.kind != parameter.VAR_KEYWORD
    ]
    extra = [one for one in needed if one not in ("model_output", "timestep", "sample")]
    if extra:
        raise _unfit(name, f"one whose step needs {', '.join(extra)}")


def _unfit(name: str, got: str) -> OptionError:
    return OptionError(
        f"sampler {name}", expected="a scheduler for this bundle's noise and these settings",
        got=got, remedy="Use another sampler",
    )  # fmt: skip


@torch.no_grad()
def denoise_with_scheduler(
    backend: TorchBackend,
    noise: Floats,
    states: Tensor,
    scheduler: Any,
    guidance_scale: float,
    own_noise: Any,
    on_step: Callable[[int, Any], Any] = lambda _, latents: latents,
    pace: Pace = Pace(),  # noqa: B008 - frozen
) -> Tensor:
    """Run diffusers' loop: from unit noise to clean latents.

    Args:
        backend: PyTorch.
        noise: (N, C, h, w) float32, of unit variance.
        states: as of `Backend.denoise_step`.
        scheduler: as of `make_scheduler`.
        guidance_scale: the weight of the prompt.
        own_noise: of stochastic samplers: a torch generator, one a picture, or a seed, where
            picture i's noise is from seed + i.
        on_step: as of `generate.denoise`.
        pace: as of `generate.denoise`.
    """
    latents = backend.to_device(noise) * float(scheduler.init_noise_sigma)
    extra: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        extra["generator"] = (
            [torch.Generator().manual_seed((own_noise + i) % 2**64) for i in range(len(noise))]
            if isinstance(own_noise, int)
            else own_noise
        )
    guided, deep = guidance_scale > 1.0, None
    plan = plan_steps(len(scheduler.timesteps), pace, guided=guided)
    for step, (time, planned) in enumerate(zip(scheduler.timesteps, plan, strict=True)):
        if guided and not planned.guided:
            states, guided = backend.prompts_only(states), False
        sample = scheduler.scale_model_input(latents, time)
        predicted, deep = backend.predict(
            sample, states, guidance_scale, float(time), planned.features, deep
        )
        latents = scheduler.step(predicted, time, latents, **extra, return_dict=False)[0]
        latents = on_step(step, latents)
    return latents
