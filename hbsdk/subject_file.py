"""The bytes of a subject file: written in one piece, read with suspicion.

A file is safetensors with one float32 tensor "emb_params" (n, d), the key that A1111, InvokeAI and
SwarmUI know, and ModelSpec 1.0.1 metadata (github.com/Stability-AI/ModelSpec).
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_safetensors

from hbsdk.errors import SubjectError
from hbsdk.whole_file import write_whole

MAX_FILE_BYTES = 16 * 2**20
"""Largest file that is read; a subject of SD 1.5 has 17 KB."""

MAX_METADATA_BYTES = 256 * 2**10
"""Most metadata that a subject may carry, keys and values."""

MAX_WORDS = 75
"""Most words of a subject: CLIP's 77 tokens without start and end."""

MAX_ROOT_MEAN_SQUARE = 4.0
"""Largest root mean square of a word; CLIP's own begin at 0.02. What is 200 times that is no word
but damage or an attack, and in half precision it could drown the picture."""

TENSOR_NAME = "emb_params"
_IMPLEMENTATION = "hbsdk"
_HEADER_LENGTH_BYTES = 8
_KEPT_METADATA = ("hbsdk.", "modelspec.")

# What files are that come in place of a safetensors file, by how they begin.
_PICKLE = "a pickle, which can run any code when it is opened"
_LOOKALIKES = (
    (b"PK\x03\x04", _PICKLE + " (a .pt or .bin of PyTorch)"),
    (b"\x80\x02", _PICKLE),
    (b"\x80\x03", _PICKLE),
    (b"\x80\x04", _PICKLE),
    (b"\x80\x05", _PICKLE),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded"),
    (b"<", "a web page"),
    (b"\x89PNG", "a PNG picture"),
    (b"GGUF", "a GGUF file"),
)


def _decode_bfloat16(data: bytes) -> npt.NDArray[np.float32]:
    """The upper half of a float32 is a bfloat16."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


_DECODERS: Mapping[str, Callable[[bytes], npt.NDArray[np.floating[Any]]]] = {
    "F32": lambda data: np.frombuffer(data, "<f4"),
    "F16": lambda data: np.frombuffer(data, "<f2"),
    "BF16": _decode_bfloat16,
}


def check_words(words: npt.ArrayLike, what: str) -> npt.NDArray[np.float32]:
    """Returns a copy of a subject's words if they can be words.

    Args:
        words: (n, d) floats, 1 to 75 words.
        what: what an error message calls them.

    Raises:
        SubjectError: another shape or type, NaN or infinity, or a word far too large.
    """
    given = np.asarray(words)
    if given.ndim != 2 or not 1 <= given.shape[0] <= MAX_WORDS or given.shape[1] < 1:
        raise SubjectError(
            what, expected=f"shape (n, d) with n from 1 to {MAX_WORDS}", got=f"{given.shape}"
        )
    if not np.issubdtype(given.dtype, np.floating):
        raise SubjectError(what, expected="floats", got=f"{given.dtype}")
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
        copy = np.array(given, dtype=np.float32, order="C")
    if not np.isfinite(copy).all():
        raise SubjectError(
            what,
            expected="finite numbers",
            got=f"{np.count_nonzero(~np.isfinite(copy))} that are NaN or infinite",
            remedy="Personalize again: these words would make every picture black",
        )
    largest = float(np.sqrt(np.square(copy, dtype=np.float64).mean(axis=1)).max())
    if largest > MAX_ROOT_MEAN_SQUARE:
        raise SubjectError(
            what,
            expected=f"words of a root mean square of at most {MAX_ROOT_MEAN_SQUARE:g}",
            got=f"{largest:.3g}",
            remedy="CLIP's own words have about 0.02: personalize again with a smaller step",
        )
    return copy


def encode_subject(
    words: npt.NDArray[np.float32], title: str, metadata: Mapping[str, str]
) -> bytes:
    """Returns the bytes of a subject file.

    Args:
        words: (n, d) float32.
        title: the name under which tools list it.
        metadata: keys without a prefix are written as `hbsdk.<key>`; `modelspec.` keys replace
            ours, but for those that follow from the words.
    """
    given = {
        key if key.startswith(_KEPT_METADATA) else f"hbsdk.{key}": value
        for key, value in metadata.items()
    }
    number, width = words.shape
    little_endian = np.ascontiguousarray(words, dtype="<f4")
    header = {
        "modelspec.description": f"The {number} words of one subject, made from a photo by hbsdk.",
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "modelspec.architecture": _architecture(width),
        **given,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": _IMPLEMENTATION,
        "modelspec.title": title,
        "modelspec.usage_hint": f"Write {title} (in hbsdk S* or <{title}>) for the subject.",
        "modelspec.hash_sha256": "0x" + hashlib.sha256(little_endian.tobytes()).hexdigest(),
        "hbsdk.words": str(number),
    }
    return to_safetensors({TENSOR_NAME: little_endian}, header)


def decode_subject(data: bytes, what: str) -> tuple[npt.NDArray[np.float32], dict[str, str]]:
    """Reads a textual inversion of any common tool.

    Args:
        data: the file's bytes: one tensor (n, d) or (d,) of F32, F16 or BF16 under any name.
        what: what an error message calls it.

    Returns:
        The words, (n, d) float32, and the metadata of hbsdk (its prefix left out) and ModelSpec.

    Raises:
        SubjectError: it is no safetensors file, is damaged, or does not hold a subject.
    """
    _refuse_lookalikes(data, what)
    try:
        tensors = deserialize(data)  # type: ignore[no-untyped-call]
        start = _HEADER_LENGTH_BYTES + int.from_bytes(data[:_HEADER_LENGTH_BYTES], "little")
        header = json.loads(data[_HEADER_LENGTH_BYTES:start], object_pairs_hook=_without_doubles)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise SubjectError(
            what,
            expected="a whole safetensors file",
            got=str(error).removeprefix("Error while deserializing: "),
            remedy="It is damaged: download or make it again",
        ) from error
    words = check_words(_only_tensor(tensors, what), what)
    metadata = header.get("__metadata__") or {}
    _check_hash(data[start:], metadata, what)
    kept = {key: value for key, value in metadata.items() if key.startswith(_KEPT_METADATA)}
    return words, {key.removeprefix("hbsdk."): value for key, value in kept.items()}


def read_bytes(path: Path) -> bytes:
    """Returns the bytes of an ordinary file of bounded size.

    Raises:
        SubjectError: there is no such file, it cannot be read, is empty or too large.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):  # a pipe would block, a device never end
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise SubjectError(str(path), expected="a file that can be read", got=reason) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
        raise SubjectError(str(path), expected="a subject file", got=kind)
    if not 0 < len(data) <= MAX_FILE_BYTES:
        size = f"{status.st_size} bytes" if data else "an empty file"
        raise SubjectError(str(path), expected=f"at most {MAX_FILE_BYTES} bytes", got=size)
    return data


def write_file(path: Path, data: bytes) -> None:
    """Write a subject's file whole or not at all.

    Raises:
        SubjectError: the folder is missing, full or not writable.
    """
    if not path.parent.is_dir():
        raise _unwritable(path, "no such folder")
    try:
        write_whole(path, data)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def _unwritable(path: Path, got: str) -> SubjectError:
    return SubjectError(
        str(path), expected="a folder with room that can be written to", got=got,
        remedy="Nothing was changed: save to another folder",
    )  # fmt: skip


def _architecture(width: int) -> str:
    """ModelSpec's name for what the words fit; only SD 1.x is told by its width."""
    base = "stable-diffusion-v1" if width == 768 else f"hbsdk-clip-{width}"
    return f"{base}/textual-inversion"


def _refuse_lookalikes(data: bytes, what: str) -> None:
    """Names the files that people take for subjects by mistake."""
    # A header of 640 bytes makes a good file begin as a pickle does, so its brace is looked at too.
    if data[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + 1] == b"{":
        return
    for beginning, kind in _LOOKALIKES:
        if data.startswith(beginning):
            remedy = "Get the .safetensors file of it"
            if kind.startswith(_PICKLE):
                remedy += ", or convert it where nothing can be lost; hbsdk opens no pickles"
            raise SubjectError(what, expected="a safetensors file", got=kind, remedy=remedy)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: of equal ones, readers disagree on which to take."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("the header has a key twice")
    return result


def _only_tensor(tensors: Any, what: str) -> npt.NDArray[np.floating[Any]]:
    """The one tensor of the file as (n, d)."""
    if len(tensors) != 1:
        names = ", ".join(sorted(name for name, _ in tensors)[:4])
        raise SubjectError(
            what,
            expected=f"one tensor, as {TENSOR_NAME!r}",
            got=f"{len(tensors)}: {names}" if names else "none",
            remedy="SDXL embeddings (clip_l and clip_g), LoRAs and models are no subjects",
        )
    ((name, tensor),) = tensors
    decode = _DECODERS.get(tensor["dtype"])
    if decode is None:
        raise SubjectError(
            f"{what}, tensor {name!r}", expected="F32, F16 or BF16", got=tensor["dtype"]
        )
    shape = tuple(tensor["shape"])
    if 0 in shape:  # numpy refuses some of them with an error of its own
        raise SubjectError(f"{what}, tensor {name!r}", expected="numbers", got=f"shape {shape}")
    values = decode(bytes(tensor["data"])).reshape(shape)
    return values.reshape(1, -1) if values.ndim == 1 else values


def _check_hash(data: bytes, metadata: Mapping[str, str], what: str) -> None:
    """Refuses a file of ours whose tensor is not the one that was written."""
    stated = metadata.get("modelspec.hash_sha256")
    if metadata.get("modelspec.implementation") != _IMPLEMENTATION or stated is None:
        return
    found = "0x" + hashlib.sha256(data).hexdigest()
    if found != stated:
        raise SubjectError(
            what,
            expected=f"modelspec.hash_sha256 {stated[:14]}...",
            got=f"{found[:14]}...",
            remedy="The words were changed after hbsdk wrote them: get the file again",
        )
