"""Draws the accessory that a context puts on, or next to, a character."""

from __future__ import annotations

import numpy as np

from hbsdk.mini.draw_face import EYE_X, EYE_Y
from hbsdk.mini.head import SIDES, Head
from hbsdk.mini.palette import COLOURS, EYE_WHITE, OUTLINE, Colour, mix
from hbsdk.mini.pen import Pen, arc

_BLACK: Colour = (40, 38, 48)


def draw_accessory(pen: Pen, accessory: str, head: Head) -> None:
    """Draw an accessory of `ACCESSORIES`; "none" draws nothing."""
    if accessory in ("red hat", "top hat"):
        _draw_hat(pen, head, tall=accessory == "top hat")
    elif accessory == "crown":
        _draw_crown(pen, head)
    elif accessory == "santa hat":
        _draw_santa_hat(pen, head)
    elif accessory == "sunglasses":
        _draw_sunglasses(pen)
    elif accessory == "headphones":
        _draw_headphones(pen, head)
    elif accessory == "balloon":
        pen.line([(0.875, 0.34), (0.86, 0.62), (0.885, 1.1)], OUTLINE, 0.014)
        pen.ellipse(0.875, 0.205, 0.098, 0.122, COLOURS["red"])
        pen.ellipse(0.845, 0.16, 0.022, 0.034, (255, 190, 190), line=None, angle_deg=25)
    elif accessory == "yellow scarf":
        _draw_scarf(pen, head)


def _draw_hat(pen: Pen, head: Head, *, tall: bool) -> None:
    colour = _BLACK if tall else COLOURS["red"]
    band = COLOURS["red"] if tall else _BLACK
    y = head.y - head.ry + 0.055
    low, high = (0.145, 0.135) if tall else (0.165, 0.125)
    top = y - (0.23 if tall else 0.165)
    crown = [(0.5 - low, y), (0.5 - high, top), (0.5 + high, top), (0.5 + low, y)]
    if not tall:
        crown = [*crown[:2], *map(tuple, arc(0.5, top, high, 0.055, 180, 360, 9)), *crown[2:]]
    pen.polygon(crown, colour)
    pen.polygon(
        [(0.5 - low, y), (0.5 - low, y - 0.055), (0.5 + low, y - 0.055), (0.5 + low, y)],
        band, line=None,
    )  # fmt: skip
    pen.ellipse(0.5, y + 0.005, 0.245, 0.036, colour)


def _draw_crown(pen: Pen, head: Head) -> None:
    y = head.y - head.ry + 0.05
    top = y - 0.20
    points = [
        (0.335, y), (0.315, top + 0.02), (0.415, y - 0.11), (0.5, top - 0.02), (0.585, y - 0.11),
        (0.685, top + 0.02), (0.665, y),
    ]  # fmt: skip
    pen.polygon(points, COLOURS["gold"])
    for x, colour in ((0.405, "red"), (0.5, "blue"), (0.595, "red")):
        pen.ellipse(x, y - 0.045, 0.024, 0.024, COLOURS[colour], line=None)


def _draw_santa_hat(pen: Pen, head: Head) -> None:
    y = head.y - head.ry + 0.045
    cone = [
        (0.305, y), (0.36, y - 0.12), (0.47, y - 0.20), (0.61, y - 0.20), (0.74, y - 0.08),
        (0.66, y - 0.09), (0.695, y),
    ]  # fmt: skip
    pen.polygon(cone, COLOURS["red"])
    pen.ellipse(0.755, y - 0.06, 0.052, 0.052, EYE_WHITE)
    pen.blobs([(0.5 + 0.066 * i, y + 0.004 * i * i, 0.045) for i in range(-3, 4)], EYE_WHITE)


def _draw_sunglasses(pen: Pen) -> None:
    y = EYE_Y - 0.005
    pen.line([(0.25, y - 0.055), (0.75, y - 0.055)], _BLACK, 0.034)
    for side in SIDES:
        x = 0.5 + EYE_X * side
        lens = [
            (x - 0.108, y - 0.075),
            (x + 0.108, y - 0.075),
            *arc(x, y - 0.02, 0.108, 0.12, 0, 180),
        ]
        pen.polygon(np.array(lens), _BLACK)
        shine = [(x - 0.07, y - 0.04), (x - 0.03, y - 0.04), (x - 0.065, y + 0.03)]
        pen.polygon(shine, (150, 170, 205), line=None)


def _draw_headphones(pen: Pen, head: Head) -> None:
    band = arc(head.x, head.y, head.rx + 0.03, head.ry + 0.04, 185, 355, 22)
    pen.line(band, OUTLINE, 0.072)
    pen.line(band, (92, 96, 116), 0.040)
    for side in SIDES:
        x = head.x + (head.rx + 0.012) * side
        pen.ellipse(x, head.y + 0.01, 0.060, 0.098, COLOURS["yellow"])
        pen.ellipse(x, head.y + 0.01, 0.026, 0.058, mix(COLOURS["orange"], OUTLINE, 0.1), line=None)


def _draw_scarf(pen: Pen, head: Head) -> None:
    colour = COLOURS["yellow"]
    y = head.y + head.ry - 0.005
    pen.polygon([(0.57, y), (0.69, y), (0.70, y + 0.235), (0.585, y + 0.25)], colour)
    wrap = np.concatenate(
        [arc(0.5, y - 0.045, 0.25, 0.065, 180, 0), arc(0.5, y + 0.025, 0.25, 0.085, 0, 180)]
    )
    pen.polygon(wrap, colour)
    for x in (0.38, 0.5, 0.62):
        pen.line([(x, y + 0.03), (x - 0.012, y + 0.095)], COLOURS["orange"], 0.022)
