"""Writes what makes a folder a bundle: hbsdk.json and diffusers' model_index.json. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hbsdk.bundle_check import sizes_of
from hbsdk.bundle_info import (
    COMPONENTS,
    MANIFEST,
    ROOT_FILES,
    BundleInfo,
    listable_files,
    read_info,
    read_json,
    sha256_of,
)
from hbsdk.errors import BundleError
from hbsdk.whole_file import write_whole


def write_manifest(folder: Path, info: BundleInfo) -> BundleInfo:
    """Write hbsdk.json with the sha256 of every file of the bundle; return what it says.

    Args:
        folder: holds the components' folders and model_index.json.
        info: all but `files` and what the networks' configurations tell, which are filled in here.

    Raises:
        BundleError: a field of `info` has no meaning, or a configuration lacks a size.
    """
    paths = [name for name in ROOT_FILES if (folder / name).is_file()]
    paths += [path for name in COMPONENTS for path in listable_files(folder, name)]
    components = {name: folder / name for name in COMPONENTS if (folder / name).is_dir()}
    complete = replace(
        info,
        **sizes_of(components),
        files={path: sha256_of(folder / path) for path in sorted(paths)},
    )
    _write_json(folder / MANIFEST, asdict(complete))
    return read_info(folder)


def write_model_index(folder: Path) -> None:
    """Write model_index.json, by which diffusers opens the bundle as plain Stable Diffusion.

    Raises:
        BundleError: the scheduler's configuration is missing or names no class.
    """
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json").get("_class_name")
    if not isinstance(scheduler, str):
        raise BundleError(f"_class_name in {folder}/scheduler", expected="a diffusers scheduler")
    nothing: list[str | None] = [None, None]
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": version("diffusers"),
        "feature_extractor": nothing,
        "image_encoder": nothing,  # the folder is ours: diffusers' is an IP-Adapter's
        "requires_safety_checker": False,
        "safety_checker": nothing,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys, whole or not at all."""
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
    write_whole(path, f"{text}\n".encode())
