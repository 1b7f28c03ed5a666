"""The mask: where in the photo the subject is, from the user, the alpha channel or a segmenter."""

from __future__ import annotations

import importlib.util
import threading
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from hbsdk.errors import ImageError, MaskError, MissingDependencyError, OptionError
from hbsdk.image import ImageInput, Photo, load_photo

Segmenter = Literal["auto", "grabcut", "inspyrenet"]

# GrabCut's prior, as shares of the photo's height and width. It is low and tall because portraits
# leave the picture at the bottom, and things in the middle do not mind: found by trying shapes on
# DreamBooth photos and on the mini world.
_BORDER = 0.03
_BOTTOM_CORNER = 0.15
_ELLIPSE_CENTRE = (0.60, 0.50)  # y, x
_ELLIPSE_RADII = (0.50, 0.36)  # y, x

_CUT_SIDE_PX = 256  # small photos are enlarged to it, large ones shrunk: four times SD 1.5's latent
_CUT_ITERATIONS = 5
_LEAST_CUT_SHARE, _MOST_CUT_SHARE = 0.01, 0.90  # a cut outside them found no subject

_inspyrenet_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Mask:
    """Where the subject is in a photo, and who said so.

    Attributes:
        values: (height, width) uint8 in {0, 1}, 1 on the subject; neither empty nor full.
        source: what the mask was taken from.
    """

    values: npt.NDArray[np.uint8]
    source: Literal["user", "alpha", "grabcut", "inspyrenet"]


def find_mask(
    photo: Photo, mask: ImageInput | None = None, *, segmenter: Segmenter = "auto"
) -> Mask:
    """Takes the user's mask, else the photo's alpha channel, else asks a segmenter.

    Args:
        photo: the photo.
        mask: a picture as `load_photo` takes it, or an array (H, W) of bool, of the upright
            photo's size. What is at least half is the subject, in its alpha channel if that varies,
            else in its brightness. A mask that holds only 0 and 1 of 255 is read as such.
        segmenter: `"grabcut"` needs no weights and cuts around the centre; `"inspyrenet"` needs the
            package transparent-background, which downloads its weights; `"auto"` is InSPyReNet
            where it is installed and works, else GrabCut.

    Returns:
        The mask, of the photo's size. Where GrabCut finds nothing it is an ellipse, and a
        `UserWarning` says so; another says so where `"auto"` could not use InSPyReNet.

    Raises:
        MaskError: the user's mask cannot be read, has another size, or is empty or full; or
            InSPyReNet was asked for and failed.
        MissingDependencyError: InSPyReNet was asked for and is not installed.
        OptionError: there is no such segmenter.
    """
    if segmenter not in ("auto", "grabcut", "inspyrenet"):
        raise OptionError(
            "segmenter",
            expected="'auto', 'grabcut' or 'inspyrenet'",
            got=repr(segmenter),
            remedy="Leave it out for 'auto'",
        )
    if mask is not None:
        return Mask(_user_mask(mask, photo), "user")
    cut_out = None if photo.alpha is None else _at_least_half(photo.alpha)
    if cut_out is not None and not _is_constant(cut_out):
        return Mask(cut_out, "alpha")
    if segmenter == "inspyrenet" or (segmenter == "auto" and _has_inspyrenet()):
        try:
            return Mask(_segment_with_inspyrenet(photo.rgb), "inspyrenet")
        except MaskError as error:
            if segmenter == "inspyrenet":
                raise
            warnings.warn(f"GrabCut makes the mask instead: {error}", stacklevel=2)
    return Mask(_segment_with_grabcut(photo.rgb), "grabcut")


def check_latent_coverage(
    mask: npt.NDArray[np.float32], *, factor: int, minimum_cells: float = 2.0
) -> None:
    """Refuses a mask whose subject is lost among the latent's cells.

    Args:
        mask: (size, size) float32 in 0..1, a `Reference`'s mask.
        factor: pixels a side of one latent cell; 8 for Stable Diffusion.
        minimum_cells: the least area of the subject, in latent cells.

    Raises:
        MaskError: the subject covers fewer cells.
        OptionError: `factor` does not divide the mask's sides.
    """
    height, width = mask.shape
    if factor < 1 or height % factor or width % factor:
        raise OptionError(
            "factor",
            expected=f"a divisor of the mask's size {height} x {width}",
            got=str(factor),
            remedy="Use an image size that the latent's factor divides",
        )
    cells = mask.reshape(height // factor, factor, width // factor, factor).mean(axis=(1, 3))
    covered = float(cells.sum())
    if covered < minimum_cells:
        raise MaskError(
            "the mask at latent size",
            expected=f"at least {minimum_cells:g} cells of {factor} x {factor} pixels covered",
            got=f"{covered:.2f} of {cells.size}",
            remedy="The subject is too small in the photo: crop the photo closer around it",
        )


def _user_mask(mask: ImageInput, photo: Photo) -> npt.NDArray[np.uint8]:
    """Reads the user's mask as (H, W) uint8 in {0, 1} and checks that it fits the photo."""
    values = _read_mask(mask)
    if values.shape != (photo.height, photo.width):
        raise MaskError(
            "the mask",
            expected=f"the photo's size, height {photo.height} x width {photo.width}",
            got=f"height {values.shape[0]} x width {values.shape[1]}",
            remedy="Resize it, or draw it over the upright photo (EXIF orientation applied)",
        )
    if _is_constant(values):
        full = bool(values[0, 0])
        raise MaskError(
            "the mask",
            expected="a subject and a background",
            got="a full mask, every pixel set" if full else "an empty mask, no pixel set",
            remedy="Paint the subject white and the rest black, or leave the mask out",
        )
    return values


def _read_mask(mask: ImageInput) -> npt.NDArray[np.uint8]:
    """The mask as (H, W) uint8 in {0, 1}, whatever it comes as."""
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.ndim == 2:
        return mask.astype(np.uint8)
    try:
        picture = load_photo(mask)
    except ImageError as error:
        raise MaskError(
            f"the mask: {error.what}",
            expected=error.expected,
            got=error.got,
            remedy=error.remedy,
        ) from error
    if picture.alpha is not None and not _is_constant(picture.alpha):
        return _at_least_half(picture.alpha)
    brightness = np.asarray(Image.fromarray(picture.rgb).convert("L"))
    # numpy and OpenCV users write masks as 0 and 1; half of 255 would call such a mask empty.
    return _at_least_half(brightness * np.uint8(255) if brightness.max() == 1 else brightness)


def _at_least_half(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """1 where an 8-bit value is at least half of 255."""
    return (values >= 128).astype(np.uint8)


def _is_constant(values: npt.NDArray[np.uint8]) -> bool:
    """Whether all values are the same."""
    return bool(values.min() == values.max())


def _has_inspyrenet() -> bool:
    """Whether the package that holds InSPyReNet is installed."""
    return importlib.util.find_spec("transparent_background") is not None


@lru_cache(maxsize=1)
def _load_inspyrenet() -> Any:
    """The InSPyReNet of transparent-background, which downloads and checks its own weights."""
    from transparent_background import Remover  # type: ignore[import-not-found,unused-ignore]

    return Remover()


def _segment_with_inspyrenet(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The salient subject of (H, W, 3) uint8 pixels, as (H, W) uint8 in {0, 1}."""
    if not _has_inspyrenet():
        raise MissingDependencyError(
            "segmenter 'inspyrenet'",
            expected="the package transparent-background",
            got="an environment without it",
            remedy="Run pip install transparent-background, or use segmenter='grabcut'",
        )
    try:
        with _inspyrenet_lock:
            saliency = _load_inspyrenet().process(Image.fromarray(rgb), type="map")
    except Exception as error:  # Its import, download and network each fail in their own ways.
        raise MaskError(
            "segmenter 'inspyrenet'",
            expected="transparent-background to load its weights and run",
            got=f"{type(error).__name__}: {error}",
            remedy="Check its download, or use segmenter='grabcut'",
        ) from error
    values = _at_least_half(np.asarray(saliency.convert("L")))
    if _is_constant(values):
        raise MaskError(
            "segmenter 'inspyrenet'",
            expected="a subject in the photo",
            got="none",
            remedy="Pass a mask, or use segmenter='grabcut'",
        )
    return values


def _segment_with_grabcut(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """What differs from the border of (H, W, 3) uint8 pixels, as (H, W) uint8 in {0, 1}.

    Source: Rother, Kolmogorov, Blake 2004, "GrabCut", as OpenCV has it.
    """
    height, width = rgb.shape[:2]
    scale = _CUT_SIDE_PX / max(height, width)
    size = (max(round(width * scale), 8), max(round(height * scale), 8))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    labels = _centre_prior(size[1], size[0])
    prior = (labels == cv2.GC_PR_FGD).astype(np.uint8)
    # The mixtures start from k-means++, whose draws must not depend on what ran before. OpenCV has
    # one generator a thread, so threads that share a session do not disturb one another.
    cv2.setRNGSeed(0)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))  # scratch for the mixtures
    cv2.grabCut(
        small,
        labels,
        (0, 0, 0, 0),  # a rectangle, which this mode ignores
        background,
        foreground,
        _CUT_ITERATIONS,
        cv2.GC_INIT_WITH_MASK,
    )
    # Both foreground labels, sure and probable, are odd.
    cut = _fill_holes(_largest_component((labels & 1).astype(np.uint8)))
    values = _resize_mask(cut, height, width)
    if _LEAST_CUT_SHARE <= float(values.mean()) <= _MOST_CUT_SHARE:
        return values
    warnings.warn(
        "GrabCut did not find a subject; the mask is an ellipse around the centre. "
        "Pass a mask for a better subject.",
        stacklevel=3,
    )
    return _resize_mask(prior, height, width)


def _centre_prior(height: int, width: int) -> npt.NDArray[np.uint8]:
    """GrabCut's first guess (height, width): border is background, a low ellipse maybe subject."""
    y = (np.arange(height)[:, np.newaxis] + 0.5) / height
    x = (np.arange(width)[np.newaxis, :] + 0.5) / width
    (centre_y, centre_x), (radius_y, radius_x) = _ELLIPSE_CENTRE, _ELLIPSE_RADII
    inside = ((y - centre_y) / radius_y) ** 2 + ((x - centre_x) / radius_x) ** 2 < 1.0
    labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    sides = (x < _BORDER) | (x > 1.0 - _BORDER)
    bottom_corners = (y > 1.0 - _BORDER) & (np.abs(x - 0.5) > 0.5 - _BOTTOM_CORNER)
    labels[(y < _BORDER) | sides | bottom_corners] = cv2.GC_BGD
    return labels


def _largest_component(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The largest connected part of a {0, 1} mask; an empty mask stays empty."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(values, connectivity=8)
    if count == 1:
        return values
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    return np.asarray(labels == largest, dtype=np.uint8)


def _fill_holes(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A {0, 1} mask with everything set that its outside does not reach."""
    outside = np.pad(1 - values, 1, constant_values=1).astype(np.uint8)
    _, labels = cv2.connectedComponents(outside, connectivity=4)
    return np.asarray((labels != labels[0, 0])[1:-1, 1:-1], dtype=np.uint8)


def _resize_mask(values: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """A {0, 1} mask at another size, its edge where the resized one crosses a half."""
    shrinks = values.shape[0] > height
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(values.astype(np.float32), (width, height), interpolation=interpolation)
    return (resized >= 0.5).astype(np.uint8)
