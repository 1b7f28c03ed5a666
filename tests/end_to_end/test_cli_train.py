"""The command line around training, on a folder of three drawn pictures and the tiny bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hbsdk.bundle import Bundle
from hbsdk.cli import app
from hbsdk.cli_train import _pack_line, _source
from hbsdk.mini import world
from hbsdk.mini.cache import draw_picture
from hbsdk.session import Session
from hbsdk.training.options import TrainOptions
from hbsdk.training.start import fresh_regressor

RUN = CliRunner()
QUICK = ["--batch-size", "2", "--log-steps", "1", "--quiet"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three drawn pictures with their masks."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        pixels, mask, _ = draw_picture(world.TRAIN_SEEDS[index], 0)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        Image.fromarray(mask * np.uint8(255)).save(folder / f"{index}.mask.png")
    return folder


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tiny_bundle: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two steps, resumed to four."""
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", str(pictures), "-o", str(out), "--bundle", str(tiny_bundle), *QUICK]
    words += ["--sample-steps", "2", "--tensorboard"]
    first = RUN.invoke(app, [*words, "--steps", "2"])
    assert first.exit_code == 0, first.output
    assert "2 steps in" in first.output
    assert len(losses(out)) == 2
    second = RUN.invoke(app, [*words, "--steps", "4", "--resume"])
    assert second.exit_code == 0, second.output
    packing = f"hbsdk pack --base {tiny_bundle} --regressor {out / 'regressor'} -o MY-BUNDLE"
    assert packing in second.output
    return out


def test_a_folder_of_pictures_trains_a_regressor_and_resumes(trained: Path) -> None:
    assert [line["step"] for line in losses(trained)] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) for line in losses(trained))
    record = json.loads((trained / "training.json").read_text())
    assert record["options"]["steps"] == 4
    assert record["options"]["batch_size"] == 2
    assert record["steps"] == 4


def test_samples_are_drawn_on_the_way(trained: Path) -> None:
    """A row for each of the three pictures; columns reference, target and three prompts."""
    from hbsdk.training.observers import _GAP_PX, _HEADER_PX, _LEAST_TILE_PX, PROMPTS

    names = sorted(path.name for path in (trained / "samples").iterdir())
    assert names == ["step-000002.png", "step-000004.png"]
    sheets = [np.array(Image.open(trained / "samples" / name)) for name in names]
    pitch = _LEAST_TILE_PX + _GAP_PX
    assert sheets[0].shape == (
        _HEADER_PX + 3 * pitch - _GAP_PX, (2 + len(PROMPTS)) * pitch - _GAP_PX, 3
    )  # fmt: skip
    assert (sheets[0][:, :_LEAST_TILE_PX] == sheets[1][:, :_LEAST_TILE_PX]).all()
    assert (sheets[0] != sheets[1]).any()


def test_curves_and_samples_are_in_tensorboard(trained: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = loading.EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    told = {event.step: event.value for event in events.Scalars("train/loss")}
    assert told == pytest.approx({line["step"]: line["loss"] for line in losses(trained)})
    assert [event.step for event in events.Images("samples")] == [2, 4]


def test_a_trained_regressor_is_packed_into_a_bundle(
    trained: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    words = ["pack", "--base", str(tiny_bundle), "--regressor", str(trained / "regressor")]
    result = RUN.invoke(app, [*words, "-o", str(tmp_path / "mine"), "--licence", "CC0-1.0"])
    assert result.exit_code == 0, result.output
    packed = Bundle.open(tmp_path / "mine")
    assert packed.hash[:16] in result.output
    composed = Bundle.compose(base=tiny_bundle, regressor=trained / "regressor")
    photo = draw_picture(world.HELD_OUT_SEEDS[0], 0)
    made = [
        Session(bundle, engine="torch", progress=False).personalize(*photo[:2], steps=0).words
        for bundle in (packed, composed, Bundle.open(tiny_bundle))
    ]
    np.testing.assert_array_equal(made[0], made[1])
    assert np.abs(made[0] - made[2]).max() > 0.0  # the bundle's own regressor gives others
    card = (tmp_path / "mine" / "README.md").read_text("utf-8")
    for line in ("license: other", "| options.steps | 4 |", "| options.learning_rate | 2e-05 |"):
        assert line in card
    assert json.loads((trained / "training.json").read_text())["source"] in card


def test_a_regressor_of_other_words_and_encoders(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    words = ["train", str(pictures), "--bundle", str(tiny_bundle), *QUICK, "--steps", "1"]
    words += ["--sample-steps", "0", "--no-tensorboard"]
    more = ["--num-words", "2", "--encoders", "clip", "-o", str(tmp_path / "two")]
    result = RUN.invoke(app, [*words, *more])
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "two" / "regressor" / "config.json").read_text())
    assert (config["num_words"], config["encoders"]) == (2, "clip")
    assert not (tmp_path / "two" / "samples").exists()
    assert not (tmp_path / "two" / "tensorboard").exists()
    refused = RUN.invoke(app, [*words, *more, "--start", "bundle", "--resume"])
    assert refused.exit_code == 2
    assert "num_words: expected 5, as of the bundle's regressor, got 2" in refused.stderr


def test_a_regressor_of_one_encoder_is_gone_on_from(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    shutil.copytree(tiny_bundle, one)
    shutil.rmtree(one / "regressor")
    fresh_regressor(Bundle.open(tiny_bundle), encoders="dino").save_pretrained(one / "regressor")
    (one / "hbsdk.json").unlink()
    words = ["train", str(pictures), "--bundle", str(one), *QUICK, "--steps", "1"]
    words += ["--sample-steps", "0", "--no-tensorboard", "--start", "bundle"]
    result = RUN.invoke(app, [*words, "-o", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "regressor" / "config.json").read_text())
    assert config["encoders"] == "dino"
    again = RUN.invoke(app, [*words, "--encoders", "dino", "--resume", "-o", str(tmp_path / "run")])
    assert again.exit_code == 0, again.output
    for encoders in ("both", "clip"):
        out = tmp_path / encoders
        refused = RUN.invoke(app, [*words, "--encoders", encoders, "-o", str(out)])
        assert refused.exit_code == 2
        assert f"encoders: expected dino, as of the bundle's regressor, got {encoders}" in (
            refused.stderr
        )
        assert not out.exists()


def test_printed_commands_can_be_pasted() -> None:
    given = {"bundle": "my bundles/it's", "image_encoder": None, "dino": "owner/dino"}
    line = _pack_line(given, Path("runs/$HOME/regressor"))
    printed = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed == [
        "hbsdk", "pack", "--base", "my bundles/it's", "--dino", "owner/dino",
        "--regressor", "runs/$HOME/regressor", "-o", "MY-BUNDLE",
    ]  # fmt: skip


def test_starting_from_the_bundle_keeps_its_regressor(
    tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    words = ["train", str(pictures), "--bundle", str(tiny_bundle), *QUICK, "--steps", "1"]
    words += ["--sample-steps", "0", "--no-tensorboard", "--learning-rate", "0"]
    words += ["--weight-decay", "0"]
    own = Bundle.open(tiny_bundle).load_regressor().queries
    for start, same in (("bundle", True), ("unet", False)):
        out = tmp_path / start
        result = RUN.invoke(app, [*words, "--start", start, "-o", str(out)])
        assert result.exit_code == 0, result.output
        bundle = Bundle.compose(base=tiny_bundle, regressor=out / "regressor")
        assert bool((bundle.load_regressor().queries == own).all()) is same


def test_an_estimate_is_measured_and_writes_nothing(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hbsdk.training import estimate as module
    from hbsdk.training.rehearsal import Rehearsal, rehearse

    asked: list[dict[str, object]] = []

    def rehearsed(bundle: Bundle, *rest: object) -> Rehearsal:
        asked.append(dict(rest[-1]))  # type: ignore[call-overload]
        if bundle.info.image_size_px == 512 or len(asked) > 2:  # SD 1.5's size takes seconds
            return Rehearsal(1, 2, 3 << 30, 10**12)
        return rehearse(bundle, *rest)

    monkeypatch.setattr(module, "rehearse", rehearsed)
    monkeypatch.setattr(module, "product_rate", lambda *_: 1e12)
    monkeypatch.chdir(tmp_path)
    words = ["train", str(pictures), "--bundle", str(tiny_bundle), *QUICK, "--estimate"]
    result = RUN.invoke(app, [*words, "--steps", "500"])
    assert result.exit_code == 0, result.output
    own, sd15 = result.output.strip().splitlines()
    assert own.startswith("tiny, ")
    assert "measured over 3 steps" in own
    assert "for 500 steps" in own
    assert "CALCULATED, not measured" in sd15
    assert "3.00 GiB" in sd15
    assert list(tmp_path.iterdir()) == []
    assert asked == [{"num_words": 5, "encoders": "both"}] * 2
    monkeypatch.setattr(module, "available_bytes", lambda _: 0)  # calculated: the words count here
    more = ["--num-words", "3", "--encoders", "clip"]
    other = RUN.invoke(app, [*words, "--steps", "500", *more])
    assert other.exit_code == 0, other.output
    assert asked[2:] == [{"num_words": 3, "encoders": "clip"}] * 2
    refused = RUN.invoke(app, [*words, "--start", "bundle", *more])
    assert refused.exit_code == 2
    assert "num_words: expected 5, as of the bundle's regressor, got 3" in refused.stderr


def test_layers_are_measured_on_the_world(tiny_bundle: Path, tmp_path: Path) -> None:
    words = ["layers", "-o", str(tmp_path), "--subjects", "1", "--steps", "1", "--quiet"]
    result = RUN.invoke(app, [*words, "--bundle", str(tiny_bundle)])
    assert result.exit_code == 0, result.output
    assert "cross-attention Q/K/V" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "layer_importance.json", "layer_importance.png"
    ]  # fmt: skip


def test_the_words_for_data(pictures: Path, tmp_path: Path) -> None:
    how = {"segmenter": "grabcut", "flip": True, "progress": False}
    assert type(_source("world", 64, identities=100, **how)).__name__ == "WorldSource"
    assert type(_source(str(pictures), 64, **how)).__name__ == "FolderSource"
    names = [path.name for path in sorted(pictures.iterdir())]
    shard = tmp_path / "x-00.tar"
    subprocess.run(["tar", "-cf", shard, "-C", pictures, *names], check=True)
    for data, flag in ((shard, False), (tmp_path / "x-{00..00}.tar", False), (tmp_path, True)):
        found = _source(str(data), 64, shards=flag, **how)
        assert type(found).__name__ == "ShardSource"
        assert len(found) == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "PICTURES"], "-o: expected the folder of the run"),
        (["train", "NONE", "-o", "OUT"], "NONE"),
        (["train", "PICTURES", "-o", "OUT", "--steps", "0"], "steps: expected a whole number"),
        (["train", "PICTURES", "-o", "OUT", "--optimizer", "sgd"], "adamw, muon"),
        (["train", "PICTURES", "-o", "OUT", "--encoders", "vgg"], "one of both, clip, dino"),
        (["train", "PICTURES", "-o", "OUT", "--start", "here"], "one of unet, bundle"),
        (["train", "PICTURES", "-o", "OUT", "--num-words", "0"], "num_words: expected a whole"),
        (["train", "PICTURES", "--estimate", "--encoders", "vgg"], "one of both, clip, dino"),
        (["train", "PICTURES", "--estimate", "--size", "xl"], "bundle or sd15"),
        (["pack", "-o", "OUT", "--regressor", "NONE"], "expected one of them, got neither"),
        (["pack", "-o", "OUT", "--base", "B", "--bundle", "B", "--regressor", "R"], "got both"),
        (["layers", "-o", "OUT", "--subjects", "0"], "subjects: expected a whole number"),
    ],
)
def test_bad_input_ends_in_one_line(
    arguments: list[str], expected: str, pictures: Path, tmp_path: Path
) -> None:
    places = {"PICTURES": pictures, "OUT": tmp_path / "OUT", "NONE": tmp_path / "NONE"}
    result = RUN.invoke(app, [str(places.get(word, word)) for word in arguments])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("hbsdk: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert expected in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_setting_has_an_option() -> None:
    """The command line's defaults are the settings', but for the sheets of samples."""
    import inspect

    from hbsdk.cli_train import train

    given = {name: one.default for name, one in inspect.signature(train).parameters.items()}
    own = vars(TrainOptions())
    assert {name: given[name] for name in own if name != "sample_steps"} == {
        name: value for name, value in own.items() if name != "sample_steps"
    }
    assert given["sample_steps"] == 500


def test_without_tensorboard_only_asking_for_it_is_an_error(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hbsdk.training import observers

    monkeypatch.setattr(observers, "has_tensorboard", lambda: False)
    words = ["train", str(pictures), "--bundle", str(tiny_bundle), *QUICK, "--steps", "1"]
    words += ["--sample-steps", "0"]
    asked = RUN.invoke(app, [*words, "-o", str(tmp_path / "asked"), "--tensorboard"])
    assert asked.exit_code == 2
    assert "the package tensorboard" in asked.stderr
    result = RUN.invoke(app, [*words, "-o", str(tmp_path / "not")])
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "not" / "tensorboard").exists()


def test_without_torch_the_commands_say_what_to_install(pictures: Path, tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("torch", "diffusers", "transformers", "accelerate"):
    sys.modules[name] = None  # importing it is an ImportError
from hbsdk.cli import app
app({["train", str(pictures), "-o", str(tmp_path / "out")]})
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("hbsdk: hbsdk train: expected torch")
    assert 'pip install "hbsdk[torch]"' in run.stderr
    assert list(tmp_path.iterdir()) == []
