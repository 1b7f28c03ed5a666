"""The photo: read from anywhere, checked, and cut to the square that the networks take."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from hbsdk.errors import ImageError, MaskError

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any]
"""What every function that takes a picture accepts."""

MAX_PIXELS = 64_000_000
"""Largest picture that is decoded, in pixels (192 MB as RGB)."""

MIN_SIDE_PX = 16
"""Shortest side of a picture that can still show a subject."""

# Pillow opens some 40 formats; these five hold photos. The others stay shut: EPS runs Ghostscript,
# and the rare ones are decoders that few have looked at.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")

_SUPPORTED_ARRAYS = "uint8, or float in 0..1, of shape (H, W), (H, W, 3) or (H, W, 4)"


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded picture, upright, in 8 bits.

    Attributes:
        rgb: (height, width, 3) uint8, sRGB as stored.
        alpha: (height, width) uint8, 255 is opaque; None where the picture has none.
    """

    rgb: npt.NDArray[np.uint8]
    alpha: npt.NDArray[np.uint8] | None

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.rgb.shape[1])


@dataclass(frozen=True, eq=False)
class Reference:
    """What the networks see of a photo: a square of it, and where the subject is in that square.

    Attributes:
        pixels: (size, size, 3) float32 in -1..1.
        mask: (size, size) float32 in 0..1, the share of each pixel that the subject covers.
    """

    pixels: npt.NDArray[np.float32]
    mask: npt.NDArray[np.float32]


def load_photo(image: ImageInput, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Reads a picture into an upright 8-bit photo; the input is left as it is.

    Args:
        image: a path, the bytes of a file (PNG, JPEG, WebP, BMP or TIFF), a PIL image, or an array:
            (H, W), (H, W, 3) or (H, W, 4), uint8 or float in 0..1.
        max_pixels: the most pixels that are decoded, checked before decoding. Above it Pillow's own
            limit stays in force: twice `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        ImageError: the picture cannot be read, is truncated, animated, too large or too small, or
            its array has another layout, type or range.
    """
    if isinstance(image, np.ndarray):
        return _photo_from_array(image, max_pixels)
    if isinstance(image, Image.Image):
        return _photo_from_pil(image, "the PIL image", max_pixels)
    if isinstance(image, bytes):
        return _photo_from_file(BytesIO(image), f"the {len(image)} bytes", max_pixels)
    if isinstance(image, (str, os.PathLike)):
        return _photo_from_file(Path(image), f"image {os.fspath(image)!r}", max_pixels)
    raise ImageError(
        "the image",
        expected="a path, bytes, a PIL image or a numpy array",
        got=f"{type(image).__module__}.{type(image).__qualname__}",
        remedy="A torch tensor becomes an array with .permute(1, 2, 0).cpu().numpy()",
    )


def square_crop(
    photo: Photo, mask: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Cuts the largest square from the photo, placed to hold and then to centre the subject.

    Args:
        photo: the photo.
        mask: (height, width) uint8 in {0, 1}, 1 on the subject.

    Returns:
        The square's pixels (side, side, 3) uint8 and its mask (side, side) uint8, both views;
        `side` is the photo's shorter side in pixels.

    Raises:
        MaskError: the mask has another size than the photo, or is empty.
    """
    if mask.shape != (photo.height, photo.width):
        raise MaskError(
            "the mask",
            expected=f"the photo's size, height {photo.height} x width {photo.width}",
            got=f"shape {mask.shape}",
            remedy="Make the mask from the upright photo, or resize it to that size",
        )
    if not mask.any():
        raise MaskError(
            "the mask",
            expected="a subject",
            got="no pixel set",
            remedy="Draw the mask: 1 or 255 on the subject, 0 elsewhere",
        )
    side = min(photo.height, photo.width)
    top = _window_start(mask.sum(axis=1, dtype=np.int64), side)
    left = _window_start(mask.sum(axis=0, dtype=np.int64), side)
    square = (slice(top, top + side), slice(left, left + side))
    return photo.rgb[square], mask[square]


def make_reference(photo: Photo, mask: npt.NDArray[np.uint8], *, size: int) -> Reference:
    """Makes the square, resized picture and mask that the networks take.

    Args:
        photo: the photo.
        mask: (height, width) uint8 in {0, 1}, 1 on the subject.
        size: side of the result in pixels.

    Raises:
        MaskError: the mask has another size than the photo, or is empty.
    """
    square_rgb, square_mask = square_crop(photo, mask)
    # Pillow's filters widen with the scale, so neither aliases; BOX is the mean over the area.
    rgb = Image.fromarray(square_rgb).resize((size, size), Image.Resampling.LANCZOS)
    coverage = Image.fromarray(square_mask.astype(np.float32)).resize(
        (size, size), Image.Resampling.BOX
    )
    return Reference(
        pixels=np.asarray(rgb, dtype=np.float32) / 127.5 - 1.0,
        mask=np.array(coverage, dtype=np.float32).clip(0.0, 1.0),
    )


def _window_start(mass: npt.NDArray[np.int64], side: int) -> int:
    """Where `side` pixels of an axis hold most of the mask's mass (length,), best centred."""
    cumulative = np.concatenate([[0], np.cumsum(mass)])
    inside = cumulative[side:] - cumulative[:-side]  # (length - side + 1,)
    best = np.flatnonzero(inside == inside.max())
    occupied = np.flatnonzero(mass)
    wanted = (occupied[0] + occupied[-1] + 1 - side) / 2
    return int(best[np.argmin(np.abs(best - wanted))])


def _photo_from_file(file: Path | BytesIO, name: str, max_pixels: int) -> Photo:
    """Opens a file of an allowed format; Pillow reads only its header here."""
    try:
        with Image.open(file, formats=_FORMATS) as image:
            return _photo_from_pil(image, name, max_pixels)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(
            name, expected="a file", got="none at that path", remedy="Check the path"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(name, str(error), max_pixels) from error
    except Exception as error:  # A hostile file makes Pillow's parsers raise anything at all.
        raise ImageError(
            name,
            expected=f"a picture in one of the formats {', '.join(_FORMATS)}",
            got=str(error) or type(error).__name__,
            remedy="Open it in an image editor and save it as PNG",
        ) from error


def _photo_from_pil(image: Image.Image, name: str, max_pixels: int) -> Photo:
    """Checks an opened image's size by its header, then decodes it."""
    _check_size(name, image.height, image.width, max_pixels)
    try:
        frames = getattr(image, "n_frames", 1)
        image.load()
        upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Decoders raise OSError, SyntaxError, struct.error and more.
        raise ImageError(
            name,
            expected="a complete picture",
            got=str(error) or type(error).__name__,
            remedy="The file is truncated or damaged: copy or download it again",
        ) from error
    # Phones write MPO: a JPEG whose first frame is the photo, and the others previews or depth.
    if frames > 1 and image.format != "MPO":
        raise ImageError(
            name,
            expected="one picture",
            got=f"{frames} frames",
            remedy="Pass one frame: PIL.Image.open(path).copy() is the first",
        )
    return _to_8_bit(upright, name)


def _to_8_bit(image: Image.Image, name: str) -> Photo:
    """Turns any of Pillow's pixel modes into 8-bit RGB and alpha."""
    if image.mode.startswith("I;16"):
        # 65535 / 257 = 255 exactly; Pillow's own conversion clips what is above 255 to white.
        grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return Photo(rgb=np.repeat(grey[:, :, np.newaxis], 3, axis=2), alpha=None)
    if image.mode in ("I", "F"):
        raise ImageError(
            name,
            expected="8 or 16 bits a channel",
            got=f"Pillow mode {image.mode!r}, whose range is not known",
            remedy="Scale it to 0..1 and pass it as a float array",
        )
    try:
        converted = image.convert("RGBA" if image.has_transparency_data else "RGB")
    except ValueError as error:
        raise ImageError(
            name,
            expected="a mode that converts to RGB",
            got=f"Pillow mode {image.mode!r}",
            remedy="Convert it with image.convert('RGB')",
        ) from error
    return _split_alpha(np.array(converted))


def _photo_from_array(array: npt.NDArray[Any], max_pixels: int) -> Photo:
    """Checks an array's layout, size and range, and copies it."""
    _check_layout(array)
    _check_size("the array", array.shape[0], array.shape[1], max_pixels)
    if np.issubdtype(array.dtype, np.floating):
        pixels = _unit_floats_to_8_bit(array)
    elif array.dtype == np.uint8:
        pixels = array.copy()
    else:
        raise ImageError(
            "the array",
            expected=_SUPPORTED_ARRAYS,
            got=f"dtype {array.dtype}",
            remedy="Scale it to 0..1 as float: a 16-bit array by array / 65535",
        )
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, np.newaxis], 3, axis=2)
    return _split_alpha(pixels)


def _check_layout(array: npt.NDArray[Any]) -> None:
    """Refuses every shape but (H, W), (H, W, 3) and (H, W, 4)."""
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)):
        return
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        pass_on = "array[0]" if array.shape[0] == 1 else "array.transpose(1, 2, 0)"
        remedy = f"It is channel-first: pass {pass_on}"
    elif array.ndim == 4:
        remedy = "It is a batch: pass one picture, array[0]"
    else:
        remedy = "Reorder its axes to height, width, channels"
    raise ImageError(
        "the array", expected=_SUPPORTED_ARRAYS, got=f"shape {array.shape}", remedy=remedy
    )


def _unit_floats_to_8_bit(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scales floats in 0..1 to 0..255, refusing anything outside."""
    if not np.isfinite(array).all():
        raise ImageError(
            "the array",
            expected="finite values in 0..1",
            got=f"{np.count_nonzero(~np.isfinite(array))} values that are NaN or infinite",
            remedy="Clean it with numpy.nan_to_num, or find where they come from",
        )
    low, high = float(array.min()), float(array.max())
    if low < 0.0 or high > 1.0:
        remedy = "Divide it by 255" if low >= 0.0 else "Map it to 0..1: (array + 1) / 2 from -1..1"
        raise ImageError(
            "the array",
            expected="floats in 0..1",
            got=f"values in {low:g}..{high:g}",
            remedy=remedy,
        )
    return np.asarray(np.rint(array.astype(np.float32) * 255.0), dtype=np.uint8)


def _split_alpha(pixels: npt.NDArray[np.uint8]) -> Photo:
    """Makes a photo of (H, W, 3) or (H, W, 4) pixels that nobody else holds."""
    if pixels.shape[2] == 3:
        return Photo(rgb=np.ascontiguousarray(pixels), alpha=None)
    return Photo(
        rgb=np.ascontiguousarray(pixels[:, :, :3]), alpha=np.ascontiguousarray(pixels[:, :, 3])
    )


def _check_size(name: str, height: int, width: int, max_pixels: int) -> None:
    """Refuses pictures too large to decode safely or too small to show anything."""
    if height * width > max_pixels:
        raise _too_many_pixels(name, f"height {height} x width {width}", max_pixels)
    if min(height, width) < MIN_SIDE_PX:
        raise ImageError(
            name,
            expected=f"at least {MIN_SIDE_PX} x {MIN_SIDE_PX} pixels",
            got=f"height {height} x width {width}",
            remedy="Use a larger picture of the subject; 512 pixels is a good size",
        )


def _too_many_pixels(name: str, got: str, max_pixels: int) -> ImageError:
    """The error for a picture above the limit."""
    return ImageError(
        name,
        expected=f"at most {max_pixels:,} pixels",
        got=got,
        remedy="Scale it down; nothing above 1024 pixels a side is used",
    )
