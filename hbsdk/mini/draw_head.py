"""Draws a character's head around the face: ears, horns, pattern, hair, earrings and hair bow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hbsdk.mini.factors import Identity
from hbsdk.mini.head import SIDES, Head
from hbsdk.mini.palette import COLOURS, OUTLINE, Colour, mix
from hbsdk.mini.pen import Pen, arc, superellipse


def draw_horns(pen: Pen, identity: Identity, head: Head) -> None:
    """Draw the horns; the head hides their feet."""
    if identity.horns == "none":
        return
    bone = COLOURS["cream"]
    for side in SIDES:
        x, y = head.edge(-90 + 27 * side, -0.02)
        if identity.horns == "small":
            pen.polygon(
                [(x - 0.05, y + 0.03), (x + 0.03 * side, y - 0.12), (x + 0.05, y + 0.03)], bone
            )
        else:
            outer = arc(x - 0.02 * side, y - 0.06, 0.115 * side, 0.11, 80, -75)
            inner = arc(x - 0.02 * side, y - 0.09, 0.055 * side, 0.06, -70, 100)
            pen.polygon(np.concatenate([outer, inner]), bone)


def _ear_tip(
    head: Head, side: float, spread: float, base: float, length: float, lean: float
) -> list[tuple[float, float]]:
    """Return a triangle on the head's outline `base` degrees wide, `length` units high."""
    angle = -90 + spread * side
    low = head.edge(angle - base * side, -0.03)
    high = head.edge(angle + base * side, -0.03)
    x, y = head.edge(angle)
    return [low, (x + lean * side, y - length), high]


def _shrunk(points: list[tuple[float, float]], amount: float) -> list[tuple[float, float]]:
    """Return the points moved towards their mean by `amount` (0..1)."""
    middle = np.mean(points, axis=0)
    return [(x + (middle[0] - x) * amount, y + (middle[1] - y) * amount) for x, y in points]


def draw_ears(pen: Pen, identity: Identity, head: Head) -> None:
    """Draw both ears; floppy ones lie over the head, others behind it."""
    fur, inner = COLOURS[identity.fur], COLOURS[identity.second]
    for side in SIDES:
        coat = fur
        if identity.pattern in ("patches", "half") and side > 0:
            coat = COLOURS[identity.pattern_colour]
        if identity.ears == "pointy":
            ear = _ear_tip(head, side, 40, 25, 0.165, 0.045)
            pen.polygon(ear, coat)
            pen.polygon(_shrunk(ear, 0.40), inner, line=None)
        elif identity.ears == "tufted":
            ear = _ear_tip(head, side, 40, 24, 0.13, 0.05)
            x, y = ear[1]
            pen.polygon(ear, coat)
            tuft = [
                (x - 0.05 * side, y + 0.05),
                (x + 0.03 * side, y - 0.10),
                (x + 0.03 * side, y + 0.05),
            ]
            pen.polygon(tuft, COLOURS["black"])
        elif identity.ears == "round":
            x, y = head.edge(-90 + 46 * side)
            pen.ellipse(x + 0.015 * side, y - 0.015, 0.093, 0.093, coat)
            pen.ellipse(x + 0.015 * side, y - 0.01, 0.055, 0.055, inner, line=None)
        elif identity.ears == "long":
            x, y = head.edge(-90 + 26 * side)
            pen.ellipse(x + 0.02 * side, y - 0.105, 0.064, 0.165, coat, angle_deg=9 * side)
            pen.ellipse(
                x + 0.02 * side, y - 0.10, 0.033, 0.12, inner, line=None, angle_deg=9 * side
            )
        elif identity.ears == "floppy":
            x, y = head.edge(-90 + 62 * side)
            dark = mix(coat, OUTLINE, 0.22)
            pen.ellipse(x + 0.035 * side, y + 0.135, 0.072, 0.165, dark, angle_deg=-14 * side)
        elif identity.ears == "elf":
            x, y = head.edge(-90 + 88 * side, -0.02)
            pen.polygon([(x, y - 0.07), (x + 0.165 * side, y - 0.10), (x, y + 0.07)], coat)
            pen.polygon(
                [(x, y - 0.03), (x + 0.10 * side, y - 0.065), (x, y + 0.035)], inner, line=None
            )
        elif identity.ears == "small":
            x, y = head.edge(-90 + 90 * side)
            pen.ellipse(x + 0.005 * side, y + 0.03, 0.050, 0.060, coat)


def draw_head(pen: Pen, identity: Identity, head: Head) -> None:
    """Draw the bare head with its pattern."""
    fur, second = COLOURS[identity.fur], COLOURS[identity.second]
    if identity.kind == "fox":
        for side in SIDES:
            x, y = head.edge(90 - 55 * side)
            cheek = [(x - 0.12 * side, y - 0.2), (x + 0.11 * side, y - 0.03), (x - 0.15 * side, y)]
            pen.polygon(cheek, second)
    outline = head.outline()
    pen.polygon(outline, fur)
    with pen.clipped(outline):
        if identity.kind == "fox":
            for side in SIDES:
                x, y = head.at(0.74 * side, 0.82)
                pen.ellipse(x, y, 0.16, 0.12, second, line=None, angle_deg=-30 * side)
        if identity.pattern != "none":
            _draw_pattern(pen, identity.pattern, COLOURS[identity.pattern_colour], head)


def _draw_pattern(pen: Pen, pattern: str, colour: Colour, head: Head) -> None:
    if pattern == "stripes":
        for offset, depth in ((-0.12, 0.13), (0.0, 0.17), (0.12, 0.13)):
            x, y = 0.5 + offset, head.y - head.ry
            pen.polygon(
                [(x - 0.034, y - 0.1), (x + 0.034, y - 0.1), (x, y + depth)], colour, line=None
            )
        for side in SIDES:
            for v in (0.10, 0.48):
                x, y = head.at(side, v)
                tip = (x - 0.15 * side, y + 0.01)
                pen.polygon(
                    [(x + 0.1 * side, y - 0.045), tip, (x + 0.1 * side, y + 0.045)],
                    colour,
                    line=None,
                )
    elif pattern == "spots":
        for u, v, radius in (
            (-0.42, -0.75, 0.052), (0.12, -0.74, 0.045), (0.68, -0.52, 0.05),
            (-0.88, -0.08, 0.045), (-0.66, 0.52, 0.05), (0.84, 0.28, 0.055), (0.52, 0.80, 0.04),
        ):  # fmt: skip
            pen.ellipse(*head.at(u, v), radius, radius, colour, line=None)
    elif pattern == "patches":
        pen.ellipse(0.385, 0.455, 0.135, 0.15, colour, line=None, angle_deg=20)
        pen.ellipse(*head.at(0.78, -0.85), 0.13, 0.12, colour, line=None)
        pen.ellipse(*head.at(0.80, 0.72), 0.09, 0.08, colour, line=None)
    elif pattern == "mask":
        for side in SIDES:
            pen.ellipse(
                0.5 + 0.135 * side, 0.465, 0.165, 0.118, colour, line=None, angle_deg=12 * side
            )
    else:
        pen.polygon([(0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0)], colour, line=None)


def draw_back_hair(pen: Pen, identity: Identity, head: Head) -> None:
    """Draw the hair behind the head."""
    if identity.hair in ("none", "spiky", "mohawk"):
        return
    hair = COLOURS[identity.hair_colour]
    x, y, rx, ry = head.x, head.y, head.rx, head.ry
    if identity.hair == "curly":
        angles = range(-205, 30, 26)
        pen.blobs([(*head.edge(angle, 0.005), 0.092) for angle in angles], hair)
    elif identity.hair == "bun":
        pen.ellipse(x, y - ry - 0.075, 0.105, 0.10, hair)
    elif identity.hair == "bob":
        pen.polygon(superellipse(x, y + 0.02, rx + 0.055, ry + 0.055, 3.2), hair)
    else:
        pen.polygon(superellipse(x, y + 0.165, rx + 0.06, ry + 0.21, 2.8), mix(hair, OUTLINE, 0.12))


def _cap(head: Head, v: float, dip: float) -> NDArray[np.float64]:
    """Return the part of the head above `v`, slightly larger, with a fringe that dips by `dip`."""
    outline = head.outline(0.022)
    level = head.y + v * head.ry
    top = outline[outline[:, 1] <= level]
    top = top[np.argsort(top[:, 0])]
    across = np.linspace(top[-1, 0], top[0, 0], 15)
    wave = dip * np.sin(np.linspace(0.0, np.pi, 15))
    return np.concatenate([top, np.stack([across, level + 0.02 + wave], axis=1)])


def draw_front_hair(pen: Pen, identity: Identity, head: Head) -> None:
    """Draw the hair over the head."""
    if identity.hair == "none":
        return
    hair = COLOURS[identity.hair_colour]
    top = head.y - head.ry
    if identity.hair == "curly":
        pen.blobs(
            [(0.5 + 0.1 * i, top + 0.045 + 0.012 * i * i, 0.075) for i in (-2, 2, -1, 1, 0)], hair
        )
    elif identity.hair == "bob":
        pen.polygon(_cap(head, -0.52, 0.0), hair)
    elif identity.hair == "bun":
        pen.polygon(_cap(head, -0.36, -0.14), hair)
    elif identity.hair == "long":
        pen.polygon(_cap(head, -0.34, -0.15), hair)
        pen.line([(0.5, top), (0.5, top + 0.08)], mix(hair, OUTLINE, 0.7))
    elif identity.hair == "spiky":
        _draw_spikes(pen, head, hair)
    else:
        crest = [(0.43, top + 0.075), (0.40, top - 0.05), (0.455, top - 0.04), (0.47, top - 0.14)]
        mirrored = [(1.0 - x, y) for x, y in reversed(crest)]
        pen.polygon([*crest, (0.5, top - 0.085), *mirrored, (0.5, top + 0.13)], hair)


def _draw_spikes(pen: Pen, head: Head, hair: Colour) -> None:
    points: list[tuple[float, float]] = []
    for index, angle in enumerate(range(-168, -11, 13)):
        points.append(head.edge(angle, 0.10 if index % 2 else 0.012))
    level = head.y - 0.46 * head.ry
    left, right = head.x - head.rx * 0.94, head.x + head.rx * 0.94
    for index, x in enumerate(np.linspace(right, left, 9)):
        points.append((float(x), level + (0.045 if index % 2 else -0.03)))
    pen.polygon(points, hair)


def draw_jewels(pen: Pen, identity: Identity, head: Head) -> None:
    """Draw the earrings and the hair bow."""
    if identity.earrings != "none":
        for side in SIDES:
            x, y = head.edge(90 - 66 * side)
            pen.ellipse(x + 0.012 * side, y + 0.01, 0.036, 0.042, COLOURS["gold"])
    if identity.bow != "none":
        colour = COLOURS[identity.bow]
        x, y = head.edge(-52, -0.02)
        for side in SIDES:
            tip = x + 0.105 * side
            pen.polygon([(x, y), (tip, y - 0.075), (tip, y + 0.06)], colour)
        pen.ellipse(x, y, 0.03, 0.03, mix(colour, OUTLINE, 0.2))
