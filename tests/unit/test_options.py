"""Options: their ranges, and messages that say what to do."""

from __future__ import annotations

import dataclasses

import pytest

from hbsdk.errors import HbsdkError, OptionError
from hbsdk.options import GenerateOptions, PersonalizeOptions

NAN, INFINITE = float("nan"), float("inf")


def test_the_defaults_are_allowed_and_the_papers_where_it_has_any():
    options = PersonalizeOptions()
    assert (options.steps, options.mask_loss_weight, options.residual_scale) == (5, 1e-3, 1e-2)
    assert GenerateOptions().size_px(512, 8) == (512, 512)


@pytest.mark.parametrize("options", [PersonalizeOptions(), GenerateOptions()])
def test_options_are_frozen(options):
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 1


PERSONALIZE = [
    ("steps", [0, 1, 1000], [-1, 1001, 10_000, 2.5, 5.0, True, "5", None, NAN]),
    ("timesteps_per_step", [1, 256], [0, 257, 1.5, False]),
    ("micro_batch_size", [1, 256], [0, 257, 1.5, True]),
    ("residual_scale", [1e-8, 1, 1.0], [0.0, -1.0, 1.1, NAN, INFINITE, True, "1"]),
    ("effective_step", [0.0, 1e-3, 1.0], [-1e-3, 1.1, NAN, True]),
    ("weight_decay", [0.0, 0.5], [-0.1, NAN, INFINITE]),
    ("mask_loss_weight", [0.0, 1.0], [-0.1, NAN, INFINITE, None]),
    ("background_weight", [0.0, 1.0], [-0.1, 1.1, NAN]),
    ("prompt", ["a photo of S*", ""], [None, 5, ["S*"]]),
    ("mode", ["default", "paper"], ["Paper", "", None]),
    ("mask_loss", ["area", "paper"], ["mean"]),
    ("seed", [0, 2**64 - 1], [-1, 2**64, 1.0, True, "0", None]),
]
GENERATE = [
    ("negative_prompt", [None, "", "snow"], [5, ["snow"]]),
    ("num_inference_steps", [1, 1000], [0, -1, 1001, 10_000, 20.0, True, "20"]),
    ("num_images_per_prompt", [1, 64], [0, 65, 1.0, True]),
    ("guidance_scale", [None, 0, 0.0, 1, 7.5, 100.0], [-0.1, 100.1, NAN, INFINITE, True, "7"]),
    (
        "sampler",
        ["ddim", "euler", "dpm++2m", "UniPCMultistepScheduler", "HeunDiscreteScheduler"],
        ["DDIM", "lms", "", "unipcmultistepscheduler", "os.system Scheduler", "x.Scheduler", None],
    ),
    ("timestep_spacing", [None, "leading", "linspace", "trailing"], ["karras", "Trailing", "", 1]),
    ("use_karras_sigmas", [None, True, False], ["yes", "", 2, 0.5]),
    ("output_type", ["pil", "np", "latent"], ["pt", "PIL", None]),
    ("speed", ["exact", "balanced", "fast"], ["slow", "Fast", "", None, 2]),
    ("guidance_stop", [None, 0, 0.0, 0.5, 1, 1.0], [-0.1, 1.1, NAN, INFINITE, True, "0.5"]),
    ("feature_interval", [None, 1, 2, 1000], [0, -1, 1001, 2.0, True, "2"]),
    ("seed", [0, 2**64 - 1], [-1, 2**64, 0.5, False]),
]
GOOD = [
    (kind, name, value)
    for kind, table in ((PersonalizeOptions, PERSONALIZE), (GenerateOptions, GENERATE))
    for name, values, _ in table
    for value in values
]
BAD = [
    (kind, name, value)
    for kind, table in ((PersonalizeOptions, PERSONALIZE), (GenerateOptions, GENERATE))
    for name, _, values in table
    for value in values
]


@pytest.mark.parametrize(("kind", "name", "value"), GOOD)
def test_values_in_range_are_taken(kind, name, value):
    assert getattr(kind(**{name: value}), name) == value


@pytest.mark.parametrize(("kind", "name", "value"), BAD)
def test_values_out_of_range_are_named(kind, name, value):
    with pytest.raises(OptionError) as caught:
        kind(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}: expected ")
    assert f"got {value!r}" in message
    assert isinstance(caught.value, HbsdkError)
    assert isinstance(caught.value, ValueError)


def test_messages_give_the_range_and_the_remedy():
    with pytest.raises(OptionError, match=r"a whole number from 1 to 1000, got 0\. Choose num_inf"):
        GenerateOptions(num_inference_steps=0)
    with pytest.raises(OptionError, match="a number from 0 to 100, got 101"):
        GenerateOptions(guidance_scale=101)
    with pytest.raises(OptionError, match=r"one of ddim, euler, dpm\+\+2m, got 'lms'\. Use 'ddim'"):
        GenerateOptions(sampler="lms")


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (None, None, (512, 512)),
        (64, None, (64, 512)),
        (None, 768, (512, 768)),
        (8, 4096, (8, 4096)),
    ],
)
def test_sizes_in_pixels(height, width, size):
    assert GenerateOptions(height=height, width=width).size_px(512, 8) == size


@pytest.mark.parametrize(
    ("side", "nearest"),
    [
        (100, 96), (63, 64), (1, 8), (0, 8), (-64, 8), (4104, 4096), (30_000, 4096),
        (64.0, 64), (True, 8), ("64", 512), (NAN, 512), (INFINITE, 512),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["height", "width"])
def test_bad_sizes_are_named_with_the_nearest_good_one(name, side, nearest):
    options = GenerateOptions(**{name: side})
    with pytest.raises(OptionError, match=rf"^{name}: .*a multiple of 8 in.*Use {nearest}\.$"):
        options.size_px(512, 8)
    assert GenerateOptions(**{name: nearest}).size_px(512, 8)


def test_the_factor_is_the_bundles():
    assert GenerateOptions(height=20).size_px(32, 4) == (20, 32)
    with pytest.raises(OptionError, match="multiple of 8"):
        GenerateOptions(height=20).size_px(32, 8)
