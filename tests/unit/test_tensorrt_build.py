"""TensorRT for RTX builds engines for real, here, without a GPU; and what it refuses is told."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from export import to_tensorrt
from export.check_tensorrt import check_interface, check_precision, weights_by_type
from export.to_tensorrt import (
    TensorRTSettings,
    build_engine,
    read_timing_cache,
    write_timing_cache,
)
from hbsdk.backends.tensorrt_engine import load_module, logger
from hbsdk.engine_spec import Axis, EngineSpec
from hbsdk.errors import EngineError, MissingDependencyError, OptionError
from tests.small_denoise_step import specs, write_denoise_step

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

SETTINGS = TensorRTSettings(
    "tensorrt_rtx", ("8.6", "8.9"), workspace_mib=256, builder_optimization_level=0
)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    return write_denoise_step(tmp_path_factory.mktemp("half") / "model.onnx", "float16")


@pytest.fixture
def spec() -> EngineSpec:
    return specs("float16")["denoise_step"]


def build(path: Path, spec: EngineSpec, target: Path, settings=SETTINGS, precision="float16"):
    return build_engine(path, spec, target, settings, precision=precision, progress=False)


def parsed(path: Path):
    """The network with what keeps it alive."""
    builder = trt.Builder(logger(trt))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger(trt))
    assert parser.parse_from_file(str(path))
    return network, parser, builder


def test_an_engine_is_built(graph, spec, tmp_path):
    target = tmp_path / "deep" / "denoise_step.engine"
    figures = build(graph, spec, target)
    assert figures.engine_bytes == target.stat().st_size > 1000
    assert figures.runtime_version == trt.__version__
    assert figures.layers > 10
    assert figures.seconds > 0
    assert [path.name for path in target.parent.iterdir()] == ["denoise_step.engine"]
    # The header is TensorRT's own; without a GPU nothing more can be asked of the file.
    header = target.read_bytes()[: trt.Runtime(logger(trt)).engine_header_size]
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    assert not trt.Runtime(logger(trt)).get_engine_validity(header)[1] & malformed
    assert trt.Runtime(logger(trt)).get_engine_validity(bytes(len(header)))[1] & malformed


@pytest.mark.slow
def test_a_unet_of_diffusers_is_built(tmp_path):
    import torch
    from diffusers import UNet2DConditionModel

    from export.to_onnx import export_network
    from export.wrappers import DenoiseStepEngine

    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), mid_block_type=None,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=8,
        attention_head_dim=2,
    )  # fmt: skip
    spec = specs("float16")["denoise_step"]
    engines = {"denoise_step": DenoiseStepEngine(unet.to(torch.float16))}
    export_network(tmp_path, engines, {"denoise_step": spec}, opset=20)
    figures = build(tmp_path / spec.file, spec, tmp_path / "denoise_step.engine")
    assert figures.layers > 100
    network, *_kept = parsed(tmp_path / spec.file)
    weights = weights_by_type(trt, network)
    mine = sum(weight.numel() for weight in unet.parameters())
    assert weights["HALF"] == pytest.approx(mine, rel=0.2)  # the parser duplicates and folds some
    assert weights["FLOAT"] < 0.02 * mine


def test_a_precision_that_the_graph_has_not_is_refused(graph, spec, tmp_path):
    target = tmp_path / "model.engine"
    single = write_denoise_step(tmp_path / "single.onnx", "float32")
    # The small graph's sixteen weights and its float32 constant would drown each other.
    counts = weights_by_type(trt, parsed(graph)[0]), weights_by_type(trt, parsed(single)[0])
    assert [max(count, key=count.get) for count in counts] == ["HALF", "FLOAT"]
    with pytest.raises(EngineError, match=r"precision of engine denoise_step: expected float32"):
        build(graph, spec, target, precision="float32")
    # A float32 graph does not have the spec's text states; where it does, its weights tell.
    with pytest.raises(EngineError, match="encoder_hidden_states FLOAT"):
        build(single, spec, target)
    network = parsed(single)[0]
    check_interface(network, specs("float32")["denoise_step"])
    with pytest.raises(EngineError, match=r"17 weights in FLOAT.*Export the network in that"):
        check_precision(trt, network, spec, "float16")
    check_precision(trt, network, spec, "float32")
    assert not target.exists()


def test_a_corrupt_graph_is_told(graph, spec, tmp_path):
    data = graph.read_bytes()
    for content in (b"", b"not a graph", data[: len(data) // 2], data[:-7]):
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        with pytest.raises(EngineError, match=r"bad\.onnx of engine denoise_step|inputs of"):
            build(path, spec, tmp_path / "model.engine")
    with pytest.raises(EngineError, match="absent"):
        build(tmp_path / "absent.onnx", spec, tmp_path / "model.engine")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


def test_an_unsupported_operator_is_named(spec, tmp_path):
    path = write_denoise_step(tmp_path / "model.onnx", "float16", operator="Det")
    with pytest.raises(EngineError, match=r"Det node 'make_passed'.*UNSUPPORTED_NODE") as caught:
        build(path, spec, tmp_path / "model.engine")
    assert "ONNX Runtime" in caught.value.remedy
    path = write_denoise_step(tmp_path / "model.onnx", "float16", operator="NoSuchOperator")
    with pytest.raises(EngineError, match=r"NoSuchOperator node 'make_passed': .*Plugin not found"):
        build(path, spec, tmp_path / "model.engine")


def test_a_graph_with_other_tensors_is_refused(graph, spec, tmp_path):
    renamed = replace(spec, inputs=(replace(spec.inputs[0], name="latents"), *spec.inputs[1:]))
    wider = replace(spec, inputs=(replace(spec.inputs[0], shape=("rows", 5, "height", "width")),
                                  *spec.inputs[1:]))  # fmt: skip
    fewer = replace(spec, outputs=spec.outputs[:1])
    for other, side in ((renamed, "inputs"), (wider, "inputs"), (fewer, "outputs")):
        with pytest.raises(EngineError, match=f"{side} of the graph for engine denoise_step"):
            build(graph, other, tmp_path / "model.engine")
    assert list(tmp_path.iterdir()) == []


def test_the_profile_is_the_specs_axes(graph, spec, tmp_path):
    builder = trt.Builder(logger(trt))
    profile = builder.create_optimization_profile()
    to_tensorrt._fill_profile(profile, spec)
    shapes = [tuple(map(tuple, profile.get_shape(name))) for name in ("sample", "guidance")]
    assert shapes[0] == ((1, 4, 8, 8), (2, 4, 8, 8), (6, 4, 16, 16))
    assert shapes[1] == ((1, 1), (2, 2), (6, 6))
    # What is outside of it is refused before TensorRT sees it.
    for shape in ((7, 4, 8, 8), (2, 4, 9, 8), (2, 4, 8, 18), (2, 3, 8, 8)):
        with pytest.raises(EngineError, match="of engine denoise_step"):
            spec.axes_of({"sample": shape})
    assert spec.axes_of({"sample": (6, 4, 16, 8)}) == {"rows": 6, "height": 16, "width": 8}
    turned = replace(spec, axes={**spec.axes, "rows": Axis(4, 2, 1)})
    with pytest.raises(EngineError, match=r"shapes of engine denoise_step.*MIN<=OPT<=MAX"):
        build(graph, turned, tmp_path / "model.engine")


def test_gpus_that_it_cannot_build_for(graph, spec, tmp_path):
    target = tmp_path / "model.engine"
    for text in ("9.0", "none", "8"):
        settings = replace(SETTINGS, compute_capabilities=(text,))
        with pytest.raises(EngineError, match=rf"8\.6, 8\.9.*current, got {text}"):
            build(graph, spec, target, settings)
    assert not target.exists()


def test_the_module_must_be_there(graph, spec, tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="tensorrt_rtx or tensorrt"):
        load_module("os")
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"hbsdk\[tensorrt\]"):
        build(graph, spec, tmp_path / "model.engine", replace(SETTINGS, module="tensorrt"))


def test_ctrl_c_stops_the_build_and_leaves_nothing(graph, spec, tmp_path, monkeypatch):
    target = tmp_path / "model.engine"
    target.write_bytes(b"from before")
    monitors = []
    new_monitor = to_tensorrt._new_monitor
    monkeypatch.setattr(
        to_tensorrt, "_new_monitor", lambda trt: monitors.append(new_monitor(trt)) or monitors[-1]
    )

    def press(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(to_tensorrt, "_draw", press)
    with pytest.raises(KeyboardInterrupt):
        build(graph, spec, target)
    assert monitors[0].cancelled.is_set()
    assert target.read_bytes() == b"from before"
    assert [path.name for path in tmp_path.iterdir()] == ["model.engine"]


def test_a_cancelled_monitor_stops_tensorrt(graph, spec, tmp_path, monkeypatch):
    new_monitor = to_tensorrt._new_monitor

    def cancelled(trt):
        monitor = new_monitor(trt)
        monitor.cancelled.set()
        return monitor

    monkeypatch.setattr(to_tensorrt, "_new_monitor", cancelled)
    with pytest.raises(EngineError, match="to build it"):
        build(graph, spec, tmp_path / "model.engine")
    assert list(tmp_path.iterdir()) == []


def test_progress_shows_phases_and_elapsed_time(graph, spec, tmp_path, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(to_tensorrt, "_POLL_S", 0.001)
    draw = to_tensorrt._draw
    monkeypatch.setattr(to_tensorrt, "_draw", lambda *args: (shown.append(args[2]), draw(*args)))
    build_engine(graph, spec, tmp_path / "model.engine", SETTINGS, precision="float16")
    text = capsys.readouterr().err
    assert "denoise_step" in text
    assert "[00:0" in text
    assert "%" not in text
    assert any(shown)


def test_a_full_disk_leaves_nothing(graph, spec, tmp_path, monkeypatch):
    target = tmp_path / "model.engine"
    target.write_bytes(b"from before")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="No space"):
        build(graph, spec, target)
    assert target.read_bytes() == b"from before"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_timing_cache_is_read_and_written(tmp_path):
    # In TensorRT for RTX the cache is a deprecated stub; its calls are `tensorrt`'s all the same.
    path = tmp_path / "shared" / "timing.cache"
    config = trt.Builder(logger(trt)).create_builder_config()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for content in (None, b"", b"damaged"):
            if content is not None:
                path.write_bytes(content)
            read_timing_cache(config, path)
            write_timing_cache(config, path)
            assert path.stat().st_size > 100
        read_timing_cache(config, path)
    assert [one.name for one in path.parent.iterdir()] == ["timing.cache"]
