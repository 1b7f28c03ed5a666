"""The last check: one whole picture, drawn by PyTorch and by the engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from export.recipe import LEAST_IMAGE_PSNR_DB, Recipe
from hbsdk.backends.choose import open_engine_backend
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder
from hbsdk.errors import EngineError
from hbsdk.session import Session

Array = npt.NDArray[Any]


def whole_picture(
    bundle: Bundle, engines: EngineFolder, recipe: Recipe, *, quiet: bool
) -> dict[str, Any]:
    """Draw one picture in PyTorch, float32, and on the engines.

    Engines of TensorRT are drawn on where there is a GPU that they are for; else their ONNX graphs
    are.

    Returns:
        The PSNR between both in dB; as a control, that between PyTorch's and its mirror image; and
        what was drawn on what.

    Raises:
        EngineError: the first is too low.
    """
    settings: dict[str, Any] = {
        "height": recipe.parity.image_height_px,
        "width": recipe.parity.image_width_px,
        "num_inference_steps": recipe.parity.num_inference_steps,
        "output_type": "np",
    }
    prompt = f"a photo of a {bundle.info.class_word}"
    session = Session(
        bundle, engine="torch", device="cpu", dtype="float32", memory="low", progress=not quiet
    )
    (reference,) = session.generate(prompt, **settings)
    session.backend = open_engine_backend(bundle, engines, memory="low")
    (drawn,) = session.generate(prompt, **settings)
    psnr_db = picture_psnr_db(drawn, reference)
    check_picture(psnr_db)
    return {
        "psnr_db": psnr_db,
        "mirrored_psnr_db": picture_psnr_db(reference, reference[:, ::-1]),
        "drawn_on": f"{session.backend.name}, {session.backend.device}",
        **{key: settings[key] for key in ("height", "width", "num_inference_steps")},
    }


def picture_psnr_db(one: Array, other: Array) -> float:
    """Return the PSNR of pictures in [0, 1], in dB; 120 where they are the same to 1e-6."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return -10.0 * float(np.log10(max(error, 1e-12)))


def check_picture(psnr_db: float) -> None:
    """Refuse engines whose whole picture is too far from PyTorch's.

    Raises:
        EngineError: its PSNR is below `recipe.LEAST_IMAGE_PSNR_DB`.
    """
    if not psnr_db >= LEAST_IMAGE_PSNR_DB:
        raise EngineError(
            "the picture that the engines draw", expected=f"PSNR of at least "
            f"{LEAST_IMAGE_PSNR_DB:g} dB against PyTorch's", got=f"{psnr_db:.1f} dB",
            remedy="Use float32 for the UNet in the recipe, or report it",
        )  # fmt: skip
