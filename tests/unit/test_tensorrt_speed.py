"""The end of guidance and deep features in the TensorRT backend, on a simulated GPU.

The loop is `generate.denoise`; the oracle is the same picture written out in numpy. See
tests/simulated_gpu.py for what a simulated GPU shows.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")

from hbsdk.backends import tensorrt
from hbsdk.backends.tensorrt import TensorRTBackend
from hbsdk.bundle import Bundle
from hbsdk.engine_spec import SHALLOW_STEP
from hbsdk.errors import EngineError
from hbsdk.generate import denoise
from hbsdk.schedule import make_schedule, step
from hbsdk.speed import Pace
from tests.simulated_gpu import tensorrt_module
from tests.small_denoise_step import deep_features, predict, specs, write_denoise_step

RNG = np.random.default_rng(0)
SCALE = 6.0
NAMES = ("denoise_step", SHALLOW_STEP)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    return {
        name: write_denoise_step(folder / f"{name}.engine", "float32", name=name) for name in NAMES
    }


@pytest.fixture
def open_backend(cudart, graphs, tiny_bundle, monkeypatch):
    def opened(*, deep: bool = True, **options) -> TensorRTBackend:
        module = tensorrt_module(cudart)
        monkeypatch.setattr(tensorrt, "load_module", lambda _: module)
        found = specs("float32", deep_features=True)
        if not deep:
            del found[SHALLOW_STEP]
        engines = SimpleNamespace(
            specs=found, path=lambda spec: graphs[spec.name], command="build them",
            manifest=SimpleNamespace(runtime="tensorrt_rtx"), folder=Path("engines"),
        )  # fmt: skip
        return TensorRTBackend(Bundle.open(tiny_bundle), engines, **options)

    return opened


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def schedule_of(backend, steps: int):
    config = backend.bundle.scheduler_config()
    return make_schedule(config, sampler="dpm++2m", num_inference_steps=steps)


def in_numpy(noise, states, schedule, stop: int, whole: set[int]) -> np.ndarray:
    """Draw with guidance before step `stop`, with the whole UNet at the steps `whole`."""
    latents, before, kept = noise * np.float32(schedule.initial_noise_scale), None, None
    without, with_prompt = np.split(states, 2)
    for i, time in enumerate(schedule.timesteps):
        if i in whole:
            kept = deep_features(latents)  # of both halves: their latents are the same
        eps = predict(latents, time, with_prompt, kept)
        if i < stop:
            negative = predict(latents, time, without, kept)
            eps = negative + SCALE * (eps - negative)
        latents, before = step(schedule, i, latents, eps, before)
    return latents


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=1e-4)


EVERY = set(range(8))
CASES = [
    (Pace(), 8, EVERY),
    (Pace(guidance_stop=0.5), 4, EVERY),
    (Pace(guidance_stop=0.0), 0, EVERY),
    (Pace(feature_interval=2), 8, {0, 2, 4, 6}),
    (Pace(guidance_stop=0.75, feature_interval=3), 6, {0, 3, 6}),
    (Pace(guidance_stop=0.5, feature_interval=3), 4, {0, 3, 4, 7}),
]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("pace", "stop", "whole"), CASES)
def test_the_loop_leaves_out_what_it_should(open_backend, count, pace, stop, whole):
    backend = open_backend()
    schedule = schedule_of(backend, 8)
    for _ in range(2):  # the second picture finds the buffers and graphs of the first
        noise, states = floats(count, 4, 8, 10), floats(2 * count, 6, 8)
        on_device = backend.on_device(states)
        drawn = backend.to_host(denoise(backend, noise, on_device, schedule, SCALE, pace=pace))
        assert same(drawn, in_numpy(noise, states, schedule, stop, whole))
        for other_stop, other_whole in ((stop - 1, whole), (stop, whole ^ {5})):
            if other_stop >= 0:
                other = in_numpy(noise, states, schedule, other_stop, other_whole)
                assert not same(drawn, other)


def test_off_is_the_same_to_the_last_bit_as_an_engine_without_it(open_backend):
    noise, states = floats(2, 4, 8, 8), floats(4, 6, 8)
    drawn = []
    for deep in (True, False):
        backend = open_backend(deep=deep)
        on_device = backend.on_device(states)
        drawn.append(
            backend.to_host(denoise(backend, noise, on_device, schedule_of(backend, 6), SCALE))
        )
    assert np.array_equal(*drawn)


def test_each_half_of_a_picture_is_recorded_once_for_all_pictures(open_backend, cudart):
    backend = open_backend()
    schedule, states = schedule_of(backend, 8), backend.on_device(floats(2, 6, 8))
    for round_number in range(3):
        pace = Pace(guidance_stop=0.5)
        backend.to_host(denoise(backend, floats(1, 4, 8, 8), states, schedule, SCALE, pace=pace))
        assert cudart.captures == 2
        assert cudart.launches == 6 + 8 * round_number
    assert len(backend._loaded) == 1  # the weights are there once


def test_a_callback_may_replace_latents_at_the_end_of_guidance(open_backend):
    backend = open_backend()
    schedule = schedule_of(backend, 4)
    noise, states, given = floats(2, 4, 8, 8), floats(4, 6, 8), floats(2, 4, 8, 8)

    def drawn(at: int) -> np.ndarray:
        def on_step(i, latents):
            return backend.to_device(given) if i == at else latents

        pace = Pace(guidance_stop=0.5, feature_interval=2)
        device_states = backend.on_device(states)
        return backend.to_host(
            denoise(backend, noise, device_states, schedule, SCALE, on_step, pace)
        )

    plain = in_numpy(noise, states, schedule, 2, {0, 2})
    assert same(drawn(-1), plain)
    assert same(drawn(3), given)
    assert not same(drawn(1), plain)
    assert np.isfinite(drawn(1)).all()


def test_low_memory_gives_every_loop_back(open_backend, cudart):
    backend = open_backend(memory="low")
    schedule = schedule_of(backend, 6)
    noise, states = floats(1, 4, 8, 8), floats(2, 6, 8)
    pace = Pace(guidance_stop=0.5, feature_interval=2)
    for _ in range(2):
        latents = denoise(backend, noise, backend.on_device(states), schedule, SCALE, pace=pace)
        assert len(backend._loops) == 4
        drawn = backend.to_host(latents)
        assert same(drawn, in_numpy(noise, states, schedule, 3, {0, 2, 3, 5}))
        assert (backend._loops, backend._loaded) == ({}, {})
        with pytest.raises(EngineError, match="latents of an earlier step"):
            backend.shown(latents)
    del latents
    assert cudart.memory == {}


def test_engines_without_deep_features_name_the_line_of_the_recipe(open_backend):
    backend = open_backend(deep=False)
    states = backend.on_device(floats(2, 6, 8))
    with pytest.raises(EngineError, match=r"feature_interval.*deep_features = true.*build them"):
        denoise(
            backend, floats(1, 4, 8, 8), states, schedule_of(backend, 4), SCALE,
            pace=Pace(feature_interval=2),
        )  # fmt: skip
