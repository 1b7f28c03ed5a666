"""Less computed on engines: the same pictures as in PyTorch, and graphs that are the UNet."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx", reason="building engines needs onnx and onnxscript")

import onnx

from export import parity, wrappers
from export.build_network import build_network
from hbsdk.backends.onnxruntime import OnnxRuntimeBackend, open_session
from hbsdk.backends.openvino import OpenVinoBackend
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder, open_engines
from hbsdk.engine_spec import SHALLOW_STEP
from hbsdk.errors import EngineError
from hbsdk.generate import Canvas, initial_noise
from hbsdk.network_sizes import network_sizes
from hbsdk.runtimes import runtime_version
from hbsdk.session import Session
from tests.plain_loop import PlainLoop
from tests.tiny_engines import tiny_recipe

PROMPT, STEPS, SCALE = "a photo of a cat in the snow", 8, 5.0
NOISE = initial_noise(0, 2, Canvas(channels=4, height=8, width=8))
STEP_NAMES = ("denoise_step", SHALLOW_STEP)


@pytest.fixture(scope="module")
def tiny_folder(tiny_bundle: Path, tiny_engines: Path) -> EngineFolder:
    runtimes = {"onnxruntime": runtime_version("onnxruntime")}
    return open_engines(
        tiny_engines, Bundle.open(tiny_bundle), runtimes=runtimes, compute_capability=None
    )


@pytest.fixture(scope="module")
def deep(tiny_bundle: Path, tmp_path_factory):
    """The UNet's graphs with deep features, compared with it on all legs while they are built."""
    folder = tmp_path_factory.mktemp("deep")
    line = 'runtime = "onnxruntime"'
    recipe = tiny_recipe(folder, **{line: f"{line}\ndeep_features = true"})
    bundle = Bundle.open(tiny_bundle)
    specs = recipe.specs(network_sizes(bundle))
    (folder / "unet").mkdir()
    row = build_network("unet", bundle, recipe, specs, folder)
    own = {name: spec for name, spec in specs.items() if spec.network == "unet"}
    return SimpleNamespace(folder=folder, specs=own, row=row, recipe=recipe)


@pytest.fixture(scope="module", params=[OnnxRuntimeBackend, OpenVinoBackend])
def session(request, tiny_bundle, tiny_folder, deep) -> Session:
    """On the tiny engines, with the UNet's graphs of those with deep features."""

    def path(spec, suffix=None) -> Path:
        if spec.name in deep.specs:
            return deep.folder / spec.file
        return tiny_folder.path(spec, suffix)

    engines = SimpleNamespace(
        specs={**tiny_folder.specs, **deep.specs}, path=path, manifest=tiny_folder.manifest,
        folder=tiny_folder.folder, command=tiny_folder.command,
    )  # fmt: skip
    session = Session(tiny_bundle, engine="torch", dtype="float32", progress=False)
    session.backend = request.param(session.bundle, engines)
    return session


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> PlainLoop:
    return PlainLoop(tiny_bundle)


def draw(session: Session, **settings) -> np.ndarray:
    given = {
        "num_inference_steps": STEPS, "guidance_scale": SCALE, "latents": NOISE,
        "num_images_per_prompt": 2, "output_type": "latent",
    }  # fmt: skip
    return np.stack(session.generate(PROMPT, **given | settings))


def apart(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    assert np.isfinite(one).all()
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize(
    ("settings", "guided", "whole"),
    [
        ({}, STEPS, None),
        ({"guidance_stop": 0.5}, 4, None),
        ({"guidance_stop": 0.0}, 0, None),
        ({"feature_interval": 2}, STEPS, (0, 2, 4, 6)),
        ({"guidance_stop": 0.5, "feature_interval": 3}, 4, (0, 3, 4, 7)),
    ],
)
def test_it_is_the_plain_loop(session, plain, settings, guided, whole):
    given = {"steps": STEPS, "scale": SCALE}
    drawn = draw(session, **settings)
    assert apart(drawn, plain.draw(PROMPT, NOISE, guided=guided, whole=whole, **given)) < 1e-4
    other = plain.draw(PROMPT, NOISE, guided=abs(guided - 1), whole=whole, **given)
    assert apart(drawn, other) > 1e-3
    if whole:
        other = plain.draw(PROMPT, NOISE, guided=guided, whole=None, **given)
        assert apart(drawn, other) > 1e-4


def test_engines_without_deep_features_do_all_else(tiny_bundle, tiny_engines, session):
    own = Session(tiny_bundle, engine="onnxruntime", engines=tiny_engines, progress=False)
    settings = {"guidance_stop": 0.5}
    assert apart(draw(own, **settings), draw(session, **settings)) < 1e-5
    assert np.array_equal(draw(own, guidance_stop=1.0, feature_interval=1), draw(own))
    with pytest.raises(
        EngineError, match=r"feature_interval.*deep_features = true.*build_engines.*engine='torch'"
    ):
        draw(own, feature_interval=2)


def test_after_the_end_of_guidance_no_array_goes_over_the_host(session, monkeypatch):
    copied = []
    original = session.backend.on_device
    monkeypatch.setattr(
        session.backend, "on_device", lambda array: copied.append(array.shape) or original(array)
    )
    draw(session, guidance_stop=0.5, feature_interval=2)
    # The text's states, the noise, and the noise twice for guidance; OpenVINO's is the host.
    assert copied[0] == (4, 77, 32)
    others = {"onnxruntime": [(2, 4, 8, 8), (4, 4, 8, 8)], "openvino": []}
    assert copied[1:] == others[session.backend.name]


def test_a_callback_may_replace_latents_on_the_way(session):
    seen = []

    def callback(_session, step, _time, values):
        seen.append(values["latents"].shape)
        return {"latents": values["latents"] * np.float32(0.5)} if step in (3, 4) else None

    settings = {"guidance_stop": 0.5, "feature_interval": 2}
    drawn = draw(session, callback_on_step_end=callback, **settings)
    assert seen == [NOISE.shape] * STEPS
    assert apart(drawn, draw(session, **settings)) > 1e-3


def test_the_three_graphs_share_the_unets_weights(deep, tiny_engines):
    assert set(deep.row.parity) == {"unet", *STEP_NAMES}
    files = sorted(path.name for path in (deep.folder / "unet").iterdir())
    assert files == [
        "denoise_step.onnx", "denoise_step_shallow.onnx", "model.onnx", "model.onnx_data"
    ]  # fmt: skip
    without, shared = (
        (folder / "unet" / "model.onnx_data").stat().st_size
        for folder in (tiny_engines, deep.folder)
    )
    assert shared <= 1.02 * without
    operators = {
        name: len(onnx.load(deep.folder / deep.specs[name].file, load_external_data=False)
                  .graph.node)
        for name in STEP_NAMES
    }  # fmt: skip
    assert operators[SHALLOW_STEP] < operators["denoise_step"] / 2


def test_the_builds_comparison_sees_a_changed_weight(deep, tiny_bundle, tmp_path):
    bundle, copy = Bundle.open(tiny_bundle), tmp_path / "unet"
    shutil.copytree(deep.folder / "unet", copy)
    data = bytearray((copy / "model.onnx_data").read_bytes())
    values = np.frombuffer(data, np.float32) * np.float32(1.05)
    parts = wrappers.load_networks("unet", bundle)
    for name in STEP_NAMES:
        spec = deep.specs[name]
        feeds = parity.cases(spec, bundle.scheduler_config(), 500)
        references = [parity.untouched(name, parts, one) for one in feeds]
        for changed in (False, True):
            (copy / "model.onnx_data").write_bytes(values.tobytes() if changed else data)
            running = open_session(tmp_path / spec.file, spec, ["CPUExecutionProvider"])
            names = [tensor.name for tensor in spec.outputs]

            def run(given, running=running, names=names):
                return dict(zip(names, running.run(None, given), strict=True))

            found = parity.compare(spec, "a test", run, feeds, references)
            if changed:
                with pytest.raises(EngineError, match=f"parity of engine {name}"):
                    parity.check(spec, "a test", "float32", found)
            else:
                parity.check(spec, "a test", "float32", found)
                assert found.relative_max_abs < 1e-5


def test_the_recipe_writes_the_line_only_where_it_is_asked_for(deep, tmp_path):
    plain = tiny_recipe(tmp_path)
    assert not plain.deep_features
    assert "deep" not in plain.to_toml()
    assert deep.recipe.to_toml() == plain.to_toml().replace(
        "opset = 20\n", "opset = 20\ndeep_features = true\n"
    )
    assert replace(deep.recipe, deep_features=False).hash == plain.hash != deep.recipe.hash
    line = 'runtime = "onnxruntime"'
    with pytest.raises(EngineError, match=r"deep_features in recipe.*true or false"):
        tiny_recipe(tmp_path, **{line: f'{line}\ndeep_features = "yes"'})
