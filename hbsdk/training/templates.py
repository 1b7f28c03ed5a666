"""Prompts for pictures that come without one: neutral sentences about "S*"."""

from __future__ import annotations

import numpy as np

from hbsdk.text import placeholders

SUBJECT = "S*"

# Textual Inversion's list for objects (Gal et al. 2022; "ImageNet small", 27 sentences).
# Deviation: no article stands alone before the subject. S* is a name here ("a watercolor of S* in
# the snow"), where theirs is a noun ("a photo of a S*").
TEMPLATES = (
    "a photo of {}",
    "a rendering of {}",
    "a cropped photo of the {}",
    "the photo of {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of {}",
    "a bright photo of the {}",
    "a cropped photo of {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of {}",
    "a photo of a nice {}",
    "a good photo of {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)

_MOST_BYTES_BEFORE_SUBJECT = 64


def choose_prompt(caption: str | None, rng: np.random.Generator) -> str:
    """Return the caption if training can use it, else a template that `rng` chooses.

    Args:
        caption: what the picture's data says of it, or None.
        rng: drawn from once, whichever it is.
    """
    template = TEMPLATES[int(rng.integers(len(TEMPLATES)))]
    if caption is not None and _is_usable(caption):
        return " ".join(caption.split())
    return template.format(SUBJECT)


def _is_usable(caption: str) -> bool:
    """Whether "S*" is in it once, no other subject is, and the text encoder surely reads it.

    CLIP makes at most one token of a byte that is no white space, so that S* with ten words and
    less is within its 77 tokens wherever this says so, whatever the language and the vocabulary.
    """
    if placeholders(caption) != [SUBJECT.lower()]:
        return False
    before = "".join(caption.lower().partition(SUBJECT.lower())[0].split())
    return len(before.encode("utf-8", "replace")) <= _MOST_BYTES_BEFORE_SUBJECT
