"""Contact sheets of an evaluation: one subject, its photo, and a strip of pictures a method."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hbsdk.errors import EvaluationError, ImageError
from hbsdk.evaluation.claims import final_key
from hbsdk.evaluation.results import CEILING, RESUME, Key, Results
from hbsdk.evaluation.rows import PictureRow
from hbsdk.evaluation.store import file_name
from hbsdk.image import load_photo

_SUBJECTS = 12
_A_LINE = 10  # more pictures than these go on in a second line
_GAP_PX = 3
_TILES_PX = (96, 80, 64, 48)  # the largest at which all sheets fit `max_bytes`
_PHOTO_PX = 240


@dataclass(frozen=True)
class Strip:
    """The pictures of one snapshot, seed 0 of every prompt; `jpeg` is the file's bytes."""

    key: Key
    jpeg: bytes
    columns: int
    lines: int


@dataclass(frozen=True)
class Sheet:
    """One subject; `photo` is a JPEG's bytes, None where the folder has none."""

    subject: str
    photo: bytes | None
    strips: tuple[Strip, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all its pictures."""
        return len(self.photo or b"") + sum(len(strip.jpeg) for strip in self.strips)


def contact_sheets(out: Path, results: Results, *, max_bytes: int = 4_500_000) -> list[Sheet]:
    """Return sheets of up to twelve subjects, spread evenly over all in the order of their names.

    Args:
        out: the evaluation's folder; photos/<subject>.png is shown where it is there.
        results: its rows.
        max_bytes: of all sheets together; pictures are shown smaller, then subjects fewer, to fit.

    Raises:
        EvaluationError: a picture is missing, damaged, or not of the size its rows say.
    """
    methods = list(dict.fromkeys(method for method, _ in results.keys))
    methods.sort(key=lambda method: method != CEILING)
    keys = [key for method in methods if (key := final_key(results, method)) is not None]
    drawn = [row for key in keys if key[0] != CEILING for row in results.pictures[key]]
    names = sorted({row.subject for row in drawn})
    count = min(_SUBJECTS, len(names))
    chosen = [names[number * len(names) // count] for number in range(count)]
    sheets: list[Sheet] = []
    for tile_px in _TILES_PX:
        sheets = [_sheet(out, results, keys, subject, tile_px) for subject in chosen]
        if sum(sheet.size_bytes for sheet in sheets) <= max_bytes:
            return sheets
    while sheets and sum(sheet.size_bytes for sheet in sheets) > max_bytes:
        sheets.pop()
    return sheets


def _sheet(out: Path, results: Results, keys: Sequence[Key], subject: str, tile_px: int) -> Sheet:
    strips = []
    for key in keys:
        rows = [row for row in results.pictures[key] if row.subject == subject]
        if rows:
            strips.append(_strip(out, key, rows, tile_px))
    file = out / "photos" / f"{file_name(subject)}.png"
    photo = None
    if file.is_file():
        shown = _read(file)
        shown.thumbnail((_PHOTO_PX, _PHOTO_PX), Image.Resampling.LANCZOS)
        photo = _jpeg(shown)
    return Sheet(subject, photo, tuple(strips))


def _strip(out: Path, key: Key, rows: Sequence[PictureRow], tile_px: int) -> Strip:
    """A strip of seed 0, or of all seeds where there is one prompt alone (a photo's gallery)."""
    across = max(row.prompt for row in rows) + 1
    down = max(row.seed for row in rows) + 1
    shown = sorted(
        (row for row in rows if row.seed == 0 or across == 1),
        key=lambda row: (row.prompt, row.seed),
    )
    grids = {file: _grid(out, file, across, down) for file in {row.file for row in shown}}
    columns = min(len(shown), _A_LINE)
    lines = math.ceil(len(shown) / columns) if columns else 0
    pitch = tile_px + _GAP_PX
    strip = Image.new("RGB", (columns * pitch - _GAP_PX, lines * pitch - _GAP_PX), "white")
    for number, row in enumerate(shown):
        grid = grids[row.file]
        width, height = grid.width // across, grid.height // down
        left, top = row.prompt * width, row.seed * height
        tile = grid.resize(
            (tile_px, tile_px), Image.Resampling.LANCZOS, (left, top, left + width, top + height)
        )
        strip.paste(tile, (number % columns * pitch, number // columns * pitch))
    return Strip(key, _jpeg(strip), columns, lines)


def _grid(out: Path, file: str, across: int, down: int) -> Image.Image:
    path = out / file
    if not path.resolve().is_relative_to(out.resolve()):
        raise EvaluationError(
            f"picture {file!r}", expected="a file in the evaluation's folder",
            got="one outside of it", remedy=RESUME,
        )  # fmt: skip
    grid = _read(path)
    if grid.width % across or grid.height % down:
        raise EvaluationError(
            str(path), expected=f"{across} x {down} tiles of one size",
            got=f"{grid.width} x {grid.height} px", remedy=RESUME,
        )  # fmt: skip
    return grid


def _read(path: Path) -> Image.Image:
    try:
        return Image.fromarray(load_photo(path).rgb)
    except ImageError as error:
        raise EvaluationError(
            error.what, expected=error.expected, got=error.got, remedy=RESUME
        ) from error


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=86, subsampling=0)
    return buffer.getvalue()
