"""Eq. 7 by hand: the noise, the target, the mask's weight, alpha, and the timesteps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from hbsdk.attention import mask_loss, recorded_attention
from hbsdk.mini.tokenizer import learn_tokenizer
from hbsdk.objective import (
    Denoiser,
    NoisyBatch,
    ObjectiveWeights,
    latent_mask,
    noised,
    objective,
    stratified_timesteps,
)
from hbsdk.text_encoder import encode_with_words
from tests.tiny_bundle import CAPTIONS, WIDTH, tiny_text_encoder, tiny_unet

KINDS = ("epsilon", "v_prediction", "sample")


def scheduler(kind: str) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind
    )


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    text_encoder = tiny_text_encoder(learn_tokenizer(CAPTIONS, size=600))
    return tiny_unet().requires_grad_(False).eval(), text_encoder.requires_grad_(False).eval()


@pytest.fixture
def batch() -> NoisyBatch:
    generator = torch.Generator().manual_seed(3)
    mask = torch.zeros(3, 1, 8, 8)
    mask[:, :, 2:6, 3:7] = 1.0
    mask[1, :, 2:3] = 0.25  # masks are soft at latent size
    return NoisyBatch(
        latents=torch.randn(3, 4, 8, 8, generator=generator),
        noise=torch.randn(3, 4, 8, 8, generator=generator),
        timesteps=torch.tensor([0, 333, 999]),
        mask=mask,
        ids=torch.randint(0, 500, (3, 77), generator=generator),
        positions=torch.tensor([[4, 5, 6, 7, 8]] * 3),
    )


@pytest.fixture
def words() -> torch.Tensor:
    return torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(4))


def by_hand(batch: NoisyBatch, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Noisy latents and target from the betas up, in double precision."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = np.cumprod(1.0 - betas)[batch.timesteps.numpy()][:, None, None, None]
    clean, noise = batch.latents.double().numpy(), batch.noise.double().numpy()
    noisy = np.sqrt(signal) * clean + np.sqrt(1.0 - signal) * noise
    velocity = np.sqrt(signal) * noise - np.sqrt(1.0 - signal) * clean
    return noisy, {"epsilon": noise, "v_prediction": velocity, "sample": clean}[kind]


def predicted(networks, batch, words, noisy) -> np.ndarray:
    unet, text_encoder = networks
    with torch.no_grad():
        states = encode_with_words(text_encoder, batch.ids, batch.positions, words)
        sample = torch.from_numpy(noisy).float()
        return unet(sample, batch.timesteps, states).sample.double().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_noise_and_target_are_those_of_the_schedule(batch, kind):
    noisy, target = noised(scheduler(kind), batch)
    expected_noisy, expected_target = by_hand(batch, kind)
    assert np.abs(noisy.numpy() - expected_noisy).max() < 1e-5
    assert np.abs(target.numpy() - expected_target).max() < 1e-5
    for other in set(KINDS) - {kind}:
        assert np.abs(target.numpy() - by_hand(batch, other)[1]).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("background", [1.0, 0.25, 0.0])
def test_l_eps_by_hand(networks, batch, words, kind, background):
    denoiser = Denoiser(*networks, scheduler(kind))
    parts = objective(denoiser, words, batch, ObjectiveWeights(0.0, background=background))
    noisy, target = by_hand(batch, kind)
    squared = (predicted(networks, batch, words, noisy) - target) ** 2
    mask = np.broadcast_to(batch.mask.double().numpy(), squared.shape)
    weight = mask + background * (1.0 - mask)
    expected = (squared * weight).sum() / weight.sum()
    assert parts.denoising.item() == pytest.approx(expected, rel=1e-5)
    assert parts.total.item() == parts.denoising.item()
    assert parts.mask.item() == 0.0
    unweighted, flipped = squared.mean(), (squared * (1.0 - mask)).sum() / (1.0 - mask).sum()
    if background < 1.0:
        assert abs(parts.denoising.item() - unweighted) > 1e-3
    assert abs(parts.denoising.item() - flipped) > 1e-3


@pytest.mark.parametrize("kind", ["area", "paper"])
def test_the_total_is_denoising_plus_alpha_times_mask(networks, batch, words, kind):
    denoiser = Denoiser(*networks, scheduler("epsilon"))
    unet, text_encoder = networks
    parts = objective(denoiser, words, batch, ObjectiveWeights(0.5, kind=kind))
    noisy, target = by_hand(batch, "epsilon")
    states = encode_with_words(text_encoder, batch.ids, batch.positions, words)
    with recorded_attention(unet, batch.positions, 8, 8) as maps:
        said = unet(torch.from_numpy(noisy).float(), batch.timesteps, states).sample
    attention = mask_loss(maps, batch.mask, kind=kind).item()
    denoising = ((said.double().numpy() - target) ** 2).mean()
    assert attention != 0.0
    assert parts.mask.item() == pytest.approx(attention, abs=1e-7)
    assert parts.denoising.item() == pytest.approx(denoising, rel=1e-5)
    expected = parts.denoising.item() + 0.5 * parts.mask.item()
    assert parts.total.item() == pytest.approx(expected, rel=1e-6)
    assert parts.total.item() != pytest.approx(parts.denoising.item(), rel=1e-6)


def test_both_parts_reach_the_words(networks, batch, words):
    denoiser = Denoiser(*networks, scheduler("epsilon"))
    words = words.requires_grad_()
    parts = objective(denoiser, words, batch, ObjectiveWeights())
    for part in (parts.denoising, parts.mask):
        (gradient,) = torch.autograd.grad(part, words, retain_graph=True)
        assert (gradient.norm(dim=2) > 0.0).all()


def test_a_part_of_a_batch_is_its_pictures(networks, batch, words):
    denoiser = Denoiser(*networks, scheduler("epsilon"))
    weights = ObjectiveWeights(0.5)
    whole = objective(denoiser, words, batch, weights).total.item()
    ones = [
        objective(denoiser, words[i : i + 1], batch.part(i, i + 1), weights).total.item()
        for i in range(3)
    ]
    assert np.mean(ones) == pytest.approx(whole, rel=1e-5)
    assert np.mean(ones[:2]) != pytest.approx(whole, rel=1e-3)
    other = replace(batch, ids=batch.ids.flip(0))
    assert objective(denoiser, words, other, weights).total.item() != pytest.approx(whole, rel=1e-6)


def test_a_mask_shrinks_by_means_over_areas():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :6, 8:16] = 1.0
    small = latent_mask(mask, 8, 8)[0, 0].numpy()
    expected = np.zeros((8, 8))
    expected[0, 2:4], expected[1, 2:4] = 1.0, 0.5
    assert np.abs(small - expected).max() < 1e-6


@pytest.mark.parametrize("count", [1, 3, 8, 300, 1000])
def test_each_stratum_has_one_timestep(count):
    for seed in range(5):
        drawn = stratified_timesteps(count, 1000, torch.Generator().manual_seed(seed))
        assert drawn.dtype == torch.int64
        edges = np.arange(count + 1) * 1000 / count
        for i, step in enumerate(drawn.tolist()):
            assert np.floor(edges[i]) <= step < edges[i + 1]
            assert 0 <= step <= 999


def test_timesteps_are_the_generators_alone():
    draws = [
        stratified_timesteps(8, 1000, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_timesteps_cover_the_whole_range():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([stratified_timesteps(4, 1000, generator) for _ in range(2000)])
    counts = torch.bincount(drawn, minlength=1000)
    assert len(counts) == 1000
    assert (counts > 0).float().mean() > 0.99
    assert drawn.float().mean().item() == pytest.approx(499.5, abs=10.0)
