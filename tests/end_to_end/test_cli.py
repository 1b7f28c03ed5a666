"""The command line, from a photo file to pictures, on the embedded mini bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hbsdk.cli import app
from hbsdk.mini import world
from hbsdk.mini.cache import draw_picture

RUN = CliRunner()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(draw_picture(world.HELD_OUT_SEEDS[1], 0)[0]).save(path)
    return path


def test_a_photo_becomes_a_subject_and_pictures(photo: Path, tmp_path: Path) -> None:
    subject = tmp_path / "my-cat.safetensors"
    made = RUN.invoke(app, ["personalize", str(photo), "--steps", "2", "-o", str(subject)])
    assert made.exit_code == 0, made.output
    assert "words moved" in made.output
    assert subject.stat().st_size < 17_000
    picture = tmp_path / "out.png"
    words = ["generate", "<my-cat> in the snow", "--subject", str(subject), "--steps", "4"]
    drawn = RUN.invoke(app, [*words, "-n", "2", "--seed", "3", "-o", str(picture)])
    assert drawn.exit_code == 0, drawn.output
    first, second = (np.array(Image.open(tmp_path / f"out-{i}.png")) for i in range(2))
    assert first.shape == (64, 64, 3)
    assert (first != second).any()


def test_bad_input_ends_in_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for arguments in (
        ["personalize", str(tmp_path / "none.png"), "-o", str(tmp_path / "x.safetensors")],
        ["generate", "S* in the snow", "-o", str(tmp_path / "x.png")],
        ["generate", "a cat", "--steps", "0", "-o", str(tmp_path / "x.png")],
        ["generate", "a cat", "--bundle", str(tmp_path), "-o", str(tmp_path / "x.png")],
    ):
        result = RUN.invoke(app, arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert result.stderr.startswith("hbsdk: "), arguments
        assert len(result.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "x.png").exists()


def test_doctor_says_what_is_here() -> None:
    findings = json.loads(RUN.invoke(app, ["doctor", "--json"]).output)
    assert findings["packages"]["torch"]
    assert findings["bundle"]["personalizes"]
    assert "runtime: torch" in RUN.invoke(app, ["doctor"]).output


def test_demo_draws_a_sheet(tmp_path: Path) -> None:
    from hbsdk import demo

    report = demo.run_demo(tmp_path, characters=1, progress=False)
    sheet = Image.open(tmp_path / "contact_sheet.png")
    assert sheet.width > 1000
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert "refined" in report
