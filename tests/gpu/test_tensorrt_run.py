"""Real engines on a real GPU, against ONNX Runtime on the CPU and the loop written out in numpy.

What CI without a GPU cannot run: it builds the same engines (tests/unit/test_tensorrt_build.py),
runs the same bookkeeping on a simulated GPU (test_tensorrt_loop.py) and checks that every name used
exists (test_tensorrt_contract.py).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from export.to_tensorrt import TensorRTSettings, build_engine
from hbsdk.backends.base import StepCoefficients
from hbsdk.bundle import Bundle
from hbsdk.engine_spec import NETWORKS, Axis, EngineSpec, engine_specs
from hbsdk.errors import EngineError
from hbsdk.network_sizes import network_sizes
from hbsdk.runtimes import compute_capability
from tests.small_denoise_step import predict, specs, write_denoise_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(compute_capability() is None, reason="there is no NVIDIA GPU here"),
]
RTX_CAPABILITIES = {"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"}
COSINE = 0.9995  # of float16; issue 3's threshold for a network
RNG = np.random.default_rng(0)


@pytest.fixture(params=["tensorrt_rtx", "tensorrt"])
def module(request) -> str:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    if request.param == "tensorrt_rtx" and compute_capability() not in RTX_CAPABILITIES:
        pytest.skip(f"TensorRT for RTX does not build for {compute_capability()}")
    return request.param


def built(path: Path, spec: EngineSpec, module: str, precision: str) -> Path:
    settings = TensorRTSettings(module, ("current",), builder_optimization_level=1)
    target = path.with_suffix(".engine")
    build_engine(path, spec, target, settings, precision=precision, progress=False)
    return target


def engine(path: Path, spec: EngineSpec, module: str, precision: str):
    from hbsdk.backends.cuda_device import CudaDevice
    from hbsdk.backends.tensorrt_engine import Engine, load_module

    target = built(path, spec, module, precision)
    return Engine(load_module(module), CudaDevice(), target, spec, "build it")


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def feeds_of(spec: EngineSpec, values: dict[str, int]) -> dict[str, np.ndarray]:
    shapes = {tensor.name: spec.shape(tensor, values) for tensor in spec.inputs}
    return {
        tensor.name: np.asarray(
            RNG.integers(0, 400, shapes[tensor.name])
            if tensor.dtype == "int64"
            else RNG.normal(size=shapes[tensor.name]),
            tensor.dtype,
        )
        for tensor in spec.inputs
    }


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def check_against_onnxruntime(path: Path, spec: EngineSpec, loaded, values: dict[str, int]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = feeds_of(spec, values)
    outputs = loaded.run(feeds)
    for tensor, expected in zip(spec.outputs, session.run(None, feeds), strict=True):
        assert outputs[tensor.name].shape == expected.shape
        assert np.isfinite(outputs[tensor.name]).all()
        assert cosine(outputs[tensor.name], expected) >= COSINE
    first = spec.inputs[0]
    feeds[first.name] = feeds[first.name][..., ::-1].copy()  # the control: another input
    assert cosine(loaded.run(feeds)[spec.outputs[0].name], outputs[spec.outputs[0].name]) < COSINE


@pytest.fixture(scope="module")
def exported(tiny_bundle, tmp_path_factory) -> tuple[Path, dict[str, EngineSpec]]:
    """The tiny bundle's UNet, text encoder and VAE decoder as float16 graphs."""
    import torch

    from export.to_onnx import export_network
    from export.wrappers import (
        DenoiseStepEngine,
        TextEncoderEmbedsEngine,
        TokenEmbeddingEngine,
        VaeDecoderEngine,
    )

    bundle, folder = Bundle.open(tiny_bundle), tmp_path_factory.mktemp("exported")
    side = Axis(32, 32, 64)
    every = engine_specs(
        network_sizes(bundle), precision=dict.fromkeys(NETWORKS, "float16"),
        pictures=Axis(1, 1, 2), height=side, width=side,
    )  # fmt: skip
    text = bundle.load_text_encoder(torch.float16)
    for engines in (
        {"denoise_step": DenoiseStepEngine(bundle.load_unet(torch.float16))},
        {"vae_decoder": VaeDecoderEngine(bundle.load_vae(torch.float16))},
        {
            "token_embedding": TokenEmbeddingEngine(text),
            "text_encoder_embeds": TextEncoderEmbedsEngine(text),
        },
    ):
        export_network(folder, engines, {name: every[name] for name in engines}, opset=20)
    return folder, every


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("denoise_step", [{"rows": 1, "height": 8, "width": 8},
                          {"rows": 4, "height": 16, "width": 8}]),
        ("vae_decoder", [{"images": 1, "height": 8, "width": 16},
                         {"images": 2, "height": 8, "width": 8}]),
        ("token_embedding", [{"texts": 2}, {"texts": 1}]),
        ("text_encoder_embeds", [{"texts": 2}, {"texts": 4}]),
    ],
)  # fmt: skip
def test_networks_give_what_onnxruntime_gives(module, exported, name, sizes):
    folder, every = exported
    spec = every[name]
    loaded = engine(folder / spec.file, spec, module, "float16")
    for values in sizes:  # also back to the first, over new buffers
        check_against_onnxruntime(folder / spec.file, spec, loaded, values)
    check_against_onnxruntime(folder / spec.file, spec, loaded, sizes[0])


def backend_of(path: Path, module: str, precision: str, tiny_bundle: Path):
    from hbsdk.backends.tensorrt import TensorRTBackend

    every = specs(precision)
    target = built(path, every["denoise_step"], module, precision)
    engines = SimpleNamespace(
        specs=every, path=lambda _spec: target, command="build it", folder=path.parent,
        manifest=SimpleNamespace(runtime=module),
    )  # fmt: skip
    return TensorRTBackend(Bundle.open(tiny_bundle), engines)


@pytest.mark.parametrize(("count", "guided"), [(1, True), (3, True), (2, False)])
def test_the_loop_in_a_cuda_graph_is_the_loop_in_numpy(
    module, tiny_bundle, tmp_path, monkeypatch, count, guided
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_denoise_step(tmp_path / "model.onnx", "float32")
    backend = backend_of(path, module, "float32", tiny_bundle)
    rows = [StepCoefficients(900.0 - 90 * i, *RNG.uniform(-1, 1, 5)) for i in range(8)]
    noise, states = floats(count, 4, 8, 16), floats(count * (1 + guided), 6, 8)
    on_device = backend._device.array(states)
    latents, before = backend.to_device(noise), None
    expected, x0_before = noise, np.zeros_like(noise)
    for index, k in enumerate(rows):
        latents, before = backend.denoise_step(latents, before, on_device, 7.5, k)
        halves = np.split(states, 2) if guided else [states]
        predicted = [predict(expected, k.timestep, half) for half in halves]
        eps = predicted[0] + 7.5 * (predicted[-1] - predicted[0])
        x0 = k.p * expected + k.q * eps
        c = k.c if index else 0.0
        expected, x0_before = k.a * expected + k.b * x0 + c * x0_before, x0
    drawn = backend.to_host(latents)
    scale = np.abs(expected).max()
    assert np.abs(drawn - expected).max() <= 1e-4 * scale
    assert np.abs(drawn - x0_before).max() > 1e-2 * scale  # the control
    assert backend._loops["denoise_step", guided]._graph is not None  # it was captured and launched
    if module == "tensorrt_rtx":
        assert list((tmp_path / "cache").rglob("*.kernels"))


def test_an_engine_that_is_not_the_specs_is_refused(module, tmp_path):
    path = write_denoise_step(tmp_path / "model.onnx", "float16")
    target = built(path, specs("float16")["denoise_step"], module, "float16")

    from hbsdk.backends.cuda_device import CudaDevice
    from hbsdk.backends.tensorrt_engine import Engine, load_module

    other = specs("float32")["denoise_step"]
    with pytest.raises(EngineError, match=r"inputs and outputs of TensorRT engine denoise_step"):
        Engine(load_module(module), CudaDevice(), target, other, "build it")
    target.write_bytes(target.read_bytes()[:-1000])
    with pytest.raises(EngineError, match="TensorRT engine denoise_step"):
        Engine(
            load_module(module), CudaDevice(), target, specs("float16")["denoise_step"], "build it"
        )
