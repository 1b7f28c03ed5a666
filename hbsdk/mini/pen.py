"""A pen that draws anti-aliased outlined shapes, given in unit coordinates, on an RGBA layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from hbsdk.mini.palette import OUTLINE, Colour, luminance, mix, neon

Array = NDArray[np.uint8]
Points = Sequence[tuple[float, float]] | NDArray[np.float64]
LINE_WIDTH = 0.0185  # of the unit: 1.2 px at 64 px
_SHIFT = 4
_ONE = 1 << _SHIFT


def filled(colour: Colour, ink: str, outlined: bool) -> Colour:
    """Return the fill that an ink ("colour", "neon", "sketch") gives a colour."""
    light = luminance(colour)
    if ink == "neon":
        if outlined:
            return mix((16, 10, 34), colour, 0.16)
        return (16, 10, 34) if light < 50 else mix((16, 10, 34), neon(colour), 0.62)
    if ink == "sketch":
        grey = int(186 + 0.27 * light) if outlined else int(110 + 0.55 * light)
        return (58, 58, 62) if light < 50 else (grey, grey, grey)
    return colour


def lined(line: Colour, fill: Colour, ink: str) -> Colour:
    """Return the line colour that an ink gives; neon lights the line in the fill's hue."""
    if ink == "neon":
        return neon(fill)
    return (52, 52, 56) if ink == "sketch" else line


def superellipse(
    x: float, y: float, rx: float, ry: float, power: float = 2.0, count: int = 40
) -> NDArray[np.float64]:
    """Return `count` outline points, (count, 2), from the right clockwise on the picture."""
    angle = np.linspace(0.0, 2.0 * np.pi, count, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    points = np.empty((count, 2))
    points[:, 0] = x + rx * np.sign(cos) * np.abs(cos) ** (2.0 / power)
    points[:, 1] = y + ry * np.sign(sin) * np.abs(sin) ** (2.0 / power)
    return points


def arc(
    x: float, y: float, rx: float, ry: float, start_deg: float, end_deg: float, count: int = 12
) -> NDArray[np.float64]:
    """Return the points of an elliptic arc, (count, 2); 0 is right, 90 is down."""
    angle = np.radians(np.linspace(start_deg, end_deg, count))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


@dataclass
class Pen:
    """Draws on `layer`, (H, W, 4) uint8 premultiplied RGBA, in coordinates 0..1 (y down)."""

    layer: Array
    unit_px: float
    left_px: float = 0.0
    top_px: float = 0.0
    scale: float = 1.0
    tilt_deg: float = 0.0
    centre: tuple[float, float] = (0.5, 0.5)
    shift: tuple[float, float] = (0.0, 0.0)
    ink: str = "colour"

    def __post_init__(self) -> None:
        """Work out the matrix from unit coordinates to pixels."""
        angle = np.radians(self.tilt_deg)
        self._size = self.unit_px * self.scale
        self._cos = float(np.cos(angle)) * self._size
        self._sin = float(np.sin(angle)) * self._size
        x, y = self.centre
        # Half a pixel: cv2 puts whole coordinates at pixel centres.
        self._x0 = self.left_px - 0.5 + (x + self.shift[0]) * self.unit_px
        self._y0 = self.top_px - 0.5 + (y + self.shift[1]) * self.unit_px
        self._matrix = np.array([[self._cos, self._sin], [-self._sin, self._cos]])
        self._offset = np.array([self._x0, self._y0]) - np.array([x, y]) @ self._matrix

    def _point(self, x: float, y: float) -> tuple[int, int]:
        dx, dy = x - self.centre[0], y - self.centre[1]
        column = self._x0 + self._cos * dx - self._sin * dy
        row = self._y0 + self._sin * dx + self._cos * dy
        return round(column * _ONE), round(row * _ONE)

    def _points(self, points: Points) -> NDArray[np.int32]:
        pixels = np.asarray(points, np.float64) @ self._matrix + self._offset
        return np.asarray(np.rint(pixels * _ONE), np.int32)

    def _thickness(self, width: float) -> int:
        return max(1, round(width * self._size))

    def _oval(
        self, x: float, y: float, rx: float, ry: float, angle_deg: float, colour: Colour
    ) -> None:
        axes = round(rx * self._size * _ONE), round(ry * self._size * _ONE)
        angle = self.tilt_deg + angle_deg
        cv2.ellipse(
            self.layer, self._point(x, y), axes, angle, 0, 360, (*colour, 255), -1,
            cv2.LINE_AA, _SHIFT,
        )  # fmt: skip

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Colour, *,
        line: Colour | None = OUTLINE, angle_deg: float = 0.0, width: float = LINE_WIDTH,
    ) -> None:  # fmt: skip
        """Fill an ellipse; its line, if any, lies outside of it."""
        if line is not None:
            edge = lined(line, fill, self.ink)
            self._oval(x, y, rx + width, ry + width, angle_deg, edge)
        self._oval(x, y, rx, ry, angle_deg, filled(fill, self.ink, line is not None))

    def blobs(self, circles: Sequence[tuple[float, float, float]], fill: Colour) -> None:
        """Fill circles (x, y, radius) that share one outline."""
        edge = lined(OUTLINE, fill, self.ink)
        for x, y, radius in circles:
            self._oval(x, y, radius + LINE_WIDTH, radius + LINE_WIDTH, 0.0, edge)
        inside = filled(fill, self.ink, True)
        for x, y, radius in circles:
            self._oval(x, y, radius, radius, 0.0, inside)

    def polygon(self, points: Points, fill: Colour, *, line: Colour | None = OUTLINE) -> None:
        """Fill a polygon; its line, if any, lies outside of it."""
        pixels = [self._points(points)]
        if line is not None:
            edge = (*lined(line, fill, self.ink), 255)
            thick = self._thickness(2.0 * LINE_WIDTH)
            cv2.polylines(self.layer, pixels, True, edge, thick, cv2.LINE_AA, _SHIFT)
        inside = (*filled(fill, self.ink, line is not None), 255)
        cv2.fillPoly(self.layer, pixels, inside, cv2.LINE_AA, _SHIFT)

    def line(self, points: Points, colour: Colour = OUTLINE, width: float = LINE_WIDTH) -> None:
        """Draw an open line of `width` (fraction of the unit) with round ends."""
        shade = colour if self.ink == "colour" else lined(colour, colour, self.ink)
        cv2.polylines(
            self.layer, [self._points(points)], False, (*shade, 255), self._thickness(width),
            cv2.LINE_AA, _SHIFT,
        )  # fmt: skip

    @contextmanager
    def clipped(self, points: Points) -> Iterator[None]:
        """Draw only inside a polygon until the block ends."""
        below = self.layer
        inside = np.zeros(below.shape[:2], np.uint8)
        cv2.fillPoly(inside, [self._points(points)], 255, cv2.LINE_8, _SHIFT)
        self.layer = below.copy()
        try:
            yield
        finally:
            cv2.copyTo(self.layer, inside, below)
            self.layer = below

    def gradient(self, top: Colour, bottom: Colour) -> None:
        """Fill the whole layer with a vertical gradient."""
        amount = np.linspace(0.0, 1.0, self.layer.shape[0])[:, None]
        rows = np.array(top) + (np.array(bottom) - np.array(top)) * amount
        self.layer[..., :3] = np.rint(rows).astype(np.uint8)[:, None, :]
        self.layer[..., 3] = 255
