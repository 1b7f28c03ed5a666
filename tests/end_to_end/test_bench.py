"""`hbsdk bench` and benchmarks/*.py, from the command line to JSON, table and plot, on mini."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hbsdk.cli import app

RUN = CliRunner()
ROOT = Path(__file__).parents[2]


def test_generation_is_measured_and_gone_on_with(tmp_path: Path) -> None:
    words = ["bench", "--what", "generate", "-o", str(tmp_path), "--repeats", "1", "--steps", "2"]
    words += ["--engine", "torch,dtype=float32", "--quiet"]
    first = RUN.invoke(app, words)
    assert first.exit_code == 0, first.output
    assert "| torch,dtype=float32 | picture of 2 steps |" in first.output
    data = json.loads((tmp_path / "generate.json").read_text())
    case = data["cases"]["torch,dtype=float32"]
    assert case["measures"]["guided step"]["runs"] == 1
    assert case["measures"]["picture of 2 steps"]["limit_s"] > 0.0
    assert 0.0 < case["shares"]["host_share"]["median"] < 1.0
    assert "psnr_db" not in case["facts"]
    assert "reference" in first.output
    assert set(case["stages"]) == {"encode_prompts", "denoise", "decode", "host"}
    assert data["rates"]["float32"] > 1e8
    assert (tmp_path / "generate.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "generate.work").exists()
    again = RUN.invoke(app, words)
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "generate.json").read_text())["cases"] == data["cases"]
    other = RUN.invoke(app, [*words[:-5], "--steps", "3", *words[-3:]])
    assert other.exit_code == 2
    assert "settings of" in other.stderr


@pytest.mark.slow
def test_a_case_that_fails_has_a_row_and_the_others_theirs(tmp_path: Path) -> None:
    words = ["bench", "--what", "personalize", "-o", str(tmp_path), "--repeats", "1", "--quiet"]
    words += ["--steps", "1", "--engine", "torch,timesteps_per_step=2"]
    found = RUN.invoke(app, [*words, "--engine", "bad=onnxruntime"])
    assert found.exit_code == 1, found.output
    cases = json.loads((tmp_path / "personalize.json").read_text())["cases"]
    assert "no engines of it" in cases["bad, probe"]["failed"]
    for name, what in (("1 steps", "probe and 1 step"), ("probe", "probe")):
        assert what in cases[f"torch,timesteps_per_step=2, {name}"]["measures"]


def test_bad_input_ends_in_one_line(tmp_path: Path) -> None:
    for words in (
        ["--what", "colour"],
        ["--engine", "torch,colour=red"],
        ["--bundle", str(tmp_path / "none")],
    ):
        found = RUN.invoke(app, ["bench", "-o", str(tmp_path / "out"), "--quiet", *words])
        assert found.exit_code == 2, found.output
        assert found.stderr.startswith("hbsdk: ")
        assert len(found.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("out/*.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "more", "expected"),
    [
        ("scale.py", ["--numbers", "files=20", "--numbers", "steps=1,2"], "time over steps: "),
        ("generate.py", ["--steps", "2", "--peer", "none"], "picture of 2 steps"),
        ("generate.py", ["--guided-step", "--peer", "diffusers-float32", "--peer-python",
         f"diffusers={sys.executable}"], " dB to the reference"),
        ("refine.py", ["--steps", "1", "--memory", "high", "--option", "timesteps_per_step=2",
         "--micro-batches", "2"], "largest loss difference"),
    ],
)  # fmt: skip
def test_scripts_answer_their_question(
    script: str, more: list[str], expected: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--out", str(tmp_path / "a.json")]
    command += ["--repeats", "1", "--case", "torch", "--quiet", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert json.loads((tmp_path / "a.json").read_text())["cases"]


@pytest.mark.slow
def test_a_named_peer_that_cannot_run_fails_the_script(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "generate.py"), "--quiet"]
    command += ["--out", str(tmp_path / "a.json"), "--repeats", "1", "--steps", "2"]
    command += ["--case", "torch", "--peer", "optimum-onnxruntime"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "failed: optimum-onnxruntime: no " in done.stderr
    assert json.loads((tmp_path / "a.json").read_text())["cases"]["torch"]["turns"] == 1
    assert (tmp_path / "a.work").is_dir()  # the next run needs it
