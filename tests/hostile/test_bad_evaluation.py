"""Evaluations that cannot be: bad folders, tables, methods, checkpoints and disks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hbsdk
from hbsdk.errors import EvaluationError, OptionError
from hbsdk.evaluation.encoders import HubClip, HubDino
from hbsdk.evaluation.method_names import parse_method, parse_methods
from hbsdk.evaluation.methods import Snapshot
from hbsdk.evaluation.metrics import Metrics
from hbsdk.evaluation.own_methods import HybridBooth, NoPersonalization
from hbsdk.evaluation.photo_set import TABLE, photo_set
from hbsdk.evaluation.results import read_results
from hbsdk.evaluation.rows import FitRow
from hbsdk.evaluation.run import evaluate
from hbsdk.evaluation.subjects import EvaluationSet
from hbsdk.evaluation.world_set import world_set
from hbsdk.options import GenerateOptions
from tests.tiny_metrics import drawn_set, write_tiny_clip, write_tiny_vit

WORDS = """Classes

subject_name,class
mug,cup

Prompts

Object Prompts

prompt_list = ['a {0} {1} on grass'.format(unique_token, class_token)]

Live Subject Prompts

prompt_list = ['a {0} {1} in a hat'.format(unique_token, class_token)]
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "mug").mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(folder / "mug" / "0.jpg")
    (folder / TABLE).write_text(WORDS)
    return folder


def no_class(folder: Path) -> None:
    (folder / "vase").mkdir()
    Image.new("RGB", (32, 32)).save(folder / "vase" / "0.jpg")


def empty_folder(folder: Path) -> None:
    (folder / "mug" / "0.jpg").unlink()


def truncated(folder: Path) -> None:
    file = folder / "mug" / "0.jpg"
    file.write_bytes(file.read_bytes()[:300])


def no_table(folder: Path) -> None:
    (folder / TABLE).unlink()


def no_live_prompts(folder: Path) -> None:
    (folder / TABLE).write_text(WORDS.partition("Live Subject")[0])


def no_classes(folder: Path) -> None:
    (folder / TABLE).write_text(WORDS.replace("mug,cup", ""))


def uneven(folder: Path) -> None:
    more = "['a {0} {1}'.format(unique_token, class_token), "
    (folder / TABLE).write_text(WORDS.replace("[", more, 1))


def bytes_for_table(folder: Path) -> None:
    (folder / TABLE).write_bytes(b"\xff\xfe\x00\xd8")


def no_subjects(folder: Path) -> None:
    empty_folder(folder)
    (folder / "mug").rmdir()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (no_class, "mug,cup|vase,CLASS"), (empty_folder, "photos of subject 'mug'"),
        (truncated, "0.jpg"), (no_table, "prompts_and_classes.txt"),
        (no_live_prompts, "Live Subject Prompts"), (no_classes, "subject_name,class"),
        (uneven, "2 and 1"), (bytes_for_table, "no text"), (no_subjects, "got none"),
    ],
)  # fmt: skip
def test_a_spoilt_photo_folder_is_told(
    photos: Path, spoil: Callable[[Path], None], told: str
) -> None:
    assert len(photo_set(photos).subjects) == 1
    spoil(photos)
    with pytest.raises(EvaluationError, match=told):
        photo_set(photos)


@pytest.mark.parametrize("unreadable", ["", "mug"])
def test_a_folder_that_cannot_be_read_is_told(
    photos: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    refused = photos / unreadable
    listed = Path.iterdir

    def iterdir(self: Path) -> Iterator[Path]:
        if self == refused:
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(EvaluationError, match="Permission denied") as caught:
        photo_set(photos)
    assert caught.value.what == str(refused)
    assert caught.value.remedy


@pytest.mark.parametrize("how", [{"photo": 1}, {"photo": -1}, {"count": 0}, {"count": 2}])
def test_a_photo_or_subject_that_is_not_there(photos: Path, how: dict[str, int]) -> None:
    with pytest.raises(EvaluationError, match="expected"):
        photo_set(photos, **how)


@pytest.mark.parametrize(("domain", "count"), [("inn", 1), ("in", 0), ("validation-in", 65)])
def test_a_world_that_is_not_there(domain: str, count: int) -> None:
    with pytest.raises(EvaluationError, match="expected"):
        world_set(domain, count)


@pytest.mark.parametrize(
    "text",
    [
        "hybridboth", "class-word:steps=1", "probe:steps=3", "hybridbooth:step=3",
        "hybridbooth:steps", "hybridbooth:steps=5+x", "hybridbooth:steps=-1",
        "hybridbooth:seed=1,seed=2", "hybridbooth:effective_step=fast", "hybridbooth:steps=5000",
        "paper:mode=default", "dreambooth:step=5", "",
    ],
)  # fmt: skip
def test_a_method_that_there_is_not(text: str) -> None:
    with pytest.raises((EvaluationError, OptionError), match="expected"):
        parse_method(text)


@pytest.mark.parametrize("text", ["label", "=folder", "label=", "label=/no/such/folder"])
def test_a_regressor_that_there_is_not(text: str) -> None:
    with pytest.raises(EvaluationError, match=r"expected|no such"):
        parse_methods([], [text])


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(EvaluationError, match="step_size"):
        HybridBooth("x", step_size=1)


@pytest.mark.parametrize("kind", [HubClip, HubDino])
@pytest.mark.parametrize("source", ["no-one/has-this-checkpoint", "/no/such/folder"])
def test_a_checkpoint_that_cannot_be_had(kind: type, source: str) -> None:
    with pytest.raises(EvaluationError, match="HF_HUB_OFFLINE"):
        kind(source)


def test_a_checkpoint_of_another_kind(tmp_path: Path) -> None:
    clip, vit = write_tiny_clip(tmp_path / "clip"), write_tiny_vit(tmp_path / "vit")
    with pytest.raises(EvaluationError, match="--dino"):
        HubDino(str(clip))
    with pytest.raises(EvaluationError, match="--clip"):
        HubClip(str(vit))


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    vit = write_tiny_vit(tmp_path / "vit")
    weights = vit / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(EvaluationError, match="--dino"):
        HubDino(str(vit))


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> hbsdk.Session:
    return hbsdk.Session(tiny_bundle, engine="torch", progress=False)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    folder = tmp_path_factory.mktemp("checkpoints")
    clip = HubClip(str(write_tiny_clip(folder / "clip")))
    return Metrics(clip, HubDino(str(write_tiny_vit(folder / "vit"))))


def changed_set(count: int = 2, **changes: object) -> EvaluationSet:
    """A set whose last subject is changed."""
    *rest, last = drawn_set(count).subjects
    return EvaluationSet("bad", (*rest, dataclasses.replace(last, **changes)))


@pytest.mark.parametrize(
    ("subjects", "methods", "seeds", "part"),
    [
        (drawn_set(1), 1, 1, (0, 1)), (changed_set(name="square-0"), 1, 1, (0, 1)),
        (changed_set(prompts=("a photo of {}",)), 1, 1, (0, 1)),
        (changed_set(prompts=("a", "b", "c")), 1, 1, (0, 1)),
        (changed_set(gallery=()), 1, 1, (0, 1)),
        (drawn_set(), 0, 1, (0, 1)), (drawn_set(), 2, 1, (0, 1)), (drawn_set(), 1, 0, (0, 1)),
        (drawn_set(), 1, 1, (2, 2)), (drawn_set(), 1, 1001, (0, 1)),
    ],
)  # fmt: skip
def test_an_evaluation_that_makes_no_sense_writes_nothing(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path, subjects: EvaluationSet,
    methods: int, seeds: int, part: tuple[int, int],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    with pytest.raises(EvaluationError, match="of an evaluation: expected"):
        evaluate(session, subjects, [NoPersonalization()] * methods, seeds, out, metrics,
                 part=part, progress=False)  # fmt: skip
    assert not out.exists()


class Bad:
    """A method that does not do as it says."""

    name, settings, budgets = "bad", {}, (0,)

    def __init__(self, *snapshots: Snapshot) -> None:
        self.snapshots = snapshots

    def fit(self, *_: object) -> Iterator[Snapshot]:
        yield from self.snapshots


def drawing(pictures: object) -> Callable[..., object]:
    return lambda *_: pictures


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (Bad(), "a snapshot after 0 steps"),
        (Bad(Snapshot(3, 0.0, drawing(None))), "one after 3"),
        (Bad(Snapshot(0, 0.0, drawing(None))), "NoneType"),
        (Bad(Snapshot(0, 0.0, drawing(np.zeros((1, 8, 8, 3), np.uint8)))), "(1, 8, 8, 3)"),
        (Bad(Snapshot(0, 0.0, drawing(np.zeros((3, 8, 8, 3))))), "float64"),
        (Bad(Snapshot(0, 0.0, drawing(np.zeros((3, 8, 8, 4), np.uint8)))), "(3, 8, 8, 4)"),
    ],
)
def test_a_method_that_breaks_its_word_fails_and_the_others_go_on(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path, method: Bad, told: str
) -> None:
    evaluate(session, drawn_set(), [method, NoPersonalization()], 1, tmp_path, metrics,
             progress=False)  # fmt: skip
    fits = (tmp_path / "fits.jsonl").read_text()
    assert fits.count(told) == 2
    assert '"class-word"' in fits
    assert '"bad"' not in (tmp_path / "pictures.jsonl").read_text()


def test_out_is_a_file(session: hbsdk.Session, metrics: Metrics, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(EvaluationError, match="folder"):
        evaluate(session, drawn_set(), [NoPersonalization()], 1, out, metrics, progress=False)
    assert out.read_text() == "mine"


def test_a_full_disk_stops_the_run_and_leaves_no_part_of_a_file(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hbsdk.whole_file.os.replace", full)
        with pytest.raises(EvaluationError, match="No space left"):
            evaluate(session, drawn_set(), [NoPersonalization()], 1, tmp_path, metrics,
                     progress=False)  # fmt: skip
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    evaluate(session, drawn_set(), [NoPersonalization()], 1, tmp_path, metrics, progress=False)
    assert (tmp_path / "run.json").is_file()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"key": "another"}', b"\xff\xfe", b"[" * 100_000]
)
def test_damaged_results_are_done_again(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path, damage: bytes
) -> None:
    def rows() -> str:
        evaluate(session, drawn_set(), [NoPersonalization()], 1, tmp_path, metrics, progress=False)
        return (tmp_path / "pictures.jsonl").read_text()

    whole = rows()
    for file in (tmp_path / "done").glob("*.json"):
        file.write_bytes(damage)
    for file in (tmp_path / "pictures").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:100])
    assert rows() == whole


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    """Take a field out, as a record of an earlier hbsdk may lack it; "*" is the first of many."""

    def spoil(record: dict[str, Any]) -> None:
        inner: Any = record
        for name in path[:-1]:
            inner = inner[0] if name == "*" else inner[name]
        del inner[next(iter(inner)) if path[-1] == "*" else path[-1]]

    return spoil


def of_another_type(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update({name: None})


FITTED = [
    *(without(name) for name in ("method", "fits", "pictures", "grids")),
    *(of_another_type(name) for name in ("method", "fits", "pictures", "grids")),
    *(without("fits", "*", name) for name in ("failed", "seconds", "peak_bytes")),
    without("grids", "*"),
]


@pytest.mark.parametrize("spoil", FITTED)
def test_records_that_lack_something_are_done_again(
    session: hbsdk.Session, metrics: Metrics, kept: tuple[Path, str], tmp_path: Path,
    spoil: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    out, whole = copied(kept, tmp_path)
    spoil_records(out, "fits", spoil)
    assert evaluated(session, metrics, out) == whole


@pytest.mark.parametrize(
    "spoil",
    [without("rows"), of_another_type("rows"),
     *(without("rows", "*", name) for name in ("dino_i", "file", "retrieved"))],
)  # fmt: skip
def test_measurements_that_lack_something_are_made_again(
    session: hbsdk.Session, metrics: Metrics, kept: tuple[Path, str], tmp_path: Path,
    spoil: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    out, whole = copied(kept, tmp_path)
    spoil_records(out, "rows", spoil)
    assert evaluated(session, metrics, out) == whole


def test_records_from_before_they_told_their_machine_are_kept(
    session: hbsdk.Session, metrics: Metrics, kept: tuple[Path, str], tmp_path: Path
) -> None:
    out, whole = copied(kept, tmp_path)

    def older(record: dict[str, Any]) -> None:
        record.pop("made")
        for row in record["fits"]:
            del row["device"], row["commit"]

    spoil_records(out, "fits", older)
    spoil_records(out, "rows", without("made"))
    before = done(out)
    assert evaluated(session, metrics, out) == whole
    assert done(out) == before
    assert all(row.device is None for row in fits(out))
    (out / "pictures" / "class-word" / "0" / "square-0.png").unlink()
    assert evaluated(session, metrics, out) == whole
    assert [row.device is None for row in fits(out)] == [False, True]


@pytest.fixture(scope="module")
def kept(
    session: hbsdk.Session, metrics: Metrics, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A finished evaluation's folder, and what it tells."""
    folder = tmp_path_factory.mktemp("kept")
    return folder, evaluated(session, metrics, folder)


def copied(kept: tuple[Path, str], folder: Path) -> tuple[Path, str]:
    return shutil.copytree(kept[0], folder / "out"), kept[1]


def done(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "done").glob("*.json")}


def fits(folder: Path) -> list[FitRow]:
    return [row for rows in read_results(folder).fits.values() for row in rows]


def evaluated(session: hbsdk.Session, metrics: Metrics, folder: Path) -> str:
    """The rows of a run, and those of its fits without what differs from time to time."""
    evaluate(session, drawn_set(), [NoPersonalization()], 1, folder, metrics, progress=False,
             drawing=GenerateOptions(num_inference_steps=2))  # fmt: skip
    told = [(row.method, row.steps, row.subject, row.failed) for row in fits(folder)]
    return (folder / "pictures.jsonl").read_text() + repr(told)


def spoil_records(folder: Path, kind: str, spoil: Callable[[dict[str, Any]], None]) -> None:
    """Change every record that has "fits", or "rows"; at least one can be changed."""
    changed = 0
    for file in (folder / "done").glob("*.json"):
        record = json.loads(file.read_text())
        if kind in record and not (kind == "fits" and not record["fits"]):
            spoil(record)
            file.write_text(json.dumps(record))
            changed += 1
    assert changed


def test_a_bundle_without_a_regressor_says_so(
    tiny_bundle: Path, metrics: Metrics, tmp_path: Path
) -> None:
    from tests.tiny_bundle import write_tiny_bundle

    bare = write_tiny_bundle(tmp_path / "bare", regressor=False)
    session = hbsdk.Session(bare, engine="torch", progress=False)
    method = HybridBooth("probe", steps=0)
    evaluate(session, drawn_set(), [method], 1, tmp_path / "out", metrics, progress=False)
    assert "has no regressor" in (tmp_path / "out" / "fits.jsonl").read_text()
