"""The independent judge: what it reads, what it refuses, whom it was trained on, and how."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hbsdk.errors import EvaluationError
from hbsdk.evaluation.judge import CONFIG, JUDGE, WEIGHTS, Judge, JudgeNetwork, load_judge
from hbsdk.evaluation.subjects import Domain
from hbsdk.evaluation.world_set import world_set
from hbsdk.mini import judge_pictures, train_judge, world
from hbsdk.mini.cache import draw_picture
from hbsdk.mini.factors import JUDGE_SEEDS
from hbsdk.mini.training_loop import Plan, run

PLAN = Plan(steps=20, learning_rate=1e-2, muon_rate=1e-2, warmup_steps=2, log_steps=1)
SIZES = [len(values) for values in world.FACTORS.values()]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge()


# Measured on the first 64 characters of each: see README.md beside the weights.
@pytest.mark.parametrize("domain", ["in", "out"])
def test_it_reads_real_pictures_of_identities_no_training_saw(judge: Judge, domain: Domain) -> None:
    subjects = world_set(domain, 8).subjects
    pixels = np.concatenate([np.stack(subject.real or ()) for subject in subjects])
    own = [dict(subject.attributes or {}) for subject in subjects for _ in subject.prompts]
    shares, right = judge.accuracy(pixels, own)
    others, _ = judge.accuracy(pixels, own[8:] + own[:8])  # the control
    assert shares.shape == (64,)
    assert shares.mean() > 0.9
    assert abs(others.mean() - judge.figures["means over the judged"]["other identities"]) < 0.1
    assert list(right) == list(judge.factors)
    np.testing.assert_allclose(np.mean(list(right.values()), axis=0), shares)


@pytest.mark.parametrize("factor", list(world.HELD_OUT))
def test_it_knows_the_values_that_the_method_never_saw(judge: Judge, factor: str) -> None:
    values = [world.FACTORS[factor].index(value) for value in world.HELD_OUT[factor]]
    seeds = world.OUT_OF_DOMAIN_SEEDS[:150]
    having = [s for s in seeds if world.attributes(world.identity(s))[factor] in values]
    pixels = np.stack([draw_picture(seed, 0)[0] for seed in having])
    truth = [world.attributes(world.identity(seed))[factor] for seed in having]
    assert np.mean(judge.read(pixels)[factor] == truth) > 0.75
    plain = np.stack([draw_picture(seed, 0)[0] for seed in world.HELD_OUT_SEEDS[:30]])
    assert np.isin(judge.read(plain)[factor], values).mean() < 0.1


def test_a_reading_depends_on_its_own_picture_alone(judge: Judge) -> None:
    pixels = np.stack([draw_picture(seed, 4)[0] for seed in world.HELD_OUT_SEEDS[:70]])
    together = judge.read(pixels)
    assert together.keys() == world.FACTORS.keys()
    for chosen in (slice(69, 70), slice(60, 68)):
        alone = judge.read(pixels[chosen])
        for factor, values in alone.items():
            assert values.dtype == np.int64
            np.testing.assert_array_equal(values, together[factor][chosen])


def test_its_config_tells_the_world_and_the_rule(judge: Judge) -> None:
    config = json.loads((JUDGE / CONFIG).read_text("utf-8"))
    assert {name: tuple(v) for name, v in config["factors"].items()} == world.FACTORS
    accuracy, chance = judge.figures["accuracy, plain to see"], judge.figures["chance"]
    assert list(judge.factors) == train_judge.judged_factors(accuracy, chance)
    assert judge.name.startswith("hbsdk-judge-")
    assert (JUDGE / WEIGHTS).stat().st_size < 1.2e6


def test_a_factor_must_be_read_well_and_not_by_guessing() -> None:
    accuracy = {"good": 0.9, "poor": 0.79, "guessed": 0.9}
    chance = {"good": 0.5, "poor": 0.2, "guessed": 0.85}
    assert train_judge.judged_factors(accuracy, chance) == ["good"]


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((2, 3, 64, 64), np.uint8),
        np.zeros((2, 128, 128, 3), np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
        [[0]],
    ],
    ids=["float", "one picture", "channels first", "too large", "none", "a list"],
)
def test_it_refuses_what_is_no_picture_of_the_world(judge: Judge, pixels: Any) -> None:
    with pytest.raises(EvaluationError, match="pictures for the judge: expected a"):
        judge.read(pixels)


def test_it_refuses_attributes_that_do_not_fit(judge: Judge) -> None:
    pixels = np.zeros((2, 64, 64, 3), np.uint8)
    row = world.attributes(world.identity(1_000_000))
    first = judge.factors[0]
    judge.accuracy(pixels, [row, row])
    with pytest.raises(EvaluationError, match="expected 2, one a picture, got 1"):
        judge.accuracy(pixels, [row])
    for wrong in ({}, row | {first: 99}, row | {first: -1}, row | {first: "cat"}):
        with pytest.raises(EvaluationError, match=f"attribute {first}"):
            judge.accuracy(pixels, [row, wrong])


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def cut_the_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        (folder / CONFIG).write_text(json.dumps(config | changes), "utf-8")

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "sha256 of"),
        (cut_the_weights, "sha256 of"),
        (lambda folder: (folder / WEIGHTS).unlink(), "model.safetensors"),
        (lambda folder: (folder / CONFIG).unlink(), "config.json is missing"),
        (lambda folder: (folder / CONFIG).write_text("{"), "config.json"),
        (change_config(schema=2), "schema in"),
        (change_config(channels=[16, 16, 16]), "expected the weights of the network"),
        (change_config(judged=["wings"]), "judged in"),
        (change_config(factors={"kind": []}), "factors in"),
        (change_config(extra=1), "keys of"),
    ],
)
def test_a_damaged_judge_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(JUDGE, folder)
    assert load_judge(folder).name == load_judge().name  # the control
    damage(folder)
    with pytest.raises(EvaluationError, match=message):
        load_judge(folder)


def test_another_judge_has_another_name(tmp_path: Path, judge: Judge) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(JUDGE, folder)
    change_config(judged=list(judge.factors[1:]))(folder)
    assert load_judge(folder).name != judge.name


def test_the_other_seeds_give_the_identities_they_always_gave() -> None:
    """The hash was taken before the judge's seeds were added."""
    seeds = [
        0, 1, 17, 999_999, 1_000_000, 1_000_001, 1_009_999, 2_000_000, 2_000_001, 2_000_123,
        2_009_999, 2_500_000,
    ]  # fmt: skip
    text = json.dumps([world.attributes(world.identity(seed)) for seed in seeds])
    expected = "682f3a74429c295b32b36cf00e3a54958fce563f90ff8ab46dcabb60ce1a8c3f"
    assert hashlib.sha256(text.encode()).hexdigest() == expected


def test_the_judge_has_identities_of_its_own_and_half_of_them_have_held_out_values() -> None:
    ranges = (world.TRAIN_SEEDS, world.HELD_OUT_SEEDS, world.OUT_OF_DOMAIN_SEEDS, JUDGE_SEEDS)
    for before, after in pairwise(ranges):
        assert before.stop <= after.start
    for seed in JUDGE_SEEDS[:400]:
        identity = world.identity(seed)
        held_out = [f for f, values in world.HELD_OUT.items() if getattr(identity, f) in values]
        assert bool(held_out) == (seed % 2 == 1)


def tiny(folder: Path, plan: Plan = PLAN, *, seed: int = 0) -> train_judge.Stage:
    data = judge_pictures.draw_all(folder / "pictures", JUDGE_SEEDS[:16], workers=1)
    torch.manual_seed(seed)
    network = JudgeNetwork(SIZES, (8, 16, 16))
    return train_judge.stage(network, data, data, plan, batch_size=16)


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "judge.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_training_lowers_the_loss_and_resumes_to_the_same_losses(tmp_path: Path) -> None:
    whole, parts, still = (tmp_path / name for name in ("whole", "parts", "still"))
    for folder in (whole, parts, still):
        folder.mkdir()
    assert run(tiny(whole), whole)
    remaining = iter([False] * 12 + [True] * 10)
    assert not run(tiny(parts), parts, stop=lambda: next(remaining))
    assert run(tiny(parts, seed=1), parts)
    assert losses(parts) == losses(whole)
    assert losses(whole)[-1] < 0.9 * losses(whole)[0]
    run(tiny(still, replace(PLAN, learning_rate=0.0, muon_rate=0.0)), still)
    assert losses(still)[-1] > 0.95 * losses(still)[0]  # the control: nothing learnt


def test_what_is_written_down_is_what_it_was_made_with(tmp_path: Path) -> None:
    plan = replace(PLAN, steps=3)
    settings = replace(
        train_judge.SETTINGS, plan=plan, identities=16, validation=12, channels=(8, 16, 16),
        batch_size=16,
    )  # fmt: skip
    seeds = JUDGE_SEEDS[-settings.validation :]
    held_out = judge_pictures.draw_all(tmp_path / "pictures", seeds, workers=1)
    network = JudgeNetwork(SIZES, settings.channels)
    # What a network with random weights reads well is chance: anything is judged here.
    settings = replace(settings, least_accuracy=0.0, least_of_gap=-100.0)
    written = train_judge.write_judge(network, held_out, tmp_path / "judge", settings)
    expected = {"steps": 3, "batch_size": 16, "identities": 16}
    assert written.figures["training"] == expected
    embedded = train_judge.SETTINGS
    assert load_judge().figures["training"] == {
        "steps": embedded.plan.steps, "batch_size": embedded.batch_size,
        "identities": embedded.identities,
    }  # fmt: skip
    assert embedded.identities != 16  # the control


def test_softening_spoils_most_pictures_in_bounds_and_repeatably() -> None:
    batch = train_judge.judge_input(np.stack([draw_picture(s, 0)[0] for s in range(64)]))

    def softened(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return judge_pictures.soften(np.random.default_rng(seed), batch)

    one = softened(0)
    torch.testing.assert_close(one, softened(0), rtol=0, atol=0)
    assert not torch.equal(one, softened(1))
    assert one.abs().max() <= 1.0
    changed = (one != batch).flatten(1).any(1).float().mean()
    assert 0.5 < changed < 0.95  # a quarter stays clean
    assert (one - batch).abs().mean() < 0.15


def test_the_blur_is_opencvs_gaussian() -> None:
    import cv2

    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    blurred = judge_pictures._blurred(torch.from_numpy(pixels), torch.tensor([0.001, 1.0])).numpy()
    np.testing.assert_allclose(blurred[0], pixels[0], atol=1e-6)
    expected = cv2.GaussianBlur(
        pixels[1].transpose(1, 2, 0), (7, 7), 1.0, borderType=cv2.BORDER_REPLICATE
    )
    np.testing.assert_allclose(blurred[1].transpose(1, 2, 0), expected, atol=1e-4)
    assert np.abs(blurred[1] - pixels[1]).max() > 0.1
