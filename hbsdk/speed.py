"""What generation leaves out to be faster: the presets, and which step computes what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hbsdk.backends.base import Features
from hbsdk.options import GenerateOptions, Speed


@dataclass(frozen=True)
class Preset:
    """What a speed means.

    Attributes:
        steps: the share of `num_inference_steps` that is taken.
        guidance_stop: where the options leave it open.
        feature_interval: where the options leave it open.
    """

    steps: float
    guidance_stop: float
    feature_interval: int


# Both within 1 % of exact in DINO-I, attributes read right and CLIP-T on 64 characters of the mini
# world; ending guidance early was not (benchmarks/results/speed_presets.json), so none does.
PRESETS: Mapping[Speed, Preset] = MappingProxyType(
    {
        "exact": Preset(steps=1.0, guidance_stop=1.0, feature_interval=1),
        "balanced": Preset(steps=0.7, guidance_stop=1.0, feature_interval=1),
        "fast": Preset(steps=0.45, guidance_stop=1.0, feature_interval=1),
    }
)


@dataclass(frozen=True)
class Pace:
    """How a picture's steps are computed: `GenerateOptions` of these names, none left open."""

    num_inference_steps: int = 20
    guidance_stop: float = 1.0
    feature_interval: int = 1


@dataclass(frozen=True)
class PlannedStep:
    """What one step computes.

    Attributes:
        guided: both halves of classifier-free guidance, or the prompt's alone.
        features: as of `Backend.denoise_step`.
    """

    guided: bool
    features: Features


def pace_of(options: GenerateOptions) -> Pace:
    """Return what the options and the preset that they name come to."""
    preset = PRESETS[options.speed]
    stop, interval = options.guidance_stop, options.feature_interval
    return Pace(
        num_inference_steps=max(1, round(preset.steps * options.num_inference_steps)),
        guidance_stop=preset.guidance_stop if stop is None else stop,
        feature_interval=preset.feature_interval if interval is None else interval,
    )


def plan_steps(count: int, pace: Pace, *, guided: bool) -> list[PlannedStep]:
    """Return what each step computes.

    Where guidance ends a whole step follows: deep features are of as many rows as their step had.

    Args:
        count: of the loop's steps; a diffusers scheduler may take more than `num_inference_steps`.
        pace: of the picture.
        guided: whether guidance is on at all.
    """
    stop = int(pace.guidance_stop * count) if guided else 0  # rounded as diffusers rounds it
    since = [step - stop if step >= stop else step for step in range(count)]
    is_whole = [one % pace.feature_interval == 0 for one in since]
    plan = []
    for step in range(count):
        is_kept = step + 1 < count and not is_whole[step + 1]
        features: Features = "keep" if is_kept else "off"
        plan.append(PlannedStep(step < stop, features if is_whole[step] else "reuse"))
    return plan
