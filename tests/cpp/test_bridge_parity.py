"""Pictures and subjects from C++ are Python's, on the same engines at the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbsdk import Subject
from tests.cpp.library import Bridge

LEAST_PSNR_DB = 45.0


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """Return the peak signal to noise ratio of uint8 pictures; 120 where they are equal."""
    error = np.square(one.astype(np.float64) - other.astype(np.float64)).mean()
    return 120.0 if error == 0 else float(10 * np.log10(255**2 / error))


def python_pictures(session: Any, prompt: str, subject: Any, **options: Any) -> np.ndarray:
    return np.stack([np.asarray(one) for one in session.generate(prompt, subject, **options)])


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("with_subject", [True, False])
def test_pictures_are_pythons(
    count, with_subject, bridge: Bridge, context, session, python_subject, subject_file
):
    prompt = "a picture of S* in the snow" if with_subject else "a picture of a red cat"
    subject = python_subject if with_subject else None
    want = python_pictures(session, prompt, subject, num_images_per_prompt=count, seed=11)
    handles = [bridge.load(subject_file, context)] if with_subject else []
    got = bridge.generate(context, prompt, *handles, num_images=count, seed=11)
    assert got.shape == want.shape == (count, 64, 64, 3)
    for one, other in zip(got, want, strict=True):
        assert psnr_db(one, other) >= LEAST_PSNR_DB
    # The control: another seed is another picture, as are the pictures of one call.
    control = bridge.generate(context, prompt, *handles, num_images=count, seed=12)
    assert psnr_db(control[0], want[0]) < LEAST_PSNR_DB
    if count > 1:
        assert psnr_db(got[0], got[1]) < LEAST_PSNR_DB
        assert psnr_db(control[0], want[1]) >= LEAST_PSNR_DB  # picture i starts from seed + i


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"sampler": "ddim", "num_inference_steps": 7}, {"sampler": "ddim"}),
        ({"sampler": "euler", "num_inference_steps": 7}, {"sampler": "euler"}),
        ({"guidance_scale": 1.0, "num_inference_steps": 7}, {"guidance_scale": 1.0}),
        ({"negative_prompt": "snow", "num_inference_steps": 7}, {"negative_prompt": "snow"}),
        ({"height": 80, "width": 128, "num_inference_steps": 7}, {"height": 80, "width": 128}),
        ({"num_images_per_prompt": 3, "num_inference_steps": 1}, {"num_images": 3}),
    ],
    ids=lambda value: "-".join(value),
)
def test_every_option_means_the_same(options, fields, bridge: Bridge, context, session):
    prompt = "a picture of a cat on the beach"
    want = python_pictures(session, prompt, None, seed=2**64 - 1, **options)
    steps = options["num_inference_steps"]
    got = bridge.generate(context, prompt, seed=2**64 - 1, num_inference_steps=steps, **fields)
    assert got.shape == want.shape
    assert psnr_db(got, want) >= LEAST_PSNR_DB
    plain = bridge.generate(context, prompt, seed=2**64 - 1, num_inference_steps=steps + 1)
    assert plain.shape != want.shape or psnr_db(plain, want) < LEAST_PSNR_DB


def test_several_subjects_share_a_prompt(
    bridge: Bridge, context, session, python_subject, subject_file, tmp_path: Path
):
    from dataclasses import replace

    other = replace(python_subject, words=python_subject.words[::-1].copy(), name="dog")
    handles = [bridge.load(subject_file), bridge.load(other.save(tmp_path))]
    prompt = "<dog> beside <cat> and <CAT>"
    options = {"seed": 3, "num_inference_steps": 8}
    want = python_pictures(session, prompt, [python_subject, other], **options)
    got = bridge.generate(context, prompt, *handles, **options)
    assert psnr_db(got, want) >= LEAST_PSNR_DB
    swapped = bridge.generate(context, "<cat> beside <dog> and <dog>", *handles, **options)
    assert psnr_db(swapped, want) < LEAST_PSNR_DB


def test_a_probe_gives_pythons_words(
    bridge: Bridge, context, python_subject, cat_photo, cat_mask, tmp_path: Path
):
    handle = bridge.probe(context, cat_photo, cat_mask, "cat")
    bridge.save(handle, tmp_path / "cat.safetensors")
    read = Subject.load(tmp_path / "cat.safetensors")
    scale = np.abs(python_subject.words).max()
    np.testing.assert_allclose(read.words, python_subject.words, rtol=0, atol=1e-5 * scale)
    assert read.name == "cat"
    for key in ("bundle", "bundle_hash", "class_word", "mask", "steps"):
        assert read.metadata[key] == python_subject.metadata[key], key
    # The control: another mask is another subject.
    mirrored = bridge.probe(context, cat_photo, cat_mask[:, ::-1], "cat")
    bridge.save(mirrored, tmp_path / "cat.safetensors")
    other = Subject.load(tmp_path / "cat.safetensors").words
    assert np.abs(other - python_subject.words).max() > 1e-3 * scale


def test_low_memory_and_one_thread_draw_the_same(bridge: Bridge, context, mini_engines):
    options = {"seed": 5, "num_inference_steps": 3}
    want = bridge.generate(context, "a picture of a cat", **options)
    small = bridge.open(mini_engines, low_memory=1, threads=1)
    for _ in range(2):  # networks are loaded anew
        got = bridge.generate(small, "a picture of a cat", **options)
        assert psnr_db(got, want) >= LEAST_PSNR_DB
    bridge.close(small)
