"""Turns a finished cartoon picture into a picture in another style."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

from hbsdk.mini.pen import Array

Floats = NDArray[np.float32]
INKS = {"neon": "neon", "sketch": "sketch"}  # styles that the pen draws by itself
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def apply_style(picture: Array, style: str) -> Array:
    """Return a picture, (H, W, 3) uint8 RGB, in a style of `STYLES`."""
    if style == "cartoon":
        return picture
    return _STYLES[style](picture)


def mute_scene(scene: Array, style: str) -> Array:
    """Return a scene, (H, W, 3) uint8 RGB, as the background of a style that the pen draws."""
    if style not in INKS:
        return scene
    grey = (scene.astype(np.float32) @ _GREY)[..., None]
    if style == "sketch":
        return _as_picture(np.repeat(196.0 + 0.22 * grey, 3, axis=2))
    dark = np.array([14.0, 8.0, 30.0], np.float32)
    vivid = 1.4 * scene.astype(np.float32) - 0.4 * grey
    return _as_picture(np.asarray(dark + 0.28 * vivid, np.float32))


@functools.lru_cache(maxsize=8)
def _wash(height: int, width: int) -> Floats:
    """Return watercolor's uneven pigment, (H, W, 1) in 0.8..1.2."""
    coarse = np.random.default_rng(7).uniform(0.72, 1.28, (7, 7)).astype(np.float32)
    fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(fine, np.float32)[..., None]


@functools.lru_cache(maxsize=8)
def _paper_edge(height: int, width: int) -> Floats:
    """Return how much paint reaches a pixel, (H, W, 1): 1 inside, 0 at the picture's rim."""
    rows = np.minimum(np.arange(height) + 0.5, height - np.arange(height) - 0.5) / height
    columns = np.minimum(np.arange(width) + 0.5, width - np.arange(width) - 0.5) / width
    reach = np.minimum(rows[:, None], columns[None, :]) / 0.06
    return np.asarray(np.clip(reach, 0.0, 1.0), np.float32)[..., None]


def _as_picture(values: NDArray[np.float32]) -> Array:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _watercolor(picture: Array) -> Array:
    height, width = picture.shape[:2]
    soft = cv2.GaussianBlur(picture, (0, 0), 0.006 * width).astype(np.float32)
    pigment = (255.0 - soft) * _wash(height, width) * 0.82
    pigment *= _paper_edge(height, width)
    return _as_picture(np.array([254.0, 251.0, 244.0], np.float32) - pigment)


def _black_and_white(picture: Array) -> Array:
    grey = picture.astype(np.float32) @ _GREY
    contrast = (grey - 118.0) * 1.18 + 118.0
    return _as_picture(np.repeat(contrast[..., None], 3, axis=2))


def _sepia(picture: Array) -> Array:
    grey = (picture.astype(np.float32) @ _GREY)[..., None] / 255.0
    dark, light = np.array([58, 30, 14], np.float32), np.array([255, 236, 196], np.float32)
    return _as_picture(dark + (light - dark) * grey)


def _pixel_art(picture: Array) -> Array:
    height, width = picture.shape[:2]
    cell = max(2, round(min(height, width) / 32))
    rows, columns = -(-height // cell), -(-width // cell)
    small = cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA)
    levels = (small.astype(np.float32) / 36.0).round() * 36.0
    large = np.kron(_as_picture(levels), np.ones((cell, cell, 1), np.uint8))
    return np.ascontiguousarray(large[:height, :width])


def _neon(picture: Array) -> Array:
    light = picture.astype(np.float32)
    glow = cv2.GaussianBlur(light, (0, 0), 0.022 * picture.shape[1])
    return _as_picture(light + 0.55 * glow)


def _sketch(picture: Array) -> Array:
    paper = np.array([1.0, 0.985, 0.945], np.float32)
    return _as_picture(picture.astype(np.float32) * paper)


_STYLES = {
    "watercolor": _watercolor, "black and white": _black_and_white, "sepia": _sepia,
    "pixel art": _pixel_art, "neon": _neon, "sketch": _sketch,
}  # fmt: skip
