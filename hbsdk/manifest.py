"""What an engine folder says of itself: manifest.json, written last and read strictly.

    engines/built/<recipe>-<first 12 of the bundle's hash>/
        manifest.json       what the engines were built of and for; sha256 of every other file
        engines.json        the EngineSpecs, {name: EngineSpec.to_json()}
        recipe.toml         the recipe in canonical form: its sha256 is the recipe's hash
        tokenizer/ scheduler/ unet/ ...

Importing this module imports no torch, onnx or runtime.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform as platform_module
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from hbsdk.bundle import MINI, Bundle
from hbsdk.bundle_info import read_json, sha256_of, shown
from hbsdk.engine_spec import EngineSpec, Precision
from hbsdk.errors import BundleError, EngineError
from hbsdk.manifest_rules import MANIFEST, SCHEMA, SEAL, Runtime, check_fields
from hbsdk.whole_file import write_whole

__all__ = [
    "ENGINES", "ENGINE_SUFFIX", "MANIFEST", "RECIPE", "SCHEMA", "Manifest", "Runtime",
    "build_command", "check_seal", "engine_file", "files_of", "folder_name", "hash_of",
    "machine_platform", "read_manifest", "read_object", "write_manifest",
]  # fmt: skip

ENGINES = "engines.json"
RECIPE = "recipe.toml"
ENGINE_SUFFIX = ".engine"
"""A TensorRT engine lies beside its ONNX graph and differs from it in this suffix."""

# What file managers leave in any folder that is looked at, and nothing ever loads.
_STRAY_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_BUILD = "Build the engines: python export/build_engines.py"


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Attributes:
        bundle_name: for people.
        bundle_hash: `Bundle.hash` of the bundle whose networks these are.
        recipe_name: of the recipe.
        recipe_hash: sha256 of the folder's recipe.toml, which is the recipe as parsed and written
            anew: neither comments nor the order of keys count, every default does.
        runtime: that runs the engines.
        runtime_version: that they were built with.
        opset: of the ONNX graphs.
        precision: by network, of those in the folder.
        compute_capabilities: GPUs the engines run on, such as "8.9"; empty for onnxruntime.
        providers: ONNX Runtime's execution providers that the recipe is for, best first; empty for
            TensorRT.
        platform: `machine_platform()` for tensorrt, whose engines run on no other; else None
            (TensorRT-RTX engines run on Windows and Linux alike).
        seconds: that the build took.
        parity: figures by engine, free but finite.
        image_psnr_db: of a whole image against PyTorch's; None where none was drawn.
        hbsdk_version: that built it; for people.
        created: UTC, ISO 8601.
        files: lower-case sha256 of every file but manifest.json, by relative path, `/` between.
        schema: version of this list of fields.
    """

    bundle_name: str
    bundle_hash: str
    recipe_name: str
    recipe_hash: str
    runtime: Runtime
    runtime_version: str
    opset: int
    precision: Mapping[str, Precision]
    compute_capabilities: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    platform: str | None = None
    seconds: float = 0.0
    parity: Mapping[str, Any] = field(default_factory=dict)
    image_psnr_db: float | None = None
    hbsdk_version: str = ""
    created: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


def machine_platform() -> str:
    """Return the operating system and processor that engines are built on, "linux-x86_64"."""
    machine = platform_module.machine().lower()
    return f"{sys.platform}-{ {'amd64': 'x86_64', 'arm64': 'aarch64'}.get(machine, machine) }"


def folder_name(recipe_name: str, bundle_hash: str) -> str:
    """Return the name of an engine folder.

    It names the bundle and not the recipe's hash: building again with a changed recipe or another
    runtime replaces the folder, so that no stale ones pile up.
    """
    return f"{recipe_name}-{bundle_hash[:12]}"


def engine_file(spec: EngineSpec) -> str:
    """Return the path of a spec's TensorRT engine, relative to the engine folder."""
    return PurePosixPath(spec.file).with_suffix(ENGINE_SUFFIX).as_posix()


def build_command(bundle: Bundle, recipe_name: str | None = None) -> str:
    """Return the command that builds a bundle's engines by a recipe, or by this machine's."""
    parts = ["python", "export/build_engines.py"]
    if bundle.folder is None:
        parts += ["--bundle", "BUNDLE"]  # composed of several places: no one path names it
    elif bundle.folder != MINI:
        parts += ["--bundle", shlex.quote(str(bundle.folder))]
    if recipe_name is not None:
        parts += ["--recipe", shlex.quote(recipe_name)]
    return " ".join(parts)


def write_manifest(folder: Path, manifest: Manifest, specs: Mapping[str, EngineSpec]) -> Manifest:
    """Write engines.json and then manifest.json, the last step of a build; return what it says.

    Args:
        folder: complete but for these two files; its recipe.toml is the recipe's canonical text.
        manifest: all but `files`, `created` and `hbsdk_version`, which are filled in here.
        specs: of every engine in the folder.

    Raises:
        EngineError: a field has no meaning, a figure is not finite, an engine has no file, the
            folder holds a link, or a file cannot be read.
        OSError: a file cannot be written; `export.build_folder` tells when the disk is full.
    """
    described = {name: spec.to_json() for name, spec in specs.items()}
    _write_json(folder / ENGINES, described)
    complete = replace(
        manifest,
        files={path: hash_of(folder / path) for path in files_of(folder)},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        hbsdk_version=version("hbsdk"),
    )
    for spec in specs.values():
        if not {spec.file, engine_file(spec)} & set(complete.files):
            raise EngineError(f"{folder / spec.file} is missing", remedy=_BUILD)
    if complete.files.get(RECIPE) != complete.recipe_hash:
        raise EngineError(
            f"recipe_hash of {folder}",
            expected=f"{complete.files.get(RECIPE)}, sha256 of its {RECIPE}",
            got=complete.recipe_hash,
        )
    fields_here = {entry.name: getattr(complete, entry.name) for entry in fields(complete)}
    for key in ("precision", "parity"):
        fields_here[key] = dict(fields_here[key])
    path = folder / MANIFEST
    data = json.loads(_to_json(fields_here, path))
    data[SEAL] = _seal(data)
    check_fields(data, path, _BUILD)
    _write_json(path, data)
    return complete


def read_manifest(folder: Path, remedy: str = _BUILD) -> Manifest:
    """Read an engine folder's manifest.json; what it says is not compared with anything here.

    Args:
        folder: of engines.
        remedy: what an error tells to do.

    Raises:
        EngineError: it is missing, not JSON, of another schema, lacks or adds a key, holds a wrong
            type, or names a path outside of the folder.
    """
    path = folder / MANIFEST
    data = read_object(path, remedy)
    check_fields(data, path, remedy)
    del data[SEAL]
    lists = {key: tuple(data[key]) for key in ("compute_capabilities", "providers")}
    return Manifest(**data | lists)


def check_seal(folder: Path, remedy: str = _BUILD) -> None:
    """Refuse a manifest.json that is not as `write_manifest` wrote it.

    Raises:
        EngineError: it was changed, which its own sha256 shows.
    """
    data = read_object(folder / MANIFEST, remedy)
    if data.get(SEAL) != _seal(data):
        raise EngineError(
            f"{folder / MANIFEST} was changed",
            expected=f"{SEAL} {_seal(data)}",
            got=shown(data.get(SEAL)),
            remedy=remedy,
        )


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object of an engine folder.

    Raises:
        EngineError: the file is missing, too large, or holds no JSON object.
    """
    try:
        return read_json(path)
    except BundleError as error:
        raise EngineError(
            error.what, expected=error.expected, got=error.got, remedy=remedy
        ) from error


def hash_of(path: Path, remedy: str = _BUILD) -> str:
    """Return a file's sha256, remembered in this process while its time and size stay.

    Raises:
        EngineError: it is a link, which could be turned elsewhere, or cannot be read.
    """
    if path.is_symlink():
        raise EngineError(str(path), expected="an ordinary file", got="a link", remedy=remedy)
    try:
        return sha256_of(path)
    except BundleError as error:
        raise EngineError(error.what, got=error.got, remedy=remedy) from error


def files_of(folder: Path, part: str = "", remedy: str = _BUILD) -> list[str]:
    """Return the relative paths of all that a manifest lists, sorted.

    Args:
        folder: of engines.
        part: only of this sub-folder.
        remedy: what an error tells to do.

    Raises:
        EngineError: the folder cannot be read.
    """
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise EngineError(f"{folder} cannot be read", got=error.strerror, remedy=remedy) from error

    for place, folders, names in os.walk(folder / part, onerror=refuse):
        # A link to a folder is listed as if it were a file, and so refused: os.walk passes it by.
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [
            Path(place, name).relative_to(folder).as_posix()
            for name in (*names, *links)
            if name not in _STRAY_FILES
        ]
    return sorted(path for path in found if path != MANIFEST)


def _seal(data: Mapping[str, Any]) -> str:
    """The sha256 of the other fields, by which a change of manifest.json itself shows."""
    others = {key: value for key, value in data.items() if key != SEAL}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


def _to_json(data: Mapping[str, Any], path: Path) -> str:
    try:
        return json.dumps(data, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EngineError(
            str(path), expected="finite numbers, texts, lists and objects", got=str(error)
        ) from error


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys, whole or not at all."""
    write_whole(path, f"{_to_json(data, path)}\n".encode())
