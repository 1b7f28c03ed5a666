"""The subject: a few words that make Stable Diffusion draw one thing, and their file."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hbsdk.errors import SubjectError
from hbsdk.subject_file import (
    MAX_METADATA_BYTES,
    check_words,
    decode_subject,
    encode_subject,
    read_bytes,
    write_file,
)

SUFFIX = ".safetensors"
_LONGEST_NAME = 64
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_-])?")
_WINDOWS_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?")


@dataclass(frozen=True, eq=False)
class Subject:
    """What personalization makes: data, never weights.

    Attributes:
        words: (n, d) float32, token embeddings of the text encoder; a copy of what is given.
        name: what stands for the subject in prompts, as `<name>`; made lower case, since CLIP's
            tokenizers are.
        metadata: what the subject was made with, text to text; written into the file.
        report: what the refinement did, a `RefinementReport`; not written into the file.

    Raises:
        SubjectError: the words or the name cannot be used.
    """

    words: npt.NDArray[np.float32]
    name: str
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    report: Any | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        name = self.name.lower()
        check_name(name)
        what = f"subject {name!r}"
        # Frozen: this is the one place that may set.
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "words", check_words(self.words, what))
        object.__setattr__(self, "metadata", _check_metadata(self.metadata, what))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the subject for hbsdk, diffusers, A1111/Forge, ComfyUI, InvokeAI and sd.cpp.

        Args:
            path: a folder that exists, for `<name>.safetensors` in it, or the file itself. Most
                tools take the file's name for the subject's, so it must be a name: lower case too.

        Returns:
            The file. It is written whole or not at all, and replaces one that is there.

        Raises:
            SubjectError: the file's name cannot be used, the metadata are too long with what
                saving adds, or the file cannot be written.
        """
        file = subject_path(path, self.name)
        data = encode_subject(self.words, file.stem, self.metadata)
        _check_metadata(decode_subject(data, str(file))[1], f"subject {self.name!r}")
        write_file(file, data)
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, width: int | None = None) -> Subject:
        """Reads a subject, or a textual inversion of another tool, of one tensor.

        Args:
            path: a .safetensors file of at most 16 MiB; its name becomes the subject's.
            width: d that the words must have; None takes any.

        Raises:
            SubjectError: the file is missing, damaged, no safetensors file (pickles are never
                opened), holds something else, or its words have another width.
        """
        file = Path(path)
        words, metadata = decode_subject(read_bytes(file), str(file))
        if width is not None and words.shape[1] != width:
            raise SubjectError(
                str(file),
                expected=f"words of width {width}",
                got=f"{words.shape[1]}",
                remedy="It was made for another model: personalize again with this bundle",
            )
        return cls(words=words, name=name_from_file(file), metadata=metadata)


def check_name(name: str) -> None:
    """Refuses what cannot be a subject's name everywhere: in prompts and as a file's name.

    Raises:
        SubjectError: it is not made of a-z, 0-9, `_`, `.` and `-`, is longer than 64, begins with
            `.` or `-`, ends with `.`, or is a device on Windows.
    """
    what = f"subject name {name!r}"
    if not isinstance(name, str):
        raise SubjectError(what, expected="text", got=type(name).__name__)
    if name != name.lower():
        raise SubjectError(
            what,
            expected="lower case",
            got="capitals",
            remedy="CLIP's tokenizers make prompts lower case: under a name with capitals "
            f"diffusers would silently lose all words but one. Use {name.lower()!r}",
        )
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise SubjectError(
            what,
            expected=f"up to {_LONGEST_NAME} of a-z, 0-9, _, . and -, not led by . or -, no . last",
            got=f"{len(name)} characters" if len(name) > _LONGEST_NAME else "others",
            remedy=f"Use for example {_safe_name(name)!r}",
        )
    if _WINDOWS_DEVICES.fullmatch(name):
        raise SubjectError(
            what,
            expected="a name that can be a file's",
            got="one that Windows keeps for a device",
            remedy=f"Use for example {_safe_name(name)!r}",
        )


def name_from_file(path: str | os.PathLike[str]) -> str:
    """Returns the nearest name to a file's, photo or subject: `My Fox (1).png` gives my-fox-1."""
    return _safe_name(Path(path).stem)


def subject_path(path: str | os.PathLike[str], name: str) -> Path:
    """Returns the file that `Subject.save` would write, without writing it.

    Raises:
        SubjectError: the file's name is not a subject's with `.safetensors` after it.
    """
    file = Path(path)
    if file.is_dir():
        return file / f"{name}{SUFFIX}"
    if file.suffix.lower() != SUFFIX:
        raise SubjectError(
            str(file),
            expected=f"a folder that exists, or a file name that ends with {SUFFIX}",
            got=file.suffix or "no ending",
            remedy=f"Save to {file.with_name(f'{_safe_name(file.stem)}{SUFFIX}')}",
        )
    if file.suffix != SUFFIX:
        raise SubjectError(str(file), expected=SUFFIX, got=file.suffix)
    check_name(file.stem)
    return file


def _safe_name(text: str) -> str:
    """The nearest allowed name."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9_.-]+", "-", plain.lower()).strip("-.")[:_LONGEST_NAME].rstrip("-.")
    return "subject" if not name or _WINDOWS_DEVICES.fullmatch(name) else name


def _check_metadata(metadata: Mapping[str, str], what: str) -> dict[str, str]:
    """A copy of the metadata, which must be a moderate amount of text."""
    copy = dict(metadata)
    if not all(isinstance(text, str) for pair in copy.items() for text in pair):
        raise SubjectError(
            f"{what}, metadata", expected="text for text", got="other values", remedy="Use str()"
        )
    size = sum(len(text.encode("utf-8", "replace")) for pair in copy.items() for text in pair)
    if size > MAX_METADATA_BYTES:
        raise SubjectError(
            f"{what}, metadata", expected=f"at most {MAX_METADATA_BYTES} bytes", got=f"{size}"
        )
    return copy
