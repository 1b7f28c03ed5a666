"""The host's arithmetic around engines, against its plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from hbsdk.backends.base import StepCoefficients
from hbsdk.backends.engine_math import (
    LatentScale,
    batches,
    coefficient_row,
    decoder_latents,
    engine_rows,
    guidance_matrix,
    is_guided,
    latent_mode,
    latent_scale,
    place_words,
    reference_mask,
    reference_pixels,
    token_ids,
    unit_pictures,
)
from hbsdk.bundle import Bundle
from hbsdk.engine_spec import Axis, EngineSpec, TensorSpec
from hbsdk.errors import EngineError
from hbsdk.image import Reference
from hbsdk.text import PromptTokens

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_guidance_as_a_matrix_is_classifier_free_guidance():
    noise = floats(6, 4, 2, 3)
    without, with_prompt = noise[:3], noise[3:]
    for scale in (7.5, 1.0, 0.0, 3.3):
        guided = np.einsum("ij,jchw->ichw", guidance_matrix(3, scale, guided=True), noise)
        expected = without + scale * (with_prompt - without)
        assert np.allclose(guided[:3], expected, atol=1e-5)
        assert np.array_equal(guided[:3], guided[3:])  # both halves stay equal
        swapped = with_prompt + scale * (without - with_prompt)
        assert not np.allclose(guided[:3], swapped, atol=1e-2)
    plain = guidance_matrix(3, 7.5, guided=False)
    assert plain.dtype == np.float32
    assert np.array_equal(plain, np.eye(3))


def test_rows_and_guidance_follow_from_the_number_of_states():
    latents = floats(2, 4, 3, 3)
    assert is_guided(2, 4)
    assert not is_guided(2, 2)
    assert np.array_equal(engine_rows(latents, guided=True), np.concatenate([latents, latents]))
    assert engine_rows(latents, guided=False) is latents
    for states in (1, 3, 6):
        with pytest.raises(EngineError, match=r"expected 2 or 4 of them"):
            is_guided(2, states)


def test_coefficients():
    step = StepCoefficients(timestep=981.0, p=1.5, q=-0.5, a=0.25, b=2.0, c=-0.75)
    row = coefficient_row(step, first=False)
    assert row.dtype == np.float32
    assert row.tolist() == [1.5, -0.5, 0.25, 2.0, -0.75]
    assert coefficient_row(step, first=True).tolist() == [1.5, -0.5, 0.25, 2.0, 0.0]


def test_words_stand_where_their_placeholders_do():
    embedded = floats(2, 9, 4)
    prompts = [
        PromptTokens(np.arange(9), {"s*": ((2, 3), (6, 7)), "<fox>": ()}),
        PromptTokens(np.arange(9) + 9, {"<fox>": ((4, 5, 6),)}),
    ]
    words = {"s*": floats(2, 4), "<fox>": floats(3, 4)}
    before = embedded.copy()
    placed = place_words(embedded, prompts, words)
    expected = before.copy()
    expected[0, 2:4] = expected[0, 6:8] = words["s*"]
    expected[1, 4:7] = words["<fox>"]
    assert np.array_equal(placed, expected)
    assert np.array_equal(embedded, before)
    assert not np.array_equal(place_words(embedded, prompts[::-1], words), expected)
    half = place_words(embedded.astype(np.float16), prompts, words)
    assert half.dtype == np.float16
    assert np.allclose(half, expected, atol=2e-3)
    ids = token_ids(prompts)
    assert ids.shape == (2, 9)
    assert ids.dtype == np.int64
    assert ids[1, 0] == 9


def test_latents_are_scaled_and_back(tiny_bundle):
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from torch import from_numpy

    parameters = floats(2, 8, 3, 3)
    scale = LatentScale(factor=0.3, shift=0.25)
    mode = DiagonalGaussianDistribution(from_numpy(parameters)).mode().numpy()
    latents = latent_mode(parameters, scale)
    assert latents.dtype == np.float32
    assert np.allclose(latents, (mode - 0.25) * 0.3, atol=1e-6)
    assert np.allclose(decoder_latents(latents, scale), mode, atol=1e-5)
    assert not np.allclose(decoder_latents(latents, LatentScale(0.3, 0.0)), mode, atol=1e-2)
    assert latent_mode(parameters.astype(np.float16), scale).dtype == np.float32
    vae = Bundle.open(tiny_bundle).load_vae()
    assert latent_scale(Bundle.open(tiny_bundle)) == LatentScale(
        vae.config.scaling_factor, vae.config.shift_factor or 0.0
    )


def test_pictures_and_references_change_their_layout():
    decoded = floats(2, 3, 4, 5) * 2
    pictures = unit_pictures(decoded)
    assert pictures.shape == (2, 4, 5, 3)
    assert pictures.flags["C_CONTIGUOUS"]
    expected = (decoded[1, 2, 3, 4] + 1) / 2
    assert pictures[1, 3, 4, 2] == pytest.approx(min(max(expected, 0.0), 1.0))
    assert pictures.min() == 0.0
    assert pictures.max() == 1.0
    assert unit_pictures(decoded.astype(np.float16)).dtype == np.float32
    references = [Reference(pixels=floats(6, 6, 3) * n, mask=np.abs(floats(6, 6))) for n in (1, 2)]
    pixels = reference_pixels(references)
    assert pixels.shape == (2, 3, 6, 6)
    assert pixels[1, 2, 4, 5] == references[1].pixels[4, 5, 2] != references[0].pixels[4, 5, 2]
    assert pixels.flags["C_CONTIGUOUS"]
    assert reference_mask(references).shape == (2, 1, 6, 6)


def spec_of(axis: Axis | int) -> EngineSpec:
    first = axis if isinstance(axis, int) else "images"
    tensor = TensorSpec("sample", "float32", (first, 4))
    axes = {} if isinstance(axis, int) else {"images": axis}
    return EngineSpec("vae_decoder", "vae_decoder", "x.onnx", (tensor,), (tensor,), axes)


def test_batches_cover_all_rows_once_within_the_engines_limits():
    for axis, count, sizes in (
        (Axis(1, 1, 4), 4, [4]), (Axis(1, 1, 4), 5, [2, 3]), (Axis(1, 1, 4), 9, [3, 3, 3]),
        (Axis(2, 2, 4), 5, [2, 3]), (1, 3, [1, 1, 1]), (2, 4, [2, 2]),
    ):  # fmt: skip
        parts = list(batches(spec_of(axis), "images", count))
        assert [part.stop - part.start for part in parts] == sizes
        assert [row for part in parts for row in range(count)[part]] == list(range(count))
    for axis, count in ((Axis(2, 2, 4), 1), (2, 3), (Axis(3, 3, 4), 5)):
        with pytest.raises(EngineError, match="images of engine vae_decoder: expected at least"):
            list(batches(spec_of(axis), "images", count))
