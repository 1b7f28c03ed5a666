"""Photos come out upright, in 8 bits and with the right colours, whatever they come as."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hbsdk.errors import MaskError
from hbsdk.image import Photo, load_photo, make_reference, square_crop

HEIGHT, WIDTH = 20, 30


def encode(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_a_path_bytes_a_pil_image_and_an_array_give_the_same_photo(
    rgb: np.ndarray, tmp_path: Path
) -> None:
    image = Image.fromarray(rgb)
    path = tmp_path / "photo.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), image, rgb):
        photo = load_photo(source)
        np.testing.assert_array_equal(photo.rgb, rgb)
        assert photo.alpha is None
        assert (photo.height, photo.width) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_keep_every_pixel(rgb: np.ndarray, file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    photo = load_photo(encode(Image.fromarray(rgb), file_format, **options))
    np.testing.assert_array_equal(photo.rgb, rgb)


# Where the stored top-left pixel belongs in the upright picture, from the EXIF standard.
CORNERS = {
    1: (0, 0),
    2: (0, -1),
    3: (-1, -1),
    4: (-1, 0),
    5: (0, 0),
    6: (0, -1),
    7: (-1, -1),
    8: (-1, 0),
}


@pytest.mark.parametrize(("orientation", "corner"), CORNERS.items())
def test_exif_orientation_is_applied(orientation: int, corner: tuple[int, int]) -> None:
    stored = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    stored[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = load_photo(encode(Image.fromarray(stored), exif=exif))
    sides_swap = orientation >= 5
    assert (photo.height, photo.width) == ((WIDTH, HEIGHT) if sides_swap else (HEIGHT, WIDTH))
    assert photo.rgb[corner].tolist() == [255, 255, 255]
    assert photo.rgb.sum() == 3 * 255


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(file_format: str) -> None:
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    photo = load_photo(encode(Image.fromarray(deep), file_format))
    expected = np.rint(deep / 65535.0 * 255.0)
    np.testing.assert_array_equal(photo.rgb[:, :, 0], expected)
    assert len(np.unique(photo.rgb)) == 256  # clipping would leave one value


def test_cmyk_becomes_the_colour_it_means() -> None:
    cyan, magenta, yellow, black = 0, 200, 255, 51
    image = Image.new("CMYK", (WIDTH, HEIGHT), (cyan, magenta, yellow, black))
    pixel = load_photo(encode(image, "TIFF")).rgb[3, 4]
    by_hand = [(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)]
    np.testing.assert_allclose(pixel, by_hand, atol=2)


def test_a_palette_with_a_transparent_colour_keeps_it_as_alpha() -> None:
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((2, 1), 0)
    plain = load_photo(encode(image))
    assert plain.alpha is None
    assert plain.rgb[1, 2].tolist() == [10, 20, 30]
    assert plain.rgb[0, 0].tolist() == [200, 100, 50]
    keyed = load_photo(encode(image, transparency=0))
    assert keyed.alpha is not None
    assert np.argwhere(keyed.alpha == 0).tolist() == [[1, 2]]


def test_grey_one_bit_and_grey_with_alpha() -> None:
    grey = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH).astype(np.uint8)
    np.testing.assert_array_equal(load_photo(encode(Image.fromarray(grey))).rgb[:, :, 2], grey)
    one_bit = Image.fromarray(grey >= 128)
    assert one_bit.mode == "1"
    np.testing.assert_array_equal(
        load_photo(encode(one_bit)).rgb[:, :, 1], np.where(grey >= 128, 255, 0)
    )
    with_alpha = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(255 - grey)])
    photo = load_photo(encode(with_alpha))
    np.testing.assert_array_equal(photo.rgb[:, :, 0], grey)
    np.testing.assert_array_equal(photo.alpha, 255 - grey)


def test_alpha_is_kept_and_colours_under_it_are_not_changed(rgb: np.ndarray) -> None:
    alpha = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    alpha[5:9, 5:9] = 77
    photo = load_photo(encode(Image.fromarray(np.dstack([rgb, alpha]))))
    np.testing.assert_array_equal(photo.alpha, alpha)
    np.testing.assert_array_equal(photo.rgb, rgb)


def test_float_arrays_are_read_as_0_to_1(rgb: np.ndarray) -> None:
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(load_photo((rgb / 255.0).astype(dtype)).rgb, rgb)
    np.testing.assert_array_equal(load_photo(rgb[:, :, 0] / 255.0).rgb[:, :, 1], rgb[:, :, 0])
    four = np.dstack([rgb, rgb[:, :, :1]])
    np.testing.assert_array_equal(load_photo(four).alpha, rgb[:, :, 0])


def test_the_photo_of_a_multi_picture_jpeg_is_its_first_picture() -> None:
    shot, preview = Image.new("RGB", (WIDTH, HEIGHT), "red"), Image.new("RGB", (16, 16), "blue")
    data = encode(shot, "MPO", save_all=True, append_images=[preview])
    photo = load_photo(data)
    assert (photo.height, photo.width) == (HEIGHT, WIDTH)
    np.testing.assert_allclose(photo.rgb[9, 9], [255, 0, 0], atol=3)


def test_one_frame_of_an_animation_is_a_photo() -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("lime", "blue")]
    data = encode(frames[0], save_all=True, append_images=frames[1:])
    photo = load_photo(Image.open(BytesIO(data)).copy())  # the remedy of the error
    assert photo.rgb[0, 0].tolist() == [0, 255, 0]


def test_inputs_are_not_changed_nor_shared(rgb: np.ndarray) -> None:
    before = rgb.copy()
    photo = load_photo(rgb)
    photo.rgb[:] = 0
    np.testing.assert_array_equal(rgb, before)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(BytesIO(encode(Image.fromarray(rgb), exif=exif)))
    load_photo(image)
    assert image.size == (WIDTH, HEIGHT)
    assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    ("first", "last", "left"),
    [(2, 8, 0), (40, 44, 32), (70, 75, 60), (0, 79, 30)],
)
def test_the_square_holds_the_subject_and_centres_it_where_it_can(
    first: int, last: int, left: int
) -> None:
    # 20 x 80: columns first..last are the subject, so the square's 20 columns start at `left`.
    mask = np.zeros((20, 80), dtype=np.uint8)
    mask[:, first : last + 1] = 1
    columns = np.broadcast_to(np.arange(80, dtype=np.uint8)[None, :, None], (20, 80, 3))
    square, square_mask = square_crop(Photo(rgb=columns, alpha=None), mask)
    assert square.shape == (20, 20, 3)
    assert square[0, 0, 0] == left
    np.testing.assert_array_equal(square_mask, mask[:, left : left + 20])


def test_a_tail_does_not_pull_the_square_off_the_body() -> None:
    mask = np.zeros((60, 20), dtype=np.uint8)
    mask[0:30, 9:11] = 1  # the tail, within 60 rows of which 20 fit
    mask[30:48, :] = 1  # the body
    _, square_mask = square_crop(Photo(rgb=np.zeros((60, 20, 3), np.uint8), alpha=None), mask)
    assert square_mask[-18:].all()
    assert square_mask[:2].sum() == 4


def test_the_reference_is_minus_1_to_1_and_its_mask_the_covered_share() -> None:
    rgb = np.zeros((32, 48, 3), dtype=np.uint8)
    rgb[:, :, 0] = 255
    mask = np.zeros((32, 48), dtype=np.uint8)
    mask[:, 18:24] = 1
    reference = make_reference(Photo(rgb=rgb, alpha=None), mask, size=8)
    assert reference.pixels.shape == (8, 8, 3)
    assert reference.pixels.dtype == reference.mask.dtype == np.float32
    np.testing.assert_allclose(reference.pixels[..., 0], 1.0)
    np.testing.assert_allclose(reference.pixels[..., 1:], -1.0)
    by_hand = mask[:, 5:37].reshape(8, 4, 8, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(reference.mask, by_hand, atol=1e-6)
    assert set(np.unique(by_hand)) == {0.0, 0.75}


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    mask = np.ones((64, 64), dtype=np.uint8)
    reference = make_reference(Photo(rgb=stripes, alpha=None), mask, size=16)
    assert np.abs(reference.pixels[:, 2:-2]).max() < 0.05  # nearest neighbour would give 1


def test_a_reference_of_the_same_size_is_exact(rgb: np.ndarray) -> None:
    square = rgb[:20, :20]
    mask = np.eye(20, dtype=np.uint8)
    reference = make_reference(Photo(rgb=square, alpha=None), mask, size=20)
    np.testing.assert_allclose((reference.pixels + 1.0) * 127.5, square, atol=1e-4)
    np.testing.assert_array_equal(reference.mask, mask)


def test_a_crop_needs_a_mask_that_fits(rgb: np.ndarray) -> None:
    photo = load_photo(rgb)
    with pytest.raises(MaskError, match=r"height 20 x width 30, got shape \(30, 20\).*resize"):
        square_crop(photo, np.ones((30, 20), dtype=np.uint8))
    with pytest.raises(MaskError, match=r"got no pixel set.*Draw the mask"):
        make_reference(photo, np.zeros((20, 30), dtype=np.uint8), size=16)
