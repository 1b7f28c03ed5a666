"""Bad pictures and masks: each is refused with what came and what to do about it."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hbsdk.errors import ImageError, MaskError
from hbsdk.image import Photo, load_photo, make_reference
from hbsdk.mask import check_latent_coverage, find_mask


def encode(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height: int = 40, width: int = 40, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png_that_claims(height: int, width: int) -> bytes:
    """A PNG of some 60 bytes whose header claims a size; there is next to nothing behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"this is a text, not an image",
        b"\x89PNG\r\n\x1a\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n",
        encode(Image.fromarray(noise()), "GIF"),
        encode(Image.fromarray(noise()), "PPM"),
    ],
    ids=["empty", "text", "signature only", "SVG", "EPS", "GIF", "PPM"],
)
def test_what_is_not_an_allowed_picture(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"got .*save it as PNG") as caught:
        load_photo(data)
    assert "PNG, JPEG, WEBP, BMP, TIFF" in str(caught.value)
    assert caught.value.what == f"the {len(data)} bytes"


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_truncated_file(file_format: str) -> None:
    data = encode(Image.fromarray(noise()), file_format)
    with pytest.raises(ImageError, match=r"got .+\. \S+ .+\."):
        load_photo(data[: len(data) * 2 // 3])
    load_photo(data)  # whole, it loads


def test_truncated_after_the_header_names_the_remedy() -> None:
    data = encode(Image.fromarray(noise()))
    with pytest.raises(ImageError, match=r"expected a complete picture, got .*download it again"):
        load_photo(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("name", ["missing.png", "."])
def test_a_path_that_is_no_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(ImageError, match=r"expected .*got ") as caught:
        load_photo(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_a_picture_too_small_to_show_anything(size: tuple[int, int]) -> None:
    height, width = size
    got = f"got height {height} x width {width}. Use a larger picture"
    with pytest.raises(ImageError, match=got):
        load_photo(encode(Image.fromarray(noise(height, width))))
    with pytest.raises(ImageError, match=got):
        load_photo(noise(height, width))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("side", "got"),
    [(30_000, "900000000 pixels"), (10_000, "height 10000 x width 10000"), (8_001, "8001")],
    ids=["Pillow refuses", "Pillow warns", "ours alone"],
)
def test_a_header_that_claims_too_many_pixels(side: int, got: str) -> None:
    data = png_that_claims(side, side)
    assert len(data) < 100
    with pytest.raises(
        ImageError, match=f"at most 64,000,000 pixels, got .*{got}.*Scale it down"
    ) as caught:
        load_photo(data)
    assert caught.value.what == f"the {len(data)} bytes"


def test_the_limit_is_an_option_and_holds_for_every_kind_of_input() -> None:
    picture = noise(50, 50)
    for source in (encode(Image.fromarray(picture)), Image.fromarray(picture), picture):
        with pytest.raises(ImageError, match="at most 2,499 pixels, got height 50 x width 50"):
            load_photo(source, max_pixels=2_499)
        load_photo(source, max_pixels=2_500)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_an_animated_picture(file_format: str) -> None:
    frames = [Image.fromarray(noise()), Image.fromarray(255 - noise())]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
    for source in (data, Image.open(BytesIO(data))):
        with pytest.raises(ImageError, match=r"one picture, got 2 frames. Pass one frame"):
            load_photo(source)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_picture_of_unknown_range(mode: str) -> None:
    with pytest.raises(ImageError, match=f"got Pillow mode '{mode}'.*pass it as a float array"):
        load_photo(Image.new(mode, (40, 40)))


def test_a_closed_pil_image() -> None:
    image = Image.open(BytesIO(encode(Image.fromarray(noise()))))
    image.close()
    with pytest.raises(ImageError, match="the PIL image: expected a complete picture"):
        load_photo(image)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (noise().transpose(2, 0, 1), r"got shape \(3, 40, 40\).*array\.transpose\(1, 2, 0\)"),
        (noise(channels=1).transpose(2, 0, 1), r"got shape \(1, 40, 40\).*array\[0\]"),
        (noise()[None], r"got shape \(1, 40, 40, 3\).*one picture, array\[0\]"),
        (noise(channels=2), r"got shape \(40, 40, 2\).*height, width, channels"),
        (np.zeros(40, np.uint8), r"got shape \(40,\).*height, width, channels"),
        (np.zeros((0, 40, 3), np.uint8), "got height 0 x width 40. Use a larger"),
        (noise().astype(np.float32), r"floats in 0\.\.1, got values in 0\.\.255. Divide it by 255"),
        (noise() / 127.5 - 1.0, r"got values in -1\.\.1\. .*\(array \+ 1\) / 2"),
        (np.full((40, 40), np.nan), "got 1600 values that are NaN or infinite. Clean it"),
        (np.full((40, 40), np.inf, np.float32), "got 1600 values that are NaN or infinite"),
        (noise().astype(np.uint16), "got dtype uint16. Scale it to 0..1 as float"),
        (noise().astype(np.int64), "got dtype int64. Scale it to 0..1 as float"),
        (np.zeros((40, 40), bool), "got dtype bool"),
        (np.zeros((40, 40), object), "got dtype object"),
    ],
)
def test_an_array_of_another_layout_type_or_range(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_photo(array)


def test_an_object_that_is_no_picture_at_all() -> None:
    with pytest.raises(ImageError, match=r"got builtins\.list.*permute\(1, 2, 0\)"):
        load_photo([[0, 1], [2, 3]])


@pytest.fixture
def photo() -> Photo:
    return load_photo(noise(40, 60))


def test_a_mask_of_another_size_names_both_sizes(photo: Photo) -> None:
    mask = np.zeros((60, 40), dtype=np.uint8)
    mask[:20] = 255
    with pytest.raises(
        MaskError, match=r"height 40 x width 60, got height 60 x width 40. Resize it.*EXIF"
    ):
        find_mask(photo, mask)


@pytest.mark.parametrize(("value", "got"), [(0, "an empty mask"), (255, "a full mask")])
def test_a_mask_that_is_empty_or_full(photo: Photo, value: int, got: str) -> None:
    with pytest.raises(MaskError, match=f"got {got}.*Paint the subject white"):
        find_mask(photo, np.full((40, 60), value, dtype=np.uint8))
    with pytest.raises(MaskError, match=f"got {got}"):
        find_mask(photo, np.full((40, 60), bool(value)))


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (b"not a picture", "cannot identify"),
        ("missing-mask.png", "none at that path"),
        (np.full((40, 60), np.nan), "NaN"),
        (np.full((40, 60), 7, np.int32), "dtype int32"),
        (np.zeros((40, 60, 2), np.uint8), r"shape \(40, 60, 2\)"),
    ],
)
def test_a_mask_that_cannot_be_read_is_a_mask_error(photo: Photo, mask: Any, got: str) -> None:
    with pytest.raises(MaskError, match=f"^the mask: .*got .*{got}") as caught:
        find_mask(photo, mask)
    assert caught.value.remedy


def test_a_subject_that_vanishes_at_latent_size() -> None:
    photo = load_photo(noise(512, 512))
    mask = np.zeros((512, 512), dtype=np.uint8)
    mask[100:110, 100:110] = 1  # 100 of the 128 pixels that two latent cells have
    reference = make_reference(photo, find_mask(photo, mask).values, size=512)
    with pytest.raises(MaskError, match=r"at least 2 cells.*got 1\.56 of 4096.*crop the photo"):
        check_latent_coverage(reference.mask, factor=8)
    mask[100:112, 100:112] = 1
    check_latent_coverage(make_reference(photo, mask, size=512).mask, factor=8)
