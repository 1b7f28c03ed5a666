"""Draws the scene behind a character: large simple shapes over smooth gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hbsdk.mini.palette import BACKGROUNDS, COLOURS, Colour, mix
from hbsdk.mini.pen import Pen, superellipse

_WHITE: Colour = (255, 255, 255)
_SUN: Colour = (255, 232, 120)
_LEAF: Colour = (52, 132, 64)
_TRUNK: Colour = (124, 80, 50)


def draw_scene(pen: Pen, scene: str, variant: int) -> None:
    """Fill the pen's layer with a scene of `SCENES`; `variant` (>= 0) moves its things."""
    if scene.startswith("plain "):
        colour = BACKGROUNDS[scene.removeprefix("plain ")]
        pen.gradient(mix(colour, _WHITE, 0.14), mix(colour, (90, 80, 110), 0.10))
        return
    _PAINTERS[scene](pen, np.random.default_rng(variant))


def _hill(pen: Pen, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
    """Draw a hill whose top is at (x, y)."""
    pen.polygon(superellipse(x, y + ry, rx, ry, 2.0, 36), colour, line=None)


def _floor(pen: Pen, y: float, colour: Colour) -> None:
    pen.polygon([(-0.2, y), (1.2, y), (1.2, 1.3), (-0.2, 1.3)], colour, line=None)


def _dots(
    pen: Pen, rng: np.random.Generator, count: int, bottom: float, radius: float, colour: Colour
) -> None:
    """Draw round dots above `bottom`, one in each of `count` columns."""
    for column in range(count):
        x = (column + rng.uniform(0.2, 0.8)) / count
        size = radius * rng.uniform(0.75, 1.25)
        pen.ellipse(x, rng.uniform(0.04, bottom), size, size, colour, line=None)


def _disc(pen: Pen, rng: np.random.Generator, colour: Colour) -> float:
    """Draw a sun or moon high on one side and return its x."""
    x = 0.5 + rng.choice((-1.0, 1.0)) * rng.uniform(0.30, 0.38)
    y = rng.uniform(0.12, 0.18)
    pen.ellipse(x, y, 0.088, 0.088, colour, line=None)
    return float(x)


def _pine(pen: Pen, x: float, y: float, size: float, colour: Colour) -> None:
    """Draw a pine whose foot is at (x, y)."""
    pen.polygon(
        [(x - 0.02, y - 0.05), (x + 0.02, y - 0.05), (x + 0.02, y), (x - 0.02, y)],
        _TRUNK,
        line=None,
    )
    for step in range(3):
        low, half = y - 0.04 - 0.26 * step * size, (0.26 - 0.055 * step) * size
        pen.polygon([(x - half, low), (x, low - 0.42 * size), (x + half, low)], colour, line=None)


def _snow(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((150, 186, 232), (222, 234, 250))
    for x in (0.10, 0.88):
        _pine(pen, x + rng.uniform(-0.05, 0.05), 0.72, rng.uniform(0.42, 0.55), (46, 110, 96))
    _hill(pen, rng.uniform(0.0, 0.3), 0.66, 0.75, 0.5, (236, 243, 252))
    _hill(pen, rng.uniform(0.7, 1.0), 0.70, 0.75, 0.5, (250, 252, 255))
    _dots(pen, rng, 9, 0.6, 0.018, _WHITE)


def _beach(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((112, 190, 248), (206, 236, 255))
    side = np.sign(_disc(pen, rng, _SUN) - 0.5)
    pen.polygon([(-0.2, 0.56), (1.2, 0.56), (1.2, 0.8), (-0.2, 0.8)], (38, 132, 206), line=None)
    _floor(pen, 0.73, (248, 218, 150))
    x = 0.5 - side * rng.uniform(0.34, 0.40)
    pen.line([(x - 0.03 * side, 0.8), (x, 0.55), (x - 0.02 * side, 0.30)], _TRUNK, 0.045)
    for dx, dy in ((-0.17, 0.07), (0.17, 0.07), (-0.12, -0.07), (0.12, -0.07)):
        pen.line(
            [(x - 0.02 * side, 0.29), (x + dx * 0.6, 0.27 + dy * 0.2), (x + dx, 0.27 + dy)],
            _LEAF,
            0.045,
        )


def _forest(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((132, 190, 120), (84, 150, 86))
    for column in range(5):
        x = 0.06 + 0.22 * column + rng.uniform(-0.03, 0.03)
        pen.line([(x, 0.2), (x, 0.85)], mix(_TRUNK, (40, 70, 40), 0.15), 0.062)
    for column in range(6):
        x = 0.2 * column + rng.uniform(-0.03, 0.03)
        pen.ellipse(
            x,
            rng.uniform(0.05, 0.12),
            0.155,
            0.135,
            (46, 112, 58) if column % 2 else _LEAF,
            line=None,
        )
    _hill(pen, 0.5, 0.74, 1.1, 0.5, (66, 116, 54))


def _city(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((160, 178, 212), (226, 214, 214))
    for column in range(5):
        x, top = 0.21 * column - 0.02, rng.uniform(0.16, 0.45)
        wall = ((104, 112, 142), (124, 116, 140), (92, 104, 128))[int(rng.integers(3))]
        pen.polygon([(x, 0.95), (x, top), (x + 0.18, top), (x + 0.18, 0.95)], wall, line=None)
        for y in np.arange(top + 0.05, 0.75, 0.12):
            for dx in (0.03, 0.105):
                low, right = y + 0.055, x + dx + 0.045
                pen.polygon(
                    [(x + dx, y), (right, y), (right, low), (x + dx, low)],
                    (250, 222, 130),
                    line=None,
                )
    _floor(pen, 0.82, (110, 110, 122))


def _night(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((16, 22, 66), (62, 66, 130))
    x = 0.5 + rng.choice((-1.0, 1.0)) * 0.35
    pen.ellipse(x, 0.16, 0.090, 0.090, (255, 244, 190), line=None)
    pen.ellipse(x - 0.042, 0.14, 0.078, 0.078, (22, 28, 74), line=None)
    _dots(pen, rng, 8, 0.55, 0.013, (255, 250, 220))
    _hill(pen, rng.uniform(0.1, 0.9), 0.72, 0.9, 0.5, (28, 50, 60))


def _space(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((24, 10, 50), (66, 22, 92))
    _dots(pen, rng, 12, 0.95, 0.012, (250, 244, 255))
    side = rng.choice((-1.0, 1.0))
    x, y = 0.5 + 0.35 * side, rng.uniform(0.15, 0.22)
    pen.ellipse(x, y, 0.085, 0.085, (110, 220, 170), line=None)
    pen.line([(x - 0.14, y + 0.045), (x + 0.14, y - 0.045)], (240, 200, 120), 0.026)
    pen.ellipse(0.5 - 0.40 * side, rng.uniform(0.45, 0.6), 0.10, 0.10, (232, 120, 90), line=None)


def _underwater(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((66, 190, 220), (14, 70, 146))
    for x in (0.06, 0.15, 0.86, 0.95):
        x += rng.uniform(-0.02, 0.02)
        wave = [(x + 0.025 * (-1) ** k, 1.0 - 0.09 * k) for k in range(6)]
        pen.line(wave, (44, 160, 96), 0.036)
    for side, colour in ((-1.0, COLOURS["orange"]), (1.0, COLOURS["pink"])):
        x, y = 0.5 + 0.37 * side, rng.uniform(0.10, 0.26)
        tail = x + 0.055 * side
        pen.polygon(
            [
                (tail - 0.02 * side, y),
                (tail + 0.045 * side, y - 0.04),
                (tail + 0.045 * side, y + 0.04),
            ],
            colour,
            line=None,
        )
        pen.ellipse(x, y, 0.062, 0.040, colour, line=None)
    for x, y, radius in ((0.10, 0.42, 0.030), (0.90, 0.40, 0.024), (0.86, 0.50, 0.018)):
        pen.ellipse(x, y + rng.uniform(-0.04, 0.04), radius, radius, (170, 230, 246), line=None)


def _desert(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((252, 178, 92), (255, 226, 160))
    _disc(pen, rng, (255, 246, 196))
    _hill(pen, rng.uniform(0.1, 0.9), 0.66, 0.8, 0.4, (234, 166, 88))
    _floor(pen, 0.76, (222, 148, 72))
    for x in (0.09, 0.91):
        x += rng.uniform(-0.03, 0.03)
        pen.line([(x, 0.82), (x, 0.42)], (58, 134, 74), 0.064)
        pen.line([(x, 0.64), (x + 0.07, 0.62), (x + 0.07, 0.52)], (58, 134, 74), 0.040)
        pen.line([(x, 0.68), (x - 0.07, 0.66), (x - 0.07, 0.57)], (58, 134, 74), 0.040)


def _meadow(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((128, 202, 250), (224, 244, 255))
    x = rng.uniform(0.1, 0.25)
    for dx, radius in ((-0.07, 0.05), (0.0, 0.07), (0.08, 0.05)):
        pen.ellipse(x + dx, 0.16, radius, radius * 0.85, _WHITE, line=None)
    _hill(pen, rng.uniform(0.0, 1.0), 0.62, 1.0, 0.5, (122, 200, 92))
    for column in range(8):
        x = (column + rng.uniform(0.3, 0.7)) / 8
        y = rng.uniform(0.80, 0.95)
        colour = COLOURS[("red", "pink", "white", "yellow")[column % 4]]
        pen.ellipse(x, y, 0.036, 0.036, colour, line=None)
        pen.ellipse(x, y, 0.015, 0.015, (250, 190, 40), line=None)


def _mountains(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((150, 200, 240), (232, 240, 246))
    for x, top, colour in (
        (0.12, 0.22, (112, 124, 156)), (0.90, 0.18, (98, 110, 146)), (0.5, 0.30, (130, 140, 168)),
    ):  # fmt: skip
        x, top = x + rng.uniform(-0.06, 0.06), top + rng.uniform(-0.04, 0.04)
        pen.polygon([(x - 0.42, 0.85), (x, top), (x + 0.42, 0.85)], colour, line=None)
        cap = [
            (x - 0.11, top + 0.165),
            (x, top),
            (x + 0.11, top + 0.165),
            (x + 0.03, top + 0.12),
            (x - 0.03, top + 0.165),
        ]
        pen.polygon(cap, (250, 252, 255), line=None)
    _hill(pen, 0.5, 0.74, 1.1, 0.5, (92, 150, 96))


def _sunset(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((112, 62, 140), (255, 168, 84))
    x = 0.5 + rng.choice((-1.0, 1.0)) * rng.uniform(0.28, 0.36)
    pen.ellipse(x, 0.62, 0.15, 0.15, (255, 226, 120), line=None)
    _floor(pen, 0.66, (92, 62, 128))
    for y, half in ((0.71, 0.12), (0.77, 0.09), (0.83, 0.06)):
        pen.line([(x - half, y), (x + half, y)], (255, 196, 110), 0.022)


def _castle(pen: Pen, rng: np.random.Generator) -> None:
    pen.gradient((168, 170, 236), (250, 216, 232))
    stone, roof = (170, 164, 186), (206, 84, 108)
    pen.polygon([(0.0, 0.9), (0.0, 0.52), (1.0, 0.52), (1.0, 0.9)], stone, line=None)
    for x in (0.11, 0.89):
        x, top = x + rng.uniform(-0.02, 0.02), rng.uniform(0.28, 0.36)
        pen.polygon(
            [(x - 0.1, 0.9), (x - 0.1, top), (x + 0.1, top), (x + 0.1, 0.9)],
            mix(stone, _WHITE, 0.2),
            line=None,
        )
        pen.polygon([(x - 0.13, top), (x, top - 0.24), (x + 0.13, top)], roof, line=None)
        pen.polygon(superellipse(x, top + 0.14, 0.032, 0.055, 2.0, 16), (84, 74, 110), line=None)
    _hill(pen, 0.5, 0.78, 1.1, 0.5, (120, 184, 104))


_PAINTERS: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    "snow": _snow, "beach": _beach, "forest": _forest, "city": _city, "night": _night,
    "space": _space, "underwater": _underwater, "desert": _desert, "meadow": _meadow,
    "mountains": _mountains, "sunset": _sunset, "castle": _castle,
}  # fmt: skip
