"""What is looked at while a training runs: TensorBoard's curves, and sheets of drawn samples."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hbsdk.bundle import Bundle
from hbsdk.errors import MissingDependencyError
from hbsdk.features import ImageFeatures, extract_features
from hbsdk.regressor import PromptRegressor
from hbsdk.session import Session
from hbsdk.subject import Subject
from hbsdk.training.pairs import Pair, PairSource, Pixels
from hbsdk.whole_file import write_whole

if TYPE_CHECKING:
    from hbsdk.backends.torch import TorchBackend

PROMPTS = ("a picture of S*", "a picture of S* in the snow", "a watercolor of S*")
SUBJECTS = 4
_LOOK_AT = 64  # pairs, to find subjects that differ
_STEPS = 20  # of the sampler
_LEAST_TILE_PX, _MOST_TILE_PX, _HEADER_PX, _GAP_PX = 128, 256, 20, 4


def has_tensorboard() -> bool:
    """Whether TensorBoard's files can be written."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoard:
    """Writes figures and pictures as TensorBoard reads them; an observer of a training."""

    def __init__(self, folder: Path) -> None:
        """Prepare; the folder is made when something is written.

        Args:
            folder: of the event files.

        Raises:
            MissingDependencyError: tensorboard is not installed.
        """
        if not has_tensorboard():
            raise MissingDependencyError(
                "--tensorboard", expected="the package tensorboard", got="none",
                remedy='Install it: pip install "hbsdk[research]"; or pass --no-tensorboard',
            )  # fmt: skip
        self._folder = folder
        self._writer: Any = None
        self._refused: str | None = None

    def _open(self, step: int) -> Any:
        if self._refused is not None:  # each attempt would leave a file and a thread
            raise OSError(self._refused)
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            try:
                # What a run wrote after the checkpoint that it is resumed from is not shown.
                self._writer = SummaryWriter(str(self._folder), purge_step=step)
            except OSError as error:
                self._refused = str(error)
                raise
        return self._writer

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Write a step's figures.

        Raises:
            OSError: they cannot be written.
        """
        writer = self._open(step)
        for name, value in figures.items():
            writer.add_scalar(f"train/{name}", value, step)
        writer.flush()

    def on_sample(self, step: int, regressor: PromptRegressor) -> None:
        """Nothing of the regressor itself is written."""

    def add_picture(self, step: int, pixels: Pixels) -> None:
        """Write an (H, W, 3) uint8 picture.

        Raises:
            OSError: it cannot be written.
        """
        writer = self._open(step)
        writer.add_image("samples", pixels, step, dataformats="HWC")
        writer.flush()

    def close(self) -> None:
        """Close the file; what cannot be written any more is warned of and ends nothing."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            warnings.warn(f"{self._folder} is not complete: {error}", stacklevel=2)


@dataclass(frozen=True)
class _Seen:
    """A subject of the sheet, and what the regressor sees of it, on the CPU."""

    pair: Pair
    latents: torch.Tensor
    features: ImageFeatures


class SampleSheets:
    """Draws a few subjects of the data in a few prompts; an observer of a training.

    The subjects and the noise are the same on every sheet, so that sheets can be compared.
    """

    def __init__(
        self,
        bundle: Bundle,
        source: PairSource,
        folder: Path,
        *,
        board: TensorBoard | None = None,
        prompts: Sequence[str] = PROMPTS,
    ) -> None:
        """Prepare; networks are loaded for each sheet and released after it.

        Args:
            bundle: that the regressor is trained for.
            source: of the training's pairs, of which the subjects are taken.
            folder: where step-000500.png and so on go.
            board: gets the sheets too.
            prompts: with "S*" once.
        """
        self._bundle, self._source, self._folder = bundle, source, folder
        self._board, self._prompts = board, tuple(prompts)
        self._seen: list[_Seen] = []

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures are not drawn."""

    @torch.no_grad()
    def on_sample(self, step: int, regressor: PromptRegressor) -> None:
        """Draw a sheet and write it.

        Raises:
            HbsdkError: the bundle cannot draw.
            OSError: the sheet cannot be written.
            RuntimeError: as torch's OutOfMemoryError: there is no memory for the networks.
        """
        session = Session(self._bundle, engine="torch", memory="low", progress=False)
        seen = self._seen = self._seen or self._look(session.torch_backend)
        rows = [self._row(session, regressor, one) for one in seen]
        sheet = _sheet(["reference", "target", *self._prompts], rows)
        file = io.BytesIO()
        sheet.save(file, "PNG")
        write_whole(self._folder / f"step-{step:06d}.png", file.getvalue())
        if self._board is not None:
            self._board.add_picture(step, np.asarray(sheet))

    def _look(self, backend: TorchBackend) -> list[_Seen]:
        pairs = _different(self._source.pairs(0, 0, range(min(_LOOK_AT, 4 * len(self._source)))))
        return [_Seen(pair, *_encode(backend, pair)) for pair in pairs]

    def _row(self, session: Session, regressor: PromptRegressor, seen: _Seen) -> list[Image.Image]:
        place = regressor.device
        features = ImageFeatures(seen.features.clip.to(place), seen.features.dino.to(place))
        words = regressor(seen.latents.to(place), features)[0].float().cpu().numpy()
        drawn = session.generate(
            list(self._prompts), Subject(words, "sample"), num_inference_steps=_STEPS, seed=0
        )
        shown = (seen.pair.reference, seen.pair.target)
        return [*(Image.fromarray(pixels) for pixels in shown), *drawn]


def _different(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the first few pairs with references of their own."""
    by_reference = {pair.reference.tobytes(): pair for pair in reversed(pairs)}
    return list(reversed(by_reference.values()))[:SUBJECTS]


def _encode(backend: TorchBackend, pair: Pair) -> tuple[torch.Tensor, ImageFeatures]:
    """Return the reference's latents and features on the CPU, in float32."""
    pixels = torch.from_numpy(pair.reference).permute(2, 0, 1)[None].float() / 127.5 - 1.0
    pixels = pixels.to(backend.device)
    mask = torch.from_numpy(pair.reference_mask)[None, None].float().to(backend.device)
    features = extract_features(
        backend.network("image_encoder"), backend.network("dino"), pixels, mask,
        background=backend.bundle.info.background,
    )  # fmt: skip
    kept = ImageFeatures(features.clip.float().cpu(), features.dino.float().cpu())
    return backend.encode_image(pixels).cpu(), kept


def _sheet(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Lay pictures out under their titles."""
    side = min(max(rows[0][0].width, _LEAST_TILE_PX), _MOST_TILE_PX)
    pitch = side + _GAP_PX
    size = (len(titles) * pitch - _GAP_PX, _HEADER_PX + len(rows) * pitch - _GAP_PX)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for column, title in enumerate(titles):
        pen.text((column * pitch + 2, 3), title, fill="black", font=font)
        for row, pictures in enumerate(rows):
            tile = pictures[column].resize((side, side), Image.Resampling.BICUBIC)
            sheet.paste(tile, (column * pitch, _HEADER_PX + row * pitch))
    return sheet
