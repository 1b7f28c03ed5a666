"""Writes engine folders of the right layout whose graphs are only bytes, never to be loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.recipe import Recipe, read_recipe
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder, open_engines
from hbsdk.manifest import (
    RECIPE,
    Manifest,
    Runtime,
    engine_file,
    machine_platform,
    write_manifest,
)
from hbsdk.network_sizes import network_sizes

VERSIONS: dict[Runtime, str] = {
    "onnxruntime": "1.31.0",
    "tensorrt_rtx": "1.7.1.116",
    "tensorrt": "10.3.0.30",
}
CAPABILITY = "8.9"
_RECIPES = {
    "onnxruntime": "mini-cpu",
    "tensorrt_rtx": "mini-tensorrt-rtx",
    "tensorrt": "sd15-tensorrt",
}


def write_engine_files(folder: Path, recipe: Recipe, bundle: Bundle, mark: str = "") -> None:
    """Write every file but engines.json and manifest.json; `mark` makes them differ."""
    for spec in recipe.specs(network_sizes(bundle)).values():
        home = folder / spec.network
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.json").write_text("{}")
        (home / "model.onnx_data").write_bytes(b"weights of " + spec.network.encode())
        (folder / spec.file).write_bytes(f"graph of {spec.name}{mark}".encode())
        if recipe.runtime != "onnxruntime":
            (folder / engine_file(spec)).write_bytes(f"engine of {spec.name}{mark}".encode())
    for name in ("tokenizer/tokenizer.json", "scheduler/scheduler_config.json"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("{}")
    (folder / "model_index.json").write_text("{}")
    (folder / RECIPE).write_bytes(recipe.to_toml().encode())


def manifest_of(recipe: Recipe, bundle: Bundle) -> Manifest:
    is_engine = recipe.runtime != "onnxruntime"
    return Manifest(
        bundle_name=bundle.info.name,
        bundle_hash=bundle.hash,
        recipe_name=recipe.name,
        recipe_hash=recipe.hash,
        runtime=recipe.runtime,
        runtime_version=VERSIONS[recipe.runtime],
        opset=recipe.opset,
        precision=recipe.precision,
        compute_capabilities=("8.6", CAPABILITY) if is_engine else (),
        providers=recipe.onnxruntime.providers if recipe.onnxruntime else (),
        platform=machine_platform() if recipe.runtime == "tensorrt" else None,
        seconds=1.5,
        parity={"unet": {"max_abs": 1e-6, "cosine": 1.0}},
        image_psnr_db=60.0,
    )


def write_engines(
    folder: Path, bundle: Bundle, runtime: Runtime = "onnxruntime", mark: str = "", **changes: Any
) -> Path:
    """Write a whole engine folder; `changes` replace fields of its manifest."""
    recipe = read_recipe(_RECIPES[runtime])
    folder.mkdir(parents=True, exist_ok=True)
    write_engine_files(folder, recipe, bundle, mark)
    specs = recipe.specs(network_sizes(bundle))
    write_manifest(folder, replace(manifest_of(recipe, bundle), **changes), specs)
    return folder


def reopen(folder: Path, bundle: Bundle, **changes: Any) -> EngineFolder:
    """Open a folder on a machine that has every runtime, and a GPU, but for what `changes` say."""
    here: dict[str, Any] = {"runtimes": VERSIONS, "compute_capability": CAPABILITY} | changes
    return open_engines(folder, bundle, **here)


def change_manifest(folder: Path, **changes: Any) -> None:
    """Edit manifest.json by hand."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
