"""Draws a character's face: eyes, brows, cheeks, muzzle, nose, mouth, whiskers and glasses."""

from __future__ import annotations

from hbsdk.mini.factors import Identity, View
from hbsdk.mini.head import SIDES
from hbsdk.mini.palette import (
    COLOURS,
    EYE_WHITE,
    MOUTH,
    OUTLINE,
    PUPIL,
    TONGUE,
    Colour,
    luminance,
    mix,
)
from hbsdk.mini.pen import Pen, arc

EYE_X, EYE_Y = 0.122, 0.462
_NOSE_Y = 0.575
_MOUTH_Y = 0.632


def draw_face(pen: Pen, identity: Identity, view: View) -> None:
    """Draw the face of an identity with the expression, gaze and lids of a view."""
    _draw_cheeks(pen, identity)
    _draw_muzzle(pen, identity)
    _draw_mouth(pen, identity, view.expression)
    _draw_nose(pen, identity)
    if identity.whiskers != "none":
        for side in SIDES:
            for rise in (-0.03, 0.035):
                y = 0.605 + rise
                pen.line(
                    [(0.5 + 0.15 * side, y), (0.5 + 0.30 * side, y + rise)],
                    _ink_on(identity),
                    0.0155,
                )
    for side in SIDES:
        shut = view.eyes == "closed" or (view.eyes == "wink" and side > 0)
        if shut:
            _draw_shut_eye(pen, identity, side)
        else:
            _draw_open_eye(pen, identity, view, side)
        _draw_brow(pen, identity, view.expression, side)


def _ink_on(identity: Identity) -> Colour:
    """Return the line colour that is seen on the fur."""
    return OUTLINE if luminance(COLOURS[identity.fur]) > 80 else (215, 210, 215)


def _eye_radii(identity: Identity) -> tuple[float, float]:
    radius = 0.091 if identity.eye_size == "big" else 0.074
    if identity.eye_shape == "oval":
        return radius * 0.90, radius * 1.18
    return radius, radius


def _draw_open_eye(pen: Pen, identity: Identity, view: View, side: float) -> None:
    x, y = 0.5 + EYE_X * side, EYE_Y
    rx, ry = _eye_radii(identity)
    pen.ellipse(x, y, rx, ry, EYE_WHITE)
    iris = COLOURS[identity.eye_colour]
    wide = 0.62 if view.expression == "surprised" else 0.74
    ix, iy = x + view.gaze_x * rx * 0.22 - 0.008 * side, y + view.gaze_y * ry * 0.16
    pen.ellipse(ix, iy, rx * wide, rx * wide, iris, line=None)
    pen.ellipse(ix, iy, rx * 0.40, rx * 0.40, PUPIL, line=None)
    pen.ellipse(ix - rx * 0.27, iy - rx * 0.30, rx * 0.24, rx * 0.24, EYE_WHITE, line=None)
    if identity.eye_shape == "sleepy":
        lid = mix(COLOURS[identity.fur], OUTLINE, 0.14)
        if identity.pattern == "mask":
            lid = mix(COLOURS[identity.pattern_colour], OUTLINE, 0.14)
        pen.polygon(arc(x, y, rx, ry, 199, 341), lid)
    if identity.lashes != "none":
        for angle in (-48.0, -14.0):
            start = arc(x, y, rx * side, ry, angle, angle, 1)[0]
            end = arc(x, y, (rx + 0.055) * side, ry + 0.055, angle - 4, angle - 4, 1)[0]
            pen.line([(start[0], start[1]), (end[0], end[1])], OUTLINE, 0.022)


def _draw_shut_eye(pen: Pen, identity: Identity, side: float) -> None:
    x, y = 0.5 + EYE_X * side, EYE_Y
    rx, ry = _eye_radii(identity)
    colour = COLOURS[identity.fur]
    if identity.pattern == "mask" or (identity.pattern == "patches" and side < 0):
        colour = COLOURS[identity.pattern_colour]
    lid = mix(colour, OUTLINE, 0.14) if luminance(colour) > 80 else mix(colour, EYE_WHITE, 0.2)
    pen.ellipse(x, y, rx, ry, lid, line=None)
    pen.line(arc(x, y, rx, ry * 0.75, 5, 175), OUTLINE, 0.026)
    if identity.lashes != "none":
        end = x + (rx + 0.04) * side
        pen.line([(x + rx * side, y + 0.01), (end, y + 0.03)], OUTLINE, 0.022)


def _draw_brow(pen: Pen, identity: Identity, expression: str, side: float) -> None:
    moody = expression in ("angry", "sad")
    if identity.brows == "none" and not moody:
        return
    slope = {"angry": 0.036, "sad": -0.034}.get(expression, -0.006)
    _, ry = _eye_radii(identity)
    y = EYE_Y - ry - (0.055 if expression == "surprised" else 0.034) + (0.012 if moody else 0.0)
    inner = (0.5 + (EYE_X - 0.065) * side, y + slope)
    outer = (0.5 + (EYE_X + 0.07) * side, y - slope * 0.7)
    middle = (0.5 + EYE_X * side, y - (0.0 if moody else 0.016))
    pen.line(
        [inner, middle, outer], _ink_on(identity), 0.042 if identity.brows == "thick" else 0.024
    )


def _draw_cheeks(pen: Pen, identity: Identity) -> None:
    if identity.cheeks == "none":
        return
    fur = COLOURS[identity.fur]
    for side in SIDES:
        x, y = 0.5 + 0.178 * side, 0.605
        if identity.cheeks == "blush":
            rosy = (232, 84, 92) if identity.fur == "pink" else (246, 112, 132)
            pen.ellipse(x, y, 0.052, 0.034, mix(fur, rosy, 0.85), line=None)
        else:
            dark = mix(fur, (110, 50, 30), 0.8) if luminance(fur) > 110 else (236, 200, 160)
            for dx, dy in ((-0.03, 0.0), (0.012, -0.022), (0.018, 0.026)):
                pen.ellipse(x + dx * side, y + dy, 0.0135, 0.0135, dark, line=None)


def _draw_muzzle(pen: Pen, identity: Identity) -> None:
    second = COLOURS[identity.second]
    if identity.muzzle == "round":
        pen.ellipse(0.5, 0.632, 0.118, 0.096, second, line=None)
    elif identity.muzzle == "wide":
        for side in SIDES:
            pen.ellipse(0.5 + 0.066 * side, 0.632, 0.098, 0.078, second, line=None)


def _draw_nose(pen: Pen, identity: Identity) -> None:
    colour, y = COLOURS[identity.nose_colour], _NOSE_Y
    if identity.nose_colour == "black":
        colour = (40, 34, 42)
    if identity.nose == "triangle":
        pen.polygon([(0.452, y - 0.025), (0.548, y - 0.025), (0.5, y + 0.033)], colour)
    elif identity.nose == "oval":
        pen.ellipse(0.5, y, 0.054, 0.033, colour)
        pen.ellipse(0.484, y - 0.012, 0.015, 0.009, mix(colour, EYE_WHITE, 0.6), line=None)
    elif identity.nose == "button":
        pen.ellipse(0.5, y, 0.031, 0.029, colour)
    else:
        pen.blobs([(0.481, y - 0.008, 0.024), (0.519, y - 0.008, 0.024)], colour)
        pen.polygon([(0.459, y), (0.541, y), (0.5, y + 0.037)], colour, line=None)


def _draw_mouth(pen: Pen, identity: Identity, expression: str) -> None:
    y = _MOUTH_Y
    ink = OUTLINE if identity.muzzle != "none" else _ink_on(identity)
    half = 0.07
    if expression == "laughing":
        half = 0.082
        pen.polygon(arc(0.5, y, half, 0.088, 0, 180), MOUTH)
        pen.ellipse(0.5, y + 0.062, 0.045, 0.022, TONGUE, line=None)
        y += 0.002
    elif expression == "surprised":
        half = 0.0
        pen.ellipse(0.5, y + 0.038, 0.036, 0.044, MOUTH)
    elif expression == "smiling":
        half = 0.088
        pen.line(arc(0.5, y - 0.012, half, 0.068, 12, 168), ink, 0.025)
    elif expression == "sad":
        pen.line(arc(0.5, y + 0.068, half, 0.052, 198, 342), ink, 0.025)
    elif expression == "angry":
        pen.line(
            [(0.43, y + 0.045), (0.47, y + 0.022), (0.53, y + 0.022), (0.57, y + 0.045)], ink, 0.025
        )
    else:
        pen.line(arc(0.5, y + 0.006, 0.05, 0.026, 10, 170), ink, 0.025)
    _draw_teeth(pen, identity.teeth, expression)


def _draw_teeth(pen: Pen, teeth: str, expression: str) -> None:
    lift = {"sad": 0.008, "angry": 0.016, "smiling": 0.022, "surprised": -0.012}.get(
        expression, 0.0
    )
    y = _MOUTH_Y + 0.014 + lift
    if teeth == "buck":
        pen.polygon([(0.468, y), (0.532, y), (0.529, y + 0.052), (0.471, y + 0.052)], EYE_WHITE)
        pen.line([(0.5, y), (0.5, y + 0.05)], mix(OUTLINE, EYE_WHITE, 0.3), 0.010)
    elif teeth == "fangs":
        for side in SIDES:
            x = 0.5 + 0.05 * side
            pen.polygon([(x - 0.019, y - 0.006), (x + 0.019, y - 0.006), (x, y + 0.052)], EYE_WHITE)


def draw_glasses(pen: Pen, identity: Identity) -> None:
    """Draw the identity's own glasses."""
    if identity.glasses == "none":
        return
    colour = COLOURS[identity.glasses_colour]
    y, radius = EYE_Y, 0.108
    if identity.glasses == "monocle":
        x = 0.5 + EYE_X
        pen.line(arc(x, y, radius, radius, 0, 360, 28), colour, 0.030)
        pen.line([(x + 0.08, y + 0.08), (x + 0.10, y + 0.33)], colour, 0.020)
        return
    for side in SIDES:
        x = 0.5 + EYE_X * side
        if identity.glasses == "round":
            pen.line(arc(x, y, radius, radius, 0, 360, 28), colour, 0.026)
        else:
            low, high, top, bottom = x - 0.112, x + 0.112, y - 0.113, y + 0.113
            corners = [(low, top), (high, top), (high, bottom), (low, bottom)]
            pen.line([*corners, corners[0]], colour, 0.022)
        pen.line([(x + radius * side, y), (x + 0.19 * side, y - 0.015)], colour, 0.022)
