"""Opens engine folders: only those whose manifest fits this bundle, these runtimes and this GPU.

An engine is used because its manifest matches, never because a file exists. Whoever can write into
a folder can also write its manifest, so open only engines that were built on this machine: a
TensorRT engine is native code. Importing this module imports no torch, onnx or runtime.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from hbsdk.bundle import Bundle
from hbsdk.engine_spec import NETWORKS, EngineSpec
from hbsdk.errors import EngineError
from hbsdk.manifest import (
    ENGINE_SUFFIX,
    ENGINES,
    MANIFEST,
    RECIPE,
    Manifest,
    Runtime,
    build_command,
    check_seal,
    engine_file,
    files_of,
    hash_of,
    machine_platform,
    read_manifest,
    read_object,
)
from hbsdk.manifest_rules import is_inside

_GRAPHS = (".onnx", ENGINE_SUFFIX)


@dataclass(frozen=True, eq=False)
class EngineFolder:
    """Engines that fit; each file is verified just before it is first used.

    Attributes:
        folder: of the engines.
        manifest: what they were built of and for.
        specs: by engine name.
        command: that builds them again.
    """

    folder: Path
    manifest: Manifest
    specs: Mapping[str, EngineSpec]
    command: str

    @property
    def remedy(self) -> str:
        """What an error about a file tells to do."""
        return f"Build the engines again: {self.command}"

    def path(self, spec: EngineSpec | str, suffix: str | None = None) -> Path:
        """Return an engine's file after checking all that is read with it.

        A graph's weights, the configuration and whatever else is in its folder are checked too,
        but for the other graphs there; a TensorRT engine holds its weights itself.

        Args:
            spec: of the engine, or its name.
            suffix: ".onnx" or ".engine"; None is what the manifest's runtime loads.

        Raises:
            EngineError: there is no such engine, or a file is missing, was changed, or was added.
        """
        name = spec if isinstance(spec, str) else spec.name
        if name not in self.specs:
            raise EngineError(
                f"engine {name} of {self.folder}",
                expected=", ".join(self.specs),
                got="none of that name",
                remedy=self.remedy,
            )
        if suffix is None:
            suffix = ".onnx" if self.manifest.runtime == "onnxruntime" else ENGINE_SUFFIX
        file = self.specs[name].file if suffix == ".onnx" else engine_file(self.specs[name])
        if file not in self.manifest.files:
            raise EngineError(
                f"engine {name} of {self.folder}",
                expected=file,
                got=f"no such file in its {MANIFEST}",
                remedy=self.remedy,
            )
        part = str(PurePosixPath(file).parent)
        self._check_same_files(part)
        for path in self._listed(part):
            is_weights = path.endswith(".onnx_data") and suffix == ENGINE_SUFFIX
            if path == file or not (path.endswith(_GRAPHS) or is_weights):
                self._check_hash(path)
        return self.folder / file

    def verify(self, part: str | None = None) -> None:
        """Check the files of one sub-folder, one file, or everything; each is hashed once.

        Args:
            part: such as "tokenizer" or "engines.json", as the manifest's paths begin.

        Raises:
            EngineError: it is in no manifest, or a file is missing, was changed, or was added.
        """
        listed = self._listed(part)
        if not listed:
            raise EngineError(
                f"{part} of {self.folder}",
                expected=f"files that {MANIFEST} lists",
                got="none",
                remedy=self.remedy,
            )
        if part not in self.manifest.files:
            self._check_same_files(part)
        for path in listed:
            self._check_hash(path)

    def _listed(self, part: str | None) -> list[str]:
        return [
            path
            for path in self.manifest.files
            if part is None or path == part or path.startswith(f"{part}/")
        ]

    def _check_same_files(self, part: str | None) -> None:
        """Refuse missing files and added ones: a library might load them."""
        found = set(files_of(self.folder, part or "", self.remedy))
        listed = set(self._listed(part))
        for path in sorted(listed - found):
            raise EngineError(
                f"{self.folder / path} is missing",
                expected=f"every file that {MANIFEST} lists",
                got="none",
                remedy=self.remedy,
            )
        for path in sorted(found - listed):
            raise EngineError(
                f"{self.folder / path} was added",
                expected=f"only files that {MANIFEST} lists",
                got=path,
                remedy=f"Remove it, or build the engines again: {self.command}",
            )

    def _check_hash(self, path: str) -> None:
        got = hash_of(self.folder / path, self.remedy)
        if got != self.manifest.files[path]:
            raise EngineError(
                f"{self.folder / path} was changed",
                expected=f"sha256 {self.manifest.files[path]}",
                got=got,
                remedy=self.remedy,
            )


def default_root() -> Path:
    """Return where engine folders are looked for: $HBSDK_ENGINES, or engines/built."""
    return Path(os.environ.get("HBSDK_ENGINES") or Path("engines", "built")).expanduser()


def open_engines(
    folder: Path,
    bundle: Bundle,
    *,
    runtimes: Mapping[Runtime, str],
    compute_capability: str | None,
    recipe_hash: str | None = None,
) -> EngineFolder:
    """Open an engine folder if it fits; files but engines.json and recipe.toml are hashed later.

    Args:
        folder: of engines.
        bundle: whose networks are to be run.
        runtimes: version by name of every runtime that may run them.
        compute_capability: of the GPU, such as "8.9"; None without one.
        recipe_hash: of the recipe they must have been built by; None takes any.

    Raises:
        EngineError: one field does not fit; it, both values and the command that mends it are told.
        BundleError: the bundle's files cannot be read.
    """
    # Which recipe is not known before the manifest is read, so its folder's name has to tell.
    command = build_command(bundle, folder.name.rpartition("-")[0] or None)
    manifest = read_manifest(folder, f"Build the engines again: {command}")
    command = build_command(bundle, manifest.recipe_name)
    remedy = f"Build the engines again: {command}"
    _check_same(folder, remedy, "bundle_hash", bundle.hash, manifest.bundle_hash)
    own_recipe = hash_of(folder / RECIPE, remedy)
    for expected in (recipe_hash or own_recipe, own_recipe):
        _check_same(folder, remedy, "recipe_hash", expected, manifest.recipe_hash)
    _check_runtime(folder, manifest, runtimes, bundle)
    _check_machine(folder, manifest, compute_capability, bundle)
    check_seal(folder, remedy)
    opened = EngineFolder(folder, manifest, MappingProxyType({}), command)
    opened._check_same_files(None)
    opened.verify(ENGINES)
    specs = _read_specs(folder, manifest, remedy)
    return EngineFolder(folder, manifest, MappingProxyType(specs), command)


def scan_engines(
    root: Path,
    bundle: Bundle,
    *,
    runtimes: Mapping[Runtime, str],
    compute_capability: str | None,
) -> list[tuple[Path, EngineFolder | EngineError]]:
    """Open every engine folder of a root, by name; of those that do not fit, tell why.

    Args:
        root: holds engine folders, or is one; where it is missing there are none.
        bundle: as of `open_engines`.
        runtimes: as of `open_engines`.
        compute_capability: as of `open_engines`.

    Raises:
        EngineError: the root is no folder, or cannot be read.
        BundleError: the bundle's files cannot be read.
    """
    found: list[tuple[Path, EngineFolder | EngineError]] = []
    for folder in _folders(root):
        try:
            opened = open_engines(
                folder, bundle, runtimes=runtimes, compute_capability=compute_capability
            )
        except EngineError as error:
            found.append((folder, error))
        else:
            found.append((folder, opened))
    return found


def _folders(root: Path) -> list[Path]:
    if (root / MANIFEST).is_file():
        return [root]
    try:
        entries = sorted(root.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EngineError(
            f"engines in {root}",
            expected="a folder that can be read",
            got=error.strerror,
            remedy="Pass the folder that holds them, or set HBSDK_ENGINES",
        ) from error
    # Folders with a dot are being built, or were left by a build that was killed.
    return [path for path in entries if path.is_dir() and not path.name.startswith(".")]


def _check_same(folder: Path, remedy: str, field: str, expected: str, got: str) -> None:
    if expected != got:
        raise EngineError(f"{field} of engines {folder}", expected=expected, got=got, remedy=remedy)


def _check_runtime(
    folder: Path, manifest: Manifest, runtimes: Mapping[Runtime, str], bundle: Bundle
) -> None:
    runtime, built_with = manifest.runtime, manifest.runtime_version
    if runtime not in runtimes:
        extra = {"onnxruntime": "cpu", "tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
        raise EngineError(
            f"runtime of engines {folder}",
            expected=f"one that may be used here: {_listing(runtimes)}",
            got=runtime,
            remedy=f'Install it: pip install "hbsdk[{extra[runtime]}]". Or build engines for '
            f"another: {build_command(bundle)}",
        )
    here = runtimes[runtime]
    # ONNX graphs load in any version, but only the one that parity was measured with is vouched for
    # up to its bug fixes. A TensorRT engine loads in the very version that built it alone.
    significant = 2 if runtime == "onnxruntime" else None
    if here.split(".")[:significant] != built_with.split(".")[:significant]:
        remedy = f"Build the engines again: {build_command(bundle, manifest.recipe_name)}"
        _check_same(folder, remedy, f"runtime_version ({runtime})", here, built_with)


def _check_machine(
    folder: Path, manifest: Manifest, compute_capability: str | None, bundle: Bundle
) -> None:
    remedy = f"Build the engines again: {build_command(bundle, manifest.recipe_name)}"
    if manifest.platform is not None:
        _check_same(folder, remedy, "platform", machine_platform(), manifest.platform)
    built_for = manifest.compute_capabilities
    if built_for and compute_capability not in built_for:
        raise EngineError(
            f"compute_capabilities of engines {folder}",
            expected=f"{compute_capability}, of the GPU here"
            if compute_capability
            else "none: there is no NVIDIA GPU here",
            got=_listing(built_for),
            remedy=f"{remedy} (with this GPU in the recipe's compute_capabilities)"
            if compute_capability
            else f"Build engines for ONNX Runtime: {build_command(bundle)}",
        )


def _read_specs(folder: Path, manifest: Manifest, remedy: str) -> dict[str, EngineSpec]:
    """Read engines.json, whose hash is known to be right, and check that its files are here."""
    path = folder / ENGINES
    try:
        specs = {
            name: EngineSpec.from_json(data) for name, data in read_object(path, remedy).items()
        }
        wrong = [
            name
            for name, spec in specs.items()
            if name != spec.name or spec.network not in NETWORKS or not is_inside(spec.file)
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EngineError(
            str(path), expected="EngineSpecs", got=f"{type(error).__name__}: {error}", remedy=remedy
        ) from error
    for name, spec in specs.items():
        if name in wrong or not {spec.file, engine_file(spec)} & set(manifest.files):
            raise EngineError(
                f"{name} in {path}",
                expected=f"an engine of one of {', '.join(NETWORKS)} with a file in {MANIFEST}",
                got=f"{spec.network} in {spec.file}",
                remedy=remedy,
            )
    return specs


def _listing(values: Iterable[str]) -> str:
    return ", ".join(values) or "none"
