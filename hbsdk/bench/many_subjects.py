"""The probe for many photos at once. A part of the bench, until sessions can do it themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import hbsdk
from hbsdk.bench.tasks import draw_photo
from hbsdk.image import Reference, load_photo, make_reference
from hbsdk.mask import find_mask

_PHOTOS = 10  # different ones; more subjects take turns with them


def references_of(session: hbsdk.Session, number: int) -> list[Reference]:
    """Return so many photos, prepared as `personalize` prepares one."""
    size = session.bundle.info.image_size_px
    made = []
    for index in range(min(number, _PHOTOS)):
        pixels, mask = draw_photo(size, index)
        photo = load_photo(pixels)
        made.append(make_reference(photo, find_mask(photo, mask).values, size=size))
    return [made[index % len(made)] for index in range(number)]


def probe_many(session: hbsdk.Session, references: Sequence[Reference], chunk: int) -> Any:
    """Return the words of many photos, (N, n, d), `chunk` at once: the probe without refinement.

    Latents are of one photo at a time, as in `personalize`, so that they are the same ones.
    """
    import torch

    from hbsdk.features import extract_features

    backend = session.torch_backend
    regressor, words = backend.network("regressor"), []
    background = session.bundle.info.background
    with torch.no_grad():
        for start in range(0, len(references), chunk):
            part = references[start : start + chunk]
            pixels = torch.from_numpy(np.stack([one.pixels for one in part])).permute(0, 3, 1, 2)
            mask = torch.from_numpy(np.stack([one.mask for one in part]))[:, None]
            pixels, mask = pixels.to(backend.device), mask.to(backend.device)
            features = extract_features(
                backend.network("image_encoder"), backend.network("dino"), pixels, mask,
                background=background,
            )  # fmt: skip
            latents = backend.encode_image(pixels).to(regressor.dtype)
            words.append(regressor(latents, features.to(torch.float32)).float().cpu())
    return torch.cat(words).numpy()
