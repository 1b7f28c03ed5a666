"""What a training would take: measured steps, and the calculation beside them."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hbsdk.bundle import Bundle
from hbsdk.errors import BundleError, OptionError, TrainingError
from hbsdk.regressor import PromptRegressor
from hbsdk.room import available_bytes
from hbsdk.training import estimate as module
from hbsdk.training.estimate import Estimate, estimate, estimate_sd15
from hbsdk.training.machine import (
    DTYPES,
    device_name,
    peak_memory_bytes,
    product_rate,
    reset_peak,
    training_device,
)
from hbsdk.training.options import MixedPrecision, TrainOptions
from hbsdk.training.pairs import Pair
from hbsdk.training.random_bundle import RandomPictures, same_size, sd15_bundle
from hbsdk.training.rehearsal import LiveBytes, Rehearsal, rehearse
from hbsdk.training.start import Start, fresh_regressor
from hbsdk.training.stopping import TrainingStoppedError
from tests.tiny_bundle import IMAGE_SIZE

OPTIONS = TrainOptions(batch_size=2, steps=1000)
CPU = torch.device("cpu")


class Counted(RandomPictures):
    """Noise that remembers which steps were asked for."""

    def __init__(self) -> None:
        super().__init__(IMAGE_SIZE)
        self.steps: set[int] = set()

    def pairs(self, seed: int, step: int, indices: Sequence[int]) -> list[Pair]:
        self.steps.add(step)
        return super().pairs(seed, step, indices)


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path) -> tuple[Estimate, Counted]:
    source = Counted()
    return estimate(Bundle.open(tiny_bundle), source, OPTIONS, steps=2), source


def test_steps_are_really_run(measured: tuple[Estimate, Counted]) -> None:
    found, source = measured
    assert found.is_measured
    assert found.measured_steps == 2
    assert {0, 1, 2} <= source.steps  # one to warm up; a few more are read ahead
    assert max(source.steps) < 10
    assert found.seconds_per_step > 0.0
    assert found.peak_bytes > found.trained_parameters * 16


def test_the_time_is_proportional_to_the_steps(measured: tuple[Estimate, Counted]) -> None:
    found, _ = measured
    assert found.seconds_for(2000) == pytest.approx(2 * found.seconds_for(1000))
    assert found.seconds_for(1000) == pytest.approx(1000 * found.seconds_per_step)
    slower = replace(found, seconds_per_step=2 * found.seconds_per_step)
    assert slower.seconds_for(1000) == pytest.approx(found.seconds_for(2000))
    assert slower.images_per_second == pytest.approx(found.images_per_second / 2)
    assert "measured over 2 steps" in found.in_words(1000)
    assert "CALCULATED" not in found.in_words(1000)


class Stopped(Counted):
    """Asks the run to stop, as Ctrl-C does, when its second step is read."""

    def pairs(self, seed: int, step: int, indices: Sequence[int]) -> list[Pair]:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().pairs(seed, step, indices)


def test_a_stopped_estimate_promises_no_checkpoint(tiny_bundle: Path) -> None:
    with pytest.raises(TrainingStoppedError) as caught:
        estimate(Bundle.open(tiny_bundle), Stopped(), OPTIONS)
    assert str(caught.value) == "the estimate was stopped. Run it again."


class Broken(Counted):
    """Cannot be read, and names the folder of the run as a stopped one would."""

    def pairs(self, seed: int, step: int, indices: Sequence[int]) -> list[Pair]:
        raise TrainingError("no pictures in /tmp/hbsdk-estimate-x")


def test_an_estimate_that_fails_is_not_called_stopped(tiny_bundle: Path) -> None:
    """The control of the test before."""
    with pytest.raises(TrainingError, match="no pictures in") as caught:
        estimate(Bundle.open(tiny_bundle), Broken(), OPTIONS)
    assert not isinstance(caught.value, TrainingStoppedError)


@pytest.mark.parametrize("change", [{"steps": 0}, {"warm_up": 0}, {"warm_up": -1}, {"steps": 1.5}])
def test_steps_that_cannot_be_measured_are_refused(tiny_bundle: Path, change: dict) -> None:
    """Where the first step began is not known: one at least must warm up."""
    source = Counted()
    with pytest.raises(OptionError, match=f"{next(iter(change))}: expected a whole number from 1"):
        estimate(Bundle.open(tiny_bundle), source, OPTIONS, **change)
    assert source.steps == set()


@pytest.mark.parametrize(("measured", "warm_up"), [(1, 1), (3, 1), (2, 3)])
def test_the_steps_that_warm_up_are_left_out(
    measured: int, warm_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that warm up take 100 s here, the others 1 s."""
    watch = module._Watch(measured, warm_up)
    ends = iter(np.cumsum([100.0] * warm_up + [1.0] * measured))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ends)))
    for step in range(1, measured + warm_up):
        watch.on_step(step, {})
    with pytest.raises(module._EnoughMeasured):
        watch.on_step(measured + warm_up, {})
    assert watch.spans.tolist() == [1.0] * measured


STARTS = {
    "as it is": (Start(), {"num_words": 5, "encoders": "both"}),
    "other words": (Start(num_words=2), {"num_words": 2, "encoders": "both"}),
    "one encoder": (Start(encoders="dino"), {"num_words": 5, "encoders": "dino"}),
}


@pytest.mark.parametrize("start", STARTS)
def test_what_is_estimated_is_what_would_be_trained(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """The regressor that is calculated with, and the one that steps are measured of."""
    asked, expected = STARTS[start]
    trained: list[Mapping[str, object]] = []
    train = module.train

    def watched(*arguments: object, regressor: PromptRegressor | None, **how: object) -> object:
        used = fresh_regressor(arguments[0]) if regressor is None else regressor  # type: ignore
        trained.append(used.config)
        return train(*arguments, regressor=regressor, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "train", watched)
    bundle = Bundle.open(tiny_bundle)
    found = estimate(bundle, Counted(), OPTIONS, start=asked, steps=1)
    assert {key: trained[0][key] for key in expected} == expected
    made = fresh_regressor(bundle, **expected)
    assert found.trained_parameters == sum(weight.numel() for weight in made.parameters())
    plain = sum(weight.numel() for weight in fresh_regressor(bundle).parameters())
    # The control; an encoder that is left out is not seen, and its weights are still there.
    assert (found.trained_parameters == plain) == (asked.num_words is None)


def test_a_start_from_the_bundles_regressor_takes_its_size(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    config = Start("bundle").config(bundle)
    own = bundle.load_regressor()
    assert config["pool_dim"] == own.config.pool_dim
    found = rehearse(same_size(bundle), OPTIONS, config=config)
    assert found.trained_parameters == sum(weight.numel() for weight in own.parameters())
    less = rehearse(same_size(bundle), OPTIONS, config={**config, "num_words": 1})  # the control
    assert less.trained_parameters < found.trained_parameters
    with pytest.raises(BundleError, match="regressor"):
        Start("bundle").config(same_size(bundle))


def test_sizes_are_those_of_the_networks(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    found = rehearse(same_size(bundle), OPTIONS)
    regressor = fresh_regressor(bundle)
    assert found.trained_parameters == sum(weight.numel() for weight in regressor.parameters())
    frozen = ("unet", "text_encoder", "vae", "image_encoder", "dino")
    assert found.frozen_parameters == sum(
        weight.numel()
        for name in frozen
        for weight in getattr(bundle, f"load_{name}")().parameters()
    )


def test_operations_grow_with_the_batch_and_with_checkpointing(tiny_bundle: Path) -> None:
    bundle = same_size(Bundle.open(tiny_bundle))
    two, four = (rehearse(bundle, replace(OPTIONS, batch_size=size)) for size in (2, 4))
    assert four.operations == 2 * two.operations
    assert four.peak_bytes > two.peak_bytes
    again = rehearse(bundle, replace(OPTIONS, gradient_checkpointing=True))
    assert two.operations < again.operations < 2 * two.operations
    accumulated = rehearse(bundle, replace(OPTIONS, gradient_accumulation_steps=3))
    assert accumulated.operations == 3 * two.operations
    with_average = rehearse(bundle, replace(OPTIONS, ema_decay=0.9))
    assert with_average.peak_bytes == two.peak_bytes + 4 * two.trained_parameters


def test_live_bytes_are_those_of_a_calculation_by_hand() -> None:
    """A layer's weight, output and, for the backward pass, input live; until the output goes."""
    with FakeTensorMode(), LiveBytes() as memory:
        layer = nn.Linear(1000, 500, bias=False)
        before = memory.now
        output = layer(torch.zeros(10, 1000))
        assert before == 1000 * 500 * 4
        assert memory.now == memory.peak == before + 10 * 500 * 4 + 10 * 1000 * 4
        assert output.shape == (10, 500)
        del output
        assert memory.now == before
        with torch.no_grad():  # nothing is kept for a backward pass
            output = layer(torch.zeros(10, 1000))
        assert memory.now == before + output.numel() * 4 == before + 10 * 500 * 4


def test_sd15_has_the_public_number_of_parameters(tmp_path: Path) -> None:
    """Of the public checkpoints: text encoder, UNet, VAE, CLIP-L/14's and DINOv2-L's."""
    found = rehearse(sd15_bundle(tmp_path), TrainOptions(batch_size=1, mask_loss_weight=0.0))
    public = 123_060_480 + 859_520_964 + 83_653_863 + 303_179_776 + 304_368_640
    assert found.frozen_parameters == public
    assert found.peak_bytes > 4 * public + 16 * found.trained_parameters
    # One forward pass of the UNet alone is 0.8 TFLOP: 2 x 0.4 T multiply-adds.
    assert 2e12 < found.operations < 2e13


def test_where_memory_is_too_small_it_is_calculated_and_says_so(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda _: 1000)
    monkeypatch.setattr(module, "product_rate", lambda *_: 1e9)
    source, told = Counted(), []
    found = estimate(Bundle.open(tiny_bundle), source, OPTIONS, on_stage=told.append)
    assert not found.is_measured
    assert source.steps == set()
    assert found.seconds_per_step == pytest.approx(found.operations / 1e9)
    assert found.peak_bytes == found.calculated_bytes
    assert "CALCULATED, not measured" in found.in_words(1000)
    assert "0.001 TFLOP/s" in found.in_words(1000)
    assert "are free" in told[-1]


def test_sd15_can_be_calculated_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rehearsed(bundle: Bundle, *_: object) -> Rehearsal:
        asked.append(bundle.info)
        return Rehearsal(10, 20, 1 << 30, 5 * 10**12)

    monkeypatch.setattr(module, "rehearse", rehearsed)
    monkeypatch.setattr(module, "product_rate", lambda *_: 1e12)
    found = estimate_sd15(TrainOptions(batch_size=2), steps=0)
    assert not found.is_measured
    assert found.seconds_per_step == pytest.approx(5.0)
    assert found.images_per_second == pytest.approx(0.4)
    assert [info.image_size_px for info in asked] == [512]
    assert "1.00 GiB" in found.in_words(10)


def test_many_processes_are_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="without accelerate launch"):
        estimate(Bundle.open(tiny_bundle), RandomPictures(IMAGE_SIZE), OPTIONS)


def test_the_machine_is_measured() -> None:
    assert product_rate(CPU, torch.float32) > 1e8
    free = available_bytes(CPU)
    assert free is None or free > 1 << 20
    reset_peak(CPU)
    assert peak_memory_bytes(CPU) > 1 << 20
    assert "CPU with" in device_name(CPU)


@pytest.mark.parametrize("kind", [None, "cuda", "mps", "xpu"])
def test_training_is_where_torch_finds_an_accelerator(
    kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
    assert training_device() == torch.device(kind or "cpu")


def test_an_accelerator_that_does_not_count_its_memory_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_counted(*_: object) -> None:
        raise RuntimeError("no such function for this device")

    monkeypatch.setattr(torch.accelerator, "get_memory_info", not_counted)
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", not_counted)
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", not_counted)
    device = torch.device("mps")
    reset_peak(device)
    assert available_bytes(device) is None
    assert peak_memory_bytes(device) == pytest.approx(peak_memory_bytes(CPU), rel=0.1)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _: (7, 9))  # the control
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda _: 5)
    assert (available_bytes(device), peak_memory_bytes(device)) == (7, 5)


def test_every_precision_has_its_type() -> None:
    assert set(DTYPES) == set(get_args(MixedPrecision))
    assert [DTYPES[name].itemsize for name in ("no", "bf16", "fp16")] == [4, 2, 2]


def test_random_networks_run(tiny_bundle: Path) -> None:
    """Of the same shapes as the bundle's, with other numbers."""
    bundle = Bundle.open(tiny_bundle)
    own, made = bundle.load_dino(), same_size(bundle).load_dino(torch.bfloat16)
    shapes = [{name: w.shape for name, w in one.state_dict().items()} for one in (own, made)]
    assert shapes[0] == shapes[1]
    assert made.dtype == torch.bfloat16
    assert not any(weight.requires_grad for weight in made.parameters())
    pixels = torch.from_numpy(np.zeros((1, 3, 56, 56), np.float32))
    assert torch.isfinite(made(pixels.bfloat16()).last_hidden_state).all()
