"""What a bundle says of itself: hbsdk.json, read strictly; sha256s of its files. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from hbsdk.errors import BundleError, HbsdkError

SCHEMA = 1
MANIFEST = "hbsdk.json"
REQUIRED = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")  # plain Stable Diffusion
COMPONENTS = (*REQUIRED, "image_encoder", "dino", "regressor")
ROOT_FILES = ("model_index.json", "clip_projections.safetensors")
MAX_WORDS = 75  # what 77 tokens leave between the first and the last

_MAX_JSON_BYTES = 4 << 20
_CHUNK_BYTES = 4 << 20
# The files diffusers and transformers load; variants (fp16, non_ema) beside them are left alone.
_WEIGHTS = re.compile(
    r"(model|diffusion_pytorch_model)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?"
)
_TOKENIZER_FILES = re.compile(
    r"(tokenizer|vocab|tokenizer_config|special_tokens_map|added_tokens)\.json|merges\.txt"
)


@dataclass(frozen=True)
class BundleInfo:
    """What hbsdk.json says.

    Attributes:
        name: of the bundle, for people.
        class_word: the word whose embedding the subject's words start from, e.g. "person".
        image_size_px: side of the pictures the denoiser was trained on.
        licence: of the weights.
        trained_on: what the weights were trained on.
        base: what the bundle was made of.
        num_words: words a subject takes in the text; the regressor's, where there is one.
        word_dim: width of a word embedding; this and the next two are the networks' own.
        latent_channels: of the VAE.
        vae_scale_factor: pixels a side of a latent.
        guidance_scale: classifier-free guidance that suits the denoiser.
        background: whether the encoders see the photo's background in training and in use.
        files: lower-case sha256 by path, relative to the bundle, with forward slashes.
        schema: version of this list of fields.
    """

    name: str
    class_word: str
    image_size_px: int
    licence: str
    trained_on: str
    base: str
    num_words: int = 5
    word_dim: int = 768
    latent_channels: int = 4
    vae_scale_factor: int = 8
    guidance_scale: float = 7.5
    background: Literal["keep", "mask"] = "keep"
    files: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def files_of(self, name: str) -> dict[str, str]:
        """Return the listed sha256s of one component, or of one file at the bundle's root."""
        return {
            path: digest
            for path, digest in self.files.items()
            if path == name or path.startswith(f"{name}/")
        }


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _stays_inside(path: str) -> bool:
    """Whether a path is relative, in its shortest form, and does not leave the folder."""
    plain = PurePosixPath(path)
    return (
        path == str(plain)
        and not plain.is_absolute()
        and ".." not in plain.parts
        and not set(path) & set("\\:\0")
        and path not in {".", MANIFEST}
    )


_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "schema": (str(SCHEMA), lambda value: _is_count(value, SCHEMA, SCHEMA)),
    "name": ("a text", _is_text),
    "class_word": ("a text", _is_text),
    "image_size_px": (
        "a multiple of 8 from 8 to 4096",
        lambda value: _is_count(value, 8, 4096) and value % 8 == 0,
    ),
    "licence": ("a text", _is_text),
    "trained_on": ("a text", _is_text),
    "base": ("a text", _is_text),
    "num_words": (
        f"a whole number from 1 to {MAX_WORDS}",
        lambda value: _is_count(value, 1, MAX_WORDS),
    ),
    "word_dim": ("a whole number above 0", lambda value: _is_count(value, 1, 1 << 16)),
    "latent_channels": ("a whole number above 0", lambda value: _is_count(value, 1, 1 << 16)),
    "vae_scale_factor": ("a whole number above 0", lambda value: _is_count(value, 1, 1 << 16)),
    "guidance_scale": (
        "a number from 0 to 100",
        lambda value: type(value) in (int, float) and 0 <= value <= 100,
    ),
    "background": ('"keep" or "mask"', lambda value: value in ("keep", "mask")),
    "files": ("an object of sha256s by path", lambda value: isinstance(value, dict)),
}


def check_rules(
    data: Mapping[str, Any],
    rules: Mapping[str, tuple[str, Callable[[Any], bool]]],
    path: Path,
    error: type[HbsdkError],
    *,
    remedy: str,
    remedy_schema: str,
) -> None:
    """Refuse a JSON object that lacks or adds a key, or holds what a field cannot be.

    Args:
        data: of the file.
        rules: for each key, what it should be in words, and whether a value is; one is "schema".
        path: of the file, for messages.
        error: to raise.
        remedy: what an error tells to do.
        remedy_schema: what one of another schema tells to do.
    """
    # An unknown schema is told first: its keys may rightly be others.
    expected, is_valid = rules["schema"]
    if "schema" in data and not is_valid(data["schema"]):
        raise error(
            f"schema in {path}", expected=expected, got=shown(data["schema"]), remedy=remedy_schema
        )
    if set(data) != set(rules):
        missing, extra = sorted(set(rules) - set(data)), sorted(set(data) - set(rules))
        raise error(
            f"keys of {path}",
            expected=", ".join(sorted(rules)),
            got=shown(f"without {missing}, with unknown {extra}"),
            remedy=remedy,
        )
    for key, (expected, is_valid) in rules.items():
        if not is_valid(data[key]):
            raise error(f"{key} in {path}", expected=expected, got=shown(data[key]), remedy=remedy)


def read_info(folder: Path) -> BundleInfo:
    """Read a bundle's hbsdk.json.

    Raises:
        BundleError: it is not JSON, of another schema, lacks or adds a key, holds a wrong type, or
            names a path outside of the bundle.
    """
    path = folder / MANIFEST
    data = read_json(path)
    check_rules(
        data, _RULES, path, BundleError,
        remedy="Copy the bundle again from where it came, or write it anew",
        remedy_schema="Install the hbsdk that wrote this bundle",
    )  # fmt: skip
    _check_files(data["files"], path)
    return BundleInfo(**data)


def _check_files(files: dict[str, Any], manifest: Path) -> None:
    """Refuse paths that leave the bundle and digests that are none."""
    for path, digest in files.items():
        if not _stays_inside(path):
            raise BundleError(
                f"files in {manifest}",
                expected="relative paths inside of the bundle",
                got=shown(path),
                remedy="Do not use this bundle: its manifest was tampered with",
            )
        if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
            raise BundleError(
                f"files in {manifest}: {path}",
                expected="64 lower-case hexadecimal digits",
                got=shown(digest),
                remedy="Copy the bundle again from where it came",
            )


def shown(value: Any) -> str:
    """Return a value as an error message shows it: never long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 4 MiB.

    Raises:
        BundleError: the file is missing, too large, or holds no JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise BundleError(
                str(path), expected=f"at most {_MAX_JSON_BYTES} bytes", got="a larger file"
            )
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BundleError(
            f"{path} is missing", remedy="Copy the bundle again from where it came"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            str(path),
            expected="a JSON object",
            got=shown(f"{type(error).__name__}: {error}"),
            remedy="Copy the bundle again from where it came",
        ) from error
    if not isinstance(data, dict):
        raise BundleError(str(path), expected="a JSON object", got=type(data).__name__)
    return data


def sha256_of(path: Path) -> str:
    """Return a file's sha256, remembered in this process while its time and size stay.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        resolved = path.resolve()
        stat = resolved.stat()
        return _sha256(resolved, stat.st_ino, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read",
            got=str(error),
            remedy="Copy the bundle again from where it came",
        ) from error


@lru_cache(maxsize=4096)
def _sha256(path: Path, _inode: int, _mtime_ns: int, _size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def counts_for(component: str, name: str) -> bool:
    """Whether a file of a component's folder decides what the component does."""
    if component == "tokenizer":
        return bool(_TOKENIZER_FILES.fullmatch(name))
    if component == "scheduler":
        return name == "scheduler_config.json"
    return name == "config.json" or bool(_WEIGHTS.fullmatch(name))


def listable_files(folder: Path, component: str) -> list[str]:
    """Return the paths of a component that a manifest must list: JSON, text and weights."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in (folder / component).rglob("*")
        if path.suffix in {".json", ".txt"} or _WEIGHTS.fullmatch(path.name)
    )
