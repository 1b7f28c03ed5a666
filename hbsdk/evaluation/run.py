"""`hbsdk evaluate`: every method on every subject, resumable; pictures, rows and what was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

import hbsdk
from hbsdk.bundle_info import REQUIRED
from hbsdk.errors import EvaluationError
from hbsdk.evaluation.drawing import OPTIONS, drawing_settings
from hbsdk.evaluation.fitting import fit_and_draw
from hbsdk.evaluation.measuring import AttributeJudge, Measurer
from hbsdk.evaluation.methods import Method
from hbsdk.evaluation.metrics import Metrics
from hbsdk.evaluation.record import describe, made_by
from hbsdk.evaluation.results import CEILING
from hbsdk.evaluation.rows import FitRow, PictureRow, is_whole
from hbsdk.evaluation.store import Store, content_hash, file_name, pixels_hash
from hbsdk.evaluation.subjects import EvaluationSet, EvaluationSubject, Pixels
from hbsdk.options import GenerateOptions

if TYPE_CHECKING:
    from hbsdk.session import Session

_SEEDS_A_PROMPT = 1000  # picture (prompt p, seed s) starts from noise 1000 p + s, in every method
_FITTED = {"method": str, "fits": list, "pictures": dict, "grids": dict}  # of what is kept
_MEASURED = {"rows": list}


def evaluate(
    session: Session,
    evaluation_set: EvaluationSet,
    methods: Sequence[Method],
    seeds: int,
    out: Path,
    metrics: Metrics,
    judge: AttributeJudge | None = None,
    *,
    progress: bool = True,
    part: tuple[int, int] = (0, 1),
    command: str | None = None,
    drawing: GenerateOptions = OPTIONS,
) -> None:
    """Fit, draw and measure; write photos, pictures, `pictures.jsonl`, `fits.jsonl`, `run.json`.

    What is finished is kept in `out/done` under a hash of all that it came from (networks, method,
    photo, prompts, noise, drawing, hbsdk's version; of measurements also checkpoints, judge and
    galleries), so the same command goes on where it was stopped, and a changed setting does again
    only what it changes. Code is not part of the hash, its version is; what is kept says on which
    device and in which commit it was made.

    The ceiling stands in rows of the method "real pictures": real pictures of the subject in each
    prompt's context where the set has them; else each photo of the gallery compared with the other
    ones, as prompt 0 and seed 0, 1, ..., its clip_t that of "a photo of a <class noun>".

    Args:
        session: its networks are loaded now.
        evaluation_set: at least two subjects.
        methods: of different names. One that fails on a subject is recorded in `FitRow.failed`,
            the others go on, and another run tries it again.
        seeds: pictures a prompt.
        out: the folder, made if need be.
        metrics: what measures.
        judge: reads the attributes of subjects that have them.
        progress: show a progress bar.
        part: (i, n) does every n-th subject, from the i-th; n processes may share `out`, and each
            puts together the rows of all that is done.
        command: as it was typed, for run.json.
        drawing: how pictures are drawn, as of `parse_drawing`.

    Raises:
        EvaluationError: bad arguments, or `out` cannot be written.
    """
    _check(evaluation_set, methods, seeds, part)
    store = Store(out)
    run = _Run(session, evaluation_set, seeds, metrics, judge, store, drawing)
    run.made  # noqa: B018 - told now: the checkout may go on while this runs
    session.prewarm()
    session.tokenizer  # noqa: B018 - loaded now, so that the first fit's time is without it
    mine = range(part[0], len(evaluation_set.subjects), part[1])
    for index in mine:
        subject = evaluation_set.subjects[index]
        store.save_photo(subject.name, subject.photo)
    with tqdm(total=len(mine) * (len(methods) + 1), unit="subject", disable=not progress) as bar:
        for method in (None, *methods):
            bar.set_description(CEILING if method is None else method.name)
            for index in mine:
                run.do(method, index)
                bar.update()
    about = describe(
        session, evaluation_set, methods, seeds=seeds, metrics=metrics.names,
        judge=None if judge is None else judge.name, command=command, made=run.made,
        drawing=drawing,
    )  # fmt: skip
    with store.lock():
        run.assemble(methods)
        store.write_json("run.json", about)


class _Run:
    """One evaluation's subjects and measures, over its folder."""

    def __init__(
        self,
        session: Session,
        evaluation_set: EvaluationSet,
        seeds: int,
        metrics: Metrics,
        judge: AttributeJudge | None,
        store: Store,
        drawing: GenerateOptions,
    ) -> None:
        self.session, self.seeds, self.store, self.drawing = session, seeds, store, drawing
        self.subjects = evaluation_set.subjects
        self.measurer = Measurer(self.subjects, metrics, judge)

    def do(self, method: Method | None, index: int) -> None:
        """Do what is missing of a method on a subject; None is its real pictures."""
        subject = self.subjects[index]
        key = self._key(method, subject)
        kept = self._fitted(key)
        failed = kept is not None and any(row.get("failed") for row in kept["fits"])
        if kept is None or failed or not self._has_all(kept):
            made = self._real(subject) if method is None else self._fit(method, subject)
            kept = self.store.write(key, {**made, "made": self.made})
        measured = self.measurer.key(subject, kept["pictures"])
        if self._measured(measured) is None:
            rows = [asdict(row) for row in self._measure(kept, index)]
            self.store.write(measured, {"rows": rows, "made": self.made})

    def assemble(self, methods: Sequence[Method]) -> None:
        """Write the rows of all that is done, whoever did it."""
        fits: list[dict[str, Any]] = []
        pictures: list[dict[str, Any]] = []
        for method in (None, *methods):
            for subject in self.subjects:
                kept = self._fitted(self._key(method, subject))
                if kept is None:
                    continue
                fits += kept["fits"]
                measured = self._measured(self.measurer.key(subject, kept["pictures"]))
                pictures += [] if measured is None else measured["rows"]
        self.store.write_rows("pictures.jsonl", pictures)
        self.store.write_rows("fits.jsonl", fits)

    def _fitted(self, key: str) -> dict[str, Any] | None:
        """What was fitted and drawn under a key; None if it is not there or lacks something."""
        kept = self.store.read(key, _FITTED)
        if kept is None or not all(is_whole(row, FitRow) for row in kept["fits"]):
            return None
        sizes = [kept["grids"].get(file) for file in kept["pictures"]]
        return kept if all(isinstance(size, list) and len(size) == 3 for size in sizes) else None

    def _measured(self, key: str) -> dict[str, Any] | None:
        """What was measured under a key, likewise."""
        kept = self.store.read(key, _MEASURED)
        if kept is None or not all(is_whole(row, PictureRow) for row in kept["rows"]):
            return None
        return kept

    @cached_property
    def made(self) -> dict[str, str | None]:
        """Where what is done now is done; kept beside it, and no part of its key."""
        return made_by(self.session)

    @cached_property
    def _hashes(self) -> dict[bool, str]:
        """Of the bundle, and (True) of its base model alone: what a method depends on."""
        bundle = self.session.bundle
        base = {name: bundle.components[name] for name in REQUIRED}
        return {False: bundle.hash, True: replace(bundle, components=base).hash}

    def _key(self, method: Method | None, subject: EvaluationSubject) -> str:
        if method is None:
            shown = pixels_hash(subject.real or subject.gallery)
            side = self.session.bundle.info.image_size_px
            return content_hash({"real": shown, "subject": subject.name, "side": side})
        # Who says that it uses the base model alone need not be run again for a new regressor.
        only_base_model = bool(getattr(method, "only_base_model", False))
        backend = self.session.torch_backend
        return content_hash({
            "hbsdk": hbsdk.__version__,
            "bundle": self._hashes[only_base_model],
            "device": [backend.device.type, str(backend.dtype)],
            "method": method.name,
            "settings": dict(method.settings),
            "budgets": list(method.budgets),
            "subject": subject.name,
            "photo": pixels_hash([subject.photo]),
            "class_noun": subject.class_noun,
            "prompts": list(subject.prompts),
            "seeds": self.seeds,
            "drawing": drawing_settings(self.session, self.drawing),
        })  # fmt: skip

    def _has_all(self, kept: Mapping[str, Any]) -> bool:
        """Whether the pictures are still those that were drawn."""
        return all(self._grid(kept, file) is not None for file in kept["pictures"])

    def _grid(self, kept: Mapping[str, Any], file: str) -> Pixels | None:
        _, rows, columns = kept["grids"][file]
        pictures = self.store.load_pictures(file, rows, columns)
        same = pictures is not None and pixels_hash([pictures]) == kept["pictures"][file]
        return pictures if same else None

    def _fit(self, method: Method, subject: EvaluationSubject) -> dict[str, Any]:
        count = len(subject.prompts)
        prompts = list(subject.prompts) * self.seeds
        noise = [_SEEDS_A_PROMPT * p + s for s in range(self.seeds) for p in range(count)]
        fits, pictures, grids = [], {}, {}
        found = fit_and_draw(method, self.session, subject, prompts, noise, self.drawing)
        for row, drawn in found:
            fits.append({**asdict(row), **self.made})
            if drawn is None:
                continue
            grid = drawn.reshape(self.seeds, count, *drawn.shape[1:])
            file = self.store.save_pictures(method.name, row.steps, subject.name, grid)
            pictures[file], grids[file] = pixels_hash([grid]), [row.steps, self.seeds, count]
        return {"method": method.name, "fits": fits, "pictures": pictures, "grids": grids}

    def _real(self, subject: EvaluationSubject) -> dict[str, Any]:
        """Keep the subject really in its prompts' contexts; else its photos, one below another."""
        if subject.real:
            grid = np.stack(subject.real)[None]
        else:
            side = self.session.bundle.info.image_size_px
            tiles = [ImageOps.fit(Image.fromarray(one), (side, side)) for one in subject.gallery]
            grid = np.stack([np.asarray(tile) for tile in tiles])[:, None]
        file = self.store.save_pictures(CEILING, 0, subject.name, grid)
        grids = {file: [0, *grid.shape[:2]]}
        shown = {file: pixels_hash([grid])}
        return {"method": CEILING, "fits": [], "pictures": shown, "grids": grids}

    def _measure(self, kept: Mapping[str, Any], index: int) -> list[PictureRow]:
        rows: list[PictureRow] = []
        for file, (steps, *_) in kept["grids"].items():
            if kept["method"] == CEILING and not self.subjects[index].real:
                rows += self.measurer.rows_left_out(index, CEILING, file)
                continue
            grid = self._grid(kept, file)
            if grid is None:
                raise EvaluationError(
                    str(self.store.folder / file), expected="the pictures drawn just now",
                    got="others", remedy="Let no other evaluation write into this folder",
                )  # fmt: skip
            rows += self.measurer.rows(grid, index, kept["method"], steps, file)
        return rows


def _check(
    evaluation_set: EvaluationSet, methods: Sequence[Method], seeds: int, part: tuple[int, int]
) -> None:
    subjects = evaluation_set.subjects
    names = [file_name(method.name) for method in methods]
    checks = (
        ("subjects", "at least two, since others are the floor", len(subjects), len(subjects) > 1),
        ("subjects' names", "different", sorted(one.name for one in subjects),
         len({file_name(one.name) for one in subjects}) == len(subjects)),
        ("prompts", "as many for every subject, at least one",
         sorted({len(one.prompts) for one in subjects}),
         len({len(one.prompts) for one in subjects}) == 1 and len(subjects[0].prompts) > 0),
        ("prompts", "{} for the subject in each", "some without",
         all("{}" in prompt for one in subjects for prompt in one.prompts)),
        ("galleries", "at least one real picture of every subject", "none of some",
         all(one.gallery for one in subjects)),
        ("methods", "at least one", 0, bool(methods)),
        ("methods", "different names; several steps as hybridbooth:steps=5+20", names,
         len(set(names)) == len(names) and file_name(CEILING) not in names),
        ("seeds", f"1 to {_SEEDS_A_PROMPT}", seeds, 1 <= seeds <= _SEEDS_A_PROMPT),
        ("part", "i/n with 0 <= i < n", f"{part[0]}/{part[1]}", 0 <= part[0] < part[1]),
    )  # fmt: skip
    for what, expected, got, holds in checks:
        if not holds:
            raise EvaluationError(f"{what} of an evaluation", expected=expected, got=str(got))
