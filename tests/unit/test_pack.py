"""Packing a base, encoders and a regressor into one bundle."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from hbsdk.bundle import Bundle
from hbsdk.bundle_info import MANIFEST
from hbsdk.errors import BundleError
from hbsdk.pack import pack
from hbsdk.regressor import PromptRegressor
from hbsdk.session import Session
from tests.single_file import write_single_file
from tests.tiny_bundle import WIDTH

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pieces(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny bundle taken apart: a plain diffusers folder, encoders, a trained regressor."""
    folder = tmp_path_factory.mktemp("pieces")
    base = folder / "base"
    shutil.copytree(tiny_bundle, base)
    for name in ("image_encoder", "dino", "regressor"):
        shutil.move(base / name, folder / name)
    (base / MANIFEST).unlink()
    run = folder / "run"
    shutil.move(folder / "regressor", run / "regressor")
    record = {
        "source": "three photos of a mug",
        "options": {"steps": 1234, "learning_rate": 2e-5, "mixed_precision": "bf16"},
        "loss": 0.125,
    }
    (run / "training.json").write_text(json.dumps(record))
    return {
        "base": base, "image_encoder": folder / "image_encoder", "dino": folder / "dino",
        "regressor": run / "regressor",
    }  # fmt: skip


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_packed_bundle_gives_the_words_of_its_pieces(
    pieces: dict[str, Path], photo: np.ndarray, mask: np.ndarray, tmp_path: Path
) -> None:
    composed = Bundle.compose(**pieces, class_word="person")
    packed = pack(tmp_path / "packed", **pieces, licence="CC0-1.0", class_word="person")
    shutil.copytree(packed.folder, tmp_path / "moved")
    assert left_behind(tmp_path) == ["moved", "packed"]
    opened = Bundle.open(tmp_path / "moved")
    assert opened.hash == composed.hash
    words = [
        Session(bundle, engine="torch", progress=False).personalize(photo, mask, steps=0).words
        for bundle in (composed, opened)
    ]
    np.testing.assert_array_equal(words[0], words[1])
    assert opened.info.class_word == "person"
    assert (opened.info.name, opened.info.licence) == ("packed", "CC0-1.0")
    assert opened.info.trained_on == "three photos of a mug"


def test_another_regressor_goes_into_a_bundle_and_changes_its_words(
    tiny_bundle: Path, photo: np.ndarray, mask: np.ndarray, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle / "regressor", other)
    weights = load_file(other / WEIGHTS)
    weights["base_words"] = weights["base_words"] + 1.0
    save_file(weights, other / WEIGHTS)
    packed = pack(tmp_path / "packed", base=tiny_bundle, regressor=other)
    before, after = (
        Session(bundle, engine="torch", progress=False).personalize(photo, mask, steps=0).words
        for bundle in (tiny_bundle, packed)
    )
    np.testing.assert_allclose(after, before + 1.0, atol=1e-5)
    assert Bundle.open(tiny_bundle).hash != packed.hash


def test_diffusers_opens_a_packed_bundle(pieces: dict[str, Path], tmp_path: Path) -> None:
    packed = pack(tmp_path / "packed", **pieces)
    pipeline = StableDiffusionPipeline.from_pretrained(packed.folder)
    expected = load_file(pieces["base"] / "unet" / WEIGHTS)
    torch.testing.assert_close(dict(pipeline.unet.state_dict()), expected, rtol=0, atol=0)


def test_linked_files_take_no_room(pieces: dict[str, Path], tmp_path: Path) -> None:
    pack(tmp_path / "linked", **pieces, link=True)
    pack(tmp_path / "copied", **pieces)
    original = pieces["base"] / "unet" / WEIGHTS
    assert os.path.samefile(tmp_path / "linked" / "unet" / WEIGHTS, original)
    assert not os.path.samefile(tmp_path / "copied" / "unet" / WEIGHTS, original)


def test_a_single_checkpoint_is_written_as_folders(
    tiny_bundle: Path, pieces: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = write_single_file(tiny_bundle, tmp_path / "base.safetensors")
    parts = pieces | {"base": checkpoint}
    packed = pack(tmp_path / "packed", **parts, config=tiny_bundle)
    for name in ("unet", "vae", "text_encoder"):
        got = getattr(packed, f"load_{name}")().state_dict()
        expected = getattr(Bundle.open(tiny_bundle), f"load_{name}")().state_dict()
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_the_card_says_how_it_was_trained_and_what_was_measured(
    pieces: dict[str, Path], tmp_path: Path
) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"probe": {"dino_i": 0.76125, "curve": [1, 2]}, "subjects": 64}))
    pack(tmp_path / "packed", **pieces, evaluation=results, licence="Apache-2.0")
    card = (tmp_path / "packed" / "README.md").read_text("utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    for row in (
        "| options.steps | 1234 |", "| options.learning_rate | 2e-05 |", "| loss | 0.125 |",
        "| options.mixed_precision | bf16 |", "| probe.dino_i | 0.76125 |", "| subjects | 64 |",
    ):  # fmt: skip
        assert row in card
    assert "Data: three photos of a mug." in card
    assert "curve" not in card
    assert "cannot be checked" not in card


def test_the_card_says_what_is_not_known(tiny_bundle: Path, tmp_path: Path) -> None:
    pack(tmp_path / "packed", base=tiny_bundle, regressor=tiny_bundle)
    card = (tmp_path / "packed" / "README.md").read_text("utf-8")
    assert "its options are unknown" in card
    assert "None were measured" in card


def test_a_regressor_of_another_width_is_refused(pieces: dict[str, Path], tmp_path: Path) -> None:
    unet = Bundle.open(pieces["base"]).load_unet()
    wide = PromptRegressor.from_unet(
        unet, torch.ones(WIDTH), clip_dim=WIDTH, dino_dim=2 * WIDTH, pool_dim=WIDTH,
        num_pool_heads=2,
    )  # fmt: skip
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(BundleError, match=r"regressor's dino_dim to be dino's width, got 64 and"):
        pack(tmp_path / "packed", **pieces | {"regressor": tmp_path / "wide"})
    assert left_behind(tmp_path) == ["wide"]


def test_a_regressor_for_other_latents_is_refused(pieces: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(pieces["regressor"], tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["unet"]["in_channels"] = 16
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="latents of 4 channels, got one for 16"):
        pack(tmp_path / "packed", **pieces | {"regressor": tmp_path / "other"})


@pytest.mark.parametrize("missing", ["image_encoder", "dino"])
def test_a_missing_encoder_is_named(missing: str, pieces: dict[str, Path], tmp_path: Path) -> None:
    parts = {name: path for name, path in pieces.items() if name != missing}
    with pytest.raises(BundleError, match=f"without {missing}.*--{missing.replace('_', '-')}"):
        pack(tmp_path / "packed", **parts)
    assert left_behind(tmp_path) == []


def test_what_exists_is_never_written_over(pieces: dict[str, Path], tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    pack(folder, **pieces)  # an empty one is taken
    manifest = (folder / MANIFEST).read_bytes()
    file.write_text("mine")
    for out in (folder, file):
        with pytest.raises(BundleError, match="never written over"):
            pack(out, **pieces)
    assert (folder / MANIFEST).read_bytes() == manifest
    assert file.read_text() == "mine"


def test_damaged_pieces_leave_nothing_behind(pieces: dict[str, Path], tmp_path: Path) -> None:
    bad, out = tmp_path / "bad", tmp_path / "out" / "packed"
    shutil.copytree(pieces["regressor"], bad)
    weights = load_file(bad / WEIGHTS)
    weights["queries"][0, 0] = float("nan")
    save_file(weights, bad / WEIGHTS)
    with pytest.raises(BundleError, match="queries: expected finite weights"):
        pack(out, **pieces | {"regressor": bad})
    (bad / WEIGHTS).write_bytes(b"\0" * 100)
    with pytest.raises(BundleError, match="expected files that are whole"):
        pack(out, **pieces | {"regressor": bad})
    assert left_behind(out.parent) == []


def test_a_regressor_of_the_hub_brings_its_record(
    pieces: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of the id's first part, which happens to be here, is not looked into."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "training.json").write_text('{"source": "someone else\'s"}')
    asked: list[str] = []

    def fetched(name: str, **_: object) -> str:
        asked.append(name)
        return str({"owner/base": pieces["base"]}.get(name, pieces["regressor"].parent))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    hub = {"base": "owner/base", "regressor": "owner/regressor"}
    packed = pack(tmp_path / "packed", **{**pieces, **hub}, class_word="person")
    assert {"owner/base", "owner/regressor"} <= set(asked)
    assert packed.info.trained_on == "three photos of a mug"
    assert packed.info.base == "owner/base"
    local = pack(tmp_path / "local", **pieces, class_word="person")
    assert (packed.hash, local.info.base) == (local.hash, "base")
    alone = tmp_path / "alone"  # the control: the record is the regressor's, or there is none
    shutil.copytree(pieces["regressor"], alone / "regressor")
    without = pack(tmp_path / "without", **{**pieces, "regressor": alone / "regressor"})
    assert without.info.trained_on != "three photos of a mug"


def test_a_network_that_cannot_be_written_leaves_nothing_behind(
    tiny_bundle: Path, pieces: dict[str, Path], tmp_path: Path
) -> None:
    """safetensors has an error of its own for what the system refuses."""
    checkpoint = write_single_file(tiny_bundle, tmp_path / "base.safetensors")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(BundleError, match=r"output .*expected a place .*File too large"):
            pack(tmp_path / "packed", **pieces | {"base": checkpoint}, config=tiny_bundle)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left_behind(tmp_path) == ["base.safetensors"]


def test_a_full_disk_leaves_nothing_behind(
    pieces: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(BundleError, match=r"got \[Errno 28\] No space left"):
        pack(tmp_path / "packed", **pieces)
    assert left_behind(tmp_path) == []


def test_a_changed_file_is_not_packed(tiny_bundle: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(tiny_bundle, changed)
    path = changed / "unet" / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="was changed"):
        pack(tmp_path / "packed", base=changed, regressor=changed)
    assert left_behind(tmp_path) == ["changed"]
