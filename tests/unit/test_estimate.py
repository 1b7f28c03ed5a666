"""What a training would take: measured steps, and the calculation beside them."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError, TrainingError
from hbsdk.training import estimate as module
from hbsdk.training.estimate import Estimate, RandomPictures, estimate, estimate_sd15
from hbsdk.training.machine import available_bytes, product_rate
from hbsdk.training.options import TrainOptions
from hbsdk.training.pairs import Pair
from hbsdk.training.random_bundle import same_size, sd15_bundle
from hbsdk.training.rehearsal import Rehearsal, _LiveBytes, rehearse
from hbsdk.training.start import fresh_regressor
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
    with pytest.raises(TrainingError) as caught:
        estimate(Bundle.open(tiny_bundle), Stopped(), OPTIONS)
    assert str(caught.value) == "the estimate was stopped. Run it again."


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
    with FakeTensorMode(), _LiveBytes() as memory:
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
