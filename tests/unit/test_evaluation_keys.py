"""Keys of finished work: long results are resumed only while these stay the same.

The hashes were written down once, by an earlier commit. A change here means that every evaluation
that is kept anywhere is done anew: change hbsdk's version with it, if it is meant.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import hbsdk
from hbsdk.evaluation.baselines import BASELINES, baseline
from hbsdk.evaluation.drawing import OPTIONS, parse_drawing
from hbsdk.evaluation.method_names import parse_method
from hbsdk.evaluation.run import _Run
from hbsdk.evaluation.store import Store, content_hash, file_name, pixels_hash
from hbsdk.evaluation.subjects import EvaluationSet, EvaluationSubject
from hbsdk.evaluation.world_set import world_set

SETTINGS = {
    "class-word": "177a86ddb739ac41effbc2dc806572120ac06b1aff11e528f987deae984ef5f7",
    "probe": "fb7e79e91a306aeb157c0114cff64c2eb60a0d7031d82b22e24fc5fa82164f0e",
    "hybridbooth": "85f0f87a911e83ffbb99c712ada462381fd0b7752d08988793d3e7208c251e75",
    "paper": "52c426b6bd8619a79870668e16a35016ab35f377d5c6be55ac42a74c1b9d74ea",
    "without-probe": "36e5da93884744cb107970a8c02e420dae1b2a7471152304504cc5c9a2840585",
    "textual-inversion": "f2aa0a0149604e0b2fdeb86aad0e8c03ae0f856958b0a00d359445103fab261a",
    "dreambooth": "20215dfa0bfd227f0b169d2c04ac057efa2482502eeba8dd051fc8eba4d96f17",
    "dreambooth-lora": "8ca0e90abd83de047cfd41f9a5b4f208bc455a7cf70a62e0665301bdec178e32",
    "custom-diffusion": "7840234362f6a02e0e089dccdcd55de8db76a60313d194399363b97636ab9ad6",
}
KEYS = {
    "method": "04e9b59f919b30132130037bb19b023940ac6156558dbb6c9f5fafa495adbf0f",
    "base model alone": "3d3b37fd8e0ced55609245a96c4678524e621f44848e91d1f632fb7d406fa50a",
    "other drawing": "b93de26621df9a5c07de8ed94fd9a04e4a6ea2dd4336896ddc1664041ef3d389",
    "real": "1a7314a4625fefeacedd970af5081476cc99fa96806d9be409f1fcb4763e5bf0",
    "measured": "6247964386a511ff4976a3a9661e6851ebcc514865053bf2eff524d9a8088994",
}
SET_NAMES = {"in": "world", "out": "world-out", "validation-in": "validation-in",
             "validation-out": "validation-out"}  # fmt: skip


def picture(shade: int) -> np.ndarray:
    return np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3) + np.uint8(shade)


def subject(name: str = "fox", **changes: Any) -> EvaluationSubject:
    made = EvaluationSubject(
        name, picture(0), "fox", ("a picture of {}", "{} in the snow"), (picture(1), picture(2)),
        real=(picture(3), picture(4)), attributes={"ears": 1},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


class Method:
    name, settings, budgets = "a method", {"rate": 0.5, "words": "five"}, (1, 10)


class BaseModelMethod(Method):
    only_base_model = True


def run_of(tmp_path: Path, drawing: str = "", **changes: Any) -> _Run:
    """A run whose networks are names alone, over two subjects."""
    session = SimpleNamespace(
        bundle=SimpleNamespace(info=SimpleNamespace(image_size_px=64, guidance_scale=3.0)),
        torch_backend=SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32),
    )
    subjects = EvaluationSet("set", (subject(**changes), subject("owl")))
    metrics = SimpleNamespace(names={"clip": "a clip", "dino": "a dino"})
    options = parse_drawing(drawing) if drawing else OPTIONS
    run = _Run(
        session, subjects, 2, metrics, SimpleNamespace(name="a judge"), Store(tmp_path), options
    )  # type: ignore[arg-type]
    run.__dict__["_hashes"] = {False: "the bundle", True: "the base model"}
    return run


def keys(run: _Run, other_drawing: _Run) -> dict[str, str]:
    first = run.subjects[0]
    pictures = {"pictures/a-method/1/fox.png": "0f"}
    return {
        "method": run._key(Method(), first),  # type: ignore[arg-type]
        "base model alone": run._key(BaseModelMethod(), first),  # type: ignore[arg-type]
        "other drawing": other_drawing._key(Method(), first),  # type: ignore[arg-type]
        "real": run._key(None, first),
        "measured": run.measurer.key(first, pictures),
    }


def test_keys_are_those_of_results_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hbsdk, "__version__", "0.1.0")
    fast = "num_inference_steps=12,guidance_stop=0.5"
    assert keys(run_of(tmp_path), run_of(tmp_path, fast)) == KEYS
    # Negative control: each of them hangs on what the work came from.
    other = {"class_noun": "wolf", "name": "wolf"}
    changed = keys(run_of(tmp_path, **other), run_of(tmp_path, fast, **other))
    assert not {*changed.values()} & {*KEYS.values()}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_those_of_results_that_are_kept(name: str) -> None:
    method = parse_method(name)
    told = content_hash({"settings": dict(method.settings), "budgets": list(method.budgets)})
    assert (method.name, told) == (name, SETTINGS[name])


@pytest.mark.parametrize("name", BASELINES)
def test_another_setting_is_another_hash(name: str) -> None:
    method = baseline(name, seed=1)
    told = content_hash({"settings": dict(method.settings), "budgets": list(method.budgets)})
    assert told != SETTINGS[name]


@pytest.mark.parametrize("domain", SET_NAMES)
def test_the_worlds_sets_keep_their_names(domain: str) -> None:
    found = world_set(domain, 1)  # type: ignore[arg-type]
    assert found.name == SET_NAMES[domain]


def test_the_worlds_photos_are_those_of_results_that_are_kept() -> None:
    photos = [world_set(domain, 1).subjects[0].photo for domain in SET_NAMES]  # type: ignore[arg-type]
    assert pixels_hash(photos) == "54b5f0217614a6388afbd750a592f3f1ac70509c3bd71b618fa770213acdd058"
    assert pixels_hash(photos[:3]) != pixels_hash(photos)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hybridbooth:steps=5+20", "hybridbooth-steps=5+20"), ("real pictures", "real-pictures"),
        ("dreambooth-learning_rate=1e-3", "dreambooth-learning_rate=1e-3"),
        ("a/../b", "a-..-b"), ("fuchs_ä", "fuchs_ä"), ("狐 1", "狐-1"), ("e\u0301te", "\u00e9te"),
        ("a\x00b\nc", "a-b-c"), ("..a", "..a"),
    ],
)  # fmt: skip
def test_names_of_files(text: str, name: str) -> None:
    assert file_name(text) == name


@pytest.mark.parametrize("text", ["", ".", "..", "..."])
def test_a_name_that_is_a_folders_is_refused(text: str) -> None:
    with pytest.raises(hbsdk.errors.EvaluationError, match="letter or digit"):
        file_name(text)


def test_names_without_letters_in_common_are_files_of_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    files = [store.save_photo(name, picture(0)) for name in ("狐", "猫", "кот")]
    assert len(set(files)) == 3
    assert all((tmp_path / file).is_file() for file in files)
