"""Finds a bundle's files in local folders or on the hub; fetches no pickle, imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hbsdk.bundle_info import COMPONENTS, MANIFEST, REQUIRED, ROOT_FILES
from hbsdk.errors import BundleError

Source = str | os.PathLike[str]

SD15_CONFIG = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # its configs fit the whole family
_SHARD = "-?????-of-?????"
_LOADED_FILES = (
    "*.json",
    "*.txt",
    *(
        f"{stem}{shard}.safetensors"
        for stem in ("model", "diffusion_pytorch_model")
        for shard in ("", _SHARD)
    ),
)
_CONFIG_FILES = ("*.json", "*.txt")


def find_bundle(source: Source) -> Path:
    """Return the folder of a whole bundle: local, or fetched from the hub.

    Raises:
        BundleError: there is no such folder, and the hub has no such id or cannot be reached.
    """
    patterns = (*_in_folders(_LOADED_FILES, COMPONENTS), *ROOT_FILES, MANIFEST)
    return _local(source) or _fetch(source, patterns)


def find_configs(source: Source | None) -> Path:
    """Return a diffusers folder whose configurations (no weights) describe a single file."""
    patterns = (*_in_folders(_CONFIG_FILES, REQUIRED), "model_index.json")
    source = SD15_CONFIG if source is None else source
    try:
        return _local(source) or _fetch(source, patterns)
    except BundleError as error:
        raise BundleError(
            "configurations of a single-file checkpoint",
            expected="a diffusers folder of the SD 1.5 family (its JSON and text files are enough)",
            got=str(error),
            remedy="Pass compose(config=FOLDER), or go online once to fetch the public ones",
        ) from error


def find_piece(source: Source, component: str) -> tuple[Path, Path | None]:
    """Return a component's folder, and the folder of the bundle it is in, if it is in one.

    Args:
        source: a folder that is the component (`config.json` in it), or one that has it as a
            sub-folder, or a hub id of either.
        component: one of COMPONENTS.

    Raises:
        BundleError: it is nowhere.
    """
    patterns = (*_LOADED_FILES, *_in_folders(_LOADED_FILES, (component,)), MANIFEST)
    folder = _local(source) or _fetch(source, patterns)
    if (folder / component).is_dir():
        return folder / component, folder if (folder / MANIFEST).exists() else None
    if (folder / "config.json").is_file():
        is_inside = folder.name == component and (folder.parent / MANIFEST).exists()
        return folder, folder.parent if is_inside else None
    raise BundleError(
        f"{component} in {folder}",
        expected=f"config.json, or a sub-folder {component}",
        got="neither",
        remedy="Pass the folder that save_pretrained() wrote",
    )


def _in_folders(patterns: Iterable[str], components: Iterable[str]) -> list[str]:
    kept = tuple(patterns)
    return [f"{component}/{pattern}" for component in components for pattern in kept]


def _local(source: Source) -> Path | None:
    """The folder a source names, or None if it can only be a hub id."""
    text = os.fspath(source)
    path = Path(os.path.expanduser(text))
    if text and path.is_dir():
        return path
    is_path = isinstance(source, os.PathLike) or text.count("/") != 1 or text[0] in "./~"
    if is_path or path.is_file() or "\\" in text:
        raise BundleError(
            f"bundle {text!r}",
            expected="a folder, or a hub id such as 'owner/name'",
            got="a file" if path.is_file() else "no such folder",
            remedy="Check the path; a single .safetensors file goes through Bundle.compose(base=)",
        )
    return None


def _fetch(source: Source, patterns: Iterable[str]) -> Path:
    """Fetch a hub id's files, or find them in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    name = os.fspath(source)
    try:
        return Path(snapshot_download(name, allow_patterns=sorted(set(patterns))))
    except (HFValidationError, RepositoryNotFoundError) as error:
        got = "neither a folder here nor an id the hub shows you"
        remedy = "Check the spelling; for a private or gated one, log in with `hf auth login`"
        raise BundleError(f"bundle {name!r}", got=got, remedy=remedy) from error
    except Exception as error:  # each version of the hub's client has other network errors
        raise BundleError(
            f"bundle {name!r}",
            expected="a folder here, or a hub id that is cached or can be fetched",
            got=f"{type(error).__name__}: {str(error).strip()[:200]}",
            remedy="Go online, unset HF_HUB_OFFLINE, or pass a local folder",
        ) from error
