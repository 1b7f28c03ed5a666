"""`hbsdk evaluate` as people call it, on the tiny bundle."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from hbsdk.cli_evaluate import _METHOD_HELP, evaluate
from hbsdk.evaluation.method_names import NAMES
from tests.tiny_metrics import write_tiny_clip, write_tiny_vit

pytest.importorskip("matplotlib", reason="the report needs matplotlib")
TABLE = """subject_name,class
mug,person
rex,dog

Prompts

Object Prompts

prompt_list = ['a {0} {1} in the snow'.format(unique_token, class_token)]

Live Subject Prompts

prompt_list = ['a {0} {1} with a red hat'.format(unique_token, class_token)]
"""


@pytest.fixture(scope="module")
def arguments(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    clip, vit = write_tiny_clip(folder / "clip"), write_tiny_vit(folder / "vit")
    return ["--bundle", str(tiny_bundle), "--clip", str(clip), "--dino", str(vit), "--quiet"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, subject in enumerate(("mug", "rex")):
        (folder / subject).mkdir()
        for index in range(2):
            pixels = np.random.default_rng(index).integers(0, 60, (40, 48, 3)).astype(np.uint8)
            pixels[8:32, 12:36] = (220, 120 * number, 40)
            Image.fromarray(pixels).save(folder / subject / f"{index}.jpg")
    (folder / "prompts_and_classes.txt").write_text(TABLE)
    return folder


def run(*arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(evaluate)
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_photos_to_a_report(arguments: list[str], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(
        "--set", photos, "--method", "class-word", "--method", "probe", "--seeds", 1, "-o", out,
        *arguments,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    about = json.loads((out / "run.json").read_text())
    assert all(name in result.output for name in about["metrics"].values())
    assert "real pictures" in result.output
    assert about["prompts"] == ["{} in the snow / {} with a red hat"]
    assert (out / "report.html").stat().st_size > 1000
    assert len((out / "fits.jsonl").read_text().splitlines()) == 4
    before = {path: path.stat().st_mtime_ns for path in (out / "done").glob("*.json")}
    again = run(
        "--set", photos, "--method", "class-word", "--method", "probe", "--seeds", 1, "-o", out,
        *arguments,
    )  # fmt: skip
    assert again.output == result.output
    assert {path: path.stat().st_mtime_ns for path in (out / "done").glob("*.json")} == before


def test_other_drawing_is_kept_apart_and_told(
    arguments: list[str], photos: Path, tmp_path: Path
) -> None:
    def drawing(*given: str) -> tuple[dict[str, object], set[str], bytes]:
        result = run(
            "--set", photos, "--method", "class-word", "--seeds", 1, "-o", tmp_path / "out",
            *given, *arguments,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        about = json.loads((tmp_path / "out" / "run.json").read_text())
        kept = {path.name for path in (tmp_path / "out" / "done").glob("*.json")}
        (picture,) = (tmp_path / "out" / "pictures" / "class-word").rglob("*mug*.png")
        return about["drawing"], kept, picture.read_bytes()

    plain, kept, picture = drawing("--drawing", "num_inference_steps=4")
    assert set(plain) == {"sampler", "num_inference_steps", "guidance_scale"}
    assert plain["num_inference_steps"] == 4
    faster, more, other = drawing(
        "--drawing", "num_inference_steps=4,guidance_stop=0.5,feature_interval=2"
    )
    assert faster == {**plain, "guidance_stop": 0.5, "feature_interval": 2}
    assert kept < more
    assert other != picture
    assert drawing("--drawing", "num_inference_steps=4,guidance_stop=1.0") == (plain, more, picture)


class Judge:
    name = "a judge"

    def accuracy(self, pixels, attributes):
        right = np.ones(len(pixels), bool)
        return right.astype(float), {"kind": right}


def test_the_world_is_judged(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hbsdk.evaluation.judge.load_judge", Judge)
    typed = ["/usr/bin/hbsdk", "evaluate", "--set", "world-out", "-o", "my results; $HOME"]
    monkeypatch.setattr("sys.argv", typed)
    result = run(
        "--set", "world-out", "--subjects", 2, "--seeds", 1, "--method", "class-word",
        "-o", tmp_path, *arguments,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "a judge" in result.output
    about = json.loads((tmp_path / "run.json").read_text())
    assert shlex.split(about["command"]) == ["hbsdk", *typed[1:]]  # what a shell makes of it
    assert about["set"] == "world-out"
    rows = [json.loads(line) for line in (tmp_path / "pictures.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 8 * 2
    assert all(row["attributes"] == 1.0 for row in rows)


def test_a_failure_shows_in_the_exit_status(
    arguments: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no words came")

    monkeypatch.setattr("hbsdk.session.Session.personalize", fails)
    result = run(
        "--set", photos, "--seeds", 1, "--method", "class-word", "--method", "probe",
        "-o", tmp_path, *arguments,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "2 fits failed" in result.stderr
    assert "no words came" in result.stderr
    assert "class-word" in result.stdout


def test_the_help_names_every_method() -> None:
    told = re.findall(r"[a-z][a-z-]*[a-z]", _METHOD_HELP)
    assert set(NAMES) <= {*told}


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (("--part", "2/2"), "--part"), (("--part", "half"), "--part"),
        (("--method", "magic"), "magic"), (("--set", "/no/such/folder"), "--set"),
        (("--seeds", "0"), "seeds"), (("--subjects", "9"), "subjects"),
        (("--clip", "/no/such/clip"), "--clip"), (("--regressor", "x"), "--regressor"),
        (("--drawing", "guidance_stop=2"), "guidance_stop"), (("--drawing", "seed=1"), "seed=1"),
        (("--drawing", "speed"), "--drawing"), (("--drawing", "speed=quick"), "exact, balanced"),
        (("--drawing", "feature_interval=two"), "feature_interval of --drawing"),
        (("--drawing", "sampler=HeunDiscreteScheduler"), "dpm++2m"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(
    arguments: list[str], photos: Path, tmp_path: Path, bad: tuple[str, str], told: str
) -> None:
    out = tmp_path / "out"
    result = run("--set", photos, "-o", out, *arguments, *bad)
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()
