"""What a step of training sees: encoded as for use, noised by number, drawn by number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hbsdk.backends.torch import TorchBackend
from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError, PromptError, TrainingError
from hbsdk.image import Reference
from hbsdk.mini import cache, world
from hbsdk.text import tokenize_prompt
from hbsdk.training.encode import FrozenNetworks, PairEncoder
from hbsdk.training.kept import Kept, read_kept, write_kept
from hbsdk.training.pairs import Pair
from hbsdk.training.world_source import VALIDATION_IDENTITIES, WorldSource
from tests.pair_source import SquaresSource

WORDS = 5


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def networks(bundle: Bundle) -> FrozenNetworks:
    return FrozenNetworks.load(bundle, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return SquaresSource().pairs(0, 0, range(4))


@pytest.mark.parametrize("background", ["keep", "mask"])
def test_pictures_are_encoded_as_the_session_does(bundle, networks, pairs, background) -> None:
    encoder = PairEncoder(replace(networks, background=background), WORDS, seed=0)
    encoded = encoder.encode(pairs, 0, range(4))
    backend = TorchBackend(
        replace(bundle, info=replace(bundle.info, background=background)), device="cpu"
    )
    for row, pair in enumerate(pairs):
        prompt = tokenize_prompt(bundle.load_tokenizer(), pair.prompt, {"s*": WORDS})
        reference = backend.encode_references(
            [as_reference(pair.reference, pair.reference_mask)], prompt
        )
        target = backend.encode_references([as_reference(pair.target, pair.target_mask)], prompt)
        close(encoded.latents[row], reference.latents[0])
        close(encoded.features.clip[row], reference.features.clip[0])
        close(encoded.features.dino[row], reference.features.dino[0])
        close(encoded.batch.latents[row], target.latents[0])
        close(encoded.batch.mask[row], target.mask[0])
        assert torch.equal(encoded.batch.ids[row], reference.ids[0])
        assert torch.equal(encoded.batch.positions[row], reference.positions[0])
        assert not torch.allclose(encoded.latents[row], target.latents[0], atol=0.01)  # the control


def as_reference(pixels: np.ndarray, mask: np.ndarray) -> Reference:
    return Reference(pixels.astype(np.float32) / 127.5 - 1.0, mask.astype(np.float32))


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_noise_depends_on_seed_step_and_number_alone(networks, pairs) -> None:
    whole = PairEncoder(networks, WORDS, seed=3).encode(pairs, 7, range(4)).batch
    part = PairEncoder(networks, WORDS, seed=3).encode(pairs[2:], 7, [2, 3]).batch
    assert torch.equal(part.noise, whole.noise[2:])
    assert torch.equal(part.timesteps, whole.timesteps[2:])
    for seed, step, numbers in ((4, 7, range(4)), (3, 8, range(4)), (3, 7, range(4, 8))):
        other = PairEncoder(networks, WORDS, seed=seed).encode(pairs, step, numbers).batch
        assert not torch.isclose(other.noise, whole.noise).flatten(1).all(1).any()


def test_noise_is_normal_and_timesteps_are_uniform(networks) -> None:
    noise, timesteps = PairEncoder(networks, WORDS, seed=0)._noise(0, range(4096), (4, 2, 2))
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.std().item() - 1.0) < 0.02
    assert timesteps.min() < 10
    assert timesteps.max() > 989
    assert abs(timesteps.float().mean().item() - 499.5) < 20


def test_a_prompt_without_the_subject_or_with_two_is_refused(networks, pairs) -> None:
    encoder = PairEncoder(networks, WORDS, seed=0)
    for prompt, times in (("a cat", 0), ("S* and S*", 2)):
        with pytest.raises(PromptError, match=rf'"S\*" in it once, got {times} times'):
            encoder.encode([replace(pairs[0], prompt=prompt)], 0, [0])


def test_pictures_of_another_size_are_refused(networks, pairs) -> None:
    small = replace(pairs[0], target=pairs[0].target[::2, ::2])
    with pytest.raises(TrainingError, match=r"expected 32 x 32 px.*got 16 x 16 x 3"):
        PairEncoder(networks, WORDS, seed=0).encode([small], 0, [0])


IDENTITIES = VALIDATION_IDENTITIES + 3


def encoded(calls: list[int]) -> Kept:
    """Keep the mean of each picture; note how many were encoded at once."""

    def encode(pictures, _masks) -> tuple[torch.Tensor]:
        calls.append(len(pictures))
        return (torch.tensor([[one.mean()] for one in pictures]),)

    return Kept(encode)


DAMAGED = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "no bytes": lambda path: path.write_bytes(b""),
    "other bytes": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500)),
    "a folder": lambda path: path.unlink() or path.mkdir(),
    "another pickle": lambda path: torch.save([1, 2], path),
    "other parts": lambda path: torch.save({"features": ([], [])}, path),
    "part of the rows": lambda path: torch.save({"latents": ([1, 2], [HALF])}, path),
    "other keys": lambda path: torch.save({"latents": (["a"], [HALF])}, path),
    "another type": lambda path: torch.save({"latents": ([1], [HALF.float()])}, path),
    "no columns": lambda path: torch.save({"latents": ([1], [])}, path),
}
HALF = torch.zeros(1, 1, dtype=torch.float16)


@pytest.mark.parametrize("damage", ["none", *DAMAGED])
def test_a_damaged_file_of_encoded_pictures_is_as_none(damage: str, tmp_path: Path) -> None:
    path, pictures = tmp_path / "kept.pt", [np.full((2, 2, 3), value) for value in (1.0, 3.0)]
    first = encoded([])
    (expected,) = first([7, 8], pictures, pictures)
    write_kept(path, {"latents": first})
    DAMAGED.get(damage, lambda _: None)(path)
    calls: list[int] = []
    second = encoded(calls)
    read_kept(path, {"latents": second})
    (again,) = second([7, 8], pictures, pictures)
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    assert (calls == []) == (damage == "none")  # "none" is the control


def test_the_world_pairs_pictures_of_one_identity() -> None:
    source = WorldSource(IDENTITIES)
    indices = range(40)
    keys = source.keys(0, 5, indices)
    who = [(shown // cache.PICTURES, drawn // cache.PICTURES) for shown, drawn in keys]
    assert {one for one, _ in who} == {0, 1, 2}  # the rest are for validation
    assert all(one == other for one, other in who)
    assert {shown % cache.PICTURES for shown, _ in keys} == set(range(cache.REFERENCES))
    assert {drawn % cache.PICTURES for _, drawn in keys} == set(range(cache.PICTURES))
    assert all(shown != drawn for shown, drawn in keys)
    assert keys[7:9] == source.keys(0, 5, [7, 8])
    assert keys != source.keys(0, 6, indices) != source.keys(1, 6, indices)
    (pair,) = source.pairs(0, 5, [7])
    (_, drawn) = keys[7]
    pixels, mask, captions = cache.draw_picture(
        world.TRAIN_SEEDS[drawn // cache.PICTURES], drawn % cache.PICTURES
    )
    np.testing.assert_array_equal(pair.target, pixels)
    np.testing.assert_array_equal(pair.target_mask, mask)
    assert pair.prompt == captions[-1]
    assert pair.prompt.count("S*") == 1
    assert len(source) == 3 * cache.PICTURES
    assert source.skipped() == []


def test_the_worlds_fingerprint_tells_worlds_apart() -> None:
    one = WorldSource(IDENTITIES)
    assert one.fingerprint == WorldSource(IDENTITIES).fingerprint
    assert one.fingerprint != WorldSource(IDENTITIES + 1).fingerprint
    half = WorldSource(IDENTITIES, size=32)
    assert one.fingerprint != half.fingerprint
    (pair,) = half.pairs(0, 0, [0])
    assert pair.reference.shape == (32, 32, 3)
    assert set(np.unique(pair.reference_mask)) <= {0, 1}


def test_the_worlds_cache_is_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_CHUNK", 1)
    monkeypatch.setattr("hbsdk.training.world_source.VALIDATION_IDENTITIES", 1)
    for index in range(2):
        cache._draw_chunk([world.TRAIN_SEEDS[index]], tmp_path / f"pictures-{index:07d}.npz")
    cached, drawn = WorldSource(2, tmp_path), WorldSource(2)
    assert cached.fingerprint == drawn.fingerprint
    for one, other in zip(cached.pairs(0, 0, range(4)), drawn.pairs(0, 0, range(4)), strict=True):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name))


@pytest.mark.parametrize("identities", [VALIDATION_IDENTITIES, 2.5, 10**9])
def test_a_world_without_anyone_to_train_on_is_refused(identities) -> None:
    with pytest.raises(OptionError, match="identities"):
        WorldSource(identities)
