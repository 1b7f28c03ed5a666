"""What each field of an engine folder's manifest.json must be. No torch, onnx or runtime."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from hbsdk.bundle_info import check_rules, shown
from hbsdk.engine_spec import NETWORKS, Precision
from hbsdk.errors import EngineError

Runtime = Literal["onnxruntime", "tensorrt_rtx", "tensorrt"]

SCHEMA = 1
"""Of manifest.json and engines.json; raised whenever the meaning of either changes."""
MANIFEST = "manifest.json"
SEAL = "manifest_sha256"
"""The field with the sha256 of the others."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_finite(value: Any) -> bool:
    """Whether a value is a finite number from 0: neither NaN nor an endless row of digits."""
    return type(value) in (int, float) and 0 <= value < 1e18


def _are_capabilities(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, str) and re.fullmatch(r"\d{1,3}\.\d", one) for one in value
    )


def _are_precisions(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and set(value) <= set(NETWORKS)
        and all(one in get_args(Precision) for one in value.values())
    )


_DIGEST = ("64 lower-case hexadecimal digits", _is_digest)
_TEXT = ("a text", _is_text)
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "schema": (str(SCHEMA), lambda value: type(value) is int and value == SCHEMA),
    "bundle_name": _TEXT,
    "bundle_hash": _DIGEST,
    "recipe_name": (
        "lower-case letters, digits, '.', '_' and '-'",
        lambda value: isinstance(value, str) and is_recipe_name(value),
    ),
    "recipe_hash": _DIGEST,
    "runtime": (" or ".join(get_args(Runtime)), lambda value: value in get_args(Runtime)),
    "runtime_version": _TEXT,
    "opset": ("a whole number above 0", lambda value: type(value) is int and value > 0),
    "precision": ("float32 or float16 by network", _are_precisions),
    "compute_capabilities": ('a list such as ["8.9"]', _are_capabilities),
    "providers": (
        "a list of ONNX Runtime's execution providers",
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
    ),
    "platform": ("a text or null", lambda value: value is None or _is_text(value)),
    "seconds": ("a number from 0", _is_finite),
    "parity": ("an object", lambda value: isinstance(value, dict)),
    "image_psnr_db": ("a number from 0 or null", lambda value: value is None or _is_finite(value)),
    "hbsdk_version": _TEXT,
    "created": _TEXT,
    "files": ("an object of sha256s by path", lambda value: isinstance(value, dict)),
    SEAL: _DIGEST,
}


def check_fields(data: Mapping[str, Any], path: Path, remedy: str) -> None:
    """Refuse a manifest that lacks or adds a key, or holds what a field cannot be.

    Args:
        data: of manifest.json.
        path: of it, for messages.
        remedy: what an error tells to do.

    Raises:
        EngineError: it is so, or `files` names a path outside of the folder.
    """
    check_rules(data, _RULES, path, EngineError, remedy=remedy, remedy_schema=remedy)
    if bool(data["compute_capabilities"]) == (data["runtime"] == "onnxruntime"):
        raise EngineError(
            f"compute_capabilities in {path}",
            expected="some for TensorRT, none for onnxruntime",
            got=f"{data['compute_capabilities']} for {data['runtime']}",
            remedy=remedy,
        )
    if bool(data["providers"]) != (data["runtime"] == "onnxruntime"):
        raise EngineError(
            f"providers in {path}",
            expected="some for onnxruntime, none for TensorRT",
            got=f"{data['providers']} for {data['runtime']}",
            remedy=remedy,
        )
    if (data["platform"] is None) == (data["runtime"] == "tensorrt"):
        raise EngineError(
            f"platform in {path}",
            expected="a text for tensorrt, else null",
            got=f"{data['platform']} for {data['runtime']}",
            remedy=remedy,
        )
    for name, digest in data["files"].items():
        if not (is_inside(name) and _is_digest(digest)):
            raise EngineError(
                f"files in {path}",
                expected="sha256s by relative paths inside of the folder",
                got=shown(f"{name}: {digest}"),
                remedy=remedy,
            )


def is_inside(path: str) -> bool:
    """Whether a path is relative, in its shortest form, and does not leave the folder."""
    plain = PurePosixPath(path)
    return (
        path == str(plain)
        and not plain.is_absolute()
        and ".." not in plain.parts
        and not set(path) & set("\\:\0")
        and path not in {".", MANIFEST}
    )


def is_recipe_name(name: str) -> bool:
    """Whether a text can name a recipe, and so begin the name of an engine folder."""
    return re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name) is not None
