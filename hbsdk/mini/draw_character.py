"""Draws a character's bust: the body, its clothes and neck item, and what `draw_head` adds."""

from __future__ import annotations

import numpy as np

from hbsdk.mini.draw_face import draw_face, draw_glasses
from hbsdk.mini.draw_head import (
    draw_back_hair,
    draw_ears,
    draw_front_hair,
    draw_head,
    draw_horns,
    draw_jewels,
)
from hbsdk.mini.factors import Identity, View
from hbsdk.mini.head import SIDES, head_of
from hbsdk.mini.palette import COLOURS, OUTLINE, Colour, mix
from hbsdk.mini.pen import Pen, arc, superellipse


def draw_character(pen: Pen, identity: Identity, view: View) -> None:
    """Draw all of the character, except for the accessory of its context."""
    head = head_of(identity)
    draw_back_hair(pen, identity, head)
    _draw_body(pen, identity)
    _draw_neck_item(pen, identity)
    draw_horns(pen, identity, head)
    if identity.ears != "floppy":
        draw_ears(pen, identity, head)
    draw_head(pen, identity, head)
    draw_face(pen, identity, view)
    draw_front_hair(pen, identity, head)
    if identity.ears == "floppy":
        draw_ears(pen, identity, head)
    draw_glasses(pen, identity)
    draw_jewels(pen, identity, head)


def _draw_body(pen: Pen, identity: Identity) -> None:
    fur, second = COLOURS[identity.fur], COLOURS[identity.second]
    clothed = identity.clothes != "none"
    cloth = COLOURS[identity.clothes_colour] if clothed else fur
    shape = superellipse(0.5, 1.07, 0.265, 0.37, 2.6)
    if identity.clothes == "hoodie":
        pen.ellipse(0.5, 0.755, 0.265, 0.095, mix(cloth, OUTLINE, 0.18))
    base = COLOURS["white" if identity.clothes_colour != "white" else "blue"]
    pen.polygon(shape, base if identity.clothes == "overalls" else cloth)
    if not clothed:
        with pen.clipped(shape):
            pen.ellipse(0.5, 0.98, 0.150, 0.17, second, line=None)
    elif identity.clothes != "shirt":
        with pen.clipped(shape):
            _draw_clothes_details(pen, identity.clothes, cloth, base)
    for side in SIDES:
        x = 0.5 + 0.195 * side
        pen.line([(x, 1.2), (x - 0.01 * side, 0.93)], mix(cloth, OUTLINE, 0.75))


def _draw_clothes_details(pen: Pen, clothes: str, cloth: Colour, base: Colour) -> None:
    if clothes == "striped":
        for y in (0.805, 0.905, 1.005, 1.105):
            pen.polygon([(0.1, y), (0.9, y), (0.9, y + 0.046), (0.1, y + 0.046)], base, line=None)
    elif clothes == "hoodie":
        pen.polygon(
            [(0.38, 1.1), (0.41, 0.92), (0.59, 0.92), (0.62, 1.1)], mix(cloth, OUTLINE, 0.2)
        )
        for side in SIDES:
            x = 0.5 + 0.05 * side
            pen.line([(x, 0.74), (x + 0.01 * side, 0.86)], COLOURS["white"], 0.026)
    else:
        pen.polygon([(0.365, 1.3), (0.365, 0.855), (0.635, 0.855), (0.635, 1.3)], cloth)
        pen.polygon([(0.1, 1.3), (0.1, 0.99), (0.9, 0.99), (0.9, 1.3)], cloth, line=None)
        for side in SIDES:
            pen.line([(0.5 + 0.115 * side, 0.88), (0.5 + 0.15 * side, 0.68)], cloth, 0.055)
            pen.ellipse(0.5 + 0.105 * side, 0.885, 0.02, 0.02, COLOURS["gold"], line=None)


def _draw_neck_item(pen: Pen, identity: Identity) -> None:
    if identity.neck == "none":
        return
    colour = COLOURS[identity.neck_colour]
    y = 0.79 if identity.head == "tall" else 0.765
    if identity.neck == "beads":
        spots = arc(0.5, y - 0.02, 0.19, 0.085, 165.0, 15.0, 7)
        pen.blobs([(float(px), float(py), 0.026) for px, py in spots], colour)
    elif identity.neck == "collar":
        band = np.concatenate(
            [arc(0.5, y - 0.03, 0.20, 0.08, 170, 10), arc(0.5, y + 0.02, 0.20, 0.08, 10, 170)]
        )
        pen.polygon(band, colour)
        pen.ellipse(0.5, y + 0.105, 0.034, 0.034, COLOURS["gold"])
    else:
        y += 0.045
        for side in SIDES:
            x = 0.5 + 0.115 * side
            pen.polygon([(0.5, y), (x, y - 0.058), (x + 0.012 * side, y), (x, y + 0.058)], colour)
        pen.ellipse(0.5, y, 0.027, 0.032, mix(colour, OUTLINE, 0.15))
