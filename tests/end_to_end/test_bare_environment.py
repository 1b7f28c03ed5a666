"""`pip install ".[cpu]"` and built engines are enough to probe and to draw: no torch at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import hbsdk

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROMPT, STEPS, SEED = "a photo of S* in the snow", 6, 3
PROGRAM = """
import importlib.util, json, sys
import hbsdk
bundle, engines, photo, prompt, steps, seed = sys.argv[1:]
session = hbsdk.Session(bundle, engine="onnxruntime", engines=engines, progress=False)
session.personalize(photo, name="fox", steps=0).save("fox.safetensors")
subject = hbsdk.Subject.load("fox.safetensors")
settings = {"num_inference_steps": int(steps), "seed": int(seed)}
(picture,) = session.generate(prompt, subject, **settings)
picture.save("fox.png")
try:
    session.personalize(photo, steps=5)
    refused = None
except hbsdk.MissingDependencyError as error:
    refused = str(error)
names = ("torch", "diffusers", "transformers", "accelerate")
print(json.dumps({
    "package": hbsdk.__file__,
    "backend": repr(session),
    "found": [name for name in names if importlib.util.find_spec(name)],
    "refused": refused,
}))
"""


@dataclass(frozen=True)
class Bare:
    """An environment without torch, and what it did: files are in `folder`."""

    folder: Path
    said: dict[str, Any]
    doctor_without_onnxruntime: dict[str, Any]

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(self.folder, command, *arguments)

    @property
    def words(self) -> npt.NDArray[np.float32]:
        return hbsdk.Subject.load(self.folder / "fox.safetensors").words

    @property
    def picture(self) -> npt.NDArray[np.int16]:
        return np.array(Image.open(self.folder / "fox.png"), np.int16)


def run(folder: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment outside of the checkout, which is then not imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [folder / "environment" / "bin" / command, *arguments],
        capture_output=True, text=True, cwd=folder, env=kept,
    )  # fmt: skip


def checked(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An orange square with its mask as the alpha channel."""
    pixels = np.random.default_rng(0).integers(0, 60, (40, 48, 4)).astype(np.uint8)
    pixels[8:32, 12:36, :3] = [220, 120, 40]
    pixels[..., 3] = 0
    pixels[8:32, 12:36, 3] = 255
    path = tmp_path_factory.mktemp("photo") / "fox.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def bare(
    tiny_bundle: Path,
    tiny_engines: Path,
    photo: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bare:
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    # First without any runtime, then with the ONNX Runtime that the engines were built with.
    checked(run(folder, "python", "-m", "pip", "install", "--quiet", str(ROOT)))
    doctor = json.loads(checked(run(folder, "hbsdk", "doctor", "--json")))
    wanted = (f"{ROOT}[cpu]", f"onnxruntime=={version('onnxruntime')}")
    checked(run(folder, "python", "-m", "pip", "install", "--quiet", *wanted))
    places = (str(tiny_bundle), str(tiny_engines), str(photo), PROMPT, str(STEPS), str(SEED))
    said = json.loads(checked(run(folder, "python", "-c", PROGRAM, *places)))
    return Bare(folder, said, doctor)


@pytest.fixture(scope="module", params=["onnxruntime", "torch"])
def full(request: pytest.FixtureRequest, tiny_bundle: Path, tiny_engines: Path) -> Any:
    """A session of this environment, which has everything."""
    engines = None if request.param == "torch" else tiny_engines
    return hbsdk.Session(
        tiny_bundle, engine=request.param, engines=engines, device="cpu", progress=False
    )


def test_there_is_no_torch_there(bare: Bare) -> None:
    assert bare.said["found"] == []
    assert str(bare.folder) in bare.said["package"]
    assert bare.said["backend"] == "Session('tiny', onnxruntime on cpu)"


def test_words_and_pictures_are_those_of_the_full_environment(
    bare: Bare, full: hbsdk.Session, photo: Path
) -> None:
    subject = full.personalize(photo, name="fox", steps=0)
    tolerance = 1e-4 if full.backend.name == "torch" else 1e-6
    np.testing.assert_allclose(bare.words, subject.words, atol=tolerance)

    def draw(prompt: str, seed: int) -> npt.NDArray[np.int16]:
        (picture,) = full.generate(prompt, subject, num_inference_steps=STEPS, seed=seed)
        return np.array(picture, np.int16)

    assert np.abs(bare.picture - draw(PROMPT, SEED)).max() <= 1  # of 255: rounding
    assert np.abs(bare.picture - draw(PROMPT, SEED + 1)).max() > 10


def test_another_photo_would_give_other_words(bare: Bare, full: hbsdk.Session, photo: Path) -> None:
    """What the words are compared with is not so coarse that any words would pass."""
    pixels = np.array(Image.open(photo))
    pixels[..., :3] = 255 - pixels[..., :3]
    other = full.personalize(Image.fromarray(pixels), name="fox", steps=0)
    assert np.abs(bare.words - other.words).max() > 1e-3


def test_refinement_tells_what_to_install(bare: Bare) -> None:
    assert "expected torch, diffusers and transformers" in bare.said["refused"]
    assert bare.said["refused"].endswith('Install them: pip install "hbsdk[torch]".')
    demo = bare.run("hbsdk", "demo")
    assert demo.returncode == 2
    assert demo.stderr.startswith("hbsdk: hbsdk demo: expected torch")
    assert len(demo.stderr.strip().splitlines()) == 1


def test_doctor_works_there(bare: Bare, tiny_bundle: Path, tiny_engines: Path) -> None:
    more = ("--bundle", str(tiny_bundle), "--engines", str(tiny_engines))
    found = json.loads(checked(bare.run("hbsdk", "doctor", "--json", *more)))
    assert found["auto"]["takes"]["engine"] == "onnxruntime"
    assert found["runtimes"]["torch"] is None
    said = checked(bare.run("hbsdk", "doctor", *more))
    assert "takes onnxruntime on the CPU" in said
    assert "torch, diffusers, transformers not installed" in said


def test_doctor_works_without_any_runtime(bare: Bare) -> None:
    found = bare.doctor_without_onnxruntime
    assert found["auto"]["takes"] is None
    assert set(found["runtimes"].values()) == {None}
    assert found["bundle"]["personalizes"]
