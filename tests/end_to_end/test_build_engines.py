"""`export/build_engines.py`, for real: what it leaves, what it recognises, and how it fails."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export import build_network
from export.build_engines import Built, _summary, build
from export.picture import check_picture, picture_psnr_db
from export.recipe import THRESHOLDS
from export.wrappers import load_networks
from hbsdk.bundle import Bundle
from hbsdk.engine_spec import NETWORKS
from hbsdk.errors import EngineError
from tests.tiny_engines import tiny_recipe, write_tiny_recipe

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / "export" / "build_engines.py"
GRAPHS = {
    "image_features": "image_features/model.onnx",
    "regressor": "regressor/model.onnx",
    "text_encoder": "text_encoder/model.onnx",
    "token_embedding": "text_encoder/token_embedding.onnx",
    "text_encoder_embeds": "text_encoder/model_embeds.onnx",
    "unet": "unet/model.onnx",
    "denoise_step": "unet/denoise_step.onnx",
    "vae_encoder": "vae_encoder/model.onnx",
    "vae_decoder": "vae_decoder/model.onnx",
}
# What is not there cannot be imported.
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "onnx", "onnx_ir", "diffusers", "transformers"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(*arguments: object, without_torch: bool = False) -> subprocess.CompletedProcess:
    start = ["-c", WITHOUT_TORCH, str(SCRIPT)] if without_torch else [str(SCRIPT)]
    command = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=CHECKOUT)


def contents(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file, hidden ones too, but for the locks."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock-")
    }


def external_places(path: Path) -> dict[tuple[int, int], str]:
    """Return (offset, length) -> file of a graph's external tensors."""
    graph = onnx.load(str(path), load_external_data=False).graph
    places = {}
    for tensor in graph.initializer:
        if tensor.external_data:
            entry = {one.key: one.value for one in tensor.external_data}
            places[int(entry["offset"]), int(entry["length"])] = entry["location"]
    return places


def test_every_graph_was_compared_on_all_legs_and_a_picture_drawn(tiny_build: Built):
    manifest = json.loads((tiny_build.engines.folder / "manifest.json").read_text())
    picture = manifest["parity"].pop("picture")
    assert set(manifest["parity"]) == set(GRAPHS)
    most = THRESHOLDS["float32"].relative_max_abs
    for legs in manifest["parity"].values():
        assert list(legs) == ["onnxruntime", "wrapper"]
        for figures in legs.values():
            assert set(figures) == {"max_abs", "relative_max_abs", "cosine"}
            assert all(np.isfinite(list(figures.values())))
            assert 0.0 <= figures["relative_max_abs"] <= most
            assert 0.999999 < figures["cosine"] < 1.000001
    # Another program computes in another order, so a figure of just 0 would be no comparison.
    assert all(
        manifest["parity"][name]["onnxruntime"]["max_abs"] > 0 for name in ("unet", "regressor")
    )
    assert picture["psnr_db"] == manifest["image_psnr_db"] > 35.0 > picture["mirrored_psnr_db"]
    assert picture["num_inference_steps"] == 20
    assert picture["drawn_on"] == "onnxruntime, cpu"


def test_the_table_counts_what_the_networks_hold(tiny_build: Built, tiny_bundle, monkeypatch):
    bundle = Bundle.open(tiny_bundle)
    assert [row.network for row in tiny_build.rows] == list(NETWORKS)
    table = tiny_build.to_json()
    rows = {row["network"]: row for row in table["networks"]}
    unet = sum(weight.numel() for weight in bundle.load_unet().parameters())
    text = sum(weight.numel() for weight in bundle.load_text_encoder().parameters())
    assert (rows["unet"]["parameters"], rows["text_encoder"]["parameters"]) == (unet, text)
    files = (tiny_build.engines.folder / "unet").iterdir()
    assert rows["unet"]["size_bytes"] == sum(path.stat().st_size for path in files)
    assert 0.0 < sum(row["seconds"] for row in rows.values()) < table["seconds"]
    assert table["runtime"].startswith("onnxruntime ")
    assert json.loads(json.dumps(table)) == table
    assert 0.1 < table["peak_memory_gb"] < 100.0
    assert ", peak memory " in _summary(tiny_build)
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert tiny_build.to_json()["peak_memory_gb"] is None
    assert "peak" not in _summary(tiny_build)
    largest, cosine = tiny_build.rows[3].worst()
    legs = [tiny_build.rows[3].parity[name]["onnxruntime"] for name in ("unet", "denoise_step")]
    assert largest == max(leg["relative_max_abs"] for leg in legs)
    assert cosine == min(leg["cosine"] for leg in legs)


def test_the_same_build_again_is_recognised_without_pytorch(tiny_bundle, tiny_engines, tmp_path):
    root = tiny_engines.parent
    before = contents(root)
    recipe = write_tiny_recipe(tmp_path)
    again = run_script(
        "--bundle", tiny_bundle, "--recipe", recipe, "--out", root, without_torch=True
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"{tiny_engines} is up to date.\n"
    assert contents(root) == before
    # The control: any other build needs PyTorch, and what was there stays.
    write_tiny_recipe(tmp_path, **{"width_px = { min = 32": "width_px = { min = 40"})
    other = run_script(
        "--bundle", tiny_bundle, "--recipe", recipe, "--out", root, without_torch=True
    )
    assert other.returncode == 1
    assert contents(root) == before


def test_the_command_line_tells_how_it_is_used_and_what_is_wrong(tmp_path):
    shown = run_script("--help", without_torch=True)
    assert shown.returncode == 0
    assert "python export/build_engines.py" in shown.stdout
    assert "mini-cpu" in shown.stdout
    bad = run_script("--recipe", "mini-cqu", "--out", tmp_path / "out", without_torch=True)
    assert bad.returncode == 1
    assert bad.stderr.startswith("error: recipe mini-cqu: expected one of mini-cpu, ")
    assert "Did you mean mini-cpu?" in bad.stderr
    assert len(bad.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    lost = run_script("--bundle", tmp_path / "nowhere", "--recipe", "mini-cpu", without_torch=True)
    assert lost.returncode == 1
    assert "nowhere" in lost.stderr
    assert "Traceback" not in lost.stderr


@pytest.mark.parametrize("leg", ["wrapper", "onnxruntime"])
def test_a_network_that_is_too_far_off_ends_the_build(
    leg, tiny_bundle, tiny_engines, tmp_path, monkeypatch
):
    """A weight changes between the reference and the wrapper, or between that and the export."""
    root = tmp_path / "engines"
    older = root / tiny_engines.name
    shutil.copytree(tiny_engines, older)
    before = contents(root)
    module, name = {
        "wrapper": (build_network.wrappers, "wrap"),
        "onnxruntime": (build_network, "export_network"),
    }[leg]
    original = getattr(module, name)

    def perturbed(first, second, *rest, **options):
        engines = original(first, second, *rest, **options) if leg == "wrapper" else second
        (engine,) = engines.values()
        with torch.no_grad():
            next(weight for weight in engine.parameters() if weight.ndim == 4).mul_(1.05)
        return engines if leg == "wrapper" else original(first, second, *rest, **options)

    monkeypatch.setattr(module, name, perturbed)
    changed = tiny_recipe(tmp_path, **{"opt = 1, max = 3": "opt = 2, max = 3"})
    message = (
        rf"parity of engine image_features, float32, by {leg}: expected max-abs at most 0.0001"
    )
    with pytest.raises(EngineError, match=message):
        build(Bundle.open(tiny_bundle), changed, root, quiet=True)
    assert contents(root) == before
    with pytest.raises(EngineError, match=message):
        build(Bundle.open(tiny_bundle), changed, tmp_path / "empty", quiet=True)
    assert contents(tmp_path / "empty") == {}
    assert [path.name for path in (tmp_path / "empty").iterdir() if path.is_dir()] == []


def test_a_picture_that_is_too_far_off_is_refused():
    rng = np.random.default_rng(0)
    picture = rng.random((16, 16, 3)).astype(np.float32)
    noise = rng.standard_normal(picture.shape) / 100
    mean_square = np.square(noise).mean()
    assert picture_psnr_db(picture + noise, picture) == pytest.approx(
        10 * np.log10(1 / mean_square), abs=1e-3
    )
    assert picture_psnr_db(picture, picture) == 120.0
    check_picture(picture_psnr_db(picture + noise, picture))
    for wrong in (34.99, picture_psnr_db(picture[::-1], picture), float("nan")):
        with pytest.raises(EngineError, match="the picture that the engines draw: expected PSNR"):
            check_picture(wrong)


def interface(path: Path) -> dict[str, tuple[str, int]]:
    """Return (element type, rank) by tensor name, inputs before outputs."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {
        f"{side} {value.name}": (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower(),
            len(value.type.tensor_type.shape.dim),
        )
        for side, values in (("in", graph.input), ("out", graph.output))
        for value in values
    }


def test_the_layout_is_optimums_and_ours(tiny_engines):
    found = {name: interface(tiny_engines / file) for name, file in GRAPHS.items()}
    assert found["text_encoder"] == {
        "in input_ids": ("int64", 2), "out last_hidden_state": ("float", 3)
    }  # fmt: skip
    assert found["unet"] == {
        "in sample": ("float", 4), "in timestep": ("float", 0),
        "in encoder_hidden_states": ("float", 3), "out out_sample": ("float", 4),
    }  # fmt: skip
    assert found["vae_encoder"] == {
        "in sample": ("float", 4), "out latent_parameters": ("float", 4)
    }  # fmt: skip
    assert found["vae_decoder"] == {
        "in latent_sample": ("float", 4), "out sample": ("float", 4)
    }  # fmt: skip
    assert found["text_encoder_embeds"] == {
        "in inputs_embeds": ("float", 3), "out last_hidden_state": ("float", 3)
    }  # fmt: skip
    assert found["token_embedding"] == {
        "in input_ids": ("int64", 2), "out inputs_embeds": ("float", 3)
    }  # fmt: skip
    assert found["image_features"] == {
        "in pixels": ("float", 4), "out clip": ("float", 3), "out dino": ("float", 3)
    }  # fmt: skip
    assert found["regressor"] == {
        "in latents": ("float", 4), "in clip": ("float", 3), "in dino": ("float", 3),
        "out words": ("float", 3),
    }  # fmt: skip
    assert found["denoise_step"] == {
        "in sample": ("float", 4), "in timestep": ("float", 0),
        "in encoder_hidden_states": ("float", 3), "in previous_x0": ("float", 4),
        "in guidance": ("float", 2), "in coefficients": ("float", 1),
        "out next_sample": ("float", 4), "out x0": ("float", 4),
    }  # fmt: skip
    for file in GRAPHS.values():
        onnx.checker.check_model(str(tiny_engines / file))


def test_configurations_are_those_of_the_bundle(tiny_engines, tiny_bundle):
    theirs = {"vae_encoder": "vae", "vae_decoder": "vae"}
    for network in ("text_encoder", "unet", "vae_encoder", "vae_decoder", "regressor"):
        written = json.loads((tiny_engines / network / "config.json").read_text())
        source = tiny_bundle / theirs.get(network, network) / "config.json"
        assert written == json.loads(source.read_text())
    index = json.loads((tiny_engines / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    for file in ("tokenizer/tokenizer.json", "scheduler/scheduler_config.json"):
        assert (tiny_engines / file).read_bytes() == (tiny_bundle / file).read_bytes()


@pytest.mark.parametrize("network", ["text_encoder", "unet"])
def test_weights_are_stored_once_and_shared(network, tiny_engines, tiny_bundle):
    graphs = [path for name, path in GRAPHS.items() if path.startswith(f"{network}/")]
    places = [external_places(tiny_engines / path) for path in graphs]
    assert {name for one in places for name in one.values()} == {"model.onnx_data"}
    union = sorted({place for one in places for place in one})
    size = (tiny_engines / network / "model.onnx_data").stat().st_size
    assert size == union[-1][0] + union[-1][1]
    ends = [offset + length for offset, length in union]
    starts = [offset for offset, _ in union]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))  # no overlap
    assert all(offset % 4096 == 0 for offset in starts)
    (part,) = load_networks(network, Bundle.open(tiny_bundle)).values()
    weights = 4 * sum(weight.numel() for weight in part.parameters())
    stored = sum(length for _, length in union)
    # Once, but for small tensors, which lie in the graphs; all of them twice would be 2.
    assert 0.9 * weights < stored < 1.05 * weights
    alone = [sum(length for _, length in one) for one in places]
    assert sum(alone) > 1.5 * stored  # what graphs that do not share would take
    if network == "unet":
        assert set(places[0]) == set(places[1])


def test_graphs_name_no_place_of_the_machine_that_exported_them(tiny_engines, tiny_bundle):
    places = [str(CHECKOUT), str(Path.home()), sys.prefix, str(tiny_bundle), str(tiny_engines)]
    texts = [text.encode() for text in (*places, "site-packages", "/work/", ".py")]
    graphs = [tiny_engines / file for file in GRAPHS.values()]
    for path in (*graphs, *tiny_engines.rglob("*.json"), tiny_engines / "recipe.toml"):
        data = path.read_bytes()
        assert [text for text in texts if text in data] == [], path
    # The control: the exporter itself writes them down.
    plain = torch.onnx.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),), verbose=False)
    assert b"site-packages" in plain.model_proto.SerializeToString()
