"""Bad pictures, masks, folders and shards: skipped and listed, or refused in plain words."""

import gzip
import json
import os
import tarfile
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hbsdk.errors import MissingDependencyError, TrainingError
from hbsdk.training import mask_cache, picture_source
from hbsdk.training.folder import FolderSource
from hbsdk.training.shard_pattern import find_shards
from hbsdk.training.shards import ShardSource

SIZE = 32
SETTINGS: dict[str, Any] = {"image_size_px": SIZE, "segmenter": "grabcut", "progress": False}


def pixels_of(number: int, size: int = SIZE) -> np.ndarray:
    """A bright square on noise; red tells which picture it is."""
    pixels = np.random.default_rng(number).integers(0, 40, (size, size, 3)).astype(np.uint8)
    pixels[:, :, 0] = 10 * number
    pixels[size // 4 : -size // 4, size // 4 : -size // 4, 1:] = 200
    return pixels


def encode(pixels: np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def animation() -> bytes:
    frames = [Image.fromarray(pixels_of(number)) for number in (1, 2)]
    return encode(pixels_of(3), "WEBP", save_all=True, append_images=frames)


def mask_png(height: int = SIZE, width: int = SIZE, side: int = 9) -> bytes:
    mask = np.zeros((height, width), np.uint8)
    mask[2 : 2 + side, 2 : 2 + side] = 255
    return encode(mask)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return buffer.getvalue()


def numbers_in(source: FolderSource | ShardSource, count: int = 40) -> set[int]:
    """Which of `pixels_of` the pairs of a step come from."""
    pairs = source.pairs(0, 0, range(count))
    views = [view for pair in pairs for view in (pair.reference, pair.target)]
    return {round(float(np.median(view[:, :, 0])) / 10) for view in views}


GOOD = {f"{number}.png": encode(pixels_of(number)) for number in (1, 2, 3)}
SHARD = tar_of(GOOD)

BAD_FILES = {
    "empty.jpg": (b"", "expected a picture in one of the formats"),
    "text.jpg": (b"this is a text", "expected a picture in one of the formats"),
    "cut.png": (encode(pixels_of(9))[:1500], "expected a complete picture, got"),
    "cut.jpg": (encode(pixels_of(9), "JPEG")[:500], "got"),
    "animated.webp": (animation(), "expected one picture, got 3 frames"),
    "small.bmp": (encode(pixels_of(9, 12), "BMP"), "at least 16 x 16 pixels, got height 12"),
}


@pytest.fixture(autouse=True)
def _quick_segmenter(monkeypatch: pytest.MonkeyPatch) -> None:
    """GrabCut takes a quarter of a second; what stands in for it finds what is bright."""

    def bright(rgb: np.ndarray) -> np.ndarray:
        return (rgb[:, :, 2] > 100).astype(np.uint8)

    monkeypatch.setattr("hbsdk.mask._segment_with_grabcut", bright)


# Pictures and masks in a folder


def test_bad_pictures_among_good_ones_are_skipped_and_listed(tmp_path: Path) -> None:
    files = GOOD | {name: content for name, (content, _) in BAD_FILES.items()}
    source = FolderSource(write(tmp_path, files), **SETTINGS)
    assert len(source) == 9
    assert source.skipped() == []  # none was opened yet
    assert numbers_in(source, 100) == {1, 2, 3}
    reasons = dict(source.skipped())
    assert set(reasons) == set(BAD_FILES)
    for name, (_, reason) in BAD_FILES.items():
        assert reason in reasons[name]
    numbers_in(source)
    assert len(source.skipped()) == 6  # each is counted once


def test_bad_masks_are_listed_with_what_was_expected_and_what_came(tmp_path: Path) -> None:
    big = {f"{name}.png": encode(pixels_of(9, 128)) for name in ("size", "black", "cut", "speck")}
    masks = {
        "size.mask.png": mask_png(128, 96),
        "black_mask.png": mask_png(128, 128, side=0),
        "masks/cut.png": mask_png(128, 128)[:60],
        "speck.mask.png": mask_png(128, 128, side=4),
    }
    source = FolderSource(write(tmp_path, GOOD | big | masks), **SETTINGS)
    assert numbers_in(source, 100) == {1, 2, 3}
    reasons = dict(source.skipped())
    assert set(reasons) == set(big)
    assert (
        "expected the photo's size, height 128 x width 128, got height 128 x width 96"
        in (reasons["size.png"])
    )
    assert "got an empty mask" in reasons["black.png"]
    assert "the mask" in reasons["cut.png"]
    assert "expected a subject of at least 0.1% of the picture, got 0.098%" in reasons["speck.png"]


def test_one_good_picture_stands_in_for_sixty_bad_ones(tmp_path: Path) -> None:
    bad = {f"bad{number}.png": b"damaged" for number in range(60)}
    source = FolderSource(write(tmp_path, {"good.png": GOOD["2.png"]} | bad), **SETTINGS)
    assert numbers_in(source) == {2}
    assert len(source.skipped()) == 60


def test_a_folder_of_bad_pictures_only_ends_in_an_error(tmp_path: Path) -> None:
    source = FolderSource(write(tmp_path, {f"{n}.png": b"damaged" for n in range(5)}), **SETTINGS)
    with pytest.raises(
        TrainingError, match=r"160 choices in a row .* \d\.png \(.*Look at"
    ) as caught:
        source.pairs(0, 0, [0])
    assert caught.value.expected == "pictures that can be read"
    assert len(source.skipped()) == 5


def test_a_million_bad_pictures_are_not_all_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FolderSource(write(tmp_path, {f"{n}.png": b"damaged" for n in range(99)}), **SETTINGS)
    monkeypatch.setattr(picture_source, "_MOST_ATTEMPTS", 7)
    with pytest.raises(TrainingError, match="7 choices in a row"):
        source.pairs(0, 0, [0])
    assert len(source.skipped()) <= 7


def test_a_picture_deleted_after_it_was_listed(tmp_path: Path) -> None:
    source = FolderSource(write(tmp_path, GOOD), **SETTINGS)
    (tmp_path / "2.png").unlink()
    assert numbers_in(source) == {1, 3}
    assert [name for name, _ in source.skipped()] == ["2.png"]
    assert "No such file" in source.skipped()[0][1]


def test_one_picture_only_works_and_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path, {"1.png": GOOD["1.png"]})
    with pytest.warns(UserWarning, match=r"one picture only, 1\.png: every pair is it"):
        source = FolderSource(tmp_path, **SETTINGS)
    assert numbers_in(source) == {1}
    write(tmp_path, GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FolderSource(tmp_path, **SETTINGS)


def test_a_segmenter_that_is_not_installed_is_no_fault_of_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hbsdk.mask._has_inspyrenet", lambda: False)
    source = FolderSource(write(tmp_path, GOOD), **(SETTINGS | {"segmenter": "inspyrenet"}))
    with pytest.raises(MissingDependencyError, match="transparent-background"):
        source.pairs(0, 0, [0])
    assert source.skipped() == []


# Folders


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"notes.txt": b"", "clip.mp4": b""},
        {"x.mask.png": mask_png(), "masks/1.png": mask_png()},
        {".hidden.png": GOOD["1.png"], ".cache/1.png": GOOD["1.png"]},
    ],
    ids=["empty", "other files", "masks only", "hidden files"],
)
def test_a_folder_without_pictures(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(TrainingError, match=r"expected pictures \(\.jpg .*got none\. Check"):
        FolderSource(write(tmp_path, files), **SETTINGS)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(TrainingError, match=r"expected a folder of pictures, got a file\. Check"):
        FolderSource(tmp_path / "1.png", **SETTINGS)
    with pytest.raises(TrainingError, match=r"got no such folder\. Check"):
        FolderSource(tmp_path / "missing", **SETTINGS)


def test_links_pipes_and_odd_names_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "1.mask.png")  # opening it would wait for ever
    (tmp_path / "folder.png").mkdir()
    odd = os.fsdecode(b"\xff\xfe\n.png")
    (tmp_path / odd).write_bytes(encode(pixels_of(4)))
    source = FolderSource(tmp_path, **SETTINGS)
    assert len(source) == 4
    assert {name for name, _ in source.skipped()} == {"dangling.png", "pipe.png", "1.mask.png"}
    assert numbers_in(source) == {1, 2, 3, 4}
    assert len(source.fingerprint) == 64


def test_a_file_too_large_to_be_a_picture_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, GOOD)
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(2**30)
    source = FolderSource(tmp_path, **SETTINGS)
    assert len(source) == 3
    assert source.skipped() == [
        ("huge.png", "expected at most 536,870,912 bytes, got 1,073,741,824")
    ]


# Caches


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    for build in (FolderSource, ShardSource):
        with pytest.raises(TrainingError, match=r"cache .*expected a folder"):
            build(tmp_path, cache=tmp_path / "1.png" / "cache", **SETTINGS)


def test_a_full_disk_slows_training_and_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    source = FolderSource(write(tmp_path / "data", GOOD), cache=tmp_path / "cache", **SETTINGS)
    whole = source.pairs(0, 0, [0])[0]
    other = FolderSource(tmp_path / "data", cache=tmp_path / "other", **SETTINGS)
    monkeypatch.setattr(mask_cache, "write_whole", full)
    with pytest.warns(UserWarning, match="masks cannot be kept in .*No space left"):
        pair = other.pairs(0, 0, [0])[0]
    np.testing.assert_array_equal(pair.reference_mask, whole.reference_mask)
    assert list((tmp_path / "other").rglob("*.*")) == []


# Shards


def test_bad_pictures_in_a_shard_are_skipped_and_listed(tmp_path: Path) -> None:
    members = {name.replace(".", "x."): content for name, (content, _) in BAD_FILES.items()}
    members |= {"1.mask.png": mask_png(16, 16), "9.txt": b"no picture"}
    source = ShardSource(write(tmp_path, {"a.tar": tar_of(GOOD | members)}), **SETTINGS)
    assert numbers_in(source, 100) == {2, 3}
    reasons = dict(source.skipped())
    listed = {name for name in members if name not in ("1.mask.png", "9.txt")} | {"1.png", "9"}
    # Two of the files have one key: the picture of that sample is its JPEG.
    assert set(reasons) == {f"a.tar/{name}" for name in listed} - {"a.tar/cutx.png"}
    assert "height 32 x width 32, got height 16 x width 16" in reasons["a.tar/1.png"]
    assert "expected a picture (.jpg" in reasons["a.tar/9"]


@pytest.mark.parametrize("length", range(200, len(SHARD) - 9000, 512))
def test_a_truncated_shard_is_used_as_far_as_it_goes(tmp_path: Path, length: int) -> None:
    """Each length, from a part of the first header to a part of the closing zeros."""
    write(tmp_path, {"cut.tar": SHARD[:length], "whole.tar": tar_of({"4.png": GOOD["1.png"]})})
    whole = [
        number
        for number in (1, 2, 3)
        if SHARD.index(GOOD[f"{number}.png"]) + len(GOOD[f"{number}.png"]) <= length
    ]
    source = ShardSource(tmp_path, **SETTINGS) if whole else None
    if source is None:
        with pytest.warns(UserWarning, match="one picture only"):
            source = ShardSource(tmp_path, **SETTINGS)
    assert len(source) == len(whole) + 1
    assert numbers_in(source, 60) == {1, *whole}
    ended = SHARD[length - 512 : length] == bytes(512) and len(whole) == 3
    assert ("cut.tar" in dict(source.skipped())) is not ended


def test_a_shard_damaged_in_its_middle_says_so(tmp_path: Path) -> None:
    second = SHARD.index(b"2.png")
    damaged = bytearray(SHARD)
    damaged[second + 148 : second + 156] = b"damaged!"  # the header's checksum
    source = ShardSource(write(tmp_path, {"a.tar": bytes(damaged), "b.tar": SHARD}), **SETTINGS)
    assert len(source) == 4
    ((name, reason),) = source.skipped()
    assert name == "a.tar"
    assert f"expected the end mark of a tar file after {second:,} bytes" in reason


def test_a_member_of_a_made_up_size_does_not_lead_in_circles(tmp_path: Path) -> None:
    for size in (b"\xff" * 12, b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7):  # -1, and 2^63 - 1
        header = bytearray(SHARD[:512])
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        shards = write(tmp_path, {"a.tar": bytes(header) + SHARD[512:], "b.tar": SHARD})
        source = ShardSource(shards, **SETTINGS)
        assert len(source) == 3
        assert "a.tar" in {name.partition("/")[0] for name, _ in source.skipped()}


@pytest.mark.parametrize(
    "content",
    [b"", b"no tar", gzip.compress(SHARD), bytes(10240), tar_of({"readme.txt": b"hello"})],
    ids=["empty", "text", "gzip", "no member", "no picture"],
)
def test_shards_without_pictures(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, {"a.tar": content})
    with pytest.raises(TrainingError, match=r"expected samples with a picture.*got none"):
        ShardSource(tmp_path, **SETTINGS)
    write(tmp_path, {"b.tar": SHARD})
    assert numbers_in(ShardSource(tmp_path, **SETTINGS)) == {1, 2, 3}


def test_a_compressed_shard_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    write(tmp_path, {"a.tar": gzip.compress(SHARD)})
    with pytest.raises(TrainingError, match=r"a whole tar file that is not compressed.*gunzip"):
        ShardSource(tmp_path, **SETTINGS)


def test_missing_shards_of_a_pattern_are_listed(tmp_path: Path) -> None:
    write(tmp_path, {"a-0.tar": SHARD})
    source = ShardSource(tmp_path / "a-{0..2}.tar", **SETTINGS)
    assert numbers_in(source) == {1, 2, 3}
    listed = [("a-1.tar", "No such file or directory"), ("a-2.tar", "No such file or directory")]
    assert source.skipped() == listed


@pytest.mark.parametrize("pattern", ["", "a.tar", "*.tar", "{a,b}-*.tar"])
def test_patterns_that_find_nothing(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(TrainingError, match=r"expected tar files: .*got none"):
        find_shards(tmp_path / pattern)


@pytest.mark.parametrize(
    ("pattern", "got"), [("{0..999999999999}", "more"), ("{9..0}", "-8"), ("{0..9999}" * 2, "100")]
)
def test_braces_that_name_too_many_shards_or_none(pattern: str, got: str) -> None:
    with pytest.raises(TrainingError, match=f"1 to 1,000,000 names from its braces, got {got}"):
        find_shards(pattern)


def test_bad_texts_in_a_shard_cost_no_picture(tmp_path: Path) -> None:
    texts = {
        "1.json": b"{not json",
        "2.json": b"[" * 100_000,
        "3.json": json.dumps({"caption": "S*", "x": "y" * 2**20}).encode(),
        "4.json": b'{"subject": ["a"], "caption": null}',
        "5.json": b'["a list"]',
        "6.txt": b"\xff\xfe S*",
    }
    pictures = {f"{number}.png": encode(pixels_of(number)) for number in range(1, 7)}
    source = ShardSource(write(tmp_path, {"a.tar": tar_of(pictures | texts)}), **SETTINGS)
    assert numbers_in(source, 60) == {1, 2, 3, 4, 5, 6}
    assert [name for name, _ in source.skipped()] == [f"a.tar/{n}.json" for n in (1, 2, 3, 5)]
    assert all("its picture is used without it" in reason for _, reason in source.skipped())
    assert all("S*" in pair.prompt for pair in source.pairs(0, 0, range(20)))


def test_a_shard_replaced_by_a_shorter_one_while_in_use(tmp_path: Path) -> None:
    source = ShardSource(write(tmp_path, {"a.tar": SHARD}), **SETTINGS)
    first_end = SHARD.index(b"2.png")
    write(tmp_path, {"a.tar": SHARD[:first_end]})
    assert numbers_in(source) == {1}
    assert all("the shard changed" in reason for _, reason in source.skipped())


def test_members_that_are_no_files_are_passed_over(tmp_path: Path) -> None:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"../{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name in ("./._1.png", "__MACOSX/._2.png", "/abs/1.png"):
            content = GOOD["1.png"]
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    write(tmp_path, {"a.tar": buffer.getvalue(), "b.tar": SHARD})
    source = ShardSource(tmp_path, **SETTINGS)
    assert len(source) == 4
    assert source.skipped() == []
