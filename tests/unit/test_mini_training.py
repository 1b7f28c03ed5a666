"""The mini bundle's training: resuming, the folded normalisation, the tokenizer, the cache."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from hbsdk.mini import cache, networks, train, train_regressor, train_vae, world
from hbsdk.mini.record import record
from hbsdk.mini.tokenizer import learn_tokenizer, save_tokenizer
from hbsdk.mini.training_loop import Plan, Stage, run
from hbsdk.training.optimizer import rate_factor

PLAN = Plan(steps=12, warmup_steps=2, log_steps=1, ema_decay=0.9)


def regression(seed: int = 0) -> Stage:
    """A stage that learns a fixed linear map from noise drawn by the loop's generator."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    truth = torch.arange(8.0).reshape(4, 2)

    def loss(rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        x = torch.from_numpy(rng.normal(size=(16, 4)).astype(np.float32))
        return (model(x) - x @ truth).square().mean(), {}

    return Stage("regression", nn.ModuleDict({"model": model}), loss, PLAN)


def losses(folder: Path) -> list[float]:
    lines = (folder / "regression.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_stopped_run_resumes_to_the_same_losses_and_weights(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    straight = regression()
    assert run(straight, whole)
    remaining = iter([False] * 8 + [True] * 10)  # asked twice a step when it stops
    assert not run(regression(), parts, stop=lambda: next(remaining))
    resumed = regression(seed=1)  # its own start is overwritten by the checkpoint's
    assert run(resumed, parts)
    assert losses(parts) == losses(whole)
    for one, other in zip(straight.modules.parameters(), resumed.modules.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_start_gives_other_losses(tmp_path: Path) -> None:
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        run(regression(seed), tmp_path / str(seed))
    assert losses(tmp_path / "0") != losses(tmp_path / "1")


def test_training_stops_at_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    stage = regression()
    with torch.no_grad():
        next(iter(stage.modules.parameters())).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="regression: loss nan at step 0"):
        run(stage, tmp_path)


def test_the_rate_warms_up_stays_and_decays_to_zero() -> None:
    plan = Plan(steps=100, warmup_steps=10, decay_fraction=0.5)
    assert rate_factor(0, plan) == pytest.approx(0.1)
    assert rate_factor(30, plan) == 1.0
    assert rate_factor(75, plan) == pytest.approx(0.5)
    assert rate_factor(99, plan) == pytest.approx(0.02)


def test_folding_normalises_the_latents_and_keeps_the_pictures() -> None:
    torch.manual_seed(0)
    vae = networks.vae().eval()
    with torch.no_grad():
        vae.quant_conv.weight.mul_(3.0)
        vae.quant_conv.bias.add_(1.0)
    pictures = torch.rand(16, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist
        drawn = vae.decode(before.mode()).sample
        mean, std = before.mode().mean((0, 2, 3)), before.mode().std((0, 2, 3))
        train_vae.fold_normalisation(vae, before.mode())
        after = vae.encode(pictures).latent_dist
        redrawn = vae.decode(after.mode()).sample
    assert mean.abs().max() > 0.5  # the control: they were not normal before
    torch.testing.assert_close(after.mode().mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mode().std((0, 2, 3)), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std, before.std / std[:, None, None], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(redrawn, drawn, atol=1e-4, rtol=1e-3)


def test_the_tokenizer_knows_every_byte_and_survives_saving(tmp_path: Path) -> None:
    tokenizer = learn_tokenizer(["a purple cat in the snow", "a red hat"] * 5, size=700)
    text = "a purple cat, zebra ünïcödé 猫 🦊 don't"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.tokenize("purple cat") == ["purple</w>", "cat</w>"]
    save_tokenizer(tokenizer, tmp_path)
    reloaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert reloaded(text)["input_ids"] == ids
    (tmp_path / "tokenizer.json").unlink()  # the classic files alone say the same
    classic = CLIPTokenizer.from_pretrained(tmp_path)
    assert classic(text)["input_ids"] == ids


def test_the_cache_resumes_and_agrees_with_single_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_CHUNK", 2)
    monkeypatch.setattr(cache, "ProcessPoolExecutor", cache_in_this_process)
    cache.draw_cache(tmp_path, 2)
    (first,) = tmp_path.glob("*.npz")
    stamp = first.stat().st_mtime_ns
    cache.draw_cache(tmp_path, 4)
    assert first.stat().st_mtime_ns == stamp
    pictures = cache.load_cache(tmp_path, 4)
    pixels, mask, captions = cache.draw_picture(world.TRAIN_SEEDS[3], 5)
    np.testing.assert_array_equal(pictures.pixels[3, 5], pixels)
    np.testing.assert_array_equal(pictures.masks[3, 5], mask)
    assert list(pictures.captions[3, 5]) == captions
    assert captions[-1].count("S*") == 1


def test_the_regressors_stage_trains_the_bundles_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hbsdk.training.world_source.VALIDATION_IDENTITIES", 1)
    options = replace(train_regressor.OPTIONS, batch_size=2, log_steps=1)
    monkeypatch.setattr(train_regressor, "OPTIONS", options)
    bundle, folder = tmp_path / "bundle", tmp_path / "work"
    shutil.copytree(train.WEIGHTS, bundle)
    (folder / "pictures").mkdir(parents=True)
    cache._draw_chunk(list(world.TRAIN_SEEDS[:2]), folder / "pictures" / "pictures-0000000.npz")
    weights = bundle / "regressor" / "diffusion_pytorch_model.safetensors"
    before, log = load_file(weights), folder / "regressor" / "losses.jsonl"
    work = train.Work(folder, bundle, identities=2, steps=1, go_on=True)
    assert train.train_regressor_stage(work)
    small = load_file(weights)
    assert all(w.dtype == torch.float16 for w in small.values())
    # One step of Muon at a rate that still warms up: near the bundle's own, and not it.
    assert (
        0 < distance(small, before) < 0.01 * distance(before, {k: 0 * w for k, w in before.items()})
    )
    first = log.read_text()
    assert train.train_regressor_stage(replace(work, steps=2))  # goes on where it was
    assert log.read_text().startswith(first)
    recorded = record(folder)["regressor"]
    assert (recorded["steps"], recorded["batch_size"]) == (2, 2)
    assert recorded["schedule"]["optimizer"] == "muon"
    assert recorded["figures"]["loss"] == round(
        json.loads(log.read_text().splitlines()[1])["loss"], 4
    )


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return (
        sum((one[name].float() - other[name].float()).square().sum() for name in one).sqrt().item()
    )


class cache_in_this_process:  # noqa: N801
    """Stands in for a pool of processes, which would not see the smaller chunks."""

    def __init__(self, workers: int, mp_context: object) -> None:
        assert workers > 0

    def __enter__(self) -> cache_in_this_process:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future: Future = Future()
        future.set_result(function(*arguments))
        return future
