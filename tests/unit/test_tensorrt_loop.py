"""The TensorRT backend's bookkeeping on a simulated GPU, against the loop written out in numpy.

No GPU and no TensorRT engine takes part (see tests/simulated_gpu.py for what that shows);
tests/gpu/test_tensorrt_run.py runs real engines.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")

from hbsdk.backends import tensorrt
from hbsdk.backends.base import StepCoefficients
from hbsdk.backends.engine_math import cast
from hbsdk.backends.tensorrt import TensorRTBackend
from hbsdk.bundle import Bundle
from hbsdk.errors import EngineError, OptionError
from hbsdk.schedule import make_schedule
from tests.simulated_gpu import tensorrt_module
from tests.small_denoise_step import predict, specs, write_denoise_step

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    return write_denoise_step(tmp_path_factory.mktemp("graph") / "model.engine", "float32")


@pytest.fixture
def open_backend(cudart, graph, tiny_bundle, monkeypatch):
    def opened(*, capturable: bool = True, file: Path = graph, **options) -> TensorRTBackend:
        module = tensorrt_module(cudart, capturable=capturable)
        monkeypatch.setattr(tensorrt, "load_module", lambda _: module)
        engines = SimpleNamespace(
            specs=specs("float32"), path=lambda _spec: file, command="build them",
            manifest=SimpleNamespace(runtime="tensorrt_rtx"), folder=graph.parent,
        )  # fmt: skip
        return TensorRTBackend(Bundle.open(tiny_bundle), engines, **options)

    return opened


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def rows_of(count: int, seed: int = 0) -> list[StepCoefficients]:
    """Steps with all numbers different, c included: DPM++ 2M-like, but arbitrary."""
    rng = np.random.default_rng(seed)
    return [StepCoefficients(999.0 - 99 * step, *rng.uniform(-1, 1, 5)) for step in range(count)]


def loop_in_numpy(noise, states, scale: float, rows, replaced=None) -> np.ndarray:
    """The same loop, as section 3 of the design and classifier-free guidance are written."""
    latents, before = noise, None
    for step, k in enumerate(rows):
        if len(states) == len(noise):
            eps = predict(latents, k.timestep, states)
        else:
            without, with_prompt = (
                predict(latents, k.timestep, half) for half in np.split(states, 2)
            )
            eps = without + scale * (with_prompt - without)
        x0 = k.p * latents + k.q * eps
        latents = k.a * latents + k.b * x0 + (0.0 if before is None else k.c * before)
        before = x0
        if replaced and step in replaced:
            latents = replaced[step]
    return latents


def run(backend, noise, states, scale: float, rows, replaced=None):
    on_device = backend._device.array(states)
    latents, before = backend.to_device(noise), None
    for step, row in enumerate(rows):
        latents, before = backend.denoise_step(latents, before, on_device, scale, row)
        if replaced and step in replaced:
            latents = backend.to_device(replaced[step])
    return latents


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "guided"), [(1, True), (1, False), (3, True), (3, False)])
def test_the_loop_is_the_sampler_with_guidance(open_backend, cudart, count, guided):
    backend = open_backend()
    noise, states, rows = floats(count, 4, 8, 10), floats(count * (1 + guided), 6, 8), rows_of(7)
    latents = run(backend, noise, states, 7.5, rows)
    expected = loop_in_numpy(noise, states, 7.5, rows)
    assert same(backend.to_host(latents), expected)
    assert same(backend.shown(latents), expected)  # reading changes nothing
    # The first step runs as it is, the second is recorded and then launched as all others are.
    assert (cudart.captures, cudart.launches) == (1, 6)
    # Other weights, another order, no look back: something else.
    assert guided != same(loop_in_numpy(noise, states, 1.0, rows), expected)
    if guided:
        swapped = np.concatenate(np.split(states, 2)[::-1])
        assert not same(loop_in_numpy(noise, swapped, 7.5, rows), expected)
    assert not same(loop_in_numpy(noise, states, 7.5, rows[::-1]), expected)
    forgetful = [StepCoefficients(k.timestep, k.p, k.q, k.a, k.b, 0.0) for k in rows]
    assert not same(loop_in_numpy(noise, states, 7.5, forgetful), expected)


def test_the_real_schedules_first_step_needs_no_x0_before(open_backend):
    backend = open_backend()
    schedule = make_schedule(
        backend.bundle.scheduler_config(), sampler="dpm++2m", num_inference_steps=6
    )
    rows = [
        StepCoefficients(*map(float, row))
        for row in zip(
            schedule.timesteps, schedule.p, schedule.q, schedule.a, schedule.b, schedule.c,
            strict=True,
        )
    ]  # fmt: skip
    noise, states = floats(2, 4, 8, 8), floats(4, 6, 8)
    latents = backend.to_host(run(backend, noise, states, 3.0, rows))
    assert np.isfinite(latents).all()  # fresh device memory is NaN, and 0 NaN is no 0
    assert same(latents, loop_in_numpy(noise, states, 3.0, rows))


def test_a_second_picture_reuses_the_graph_with_its_own_text(open_backend, cudart):
    backend = open_backend()
    rows = rows_of(4)
    for round_number, scale in enumerate((7.5, 7.5, 2.0)):
        noise, states = floats(2, 4, 8, 8), floats(4, 6, 8)
        latents = backend.to_host(run(backend, noise, states, scale, rows))
        assert same(latents, loop_in_numpy(noise, states, scale, rows))
        assert (cudart.captures, cudart.launches) == (1, 3 + 4 * round_number)


def test_other_sizes_get_their_own_buffers_and_graph(open_backend, cudart):
    backend = open_backend()
    rows = rows_of(4)
    for count, height, width in ((1, 8, 8), (3, 8, 16), (1, 8, 8)):
        noise, states = floats(count, 4, height, width), floats(2 * count, 6, 8)
        latents = backend.to_host(run(backend, noise, states, 5.0, rows))
        assert same(latents, loop_in_numpy(noise, states, 5.0, rows))
    assert cudart.captures == 3
    held = len(cudart.memory)
    for shape in ((3, 4, 16, 16), (1, 4, 8, 8)):
        backend.to_host(run(backend, floats(*shape), floats(2 * shape[0], 6, 8), 5.0, rows))
    assert len(cudart.memory) == held  # buffers of earlier sizes were given back


@pytest.mark.parametrize("way", ["TensorRT says no", "CUDA says no"])
def test_without_a_graph_it_runs_all_the_same(open_backend, cudart, way):
    backend = open_backend(capturable=way != "TensorRT says no")
    cudart.capture_fails = way == "CUDA says no"
    noise, states, rows = floats(2, 4, 8, 8), floats(4, 6, 8), rows_of(6)
    latents = backend.to_host(run(backend, noise, states, 7.5, rows))
    assert same(latents, loop_in_numpy(noise, states, 7.5, rows))
    assert cudart.launches == 0
    assert cudart.captures == (1 if way == "CUDA says no" else 0)  # not tried again


def test_a_callback_may_replace_the_latents(open_backend):
    backend = open_backend()
    noise, states, rows = floats(2, 4, 8, 8), floats(4, 6, 8), rows_of(5)
    replaced = {0: floats(2, 4, 8, 8), 3: floats(2, 4, 8, 8)}
    latents = backend.to_host(run(backend, noise, states, 7.5, rows, replaced))
    assert same(latents, loop_in_numpy(noise, states, 7.5, rows, replaced))
    assert not same(latents, loop_in_numpy(noise, states, 7.5, rows))


def test_latents_that_are_written_over_are_not_read(open_backend):
    backend = open_backend()
    states, rows = backend._device.array(floats(4, 6, 8)), rows_of(3)
    noise = backend.to_device(floats(2, 4, 8, 8))
    first, x0 = backend.denoise_step(noise, None, states, 7.5, rows[0])
    second, _ = backend.denoise_step(first, x0, states, 7.5, rows[1])
    backend.shown(second)
    with pytest.raises(EngineError, match="latents of an earlier step"):
        backend.to_host(first)
    with pytest.raises(EngineError, match="latents of an earlier step"):
        backend.denoise_step(first, x0, states, 7.5, rows[2])
    larger = backend.to_device(floats(2, 4, 8, 16))
    backend.denoise_step(larger, None, states, 7.5, rows[2])
    with pytest.raises(EngineError, match="latents of an earlier step"):
        backend.shown(second)


def test_what_the_engine_was_not_built_for_is_refused(open_backend):
    backend = open_backend()
    step = rows_of(1)[0]
    for shape, texts in (
        ((4, 4, 8, 8), 8), ((1, 4, 9, 8), 2), ((1, 4, 8, 32), 2), ((2, 4, 8, 8), 3)
    ):  # fmt: skip
        states = backend._device.array(floats(texts, 6, 8))
        with pytest.raises(EngineError, match=r"of engine denoise_step|text states for 2 pictures"):
            backend.denoise_step(backend.to_device(floats(*shape)), None, states, 7.5, step)


def test_low_memory_gives_the_engine_back(open_backend, cudart):
    backend = open_backend(memory="low")
    rows = rows_of(3)
    noise, states = floats(1, 4, 8, 8), floats(2, 6, 8)
    latents = run(backend, noise, states, 7.5, rows)
    assert "denoise_step" in backend._loaded
    assert same(backend.to_host(latents), loop_in_numpy(noise, states, 7.5, rows))
    assert backend._loaded == {}
    with pytest.raises(EngineError, match="latents of an earlier step"):
        backend.shown(latents)
    assert same(
        backend.to_host(run(backend, noise, states, 7.5, rows)),
        loop_in_numpy(noise, states, 7.5, rows),
    )
    assert cudart.memory == {}


def test_one_run_on_host_arrays(open_backend):
    backend = open_backend()
    spec = specs("float32")["denoise_step"]
    rows = {"rows": 2, "height": 8, "width": 8}
    feeds = {tensor.name: cast(floats(*spec.shape(tensor, rows)), tensor) for tensor in spec.inputs}
    outputs = backend.run("denoise_step", feeds)
    k = dict(zip("pqabc", feeds["coefficients"], strict=True))
    noise = predict(feeds["sample"], float(feeds["timestep"]), feeds["encoder_hidden_states"])
    eps = np.einsum("ij,jchw->ichw", feeds["guidance"], noise)
    x0 = k["p"] * feeds["sample"] + k["q"] * eps
    assert same(outputs["x0"], x0)
    following = k["a"] * feeds["sample"] + k["b"] * x0 + k["c"] * feeds["previous_x0"]
    assert same(outputs["next_sample"], following)


def test_compiled_kernels_are_kept_outside_of_the_engine_folder(open_backend, graph, tmp_path):
    before = sorted(graph.parent.iterdir())
    backend = open_backend()
    backend.to_host(run(backend, floats(1, 4, 8, 8), floats(2, 6, 8), 7.5, rows_of(1)))
    (kept,) = (tmp_path / "cache" / "hbsdk").rglob("*.kernels")
    assert kept.read_bytes() == b"kernels"
    assert kept.parent.name == "tensorrt_rtx-0.simulated"
    assert kept.parent.stat().st_mode & 0o077 == 0
    kept.write_bytes(b"from an earlier process")
    again = open_backend()
    assert again.load("denoise_step")._runtime_cache.content == b"from an earlier process"
    assert sorted(graph.parent.iterdir()) == before


def test_bad_engines_and_devices_are_told(open_backend, graph, tmp_path):
    broken = tmp_path / "broken.engine"
    broken.write_bytes(b"nothing")
    with pytest.raises(EngineError, match=r"TensorRT engine denoise_step.*bad engine.*build them"):
        open_backend(file=broken).load("denoise_step")
    with pytest.raises(EngineError, match="inputs and outputs of TensorRT engine unet"):
        open_backend().load("unet")
    with pytest.raises(EngineError, match=r"engine regressor of .*personalize on tensorrt"):
        open_backend().load("regressor")
    for device in ("cpu", "cuda:x", "mps"):
        with pytest.raises(OptionError, match="TensorRT runs on NVIDIA GPUs"):
            open_backend(device=device)
    with pytest.raises(EngineError, match="expected cuda:0 to cuda:0, got cuda:3"):
        open_backend(device="cuda:3")
    assert open_backend(device="cuda").device == "cuda:0"
    backend = open_backend()
    with pytest.raises(EngineError, match=r"CUDA.*cudaErrorMemoryAllocation.*memory=\"low\""):
        backend._device.empty((2**30,), np.float32)
