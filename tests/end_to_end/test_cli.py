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
from hbsdk.subject import Subject

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
    faster = RUN.invoke(
        app, [*words, "-n", "1", "--seed", "3", "--speed", "fast", "-o", str(picture)]
    )
    assert faster.exit_code == 0, faster.output
    assert (np.array(Image.open(picture)) != first).any()


def test_bad_input_ends_in_one_line_and_exit_code_2(tmp_path: Path) -> None:
    for arguments in (
        ["personalize", str(tmp_path / "none.png"), "-o", str(tmp_path / "x.safetensors")],
        ["generate", "S* in the snow", "-o", str(tmp_path / "x.png")],
        ["generate", "a cat", "--steps", "0", "-o", str(tmp_path / "x.png")],
        ["generate", "a cat", "--speed", "slow", "-o", str(tmp_path / "x.png")],
        ["generate", "a cat", "--bundle", str(tmp_path), "-o", str(tmp_path / "x.png")],
    ):
        result = RUN.invoke(app, arguments)
        assert result.exit_code == 2, (arguments, result.output)
        assert result.stderr.startswith("hbsdk: "), arguments
        assert len(result.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "x.png").exists()


def test_doctor_says_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HBSDK_ENGINES", str(tmp_path))
    findings = json.loads(RUN.invoke(app, ["doctor", "--json"]).output)
    assert findings["runtimes"]["torch"]["version"]
    assert findings["bundle"]["personalizes"]
    assert findings["auto"]["takes"]["engine"] == "torch"
    said = RUN.invoke(app, ["doctor"]).output
    assert 'Session(engine="auto") takes torch' in said
    assert "not onnxruntime on the CPU: no engines of it" in said


def test_doctor_looks_at_the_engines_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "mini-cpu-0").mkdir()
    said = RUN.invoke(app, ["doctor", "--engines", str(tmp_path)])
    assert said.exit_code == 0
    assert f"engines in {tmp_path}:\n  mini-cpu-0: not usable" in said.output
    assert "takes nothing" in said.output


@pytest.mark.parametrize("word", ["personalize", "generate", "demo"])
def test_engines_that_cannot_be_used_end_in_one_line(
    word: str, photo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.png"
    first = {
        "personalize": ["personalize", str(photo), "-o", str(out)],
        "generate": ["generate", "a cat", "-o", str(out)],
        "demo": ["demo", "--out", str(tmp_path / "sheet")],
    }[word]
    for more, expected in (
        (
            ["--engine", "onnx"],
            "expected one of auto, torch, onnxruntime, openvino, tensorrt, got 'onnx'",
        ),
        (["--engines", str(tmp_path)], f"no engines of it for this bundle in {tmp_path}"),
        (["--engines", str(photo)], "expected a folder that can be read"),
    ):
        result = RUN.invoke(app, [*first, *more, "--quiet"])
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("hbsdk: ")
        assert len(result.stderr.strip().splitlines()) == 1
        assert expected in result.stderr
    assert not out.exists()


def test_engines_run_what_the_command_line_asks(
    tiny_bundle: Path, tiny_engines: Path, photo: Path, tmp_path: Path
) -> None:
    """Both verbs on ONNX Runtime and in torch: the same words, the same picture."""
    made: dict[str, tuple[Subject, Image.Image]] = {}
    for engine, folder in (("onnxruntime", ["--engines", str(tiny_engines)]), ("torch", [])):
        home = tmp_path / engine
        home.mkdir()
        words, picture = home / "fox.safetensors", home / "fox.png"
        more = ["--bundle", str(tiny_bundle), "--engine", engine, *folder, "--quiet"]
        first = RUN.invoke(
            app, ["personalize", str(photo), "-o", str(words), "--steps", "0", *more]
        )
        assert first.exit_code == 0, first.output
        prompt = ["generate", "a photo of S*", "--subject", str(words), "-n", "1", "--steps", "4"]
        second = RUN.invoke(app, [*prompt, "-o", str(picture), *more])
        assert second.exit_code == 0, second.output
        made[engine] = Subject.load(words), Image.open(picture)
    (subject, drawn), (expected, oracle) = made["onnxruntime"], made["torch"]
    np.testing.assert_allclose(subject.words, expected.words, atol=1e-4)
    assert np.abs(np.array(drawn, np.int16) - np.array(oracle, np.int16)).max() <= 1


def test_demo_draws_a_sheet(tmp_path: Path) -> None:
    from hbsdk import demo

    report = demo.run_demo(tmp_path, characters=1, progress=False)
    sheet = Image.open(tmp_path / "contact_sheet.png")
    assert sheet.width > 1000
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert "refined" in report
