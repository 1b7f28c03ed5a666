"""The user's mask first, then alpha, then a segmenter; GrabCut finds the mini world's subjects."""

import sys
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hbsdk import mask as mask_module
from hbsdk.errors import MaskError, MissingDependencyError, OptionError
from hbsdk.image import Photo, load_photo
from hbsdk.mask import check_latent_coverage, find_mask

SIZE = 64


def disc(centre_y: float = 32, centre_x: float = 32, radius: float = 15) -> np.ndarray:
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    inside = (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2
    return inside.astype(np.uint8)


def photo_of(values: np.ndarray, alpha: np.ndarray | None = None) -> Photo:
    noise = np.random.default_rng(1).integers(-12, 13, (*values.shape, 3))
    colours = np.where(values[..., None] == 1, (200, 60, 40), (90, 140, 200))
    return Photo(rgb=(colours + noise).clip(0, 255).astype(np.uint8), alpha=alpha)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    return float((one & other).sum() / (one | other).sum())


def test_the_users_mask_comes_before_alpha_and_segmenter() -> None:
    wanted = disc(20, 20, 8)
    found = find_mask(photo_of(disc(), alpha=disc() * np.uint8(255)), wanted.astype(bool))
    assert found.source == "user"
    np.testing.assert_array_equal(found.values, wanted)
    assert found.values.dtype == np.uint8


@pytest.mark.parametrize(
    "convert",
    [
        lambda values: values.astype(bool),
        lambda values: values * np.uint8(255),
        lambda values: values,  # 0 and 1 of 255
        lambda values: values.astype(np.float32),
        lambda values: Image.fromarray(values * np.uint8(255)),
        lambda values: Image.fromarray(values.astype(bool)),
        lambda values: Image.fromarray(np.dstack([values * np.uint8(0)] * 3 + [values * 255])),
    ],
    ids=["bool", "0-255", "0-1", "float", "PIL grey", "PIL one bit", "PIL cut-out"],
)
def test_a_mask_may_come_in_any_usual_form(convert: Callable[[np.ndarray], object]) -> None:
    found = find_mask(photo_of(disc()), convert(disc(20, 20, 8)))
    np.testing.assert_array_equal(found.values, disc(20, 20, 8))


def test_a_mask_is_cut_at_half(tmp_path: Path) -> None:
    grey = np.full((SIZE, SIZE), 127, dtype=np.uint8)
    grey[10:20] = 128
    path = tmp_path / "mask.png"
    Image.fromarray(grey).save(path)
    found = find_mask(photo_of(disc()), path)
    np.testing.assert_array_equal(found.values, grey == 128)


def test_alpha_comes_before_the_segmenter_and_an_opaque_one_is_none() -> None:
    alpha = disc(20, 20, 8) * np.uint8(255)
    found = find_mask(photo_of(disc(), alpha=alpha))
    assert found.source == "alpha"
    np.testing.assert_array_equal(found.values, disc(20, 20, 8))
    opaque = find_mask(photo_of(disc(), alpha=np.full_like(alpha, 255)), segmenter="grabcut")
    assert opaque.source == "grabcut"


def test_grabcut_finds_a_disc_and_ignores_a_smaller_thing_beside_it() -> None:
    scene = disc() | disc(8, 54, 4)
    found = find_mask(photo_of(scene), segmenter="grabcut")
    assert found.source == "grabcut"
    assert overlap(found.values, disc()) > 0.95


def test_grabcut_fills_holes() -> None:
    ring = disc(radius=16) - disc(radius=4)
    found = find_mask(photo_of(ring), segmenter="grabcut")
    assert found.values[disc(radius=3) == 1].all()
    assert overlap(found.values, disc(radius=16)) > 0.9


@pytest.mark.parametrize("shape", [(16, 16), (90, 400), (700, 200), (16, 900)])
def test_grabcut_answers_in_the_photos_size(shape: tuple[int, int]) -> None:
    values = np.zeros(shape, dtype=np.uint8)
    height, width = shape
    values[height // 4 : height - height // 4, width // 3 : width - width // 3] = 1
    found = find_mask(photo_of(values), segmenter="grabcut")
    assert found.values.shape == shape
    assert overlap(found.values, values) > 0.75


def test_a_photo_without_a_subject_gets_the_ellipse_and_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"ellipse around the centre. Pass a mask"):
        found = find_mask(photo_of(np.zeros((SIZE, SIZE), np.uint8)), segmenter="grabcut")
    assert found.values[38, 32] == 1
    assert 0.3 < found.values.mean() < 0.6
    assert found.values[:2].sum() == found.values[:, :2].sum() == 0


def test_grabcut_is_deterministic_alone_and_among_threads() -> None:
    photos = [photo_of(disc(radius=radius)) for radius in (10, 13, 16, 19)]
    alone = [find_mask(photo, segmenter="grabcut").values for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda photo: find_mask(photo, segmenter="grabcut"), photos * 3))
    for index, found in enumerate(together):
        np.testing.assert_array_equal(found.values, alone[index % 4])


def test_grabcut_does_not_change_the_photo() -> None:
    photo = photo_of(disc())
    before = photo.rgb.copy()
    find_mask(photo, segmenter="grabcut")
    np.testing.assert_array_equal(photo.rgb, before)


def test_grabcut_finds_held_out_characters_of_the_mini_world() -> None:
    from hbsdk.mini import world

    rng = np.random.default_rng(11)
    plain, anywhere = [], []
    for seed in world.HELD_OUT_SEEDS[:12]:
        identity = world.identity(seed)
        for overlaps, context in ((plain, world.PLAIN), (anywhere, world.context(rng))):
            picture, truth = world.render(identity, world.view(rng), context)
            found = find_mask(load_photo(picture), segmenter="grabcut")
            overlaps.append(overlap(found.values, truth))
    assert np.mean(plain) > 0.9
    assert np.mean(anywhere) > 0.8


def test_an_unknown_segmenter_is_refused() -> None:
    with pytest.raises(OptionError, match=r"got 'sam'.*Leave it out"):
        find_mask(photo_of(disc()), segmenter="sam")


def test_inspyrenet_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_module, "_has_inspyrenet", lambda: False)
    with pytest.raises(MissingDependencyError, match="pip install transparent-background"):
        find_mask(photo_of(disc()), segmenter="inspyrenet")
    assert find_mask(photo_of(disc())).source == "grabcut"


class FakeRemover:
    """Stands for transparent_background.Remover: same calls, its answer is set by the test."""

    saliency: np.ndarray | Exception

    def process(self, image: Image.Image, type: str) -> Image.Image:  # noqa: A002
        assert type == "map"
        if isinstance(self.saliency, Exception):
            raise self.saliency
        return Image.fromarray(np.dstack([self.saliency] * 3))


@pytest.fixture
def inspyrenet(monkeypatch: pytest.MonkeyPatch) -> type[FakeRemover]:
    module = types.ModuleType("transparent_background")
    module.Remover = FakeRemover
    monkeypatch.setitem(sys.modules, "transparent_background", module)
    monkeypatch.setattr(mask_module, "_has_inspyrenet", lambda: True)
    mask_module._load_inspyrenet.cache_clear()
    return FakeRemover


def test_auto_takes_inspyrenet_where_it_is_installed(inspyrenet: type[FakeRemover]) -> None:
    inspyrenet.saliency = disc(20, 20, 8) * np.uint8(200)
    found = find_mask(photo_of(disc()))
    assert found.source == "inspyrenet"
    np.testing.assert_array_equal(found.values, disc(20, 20, 8))


@pytest.mark.parametrize(
    ("saliency", "reason"),
    [(OSError("no route to host"), "OSError: no route to host"), (disc() * 0, "got none")],
    ids=["no download", "no subject"],
)
def test_auto_falls_back_with_a_warning_where_inspyrenet_fails(
    inspyrenet: type[FakeRemover], saliency: np.ndarray | Exception, reason: str
) -> None:
    inspyrenet.saliency = saliency
    with pytest.warns(UserWarning, match=reason):
        assert find_mask(photo_of(disc())).source == "grabcut"
    with pytest.raises(MaskError, match=f"{reason}.*segmenter='grabcut'"):
        find_mask(photo_of(disc()), segmenter="inspyrenet")


def test_latent_coverage_counts_cells_by_area() -> None:
    mask = np.zeros((64, 64), dtype=np.float32)
    mask[0:8, 0:20] = 1.0  # two and a half cells of 8 x 8
    check_latent_coverage(mask, factor=8)
    check_latent_coverage(mask, factor=8, minimum_cells=2.5)
    with pytest.raises(MaskError, match=r"at least 3 cells of 8 x 8.*got 2\.50 of 64.*crop"):
        check_latent_coverage(mask, factor=8, minimum_cells=3)
    with pytest.raises(OptionError, match="a divisor of the mask's size 64 x 64, got 7"):
        check_latent_coverage(mask, factor=7)


def test_a_good_cut_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_mask(photo_of(disc()), segmenter="grabcut")
