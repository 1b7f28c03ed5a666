"""An evaluation's folder: pictures as tiled PNGs, what is finished by content hash, and rows."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from hbsdk.bundle_info import sha256_of
from hbsdk.errors import EvaluationError
from hbsdk.evaluation.subjects import Pixels
from hbsdk.whole_file import write_whole


def content_hash(content: Mapping[str, Any]) -> str:
    """Return the sha256 of JSON-able content, the same whatever the order of its keys.

    Args:
        content: what JSON can tell, without NaN.
    """
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def pixels_hash(pictures: Iterable[Pixels]) -> str:
    """Return the sha256 of pictures: their shapes and their pixels.

    Args:
        pictures: uint8 arrays of any shapes.
    """
    digest = hashlib.sha256()
    for pixels in pictures:
        digest.update(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def files_hash(folder: Path) -> str:
    """Return the starts of the sha256 of a network's config.json and of each of its safetensors.

    Args:
        folder: as diffusers writes one network.

    Raises:
        BundleError: a file cannot be read.
    """
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    return ",".join(sha256_of(file)[:16] for file in files)


def file_name(text: str) -> str:
    """Return a text as a part of a file's name: letters and digits of any script are kept.

    Args:
        text: a subject's or method's name.

    Raises:
        EvaluationError: it is empty or dots alone, which file systems take for folders.
    """
    if not text.strip("."):
        raise EvaluationError(
            f"name {text!r}", expected="a letter or digit in the name of a subject or method",
            got="dots alone" if text else "no letter", remedy="Rename it",
        )  # fmt: skip
    # One form of accented letters: file systems differ in which they hand out.
    return re.sub(r"[^\w.=+-]+", "-", unicodedata.normalize("NFC", text))


class Store:
    """The folder that an evaluation writes; several processes may share it."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if need be.

        Raises:
            EvaluationError: it cannot be made.
        """
        self.folder = folder
        with _told(folder):
            (folder / "done").mkdir(parents=True, exist_ok=True)

    def read(self, key: str, fields: Mapping[str, type]) -> dict[str, Any] | None:
        """Return what was finished under a key; None if nothing was, or it is damaged or older.

        Args:
            key: as of `write`.
            fields: that must be there, and their types.
        """
        try:
            data = json.loads((self.folder / "done" / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(data, dict) or data.get("key") != key:
            return None
        return data if all(isinstance(data.get(f), kind) for f, kind in fields.items()) else None

    def write(self, key: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what is finished; return it as `read` would.

        Args:
            key: a hash of all that the work came from.
            data: JSON-able.
        """
        whole = {"key": key, **data}
        self._write(self.folder / "done" / f"{key}.json", json.dumps(whole, allow_nan=False))
        return whole

    def save_pictures(self, method: str, steps: int, subject: str, pictures: Pixels) -> str:
        """Write one PNG, prompts as columns and seeds as rows; return its relative path.

        Args:
            method: its name.
            steps: of the snapshot.
            subject: its name.
            pictures: (seeds, prompts, H, W, 3) uint8.
        """
        rows, columns, height, width, _ = pictures.shape
        grid = pictures.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
        return self._save(f"pictures/{file_name(method)}/{steps}/{file_name(subject)}.png", grid)

    def save_photo(self, subject: str, photo: Pixels) -> str:
        """Write what methods see of a subject, (H, W, 3) uint8; return its relative path.

        Args:
            subject: its name.
            photo: the pixels.
        """
        return self._save(f"photos/{file_name(subject)}.png", photo)

    def _save(self, file: str, pixels: Pixels) -> str:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        with _told(self.folder / file):
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        self._write(self.folder / file, buffer.getvalue())
        return file

    def load_pictures(self, file: str, seeds: int, prompts: int) -> Pixels | None:
        """Return (seeds, prompts, H, W, 3) uint8, or None if the file is missing or damaged.

        Args:
            file: as `save_pictures` returned it.
            seeds: rows of the grid.
            prompts: columns of the grid.
        """
        try:
            with Image.open(self.folder / file, formats=("PNG",)) as image:
                grid = np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None
        height, width = grid.shape[0] // seeds, grid.shape[1] // prompts
        if grid.shape[:2] != (seeds * height, prompts * width):
            return None
        tiles: Pixels = grid.reshape(seeds, height, prompts, width, 3).transpose(0, 2, 1, 3, 4)
        return tiles

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows as JSON lines.

        Args:
            name: of the file in the folder.
            rows: JSON-able.
        """
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        self._write(self.folder / name, "".join(lines))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file for people and programs.

        Args:
            name: of the file in the folder.
            content: JSON-able.
        """
        self._write(self.folder / name, json.dumps(content, indent=2) + "\n")

    def lock(self) -> FileLock:
        """Return the lock under which the rows of all processes are put together."""
        return FileLock(self.folder / "done" / ".lock")

    def _write(self, path: Path, data: str | bytes) -> None:
        """Write a file whole or not at all."""
        with _told(path):
            write_whole(path, data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def _told(path: Path) -> Any:
    try:
        yield
    except OSError as error:
        raise EvaluationError(
            str(path), expected="a folder with room that can be written to",
            got=error.strerror or str(error),
            remedy="Make room, or pass another folder; the same command goes on from what is done",
        ) from error  # fmt: skip
