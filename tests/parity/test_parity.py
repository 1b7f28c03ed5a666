"""Parity: every graph against the untouched networks, and that it notices what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from scipy.spatial import distance

from export import parity, wrappers
from export.check_onnx import check_onnx
from export.parity import Arrays, Comparison, Runner
from export.recipe import THRESHOLDS
from export.to_onnx import export_network, traced_values
from hbsdk.bundle import Bundle
from hbsdk.engine_spec import NETWORKS, EngineSpec
from hbsdk.errors import EngineError
from hbsdk.features import CLIP_MEAN, CLIP_STD, DINO_MEAN, DINO_STD, encoder_pixels
from hbsdk.network_sizes import network_sizes
from tests.tiny_bundle import IMAGE_SIZE
from tests.tiny_engines import tiny_recipe

TOKENS = 500
# In attention a constant added to all keys is lost in softmax, and the scale of keys and queries
# matters little where random weights make it flat.
FLAT = ("k_proj", "to_k", "q_proj", "to_q")


@dataclass(frozen=True)
class Case:
    """One network: what is fed to each of its graphs, and what the untouched modules give."""

    specs: Mapping[str, EngineSpec]
    feeds: Mapping[str, list[Arrays]]
    references: Mapping[str, list[Arrays]]
    engines: Mapping[str, torch.nn.Module]

    def compare(self, name: str, run: Runner, leg: str = "a test") -> Comparison:
        spec = self.specs[name]
        return parity.compare(spec, leg, run, self.feeds[name], self.references[name])

    def passes(self, name: str, run: Runner, precision: str = "float32") -> Comparison:
        found = self.compare(name, run)
        parity.check(self.specs[name], "a test", precision, found)
        return found

    def fails(self, name: str, run: Runner, precision: str = "float32") -> bool:
        found = self.compare(name, run)
        try:
            parity.check(self.specs[name], "a test", precision, found)
        except EngineError:
            return True
        return False

    def wrapper(self, name: str) -> Runner:
        return parity.wrapper_runner(self.engines[name], self.specs[name])


def make_case(network: str, bundle: Bundle, specs: Mapping[str, EngineSpec]) -> Case:
    own = {name: spec for name, spec in specs.items() if spec.network == network}
    parts = wrappers.load_networks(network, bundle)
    config = bundle.scheduler_config()
    feeds = {name: parity.cases(spec, config, TOKENS) for name, spec in own.items()}
    given = {n: [parity.untouched(n, parts, one) for one in feeds[n]] for n in own}
    return Case(own, feeds, given, wrappers.wrap(network, parts, bundle.info.image_size_px))


@pytest.fixture(scope="module")
def specs(tiny_bundle: Path, tmp_path_factory) -> dict[str, EngineSpec]:
    recipe = tiny_recipe(tmp_path_factory.mktemp("recipe"))
    return recipe.specs(network_sizes(Bundle.open(tiny_bundle)))


@pytest.fixture(scope="module")
def every(tiny_bundle: Path, specs) -> dict[str, Case]:
    bundle = Bundle.open(tiny_bundle)
    return {network: make_case(network, bundle, specs) for network in NETWORKS}


def runtime(path: Path) -> Runner:
    """Run a graph in ONNX Runtime, without any code of hbsdk's."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True))


def scale_largest(graph: Path, factor: float) -> None:
    """Multiply the largest weight of a graph in its data file."""
    tensors = onnx.load(str(graph), load_external_data=False).graph.initializer
    entries = [
        ({one.key: one.value for one in tensor.external_data}, tensor.data_type)
        for tensor in tensors
        if tensor.external_data
    ]
    place, kind = max(entries, key=lambda entry: int(entry[0]["length"]))
    start, length = int(place["offset"]), int(place["length"])
    data = bytearray((graph.parent / place["location"]).read_bytes())
    values = np.frombuffer(data[start : start + length], onnx.helper.tensor_dtype_to_np_dtype(kind))
    data[start : start + length] = (values * values.dtype.type(factor)).tobytes()
    (graph.parent / place["location"]).write_bytes(data)


def perturbed(weight: torch.Tensor) -> torch.Tensor:
    """A matrix times 1.05; of a bias, one channel 0.05 more."""
    changed = weight.detach().clone()
    if changed.ndim > 1:
        return changed * 1.05
    changed[0] += 0.05
    return changed


def unnoticed(case: Case, name: str, weights: list[tuple[str, torch.Tensor]]) -> list[str]:
    """Perturb one weight after the other; return those that parity passes."""
    passed = []
    for key, weight in weights:
        original = weight.detach().clone()
        weight.data = perturbed(original)
        if not case.fails(name, case.wrapper(name)):
            passed.append(key)
        weight.data = original
    return passed


@pytest.mark.parametrize("network", NETWORKS)
def test_wrappers_are_the_networks_and_a_changed_weight_shows(network, every):
    case = every[network]
    for name, engine in case.engines.items():
        assert case.passes(name, case.wrapper(name)).max_abs < 1e-4
        weights = [
            (key, weight)
            for key, weight in engine.named_parameters()
            if not any(part in key for part in FLAT)
            and (name != "text_encoder_embeds" or "token_embedding" not in key)
        ]
        matrices = [(key, weight) for key, weight in weights if weight.ndim > 1]
        assert unnoticed(case, name, matrices[:: max(1, len(matrices) // 10)]) == []
        biases = [(key, weight) for key, weight in weights if key.endswith("bias")]
        tried = biases[:: max(1, len(biases) // 10)]
        # One channel of one layer of a regressor may be as good as nothing in its words.
        assert len(unnoticed(case, name, tried)) <= (len(tried) // 2 if name == "regressor" else 0)
        case.passes(name, case.wrapper(name))


@pytest.mark.parametrize("network", NETWORKS)
def test_graphs_are_the_networks_and_changed_bytes_show(network, every, tiny_engines, tmp_path):
    case = every[network]
    shutil.copytree(tiny_engines / network, tmp_path / network)
    for name, spec in case.specs.items():
        assert case.passes(name, runtime(tmp_path / spec.file)).relative_max_abs < 1e-5
    for spec in case.specs.values():
        scale_largest(tmp_path / spec.file, 1.05)
    for name, spec in case.specs.items():
        assert case.fails(name, runtime(tmp_path / spec.file))


def test_cases_are_of_shapes_and_timesteps_that_were_not_traced(every):
    for case in every.values():
        for name, spec in case.specs.items():
            values = [
                spec.axes_of({key: array.shape for key, array in one.items()})
                for one in case.feeds[name]
            ]
            batch = next(iter(spec.inputs[0].shape))
            assert [one[batch] for one in values] == [1, 2, 3]
            traced = traced_values(spec)
            assert all(spec.axes[axis].holds(size) for axis, size in traced.items())
            assert min(traced.values()) > 1
            assert sum(one != traced for one in values) >= 2
            for tensor in spec.inputs:
                assert all(one[tensor.name].dtype == tensor.dtype for one in case.feeds[name])
    unet = every["unet"]
    heights = [one["sample"].shape[2:] for one in unet.feeds["denoise_step"]]
    assert heights == [(8, 8), (10, 8), (8, 8)]
    for name in ("unet", "denoise_step"):
        assert len({float(one["timestep"]) for one in unet.feeds[name]}) == 3
    rows = [one["guidance"].shape[0] for one in unet.feeds["denoise_step"]]
    assert rows == [1, 2, 3]
    # The first has no x0 before it; the later ones, of a multistep sampler, do.
    look_back = [one["coefficients"][4] != 0 for one in unet.feeds["denoise_step"]]
    assert look_back[:2] == [False, True]


def changed_feed(run: Runner, name: str, change: Callable[[Any], Any]) -> Runner:
    return lambda feeds: run({**feeds, name: change(feeds[name])})


def swapped_halves(guidance: np.ndarray) -> np.ndarray:
    """Guidance away from the prompt: the columns of both halves change places."""
    half = len(guidance) // 2
    return np.roll(guidance, half, axis=1) if len(guidance) % 2 == 0 else guidance


@pytest.mark.parametrize("leg", ["wrapper", "onnxruntime"])
def test_a_wrong_step_shows(leg, every, tiny_engines, specs):
    case = every["unet"]
    step = (
        case.wrapper("denoise_step")
        if leg == "wrapper"
        else runtime(tiny_engines / specs["denoise_step"].file)
    )
    case.passes("denoise_step", step)
    assert case.fails("denoise_step", changed_feed(step, "guidance", swapped_halves))
    orders = [(1, 0, 2, 3, 4), (0, 1, 3, 2, 4), (0, 1, 2, 4, 3), (4, 3, 2, 1, 0)]
    for order in orders:
        wrong = changed_feed(step, "coefficients", lambda row, order=order: row[list(order)])
        assert case.fails("denoise_step", wrong)
    assert case.fails(
        "denoise_step", changed_feed(step, "timestep", lambda time: np.array(time + 1, np.float32))
    )
    assert case.fails("denoise_step", changed_feed(step, "previous_x0", np.zeros_like))


@pytest.mark.parametrize("network", ["vae_decoder", "image_features"])
def test_outputs_that_are_no_numbers_or_of_another_shape_show(network, every):
    case = every[network]
    run, output = case.wrapper(network), case.specs[network].outputs[-1].name

    def changed(change: Callable[[np.ndarray], np.ndarray]) -> Runner:
        return lambda feeds: (out := run(feeds)) | {output: change(out[output])}

    def holding(value: float) -> Callable[[np.ndarray], np.ndarray]:
        def put(array: np.ndarray) -> np.ndarray:
            array[-1, ..., -1] = value
            return array

        return put

    case.passes(network, changed(np.copy))
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(EngineError, match=f"{output} of engine {network} by a test.*finite"):
            case.compare(network, changed(holding(value)))
    for change in (lambda a: a[:, :-1], lambda a: a[..., None], lambda a: a[:0]):
        with pytest.raises(EngineError, match=rf"{output} of engine.*of shape \(1, .*got shape"):
            case.compare(network, changed(change))
    with pytest.raises(EngineError, match="got none"):
        case.compare(network, lambda feeds: {k: v for k, v in run(feeds).items() if k != output})
    with pytest.raises(EngineError, match="parity of engine"):
        parity.check(
            case.specs[network], "x", "float32", case.compare(network, changed(np.negative))
        )
    # A reference that is no number is no reference, whatever the other side gives.
    reference = [dict(one) for one in case.references[network]]
    reference[1][output] = np.full_like(reference[1][output], np.nan)
    with pytest.raises(EngineError, match="finite"):
        replace(case, references={network: reference}).compare(network, run)


def test_difference_is_what_numpy_and_scipy_say():
    rng = np.random.default_rng(0)
    want = rng.standard_normal((2, 3, 5)).astype(np.float32)
    got = want + rng.standard_normal(want.shape).astype(np.float32) / 10
    found = parity.difference(got, want)
    largest = np.max(np.abs(got.astype(np.float64) - want))
    assert found.max_abs == pytest.approx(largest, rel=1e-12)
    assert found.relative_max_abs == pytest.approx(largest / np.max(np.abs(want)), rel=1e-12)
    cosine = 1 - distance.cosine(got.ravel().astype(np.float64), want.ravel().astype(np.float64))
    assert found.cosine == pytest.approx(cosine, abs=1e-12)
    assert parity.difference(want, want) == Comparison(0.0, 0.0, pytest.approx(1.0, abs=1e-12))
    doubled = parity.difference(2 * want, want)
    assert doubled.cosine == pytest.approx(1.0, abs=1e-12)  # which tells direction alone
    assert doubled.relative_max_abs == pytest.approx(1.0)
    assert parity.difference(-want, want).cosine == pytest.approx(-1.0)
    zero = np.zeros(3, np.float32)
    assert parity.difference(zero, zero) == Comparison(0.0, 0.0, 1.0)
    assert parity.difference(zero + 1, zero) == Comparison(1.0, 1.0, 0.0)
    large = np.full(70_000, 60_000, np.float16)  # sums that float16 and float32 cannot hold
    assert parity.difference(large, large).cosine == pytest.approx(1.0, abs=1e-12)


def test_the_worst_case_and_output_count(every):
    case = every["image_features"]
    run = case.wrapper("image_features")
    calls = []

    def wrong_once(feeds: Arrays) -> Arrays:
        calls.append(len(feeds["pixels"]))
        outputs = run(feeds)
        return outputs if calls[-1] != 2 else outputs | {"clip": outputs["clip"] + 0.5}

    found = case.compare("image_features", wrong_once)
    assert calls == [1, 2, 3]
    assert found.max_abs == pytest.approx(0.5, abs=1e-5)
    assert case.fails("image_features", wrong_once)


@pytest.mark.parametrize(
    ("precision", "found", "fails"),
    [
        ("float32", Comparison(9.0, 1e-4, 0.0), False),
        ("float32", Comparison(0.0, 1.01e-4, 1.0), True),
        ("float32", Comparison(0.0, float("nan"), 1.0), True),
        ("float16", Comparison(0.0, 0.0, 0.9995), False),
        ("float16", Comparison(0.0, 0.0, 0.99949), True),
        ("float16", Comparison(0.0, 0.0, float("nan")), True),
    ],
)
def test_thresholds(precision, found, fails, specs):
    assert THRESHOLDS["float32"].relative_max_abs == 1e-4
    assert THRESHOLDS["float16"].cosine == 0.9995
    if not fails:
        parity.check(specs["unet"], "a leg", precision, found)
        return
    with pytest.raises(
        EngineError, match=f"parity of engine unet, {precision}, by a leg: expected"
    ):
        parity.check(specs["unet"], "a leg", precision, found)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("text_encoder", "text_encoder_embeds"),
        pytest.param("unet", "denoise_step", marks=pytest.mark.slow),
    ],
)
def test_float16_is_near_and_a_lost_weight_shows(network, name, tiny_bundle, tmp_path):
    bundle = Bundle.open(tiny_bundle)
    recipe = tiny_recipe(tmp_path, **{'default = "float32"': 'default = "float16"'})
    specs = recipe.specs(network_sizes(bundle))
    case = make_case(network, bundle, {name: specs[name]})
    engine = case.engines[name].half()
    export_network(tmp_path, {name: engine}, case.specs, recipe.opset)
    graph = tmp_path / specs[name].file
    check_onnx(graph, specs[name], opset=recipe.opset)
    weights = onnx.load(str(graph), load_external_data=False).graph.initializer
    half = sum(np.prod(one.dims) for one in weights if one.data_type == onnx.TensorProto.FLOAT16)
    full = sum(np.prod(one.dims) for one in weights if one.data_type == onnx.TensorProto.FLOAT)
    assert half > 100 * full  # the frequencies of timesteps, and single numbers
    found = case.passes(name, runtime(graph), "float16")
    assert found.cosine >= 0.9995
    assert found.relative_max_abs < 1e-2
    assert found.max_abs > 0.0
    assert case.fails(name, runtime(graph))  # it is not float32
    scale_largest(graph, 0.0)
    assert case.fails(name, runtime(graph), "float16")


def picture(side: int, number: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(side)
    pixels = torch.rand(number, 3, side, side, generator=generator) * 2 - 1
    mask = (torch.rand(number, 1, side, side, generator=generator) < 0.5).float()
    return pixels, mask


@pytest.mark.parametrize(
    ("image_size", "size"), [(32, 24), (512, 224), (64, 224), (IMAGE_SIZE, IMAGE_SIZE)]
)
@pytest.mark.parametrize(("mean", "std"), [(CLIP_MEAN, CLIP_STD), (DINO_MEAN, DINO_STD)])
def test_encoders_see_the_same_pixels(image_size, size, mean, std):
    engine = wrappers.EncoderPixels(image_size, size, mean, std)
    pixels, mask = picture(image_size)
    for given in (None, mask):
        want = encoder_pixels(pixels, size, mean, std, given)
        got = engine(pixels, given)
        assert got.shape == want.shape == (2, 3, size, size)
        assert torch.allclose(got, want, atol=2e-5)
    masked, plain = engine(pixels, mask), engine(pixels)
    assert not torch.allclose(masked, plain, atol=0.1)
    assert not torch.allclose(engine(pixels.transpose(2, 3)), plain, atol=0.1)
    other = (DINO_MEAN, DINO_STD) if mean == CLIP_MEAN else (CLIP_MEAN, CLIP_STD)
    assert not torch.allclose(encoder_pixels(pixels, size, *other), plain, atol=1e-3)


def test_pixels_are_resized_without_aliases():
    pixels, _ = picture(512)
    aliased = torch.nn.functional.interpolate(pixels, (224, 224), mode="bicubic", antialias=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    engine = wrappers.EncoderPixels(512, 224, CLIP_MEAN, CLIP_STD)
    assert not torch.allclose(engine(pixels), (aliased / 2 + 0.5 - mean) / std, atol=0.1)
