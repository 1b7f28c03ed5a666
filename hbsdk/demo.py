"""`hbsdk demo`: characters that the mini bundle has never seen, from one picture each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import hbsdk
from hbsdk.backends.choose import Engine
from hbsdk.evaluation.drawing import with_noun
from hbsdk.evaluation.encoders import BundleDino
from hbsdk.evaluation.world_set import REFERENCE, class_noun
from hbsdk.mini import world
from hbsdk.mini.cache import draw_picture

CONTEXTS = (
    "a picture of {} in the snow",
    "a picture of {} wearing a crown on the beach",
    "a watercolor of {} in a meadow",
    "a picture of {} wearing sunglasses in the city",
    "a picture of {} with a red balloon at sunset",
    "a black and white picture of {} wearing a top hat",
)
PLAIN = "a picture of {} on a blue background"
_COLUMNS = ("photo", "mask", "class word", "probe", "refined")
_TILE_PX, _HEADER_PX, _GAP_PX = 128, 62, 4


@dataclass
class Stopwatch:
    """Seconds spent in each named stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Any:
        """Add the time that the block takes to a stage."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class Row:
    """One character: its pictures, in the sheet's order, and what was measured."""

    subject: hbsdk.Subject
    pictures: list[Image.Image]
    similarities: dict[str, float]


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    characters: int = 6,
    progress: bool = True,
    engine: Engine = "auto",
    engines: str | None = None,
) -> str:
    """Draw the contact sheet and the subject files into a folder.

    Args:
        out: a folder; contact_sheet.png, one .safetensors a character and table.md are written.
        seed: which held-out characters, and the noise.
        characters: rows of the sheet.
        progress: show progress bars.
        engine: as of `Session`; refinement and the similarities are torch's.
        engines: as of `Session`.

    Returns:
        The table of stage times and similarities, as Markdown.
    """
    out.mkdir(parents=True, exist_ok=True)
    clock = Stopwatch()
    with clock.stage("load"):
        session = hbsdk.Session(engine=engine, engines=engines, progress=progress)
        session.prewarm()
        judge = BundleDino(hbsdk.Session(engine="torch"))  # in torch, whatever draws
    first = (seed * characters) % (len(world.HELD_OUT_SEEDS) - characters)
    rows = [
        _row(session, judge, world.HELD_OUT_SEEDS[first + i], seed, clock)
        for i in range(characters)
    ]
    for row in rows:
        row.subject.save(out)
    sheet(rows).save(out / "contact_sheet.png")
    report = table(rows, clock)
    (out / "table.md").write_text(report + "\n", "utf-8")
    return report


def _row(session: hbsdk.Session, judge: BundleDino, who: int, seed: int, clock: Stopwatch) -> Row:
    photo = draw_picture(who, REFERENCE)[0]
    with clock.stage("mask"):
        mask = session.mask(photo)
    with clock.stage("probe"):
        probe = session.personalize(photo, steps=0)
    with clock.stage("refinement (and probe)"):
        subject = session.personalize(photo, name=f"character-{who}")
    noun = class_noun(world.identity(who))
    with clock.stage("drawing"):
        plain = [
            session.generate(with_noun(PLAIN, noun), seed=seed)[0],
            session.generate(PLAIN.format("S*"), probe, seed=seed)[0],
            session.generate(PLAIN.format("S*"), subject, seed=seed)[0],
        ]
        texts = [text.format("S*") for text in CONTEXTS]
        contexts = session.generate(texts, subject, seed=seed)
    likeness = judge.images([photo, *(np.array(picture) for picture in plain + contexts)])
    similar = (likeness[1:] @ likeness[0]).tolist()
    return Row(
        subject,
        [Image.fromarray(photo), mask.convert("RGB"), *plain, *contexts],
        {
            "class word": similar[0], "probe": similar[1], "refined": similar[2],
            "contexts": float(np.mean(similar[3:])),
        },
    )  # fmt: skip


def sheet(rows: Sequence[Row]) -> Image.Image:
    """Lay out one row a character under a header that names the columns."""
    titles = [*_COLUMNS, *(text.format("S*").removeprefix("a picture of ") for text in CONTEXTS)]
    step = _TILE_PX + _GAP_PX
    size = (len(titles) * step + _GAP_PX, _HEADER_PX + len(rows) * step)
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(13)
    for column, title in enumerate(titles):
        pen.multiline_text((_GAP_PX + column * step, 6), _wrapped(title), "black", font=font)
    for number, row in enumerate(rows):
        for column, picture in enumerate(row.pictures):
            tile = picture.resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
            page.paste(tile, (_GAP_PX + column * step, _HEADER_PX + number * step))
    return page


def _wrapped(title: str, width: int = 19) -> str:
    lines = [""]
    for word in title.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def table(rows: Sequence[Row], clock: Stopwatch) -> str:
    """Return stage times and DINO similarities to the photo as Markdown."""
    count = len(rows)
    lines = ["| stage | seconds a character |", "|---|---|"]
    lines += [
        f"| {name} | {total / (1 if name == 'load' else count):.2f}"
        f"{' (once)' if name == 'load' else ''} |"
        for name, total in clock.seconds.items()
    ]
    names = list(rows[0].similarities)
    lines += ["", f"| DINO similarity to the photo | {' | '.join(names)} |"]
    lines += ["|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {row.subject.name} | {' | '.join(f'{row.similarities[n]:.2f}' for n in names)} |"
        for row in rows
    ]
    return "\n".join(lines)
