"""Pictures and subjects from C++ are Python's, on the same engines at the same seed."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hbsdk import Subject
from tests.cpp import library as lib
from tests.cpp.library import Bridge

LEAST_PSNR_DB = 45.0
# The same graphs in the same runtime on the same noise: what is left is the order in which several
# threads add up, and a value that it moves over the edge between two numbers of 8 bits.
MOST_DIFFERENCE = 1
MOST_DIFFERING = 0.01


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """Return the peak signal to noise ratio of uint8 pictures; 120 where they are equal."""
    error = np.square(one.astype(np.float64) - other.astype(np.float64)).mean()
    return 120.0 if error == 0 else float(10 * np.log10(255**2 / error))


def check_same(got: np.ndarray, want: np.ndarray) -> None:
    """Compare pictures of uint8 one by one."""
    assert got.shape == want.shape
    for one, other in zip(got, want, strict=True):
        assert psnr_db(one, other) >= LEAST_PSNR_DB
        difference = np.abs(one.astype(int) - other.astype(int))
        assert difference.max() <= MOST_DIFFERENCE
        assert np.count_nonzero(difference) < MOST_DIFFERING * difference.size


def check_another(got: np.ndarray, want: np.ndarray) -> None:
    """The control: pictures that no limit of `check_same` would let pass."""
    assert got.shape == want.shape
    for one, other in zip(got, want, strict=True):
        assert psnr_db(one, other) < LEAST_PSNR_DB
        difference = np.abs(one.astype(int) - other.astype(int))
        assert difference.max() > 20 * MOST_DIFFERENCE
        assert np.count_nonzero(difference) > 10 * MOST_DIFFERING * difference.size


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
    assert want.shape == (count, 64, 64, 3)
    check_same(got, want)
    # The control: another seed is another picture, as are the pictures of one call.
    control = bridge.generate(context, prompt, *handles, num_images=count, seed=12)
    check_another(control, want)
    if count > 1:
        check_another(got[1:], got[:-1])
        check_same(control[:-1], want[1:])  # picture i starts from seed + i


@pytest.mark.parametrize(
    ("options", "fields", "otherwise"),
    [
        # Not Euler's: over the same timesteps that is the same rule in other words.
        ({"sampler": "ddim"}, {"sampler": "ddim"}, {"sampler": "dpm++2m"}),
        ({"sampler": "euler"}, {"sampler": "euler"}, {"sampler": "dpm++2m"}),
        ({"guidance_scale": 1.0}, {"guidance_scale": 1.0}, {"guidance_scale": 3.0}),
        ({"guidance_scale": 5.0}, {"guidance_scale": 5.0}, {"guidance_scale": 1.0}),
        ({"negative_prompt": "snow"}, {"negative_prompt": "snow"}, {"negative_prompt": "a cat"}),
        ({"num_inference_steps": 7}, {"num_inference_steps": 7}, {"num_inference_steps": 3}),
        # Another size is another picture anyway: the control turns it on its side, and has it back.
        ({"height": 80, "width": 128}, {"height": 80, "width": 128}, {"height": 128, "width": 80}),
        ({"num_images_per_prompt": 3, "num_inference_steps": 1},
         {"num_images": 3, "num_inference_steps": 1}, {"num_images": 3, "seed": 0}),
    ],
    ids=lambda value: "-".join(value),
)  # fmt: skip
def test_every_option_means_the_same(options, fields, otherwise, bridge: Bridge, context, session):
    prompt = "a picture of a cat on the beach"
    base = {"seed": 2**64 - 1, "num_inference_steps": 7}
    want = python_pictures(session, prompt, None, **base | options)
    check_same(bridge.generate(context, prompt, **base | fields), want)
    other = bridge.generate(context, prompt, **base | fields | otherwise)
    check_another(other.swapaxes(1, 2) if "height" in otherwise else other, want)


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
    check_same(got, want)
    swapped = bridge.generate(context, "<cat> beside <dog> and <dog>", *handles, **options)
    check_another(swapped, want)


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
    stats = lib.Stats(ctypes.sizeof(lib.Stats))
    options = {"seed": 5, "num_inference_steps": 3, "stats": ctypes.pointer(stats)}
    prompt = "a picture of a cat"
    want = bridge.generate(context, prompt, **options)
    bridge.generate(context, prompt, **options)
    assert stats.loading_ms == 0  # the control: nothing is loaded twice where memory is not low
    small = bridge.open(mini_engines, low_memory=1, threads=1)
    for _ in range(2):
        stats.loading_ms = 0
        check_same(bridge.generate(small, prompt, **options), want)
        assert stats.loading_ms > 0  # networks are loaded anew
    check_another(bridge.generate(small, prompt, **options | {"seed": 6}), want)
    bridge.close(small)
