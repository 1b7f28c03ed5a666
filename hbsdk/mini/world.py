"""The mini world: endless cartoon characters, drawn from seeds, in many scenes and styles.

A picture is `render(identity(seed), view(rng), context(rng))`; the identity decides who it is,
the view and the context everything else.
"""

from __future__ import annotations

import cv2
import numpy as np

from hbsdk.mini.captions import caption
from hbsdk.mini.draw_accessory import draw_accessory
from hbsdk.mini.draw_character import draw_character
from hbsdk.mini.draw_scene import draw_scene
from hbsdk.mini.draw_style import INKS, apply_style, mute_scene
from hbsdk.mini.factors import (
    ACCESSORIES,
    EXPRESSIONS,
    EYES,
    FACTORS,
    HELD_OUT,
    HELD_OUT_SEEDS,
    NEUTRAL_VIEW,
    OUT_OF_DOMAIN_SEEDS,
    PLACES,
    PLAIN,
    PLAIN_CONTEXTS,
    PLAIN_SCENES,
    SCENES,
    STYLES,
    TRAIN_SEEDS,
    Context,
    Identity,
    View,
    attributes,
    context,
    identity,
    view,
)
from hbsdk.mini.head import head_of
from hbsdk.mini.pen import Array, Pen

__all__ = [
    "ACCESSORIES", "EXPRESSIONS", "EYES", "FACTORS", "HELD_OUT", "HELD_OUT_SEEDS", "NEUTRAL_VIEW",
    "OUT_OF_DOMAIN_SEEDS", "PLACES", "PLAIN", "PLAIN_CONTEXTS", "PLAIN_SCENES", "SCENES", "STYLES",
    "TRAIN_SEEDS", "Context", "Identity", "View", "attributes", "caption", "context", "identity",
    "render", "view",
]  # fmt: skip

_FINE_PX = 128  # pictures below this size are drawn three times larger, others twice


def render(
    identity: Identity, view: View, context: Context, *, height: int = 64, width: int = 64
) -> tuple[Array, Array]:
    """Draw a picture, deterministically.

    Args:
        identity: who it is.
        view: where and how it looks; `view.variant` also places the scene's things.
        context: the scene, the style and the accessory around it.
        height: in pixels, at least 16.
        width: in pixels, at least 16.

    Returns:
        The picture, (H, W, 3) uint8 RGB, and its mask, (H, W) uint8 in {0, 1}: the character's
        own silhouette. Where a context's accessory covers the character it counts as character;
        its parts outside of the silhouette do not.

    Raises:
        ValueError: a side is below 16 pixels.
    """
    if min(height, width) < 16:
        raise ValueError(f"expected sides of at least 16 px, got {height} x {width}")
    factor = 3 if min(height, width) < _FINE_PX else 2
    tall, wide = height * factor, width * factor
    ink = INKS.get(context.style, "colour")
    scene = np.zeros((tall, wide, 4), np.uint8)
    long, short = max(tall, wide), min(tall, wide)
    pen = Pen(scene, long, (wide - long) / 2, (tall - long) / 2)
    draw_scene(pen, context.scene, view.variant)
    layer = np.zeros((tall, wide, 4), np.uint8)
    pen = Pen(
        layer, short, (wide - short) / 2, tall - short, view.scale, view.tilt_deg, (0.5, 0.62),
        (view.shift_x, view.shift_y), ink,
    )  # fmt: skip
    draw_character(pen, identity, view)
    silhouette = layer[..., 3].copy()
    draw_accessory(pen, context.accessory, head_of(identity))
    size = (width, height)
    background = mute_scene(_shrunk(scene, size)[..., :3], context.style)
    picture = _composed(background, _shrunk(layer, size), ink)
    mask = (_shrunk(silhouette, size) >= 128).astype(np.uint8)
    return apply_style(picture, context.style), mask


def _shrunk(layer: Array, size: tuple[int, int]) -> Array:
    return np.asarray(cv2.resize(layer, size, interpolation=cv2.INTER_AREA), np.uint8)


def _composed(scene: Array, layer: Array, ink: str) -> Array:
    """Lay a premultiplied character layer, softly shaded downwards, over a scene."""
    alpha = layer[..., 3:].astype(np.float32) / 255.0
    figure = layer[..., :3].astype(np.float32)
    if ink == "colour":
        figure *= np.linspace(1.06, 0.88, layer.shape[0], dtype=np.float32)[:, None, None]
    picture = scene * (1.0 - alpha) + figure
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
