"""Sources of pairs: what depends on what, which pictures go together, where masks come from."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hbsdk.errors import OptionError, TrainingError
from hbsdk.image import Photo, square_crop
from hbsdk.mask import Mask, find_mask
from hbsdk.text import placeholders
from hbsdk.training import mask_cache, shard_index, variations
from hbsdk.training.folder import FolderSource
from hbsdk.training.pairs import Pair, PairSource
from hbsdk.training.picture_source import PictureSource
from hbsdk.training.shard_pattern import find_shards
from hbsdk.training.shards import ShardSource
from hbsdk.training.templates import TEMPLATES, choose_prompt
from hbsdk.training.variations import KEPT_SHARE, random_view, whole_view
from hbsdk.whole_file import write_whole

SIZE = 32


def pixels_of(number: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A picture with a bright square on noise; red tells which one it is."""
    pixels = np.random.default_rng(number).integers(0, 40, (height, width, 3)).astype(np.uint8)
    pixels[:, :, 0] = 10 * number
    pixels[height // 4 : -height // 4, width // 4 : -width // 4, 1:] = 200
    return pixels


def mask_of(number: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A mask in {0, 1} that no segmenter would find: a rectangle of its own for each number."""
    mask = np.zeros((height, width), np.uint8)
    mask[2 : 8 + number, 3:9] = 1
    return mask


def png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels))


def number_in(pixels: np.ndarray) -> int:
    """Which of `pixels_of` a view was made from."""
    return round(float(np.median(pixels[:, :, 0])) / 10)


def equal(one: Pair, other: Pair) -> bool:
    arrays = ("reference", "reference_mask", "target", "target_mask")
    same = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
    return same and one.prompt == other.prompt


def same(pairs: list[Pair], others: list[Pair]) -> bool:
    return all(equal(one, other) for one, other in zip(pairs, others, strict=True))


def folder_source(folder: Path, **options: Any) -> FolderSource:
    settings = {"image_size_px": SIZE, "segmenter": "grabcut", "progress": False}
    return FolderSource(folder, **(settings | options))


def shard_source(shards: Path | str, **options: Any) -> ShardSource:
    settings = {"image_size_px": SIZE, "segmenter": "grabcut", "progress": False}
    return ShardSource(shards, **(settings | options))


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))


@pytest.fixture
def subjects(tmp_path: Path) -> Path:
    """Three folders of three pictures with masks: 1 2 3, 4 5 6 and 7 8 9."""
    for number in range(1, 10):
        stem = tmp_path / "data" / "abc"[(number - 1) // 3] / str(number)
        save(stem.with_suffix(".png"), pixels_of(number))
        save(stem.with_suffix(".mask.png"), mask_of(number) * np.uint8(255))
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def _quick_segmenter(monkeypatch: pytest.MonkeyPatch) -> None:
    """GrabCut takes a quarter of a second; what stands in for it finds what is bright."""

    def bright(rgb: np.ndarray) -> np.ndarray:
        return (rgb[:, :, 2] > 100).astype(np.uint8)

    monkeypatch.setattr("hbsdk.mask._segment_with_grabcut", bright)


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> list[Photo]:
    """The photos that the mask cache had segmented."""
    photos: list[Photo] = []

    def counting(photo: Photo, **options: Any) -> Mask:
        photos.append(photo)
        return find_mask(photo, **options)

    monkeypatch.setattr(mask_cache, "find_mask", counting)
    return photos


# Pairs


def test_a_pair_has_the_shapes_and_ranges_that_were_agreed(subjects: Path) -> None:
    source: PairSource = folder_source(subjects, image_size_px=24)
    assert len(source) == 9
    for pair in source.pairs(0, 0, range(6)):
        assert pair.reference.shape == pair.target.shape == (24, 24, 3)
        assert pair.reference_mask.shape == pair.target_mask.shape == (24, 24)
        arrays = (pair.reference, pair.reference_mask, pair.target, pair.target_mask)
        assert {array.dtype for array in arrays} == {np.dtype(np.uint8)}
        assert set(np.unique(pair.reference_mask)) == set(np.unique(pair.target_mask)) == {0, 1}
        assert placeholders(pair.prompt) == ["s*"]
    assert source.skipped() == []


@pytest.mark.parametrize("group", ["none", "subject"])
def test_a_pair_depends_on_seed_step_and_index_alone(subjects: Path, group: str) -> None:
    source = folder_source(subjects, group=group)
    batch = source.pairs(3, 5, range(6))
    fresh = folder_source(subjects, group=group)
    assert equal(fresh.pairs(3, 5, [4])[0], batch[4])  # alone, and after nothing
    assert same(fresh.pairs(3, 5, [5, 0]), [batch[5], batch[0]])
    for other in (source.pairs(4, 5, range(6)), source.pairs(3, 6, range(6))):
        assert not any(equal(*both) for both in zip(other, batch, strict=True))
    assert not equal(batch[0], batch[1])


def test_what_was_skipped_before_changes_no_pair(subjects: Path) -> None:
    for name in ("a/1.png", "b/4.png", "b/5.png"):
        (subjects / name).write_bytes(b"damaged")
    used = folder_source(subjects, group="subject")
    used.pairs(0, 0, range(40))
    assert len(used.skipped()) == 3
    for index in range(12):
        fresh = folder_source(subjects, group="subject")
        assert equal(fresh.pairs(0, 1, [index])[0], used.pairs(0, 1, [index])[0])


def test_the_choice_of_pictures_is_not_that_of_other_draws_from_the_same_numbers(
    subjects: Path,
) -> None:
    pairs = folder_source(subjects).pairs(0, 0, range(60))
    chosen = [number_in(pair.reference) for pair in pairs]
    naive = [int(np.random.default_rng([0, 0, index]).integers(9)) + 1 for index in range(60)]
    assert set(chosen) == set(range(1, 10))
    assert sum(one == other for one, other in zip(chosen, naive, strict=True)) < 30


def test_views_of_a_subject_are_two_pictures_of_one_folder(subjects: Path) -> None:
    pairs = folder_source(subjects, group="subject").pairs(0, 0, range(40))
    numbers = [(number_in(pair.reference), number_in(pair.target)) for pair in pairs]
    assert all(one != other for one, other in numbers)
    assert all((one - 1) // 3 == (other - 1) // 3 for one, other in numbers)
    assert len(set(numbers)) > 12  # of 18: not always the same two
    # The target is shown whole; the words must explain all of it.
    for pair, (_, shown) in zip(pairs, numbers, strict=True):
        np.testing.assert_array_equal(pair.target, pixels_of(shown))
        np.testing.assert_array_equal(pair.target_mask, mask_of(shown))


def test_without_groups_a_pair_is_a_picture_and_a_variation_of_it(subjects: Path) -> None:
    pairs = folder_source(subjects).pairs(0, 0, range(40))
    assert all(number_in(pair.reference) == number_in(pair.target) for pair in pairs)
    assert sum(np.array_equal(pair.reference, pair.target) for pair in pairs) < 5
    for pair in pairs:
        np.testing.assert_array_equal(pair.reference, pixels_of(number_in(pair.reference)))


def test_pictures_at_the_top_or_alone_are_no_views_of_one_another(tmp_path: Path) -> None:
    save(tmp_path / "1.png", pixels_of(1))
    save(tmp_path / "2.png", pixels_of(2))
    save(tmp_path / "alone" / "3.png", pixels_of(3))
    with pytest.warns(UserWarning, match="no sub-folder holds two pictures"):
        source = folder_source(tmp_path, group="subject")
    pairs = source.pairs(0, 0, range(20))
    assert {number_in(pair.reference) for pair in pairs} == {1, 2, 3}
    assert all(number_in(pair.reference) == number_in(pair.target) for pair in pairs)


def test_a_view_that_cannot_be_read_is_replaced_by_a_variation(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", pixels_of(1))
    (tmp_path / "a" / "2.png").write_bytes(b"damaged")
    source = folder_source(tmp_path, group="subject")
    pairs = source.pairs(0, 0, range(10))
    assert {number_in(pair.reference) for pair in pairs} == {1}
    assert {number_in(pair.target) for pair in pairs} == {1}
    assert [name for name, _ in source.skipped()] == ["a/2.png"]


def test_a_source_can_be_sent_to_another_process(subjects: Path) -> None:
    source = folder_source(subjects, group="subject")
    sent = pickle.loads(pickle.dumps(source))
    assert same(sent.pairs(0, 0, range(4)), source.pairs(0, 0, range(4)))


def test_an_option_without_meaning_is_refused(subjects: Path) -> None:
    with pytest.raises(OptionError, match="expected 'none' or 'subject', got 'auto'"):
        folder_source(subjects, group="auto")
    with pytest.raises(OptionError, match="at least 16, got 8"):
        folder_source(subjects, image_size_px=8)
    with pytest.raises(OptionError, match="expected one of 'auto', 'grabcut', 'inspyrenet'"):
        folder_source(subjects / "a", segmenter="sam")


def test_no_torch_is_imported() -> None:
    code = "import sys, hbsdk.training.folder, hbsdk.training.shards; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout.strip(), result.returncode) == ("False", 0), result.stderr


# Fingerprints


def test_a_fingerprint_is_of_names_and_sizes_not_of_the_place(subjects: Path) -> None:
    first = folder_source(subjects).fingerprint
    moved = subjects.parent / "moved"
    shutil.copytree(subjects, moved)
    assert folder_source(moved).fingerprint == first
    for ending in (".png", ".mask.png"):
        (moved / "a" / f"1{ending}").rename(moved / "a" / f"one{ending}")
    renamed = folder_source(moved).fingerprint
    (moved / "a" / "2.png").write_bytes((moved / "a" / "2.png").read_bytes() + b"more")
    grown = folder_source(moved).fingerprint
    (moved / "a" / "3.mask.png").unlink()
    unmasked = folder_source(moved).fingerprint
    assert len({first, renamed, grown, unmasked}) == 4


# Masks


@pytest.mark.parametrize(
    ("picture", "mask"),
    [
        ("x.png", "x.mask.png"),
        ("x.v2.PNG", "x.v2_mask.png"),
        ("cat/x.png", "cat/x_mask.png"),
        ("cat/x.png", "cat/masks/x.png"),
        ("cat/x.png", "masks/cat/x.png"),
        ("cat/x.png", "masks/cat/x.bmp"),
        ("cat/x.png", "cat/masks/x_mask.png"),
        ("images/x.png", "masks/x.png"),
        ("set/images/cat/x.png", "set/masks/cat/x.png"),
    ],
)
def test_a_mask_beside_its_picture_is_used(
    tmp_path: Path, picture: str, mask: str, segmented: list[Photo]
) -> None:
    save(tmp_path / picture, pixels_of(1))
    save(tmp_path / "other" / "y.png", pixels_of(2))  # of the same data, without a mask
    wanted = mask_of(3)
    (tmp_path / mask).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(wanted * np.uint8(255)).save(tmp_path / mask)
    source = folder_source(tmp_path)
    assert len(source) == 2  # the mask is no picture
    pairs = [pair for pair in source.pairs(0, 0, range(8)) if number_in(pair.reference) == 1]
    assert pairs
    for pair in pairs:
        np.testing.assert_array_equal(pair.reference_mask, wanted)
    assert segmented
    assert all(photo.rgb[0, 0, 0] == 20 for photo in segmented)  # the other one only


def test_a_mask_of_another_folder_is_not_used(tmp_path: Path, segmented: list[Photo]) -> None:
    save(tmp_path / "cat" / "x.png", pixels_of(1))
    save(tmp_path / "dog" / "x.png", pixels_of(2))
    save(tmp_path / "masks" / "cat" / "x.png", mask_of(3) * np.uint8(255))
    folder_source(tmp_path).pairs(0, 0, range(8))
    assert {int(photo.rgb[0, 0, 0]) for photo in segmented} == {20}


def test_masks_without_pictures_are_told_of(tmp_path: Path) -> None:
    save(tmp_path / "x.png", pixels_of(1))
    save(tmp_path / "y.png", pixels_of(2))
    save(tmp_path / "gone_mask.png", mask_of(1))
    with pytest.warns(UserWarning, match=r"1 masks have no picture.*gone_mask\.png"):
        assert len(folder_source(tmp_path)) == 2


def test_a_picture_is_segmented_once(tmp_path: Path, segmented: list[Photo]) -> None:
    for number in (1, 2, 3):
        save(tmp_path / "data" / f"{number}.png", pixels_of(number))
    cache = tmp_path / "cache"
    first = folder_source(tmp_path / "data", cache=cache).pairs(0, 0, range(20))
    assert len(segmented) == 3
    kept = sorted(cache.rglob("*.*"))
    assert len(kept) == 3
    assert all(path.parent.name == path.name[:2] for path in kept)
    assert Image.open(kept[0]).mode == "1"
    shutil.move(tmp_path / "data", tmp_path / "moved")
    again = folder_source(tmp_path / "moved", cache=cache).pairs(0, 0, range(20))
    assert len(segmented) == 3  # the cache is of contents, wherever they are
    assert same(first, again)
    without = folder_source(tmp_path / "moved").pairs(0, 0, range(20))
    assert len(segmented) == 23  # without a cache, whenever a picture comes up
    assert same(first, without)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"no picture",
        png(mask_of(1)),
        png(mask_of(1, 16, 16).astype(bool)),
        png(np.zeros((SIZE, SIZE), bool)),
    ],
    ids=["empty", "no picture", "not of one bit", "of another size", "all black"],
)
def test_a_damaged_mask_in_the_cache_is_made_anew(
    tmp_path: Path, segmented: list[Photo], damage: bytes
) -> None:
    save(tmp_path / "data" / "1.png", pixels_of(1))
    save(tmp_path / "data" / "2.png", pixels_of(2))
    cache = tmp_path / "cache"
    good = folder_source(tmp_path / "data", cache=cache).pairs(0, 0, range(6))
    kept = sorted(cache.rglob("*.png"))
    content = kept[0].read_bytes()
    kept[0].write_bytes(damage)
    again = folder_source(tmp_path / "data", cache=cache).pairs(0, 0, range(6))
    assert len(segmented) == 3
    assert kept[0].read_bytes() == content
    assert same(good, again)


def test_pictures_without_masks_get_those_that_a_session_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # GrabCut itself
    pixels = {number: pixels_of(number)[:, :, [0, 1, 0]] for number in (1, 2)}
    for number in (1, 2):
        save(tmp_path / f"{number}.png", pixels[number])
    pair = folder_source(tmp_path).pairs(0, 0, [0])[0]
    shown = pixels[number_in(pair.reference)]
    wanted = find_mask(Photo(rgb=shown, alpha=None), segmenter="grabcut")
    assert wanted.source == "grabcut"
    np.testing.assert_array_equal(pair.reference_mask, wanted.values)
    assert not (shown[:, :, 2] > 100).any()  # where the stand-in would find nothing


def test_threads_that_share_a_cache_get_the_same_pairs(tmp_path: Path) -> None:
    for number in range(1, 9):
        save(tmp_path / "data" / f"{number}.png", pixels_of(number))
    alone = folder_source(tmp_path / "data").pairs(0, 0, range(40))
    shared = folder_source(tmp_path / "data", cache=tmp_path / "cache")
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda index: shared.pairs(0, 0, [index])[0], range(40)))
    assert same(alone, together)
    assert len(list((tmp_path / "cache").rglob("*.*"))) == 8


def test_an_alpha_channel_comes_before_the_segmenter_and_needs_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hbsdk.mask._segment_with_grabcut", lambda rgb: pytest.fail("segmented"))
    for number in (1, 2):
        cut_out = np.dstack([pixels_of(number), mask_of(number) * np.uint8(255)])
        save(tmp_path / "data" / f"{number}.png", cut_out)
    source = folder_source(tmp_path / "data", cache=tmp_path / "cache")
    for pair in source.pairs(0, 0, range(6)):
        np.testing.assert_array_equal(pair.reference_mask, mask_of(number_in(pair.reference)))
    assert list((tmp_path / "cache").rglob("*.png")) == []


def test_two_segmenters_keep_masks_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, content = Photo(rgb=pixels_of(1), alpha=None), png(pixels_of(1))
    monkeypatch.setattr("hbsdk.mask._segment_with_inspyrenet", lambda rgb: mask_of(3))
    one = mask_cache.MaskCache(tmp_path, "grabcut").find(photo, content)
    other = mask_cache.MaskCache(tmp_path, "inspyrenet").find(photo, content)
    np.testing.assert_array_equal(other, mask_of(3))
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(mask_cache.MaskCache(tmp_path, "grabcut").find(photo, b""), one)
    assert sorted(path.suffixes[0] for path in tmp_path.rglob("*.png")) == [
        ".grabcut",
        ".grabcut",
        ".inspyrenet",
    ]


# Shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards: 1 and 2, 3 and 4; 2 and 3 show one subject."""
    texts = {
        1: {"txt": b"a drawing of S*  on paper\n", "cls": b"7"},
        2: {"json": json.dumps({"subject": "fox", "caption": "S* asleep"}).encode()},
        3: {"json": json.dumps({"subject": "fox", "caption": 5}).encode()},
        4: {"json": b'{"caption": "S* in the sun"}', "txt": b"S* in the rain"},
    }
    for shard, numbers in enumerate([(1, 2), (3, 4)]):
        members = {}
        for number in numbers:
            members[f"{number:04d}.png"] = png(pixels_of(number))
            members[f"{number:04d}.mask.png"] = png(mask_of(number) * np.uint8(255))
            members |= {f"{number:04d}.{kind}": text for kind, text in texts[number].items()}
        write_tar(tmp_path / "shards" / f"train-{shard:03d}.tar", members)
    return tmp_path / "shards"


def test_samples_of_shards_are_read_whole(shards: Path) -> None:
    source: PairSource = shard_source(shards)
    assert len(source) == 4
    seen = set()
    for pair in source.pairs(0, 0, range(40)):
        number = number_in(pair.reference)
        seen.add((number, number_in(pair.target)))
        if number in (1, 4):
            np.testing.assert_array_equal(pair.reference, pixels_of(number))
            np.testing.assert_array_equal(pair.reference_mask, mask_of(number))
    # Only 2 and 3, which are in different shards, are views of one subject.
    assert seen == {(1, 1), (2, 3), (3, 2), (4, 4)}
    assert source.skipped() == []


def test_the_prompt_is_the_caption_of_the_target(shards: Path) -> None:
    prompts: dict[int, set[str]] = {}
    for pair in shard_source(shards).pairs(0, 0, range(60)):
        prompts.setdefault(number_in(pair.target), set()).add(pair.prompt)
    assert prompts[1] == {"a drawing of S* on paper"}
    assert prompts[2] == {"S* asleep"}
    assert prompts[4] == {"S* in the rain"}  # a text comes before the JSON
    assert len(prompts[3]) > 3
    assert prompts[3] <= {template.format("S*") for template in TEMPLATES}


def test_shards_are_indexed_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    build = shard_index._build

    def counting(path: Path) -> Any:
        opened.append(path)
        return build(path)

    monkeypatch.setattr(shard_index, "_build", counting)
    cache = shards.parent / "cache"
    first = shard_source(shards, cache=cache)
    assert len(opened) == 2
    again = shard_source(shards, cache=cache)
    assert len(opened) == 2
    assert again.fingerprint == first.fingerprint
    assert same(first.pairs(0, 0, range(9)), again.pairs(0, 0, range(9)))
    changed = shards / "train-001.tar"
    os.utime(changed, ns=(0, 0))
    shard_source(shards, cache=cache)
    assert opened[2:] == [changed]
    for kept in (cache / "shards").rglob("*.json"):
        index = json.loads(kept.read_text())
        index["extents"][0][1] = 10**6  # beyond the shard's end
        kept.write_text(json.dumps(index))
    healed = shard_source(shards, cache=cache)
    assert len(opened) == 5
    assert healed.fingerprint == first.fingerprint


def test_a_folder_packed_into_shards_keeps_its_masks(
    tmp_path: Path, segmented: list[Photo]
) -> None:
    save(tmp_path / "data" / "1.png", pixels_of(1))
    save(tmp_path / "data" / "2.png", pixels_of(2))
    cache = tmp_path / "cache"
    folder_source(tmp_path / "data", cache=cache).pairs(0, 0, range(8))
    names = ("1.png", "2.png")
    write_tar(tmp_path / "x.tar", {n: (tmp_path / "data" / n).read_bytes() for n in names})
    shard_source(tmp_path / "x.tar", cache=cache).pairs(0, 0, range(8))
    assert len(segmented) == 2


def test_the_fingerprint_of_shards_is_of_their_contents_not_of_their_place(shards: Path) -> None:
    first = shard_source(shards).fingerprint
    moved = shards.parent / "moved"
    shutil.copytree(shards, moved)
    assert shard_source(moved).fingerprint == first
    assert shard_source(moved / "train-*.tar").fingerprint == first
    assert shard_source(moved / "train-000.tar").fingerprint != first
    write_tar(moved / "train-001.tar", {"3.png": png(pixels_of(3))})
    assert shard_source(moved).fingerprint != first


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["a-0.tar", "a-1.tar", "b-08.tar", "b-09.tar", "b-10.tar"]),
        ("a-1.tar", ["a-1.tar"]),
        ("b-*.tar", ["b-08.tar", "b-09.tar", "b-10.tar"]),
        ("b-{08..10}.tar", ["b-08.tar", "b-09.tar", "b-10.tar"]),
        ("b-{10..11}.tar", ["b-10.tar", "b-11.tar"]),  # whoever opens it tells that it is missing
        ("{b,a}-?.tar", ["a-0.tar", "a-1.tar"]),
        ("{b-10,a-{0..1}}.tar", None),
        ("{a-1,b-{08..09}}.tar", None),
        ("{a,b}-{1,08}.tar", ["a-1.tar", "a-08.tar", "b-1.tar", "b-08.tar"]),
    ],
)
def test_patterns_of_shards(tmp_path: Path, pattern: str, expected: list[str] | None) -> None:
    for name in ("a-0.tar", "a-1.tar", "b-08.tar", "b-09.tar", "b-10.tar", "b-10.txt"):
        (tmp_path / name).touch()
    if expected is None:
        with pytest.raises(TrainingError, match="braces inside braces"):
            find_shards(tmp_path / pattern)
        return
    assert [path.name for path in find_shards(tmp_path / pattern)] == expected


# Prompts


def test_templates_are_the_public_ones_and_name_the_subject_once() -> None:
    assert len(set(TEMPLATES)) == len(TEMPLATES) == 27
    assert all(placeholders(template.format("S*")) == ["s*"] for template in TEMPLATES)
    chosen = {choose_prompt(None, np.random.default_rng(seed)) for seed in range(300)}
    assert len(chosen) == 27


@pytest.mark.parametrize(
    ("caption", "used"),
    [
        ("S* on the moon", True),
        ("a portrait of s* by night", True),
        ("a photo of a fox", False),
        ("S* and S*", False),
        ("S* with <friend>", False),
        ("", False),
        ("very " * 12 + "old S*", True),
        ("very " * 20 + "old S*", False),  # CLIP might stop reading before the subject
        ("非" * 21 + " S*", True),
        ("非" * 22 + " S*", False),
        ("S* " + "far away " * 100, True),
    ],
)
def test_captions_that_training_can_use(caption: str, used: bool) -> None:
    prompt = choose_prompt(caption, np.random.default_rng(0))
    assert (prompt == " ".join(caption.split())) is used
    assert used or prompt in {template.format("S*") for template in TEMPLATES}


# Variations


def test_the_whole_view_is_what_pillow_makes() -> None:
    photo = Photo(rgb=pixels_of(1, 90, 64), alpha=None)
    mask = np.zeros((90, 64), np.uint8)
    mask[40:70, 20:50] = 1  # its centre is at row 55: the square begins at 55 - 32
    pixels, values = whole_view(photo, mask, size=16)
    square = Image.fromarray(photo.rgb[23:87]).resize((16, 16), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(pixels, np.asarray(square))
    coverage = mask[23:87].reshape(16, 4, 16, 4).mean(axis=(1, 3))
    assert {0.0, 0.5, 0.75, 1.0} <= set(np.unique(coverage))
    np.testing.assert_array_equal(values, coverage >= 0.5)
    whole = Image.fromarray(photo.rgb).resize((16, 16), Image.Resampling.LANCZOS)
    assert not np.array_equal(pixels, np.asarray(whole))


def test_a_subject_finer_than_a_pixel_is_not_lost() -> None:
    photo = Photo(rgb=pixels_of(1, 128, 128), alpha=None)
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 60] = 1
    _, values = whole_view(photo, mask, size=16)
    np.testing.assert_array_equal(np.flatnonzero(values.any(axis=0)), [7])


def kept_share(mask: np.ndarray, seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, int]:
    """The share of a mask's area in a random view, and the view's side, before it is resized."""
    squares: list[np.ndarray] = []

    def recording(photo: Photo, mask: np.ndarray, *, size: int) -> tuple[np.ndarray, np.ndarray]:
        squares.append(square_crop(photo, mask)[1])
        return whole_view(photo, mask, size=size)

    with monkeypatch.context() as patch:
        patch.setattr(variations, "whole_view", recording)
        photo = Photo(rgb=pixels_of(1, *mask.shape), alpha=None)
        rng = np.random.default_rng(seed)
        random_view(photo, mask, rng, size=16, least_side=0.6, flip=True)
    return float(squares[0].sum() / mask.sum()), len(squares[0])


@pytest.mark.parametrize("corner", [(0, 0), (20, 40), (35, 65)])
def test_a_random_view_keeps_the_subject(
    corner: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.zeros((60, 100), np.uint8)
    mask[corner[0] : corner[0] + 25, corner[1] : corner[1] + 35] = 1
    views = [kept_share(mask, seed, monkeypatch) for seed in range(60)]
    assert min(share for share, _ in views) >= KEPT_SHARE
    assert min(share for share, _ in views) < 1.0
    assert len({side for _, side in views}) > 8
    # What is not asked to keep it often loses it.
    monkeypatch.setattr(variations, "KEPT_SHARE", 0.01)
    careless = [kept_share(mask, seed, monkeypatch)[0] for seed in range(60)]
    assert sum(share < 0.7 for share in careless) > 10


def test_a_subject_longer_than_any_square_is_kept_as_far_as_one_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = np.zeros((40, 200), np.uint8)
    mask[15:25, 10:190] = 1
    shares = [kept_share(mask, seed, monkeypatch)[0] for seed in range(20)]
    assert shares == [40 / 180] * 20


def test_a_mirrored_view_has_a_mirrored_mask() -> None:
    photo, mask = Photo(rgb=pixels_of(1), alpha=None), mask_of(4)

    def views(flip: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            random_view(
                photo, mask, np.random.default_rng(seed), size=SIZE, least_side=1.0, flip=flip
            )
            for seed in range(40)
        ]

    mirrored = [pixels for pixels, _ in views(True) if not np.array_equal(pixels, photo.rgb)]
    assert 8 < len(mirrored) < 32
    for pixels, values in views(True):
        is_mirrored = not np.array_equal(pixels, photo.rgb)
        np.testing.assert_array_equal(pixels, photo.rgb[:, ::-1] if is_mirrored else photo.rgb)
        np.testing.assert_array_equal(values, mask[:, ::-1] if is_mirrored else mask)
    assert not np.array_equal(mask, mask[:, ::-1])
    for pixels, values in views(False):
        np.testing.assert_array_equal(pixels, photo.rgb)
        np.testing.assert_array_equal(values, mask)


def test_no_mirrored_pair_comes_from_a_source_that_must_not_flip(subjects: Path) -> None:
    def mirrored(flip: bool) -> int:  # the pictures' masks are at the left
        source: PictureSource = folder_source(subjects, flip=flip)
        masks = [pair.target_mask for pair in source.pairs(0, 0, range(30))]
        return sum(np.argwhere(mask)[:, 1].mean() > (SIZE - 1) / 2 for mask in masks)

    assert mirrored(True) > 5
    assert mirrored(False) == 0


@pytest.mark.parametrize("mask", [mask_of(1), np.ones((50, 90), np.uint8)])
def test_how_much_is_drawn_does_not_depend_on_the_picture(mask: np.ndarray) -> None:
    rng, expected = np.random.default_rng(7), np.random.default_rng(7)
    photo = Photo(rgb=pixels_of(1, *mask.shape), alpha=None)
    random_view(photo, mask, rng, size=16, least_side=0.5, flip=True)
    expected.random(3 * 32 + 1)
    assert rng.random() == expected.random()


# Files of caches


def test_a_file_of_a_cache_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sub" / "x"
    write_whole(path, b"first")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # where some systems first say that there is no room
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["x"]
    monkeypatch.undo()
    write_whole(path, b"second")  # the control
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in path.parent.iterdir()] == ["x"]
