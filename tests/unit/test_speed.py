"""Presets, and which step computes what; the end of guidance against diffusers' own guider."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from hbsdk.options import GenerateOptions, Speed
from hbsdk.speed import PRESETS, Pace, pace_of, plan_steps


def test_every_speed_has_a_preset_and_the_default_leaves_nothing_out():
    assert set(PRESETS) == set(get_args(Speed))
    assert GenerateOptions().speed == "exact"
    assert pace_of(GenerateOptions()) == Pace(20, 1.0, 1)
    assert pace_of(GenerateOptions(num_inference_steps=37)) == Pace(37, 1.0, 1)


def test_a_faster_preset_never_computes_more():
    costs = []
    for speed in ("exact", "balanced", "fast"):
        pace = pace_of(GenerateOptions(speed=speed))
        plan = plan_steps(pace.num_inference_steps, pace, guided=True)
        costs.append(sum((1 + one.guided) * (one.features != "reuse") for one in plan))
    assert costs[0] == 40
    assert costs[0] > costs[1] > costs[2]


@pytest.mark.parametrize("speed", ["balanced", "fast"])
def test_a_preset_takes_a_share_of_the_steps_and_leaves_what_is_given(speed):
    preset = PRESETS[speed]
    for steps in (1, 2, 20, 50):
        pace = pace_of(GenerateOptions(speed=speed, num_inference_steps=steps))
        assert pace.num_inference_steps == max(1, round(steps * preset.steps))
        assert pace.guidance_stop == preset.guidance_stop
        assert pace.feature_interval == preset.feature_interval
    given = GenerateOptions(speed=speed, guidance_stop=0.4, feature_interval=7)
    assert (pace_of(given).guidance_stop, pace_of(given).feature_interval) == (0.4, 7)
    assert pace_of(replace(given, speed="exact")) == Pace(20, 0.4, 7)


def guided_by_diffusers(count: int, stop: float) -> list[bool]:
    """Whether diffusers' guider asks for both predictions at each step."""
    guider = ClassifierFreeGuidance(guidance_scale=7.5, stop=stop)
    asked = []
    for step in range(count):
        guider.set_state(step=step, num_inference_steps=count, timestep=torch.tensor(0))
        asked.append(guider.num_conditions == 2)
    return asked


@pytest.mark.parametrize("count", [1, 7, 12, 20, 50])
@pytest.mark.parametrize("stop", [0.0, 0.05, 0.25, 0.3, 0.5, 0.6, 0.7, 0.99, 1.0])
def test_guidance_ends_where_diffusers_ends_it(count, stop):
    plan = plan_steps(count, Pace(guidance_stop=stop), guided=True)
    assert [one.guided for one in plan] == guided_by_diffusers(count, stop)
    assert {one.features for one in plan} == {"off"}


def test_the_comparison_with_diffusers_can_fail():
    plan = plan_steps(20, Pace(guidance_stop=0.5), guided=True)
    assert [one.guided for one in plan] != guided_by_diffusers(20, 0.55)


def letters(plan) -> str:
    """Each step's features: (k)eep, (r)euse or (-) off; upper case with guidance."""
    shown = {"keep": "k", "reuse": "r", "off": "-"}
    return "".join(
        shown[one.features].upper() if one.guided else shown[one.features] for one in plan
    )


@pytest.mark.parametrize(
    ("count", "stop", "interval", "expected"),
    [
        (6, 1.0, 1, "------"),
        (6, 1.0, 2, "KRKRKR"),
        (7, 1.0, 3, "KRRKRR-"),  # nobody reuses what the last step would keep
        (7, 0.5, 3, "KRRkrrk"[:6] + "-"),
        (8, 0.5, 3, "KRR-krr-"),  # guidance ends: its features are of other rows
        (8, 0.25, 1000, "KRkrrrrr"),
        (3, 0.0, 2, "kr-"),
        (1, 1.0, 5, "-"),
    ],
)
def test_whole_steps_keep_what_shallow_steps_reuse(count, stop, interval, expected):
    plan = plan_steps(count, Pace(guidance_stop=stop, feature_interval=interval), guided=True)
    assert letters(plan) == expected


def test_without_guidance_it_has_no_end():
    pace = Pace(guidance_stop=0.5, feature_interval=3)
    assert letters(plan_steps(7, pace, guided=False)) == "krrkrr-"
