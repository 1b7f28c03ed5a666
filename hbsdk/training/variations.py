"""Variations of a picture that keep its subject: random square crops and mirror images."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from hbsdk.image import Photo, make_reference, square_crop
from hbsdk.training.pairs import Pixels

KEPT_SHARE = 0.7
"""Least share of the subject's area that stays in a random crop."""

_CANDIDATES = 32


def whole_view(photo: Photo, mask: Pixels, *, size: int) -> tuple[Pixels, Pixels]:
    """Return the square that a session makes of a photo: the largest, centred on the subject.

    Args:
        photo: the photo.
        mask: (height, width) uint8 in {0, 1}, 1 on the subject; not empty.
        size: side of the result in pixels.

    Returns:
        Pixels (size, size, 3) uint8 and mask (size, size) uint8 in {0, 1}, never empty.

    Raises:
        MaskError: the mask has another size than the photo, or is empty.
    """
    reference = make_reference(photo, mask, size=size)
    pixels = np.rint((reference.pixels + 1.0) * 127.5).astype(np.uint8)  # exactly what it was
    # A subject finer than a pixel, such as a twig, is where it covers most.
    threshold = min(0.5, float(reference.mask.max()))
    return pixels, (reference.mask >= threshold).astype(np.uint8)


def random_view(
    photo: Photo,
    mask: Pixels,
    rng: np.random.Generator,
    *,
    size: int,
    least_side: float,
    flip: bool,
) -> tuple[Pixels, Pixels]:
    """Return a random square of the photo that keeps the subject, mirrored every other time.

    Args:
        photo: the photo.
        mask: (height, width) uint8 in {0, 1}, 1 on the subject; not empty.
        rng: chooses; how much is drawn from it does not depend on the picture.
        size: side of the result in pixels.
        least_side: the smallest square's side, as a share in 0..1 of the photo's shorter side.
        flip: whether it may be mirrored; False for writing, and for faces that differ by side.

    Returns:
        Pixels (size, size, 3) uint8 and mask (size, size) uint8 in {0, 1}, never empty.

    Raises:
        MaskError: the mask has another size than the photo, or is empty.
    """
    draws = rng.random((3, _CANDIDATES))
    mirrored = bool(rng.random() < 0.5) and flip
    crop = _crop_with_subject(photo, mask, draws, least_side)
    if crop is not None:
        photo, mask = Photo(rgb=photo.rgb[crop], alpha=None), mask[crop]
    pixels, values = whole_view(photo, mask, size=size)
    return mirror(pixels, values) if mirrored else (pixels, values)


def mirror(pixels: Pixels, mask: Pixels) -> tuple[Pixels, Pixels]:
    """Return (H, W, 3) pixels and their (H, W) mask with left and right exchanged."""
    return np.ascontiguousarray(pixels[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])


def _crop_with_subject(
    photo: Photo, mask: Pixels, draws: npt.NDArray[np.float64], least_side: float
) -> tuple[slice, slice] | None:
    """The first of the drawn squares that keeps the subject; None where none does.

    Where even the largest square loses more of a long subject, a square must hold as much as it.
    """
    _, largest = square_crop(photo, mask)
    needed = min(KEPT_SHARE * int(mask.sum(dtype=np.int64)), int(largest.sum(dtype=np.int64)))
    shorter = min(mask.shape)
    sides = np.rint((least_side + (1.0 - least_side) * draws[0]) * shorter).astype(np.int64)
    sides = sides.clip(1, shorter)
    tops = (draws[1] * (mask.shape[0] - sides + 1)).astype(np.int64)
    lefts = (draws[2] * (mask.shape[1] - sides + 1)).astype(np.int64)
    sums = cv2.integral(mask)  # (height + 1, width + 1): the mask's sum above and left of a corner
    bottoms, rights = tops + sides, lefts + sides
    held = sums[bottoms, rights] - sums[tops, rights] - sums[bottoms, lefts] + sums[tops, lefts]
    keeping = np.flatnonzero(held >= needed)
    if keeping.size == 0:
        return None
    first = int(keeping[0])
    return slice(tops[first], bottoms[first]), slice(lefts[first], rights[first])
