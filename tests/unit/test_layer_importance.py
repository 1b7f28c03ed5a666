"""Layer importance: what moved, what helped, and groups that cannot move as controls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hbsdk.backends.torch import TorchBackend
from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError, TrainingError
from hbsdk.options import PersonalizeOptions
from hbsdk.training import layer_importance as module
from hbsdk.training.layer_groups import GROUPS, Group, changes, layer_groups
from hbsdk.training.layer_importance import LayerOptions, layer_importance
from hbsdk.training.pairs import Pair
from tests.tiny_bundle import IMAGE_SIZE

QUICK = LayerOptions(
    subjects=1, steps=2,
    personalize=PersonalizeOptions(timesteps_per_step=2, micro_batch_size=16, mirror=False),
)  # fmt: skip


class Squares:
    """Bright squares, each of its own colour."""

    name, fingerprint = "squares", "squares-1"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 100

    def pairs(self, seed: int, step: int, indices: Sequence[int]) -> list[Pair]:
        self.asked += indices
        return [self._pair(index) for index in indices]

    def _pair(self, index: int) -> Pair:
        pictures, masks = [], []
        for place in (4, 12):
            pixels = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 30, np.uint8)
            mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
            mask[place : place + 16, place : place + 16] = 1
            pixels[mask == 1] = (200, 40 * index, 90)
            pictures.append(pixels)
            masks.append(mask)
        return Pair(pictures[0], masks[0], pictures[1], masks[1], "a photo of S* in the snow")

    def skipped(self) -> list[tuple[str, str]]:
        return []


def without_gradient(layers: Callable[[str], bool]) -> pytest.MonkeyPatch:
    """Let regressors that are loaded from now on pass no gradient into some of their layers."""
    patch = pytest.MonkeyPatch()
    load = Bundle.load_regressor

    def cut(*arguments: object, **keywords: object) -> torch.nn.Module:
        regressor = load(*arguments, **keywords)
        for name, layer in regressor.named_modules():
            if layers(name):
                layer.register_forward_hook(lambda _, __, output: output.detach())
        return regressor

    patch.setattr(Bundle, "load_regressor", cut)
    return patch


def test_every_parameter_is_in_one_group(tiny_bundle: Path) -> None:
    regressor = Bundle.open(tiny_bundle).load_regressor()
    groups = layer_groups(regressor)
    assert list(groups) == [name for name in GROUPS if name in groups]
    assert set(groups) == set(GROUPS)
    found = [name for group in groups.values() for name in group.parameters]
    assert sorted(found) == sorted(name for name, _ in regressor.named_parameters())
    cross = groups["cross-attention Q/K/V"].parameters
    assert cross
    assert all(name.endswith(("to_q.weight", "to_k.weight", "to_v.weight")) for name in cross)
    assert all("attn2" in name for name in cross)
    assert all("attn1" in name for name in groups["self-attention Q/K/V"].parameters)
    assert all(weight.ndim in (1, 4) for weight in groups["convolutions"].parameters.values())


def test_changes_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    old = {"a.weight": rng.normal(size=(3, 4)), "a.bias": rng.normal(size=3), "b": np.ones(5)}
    new = {name: value + 0.1 * rng.normal(size=value.shape) for name, value in old.items()}
    tensors = {name: torch.from_numpy(value) for name, value in old.items()}
    group = Group({
        "a": {name: tensors[name] for name in ("a.weight", "a.bias")}, "b": {"b": tensors["b"]},
        "zeros": {"z": torch.zeros(2)},
    })  # fmt: skip
    after = {name: torch.from_numpy(value) for name, value in new.items()} | {"z": torch.ones(2)}
    cosines, relative = [], []
    for names in (("a.weight", "a.bias"), ("b",)):
        x, y = (np.concatenate([part[name].ravel() for name in names]) for part in (old, new))
        cosines.append(1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        relative.append(np.linalg.norm(y - x) / np.linalg.norm(x))
    got = changes(group, after)
    assert got["cosine_distance"] == pytest.approx(np.mean(cosines), rel=1e-9)
    assert got["relative_change"] == pytest.approx(np.mean(relative), rel=1e-9)
    assert changes(group, {**tensors, "z": torch.zeros(2)}) == {
        "cosine_distance": 0.0,
        "relative_change": 0.0,
    }


def test_groups_that_get_no_gradient_have_no_importance(tiny_bundle: Path, tmp_path: Path) -> None:
    whole = layer_importance(
        Bundle.open(tiny_bundle), Squares(), tmp_path / "whole", QUICK, progress=False
    )["groups"]
    for name, group in whole.items():
        assert group["relative_change"]["mean"] > 0.0, name
        assert group["cosine_distance"]["mean"] > 0.0, name
        assert group["loss_decrease"]["mean"] != 0.0, name
    patch = without_gradient(lambda name: "attn2.to_" in name and "out" not in name)
    try:
        cut = layer_importance(
            Bundle.open(tiny_bundle), Squares(), tmp_path / "cut", QUICK, progress=False
        )["groups"]
    finally:
        patch.undo()
    for measure in ("cosine_distance", "relative_change", "loss_decrease"):
        assert cut["cross-attention Q/K/V"][measure]["mean"] == 0.0
    assert cut["query head"]["relative_change"]["mean"] > 0.0
    assert cut["query head"]["loss_decrease"]["mean"] != 0.0


def test_training_everything_lowers_the_loss_and_changes_no_network(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Bundle.open(tiny_bundle)
    shared = bundle.load_regressor()
    before = {name: weight.clone() for name, weight in shared.state_dict().items()}
    patch = pytest.MonkeyPatch()
    patch.setattr(Bundle, "load_regressor", lambda *_: shared)
    try:
        options = LayerOptions(subjects=1, steps=6, personalize=QUICK.personalize)
        results = layer_importance(bundle, Squares(), tmp_path, options, progress=False)
    finally:
        patch.undo()
    assert results["whole"]["loss_decrease"]["mean"] > 0.0
    torch.testing.assert_close(dict(shared.state_dict()), before, rtol=0, atol=0)


def test_a_second_run_measures_only_new_subjects(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, source = Bundle.open(tiny_bundle), Squares()
    one = LayerOptions(subjects=1, steps=1, personalize=QUICK.personalize)
    first = layer_importance(bundle, source, tmp_path, one, progress=False)
    two = LayerOptions(subjects=2, steps=1, personalize=QUICK.personalize)
    second = layer_importance(bundle, source, tmp_path, two, progress=False)
    assert source.asked == [0, 1]
    assert second["subjects"][0] == first["subjects"][0]
    assert json.loads((tmp_path / module.RESULTS).read_text()) == second
    other = LayerOptions(subjects=1, steps=2, personalize=QUICK.personalize)
    layer_importance(bundle, source, tmp_path, other, progress=False)
    assert source.asked == [0, 1, 0]  # of other settings: anew
    with Image.open(tmp_path / module.PLOT) as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.array(picture))) > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == [module.RESULTS, module.PLOT]


def test_a_loss_that_is_none_ends_it(tiny_bundle: Path, tmp_path: Path) -> None:
    patch = pytest.MonkeyPatch()
    nothing = torch.full((1, 4, 8, 8), float("nan"))
    patch.setattr(TorchBackend, "encode_image", lambda *_: nothing)
    try:
        with pytest.raises(TrainingError, match="expected a finite number, got nan"):
            layer_importance(Bundle.open(tiny_bundle), Squares(), tmp_path, QUICK, progress=False)
    finally:
        patch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"subjects": 0}, {"steps": 0}, {"steps": 1.5}])
def test_options_are_checked(change: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="whole number"):
        LayerOptions(**change)


@pytest.mark.parametrize("change", [{"mirror": True}, {"mirror": False, "mode": "paper"}])
def test_settings_of_refinement_that_are_not_followed_are_refused(change: dict) -> None:
    with pytest.raises(OptionError, match=rf"personalize\.{list(change)[-1]}: expected .*, got"):
        LayerOptions(personalize=PersonalizeOptions(**change))
    LayerOptions(personalize=PersonalizeOptions(mirror=False))  # the control
    assert not LayerOptions().personalize.mirror  # as the results then say
