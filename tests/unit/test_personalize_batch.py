"""Many photos at once: the same subjects as one by one, in order, and what is wrong with which."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hbsdk.errors import ImageError, MaskError, OptionError, SubjectError
from hbsdk.session import Session

LIGHT = {"steps": 2, "timesteps_per_step": 2, "effective_step": 1e-2}


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Session:
    return Session(tiny_bundle, progress=False)


@pytest.fixture(scope="module")
def photos(photo: np.ndarray) -> list[np.ndarray]:
    """Return five photos that differ."""
    return [np.roll(photo, shift, axis=2) // (1 + shift % 2) for shift in range(5)]


@pytest.mark.parametrize("settings", [{"steps": 0}, LIGHT], ids=["probe", "refined"])
def test_a_batch_makes_the_subjects_that_single_photos_do(session, photos, mask, settings) -> None:
    batch = list(session.personalize_batch(photos, [mask] * 5, batch_size=2, **settings))
    alone = [session.personalize(photo, mask, **settings) for photo in photos]
    for ours, other in zip(batch, alone, strict=True):
        assert np.allclose(ours.words, other.words, atol=1e-5)
        assert ours.metadata == other.metadata
        assert (ours.report is None) == (settings["steps"] == 0)
    # The control: another photo's words are not within that.
    assert not np.allclose(batch[0].words, alone[1].words, atol=1e-4)


def test_engines_probe_photos_in_as_few_runs_as_their_recipe_allows(
    tiny_bundle, tiny_engines, photos, mask
) -> None:
    session = Session(tiny_bundle, engine="onnxruntime", engines=tiny_engines, progress=False)
    sizes = []
    real = session.backend.run

    def run(name, feeds):
        sizes.append((name, len(next(iter(feeds.values())))))
        return real(name, feeds)

    session.backend.run = run
    batch = list(session.personalize_batch(photos, [mask] * 5, batch_size=5, steps=0))
    most = session.backend.spec("regressor").axes["photos"].max
    runs = [size for name, size in sizes if name == "regressor"]
    assert sum(runs) == 5
    assert most > 1
    assert len(runs) == -(-5 // most)
    torch_words = Session(tiny_bundle, engine="torch", progress=False)
    for ours, photo in zip(batch, photos, strict=True):
        other = torch_words.personalize(photo, mask, steps=0)
        assert np.allclose(ours.words, other.words, atol=1e-4)


def test_names_are_given_or_counted(session, photos) -> None:
    counted = session.personalize_batch(photos[:2], steps=0)
    assert [one.name for one in counted] == ["subject-1", "subject-2"]
    named = session.personalize_batch(photos[:2], names=["Fox", "owl"], steps=0)
    assert [one.name for one in named] == ["fox", "owl"]


def test_photos_are_loaded_as_they_are_needed(session, photos) -> None:
    loaded = []

    def stream() -> Iterator[np.ndarray]:
        for index, photo in enumerate(photos):
            loaded.append(index)
            yield photo

    subjects = session.personalize_batch(stream(), batch_size=2, steps=0)
    assert loaded == []
    next(subjects)
    assert loaded == [0, 1]
    next(subjects)
    next(subjects)
    assert loaded == [0, 1, 2, 3]


def test_between_subjects_others_may_use_the_session(session, photos) -> None:
    subjects = session.personalize_batch(photos[:2], **LIGHT)
    first = next(subjects)
    pictures = session.generate("a photo of S*", first, num_inference_steps=1)
    assert len(pictures) == 1
    assert not session._lock._is_owned()  # whichever thread asks
    assert len(list(subjects)) == 1


def test_no_photos_are_no_subjects(session) -> None:
    assert list(session.personalize_batch([])) == []


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_bad_photo_is_named_after_the_subjects_before_it(session, photos, size) -> None:
    subjects = session.personalize_batch(
        [*photos[:2], b"no picture", photos[2]], batch_size=size, steps=0
    )
    made = [next(subjects), next(subjects)]
    with pytest.raises(ImageError, match="photo 3: "):
        next(subjects)
    assert len(made) == 2


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            {"masks": [None]},
            OptionError,
            "masks: expected one for .*: photo 2, got 1 masks",
        ),
        ({"masks": [None] * 3}, OptionError, "masks: expected .*: photos 2, got more"),
        ({"names": ["a"]}, OptionError, "names: expected .*: photo 2, got 1 names"),
        ({"names": ["a", "b", "c"]}, OptionError, "names: .*: photos 2, got more"),
        ({"names": ["a", "b/c"]}, SubjectError, "photo 2: subject name 'b/c'"),
        ({"masks": [None, np.zeros((40, 48), np.uint8)]}, MaskError, "photo 2: "),
    ],
)
def test_what_does_not_fit_the_photos_is_told(session, photos, more, error, message) -> None:
    with pytest.raises(error, match=message):
        list(session.personalize_batch(photos[:2], steps=0, **more))


@pytest.mark.parametrize("size", [0, -1, 2.0, True, 4096])
def test_a_bad_batch_size_is_refused_before_any_photo(session, size) -> None:
    with pytest.raises(OptionError, match="batch_size: expected a whole number from 1 to 1024"):
        session.personalize_batch([b"never looked at"], batch_size=size)


def test_options_are_checked_when_asked_for(session) -> None:
    with pytest.raises(OptionError, match="option 'stepz'"):
        session.personalize_batch([b"never looked at"], stepz=1)
