"""The networks that measure: CLIP and DINO, the bundle's own or any of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor

from hbsdk.bundle_info import sha256_of
from hbsdk.errors import EvaluationError
from hbsdk.evaluation.store import content_hash
from hbsdk.evaluation.subjects import Pixels
from hbsdk.features import CLIP_MEAN, CLIP_STD, DINO_MEAN, DINO_STD, encoder_pixels
from hbsdk.text import tokenize_prompt

if TYPE_CHECKING:
    from hbsdk.session import Session

PROJECTIONS = "clip_projections.safetensors"
_DINO_MARGIN = 256 / 224  # DINO's own evaluation resizes to 256 and cuts 224 from the centre
_DINO_V2_PX = 224  # DINOv2 is published with 518 px embeddings of places, and evaluated at 224
_AT_ONCE = 64


class ImageTextEncoder(Protocol):
    """A CLIP; embeddings are unit vectors, (N, d) float32 on the CPU."""

    @property
    def name(self) -> str:
        """The checkpoint, as tables print it."""

    def images(self, pictures: Sequence[Pixels]) -> Tensor:
        """Embed pictures of any size.

        Args:
            pictures: (H, W, 3) uint8 each.
        """

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts.

        Args:
            texts: of any length.
        """


class ImageEncoder(Protocol):
    """A DINO; embeddings are unit vectors, (N, d) float32 on the CPU."""

    @property
    def name(self) -> str:
        """The checkpoint, as tables print it."""

    def images(self, pictures: Sequence[Pixels]) -> Tensor:
        """Embed pictures of any size: their class tokens.

        Args:
            pictures: (H, W, 3) uint8 each.
        """


class BundleClip:
    """The bundle's own text encoder and vision tower, with the projections of its training."""

    def __init__(self, session: Session) -> None:
        self.name = _own_name(session, "CLIP", "image_encoder", "text_encoder")
        self._session = session
        assert session.bundle.folder is not None
        session.bundle.verify(PROJECTIONS)
        self._projections = load_file(session.bundle.folder / PROJECTIONS)

    def images(self, pictures: Sequence[Pixels]) -> Tensor:
        """(N, d) unit vectors."""
        network = self._session.torch_backend.network("image_encoder")
        size = network.config.image_size

        def embed(part: Sequence[Pixels]) -> Tensor:
            shown = prepared(part, size, CLIP_MEAN, CLIP_STD).to(network.device, network.dtype)
            return self._project("visual", network(shown).pooler_output)

        return _in_parts(embed, pictures)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, d) unit vectors."""
        tokenizer = self._session.tokenizer
        network = self._session.torch_backend.network("text_encoder")

        def embed(part: Sequence[str]) -> Tensor:
            ids = np.stack([tokenize_prompt(tokenizer, text, {}).ids for text in part])
            pooled = network(torch.from_numpy(ids).to(network.device)).pooler_output
            return self._project("text", pooled)

        return _in_parts(embed, texts)

    def _project(self, tower: str, pooled: Tensor) -> Tensor:
        weight = self._projections[f"{tower}_projection.weight"].float()
        return pooled.float() @ weight.to(pooled.device).T


class BundleDino:
    """The bundle's own DINOv2."""

    def __init__(self, session: Session) -> None:
        self.name = _own_name(session, "DINO", "dino")
        self._session = session

    def images(self, pictures: Sequence[Pixels]) -> Tensor:
        """(N, d) unit vectors."""
        network = self._session.torch_backend.network("dino")
        size = network.config.image_size
        return _in_parts(lambda part: _class_tokens(network, part, size), pictures)


class HubClip:
    """A public or local CLIP of transformers."""

    def __init__(self, source: str, device: torch.device | str = "cpu") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self._network = _load(CLIPModel, source, "--clip").to(device)
        self._tokenizer = _obtained(lambda: CLIPTokenizer.from_pretrained(source), source, "--clip")
        self.name = _name_of(self._network, source)

    def images(self, pictures: Sequence[Pixels]) -> Tensor:
        """(N, d) unit vectors; the centre square, resized as CLIP was trained with."""
        tower, project = self._network.vision_model, self._network.visual_projection
        size = self._network.config.vision_config.image_size

        def embed(part: Sequence[Pixels]) -> Tensor:
            shown = prepared(part, size, CLIP_MEAN, CLIP_STD).to(self._network.device)
            embedded: Tensor = project(tower(shown).pooler_output)
            return embedded

        return _in_parts(embed, pictures)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, d) unit vectors; texts are cut at CLIP's 77 tokens."""
        most = self._network.config.text_config.max_position_embeddings

        def embed(part: Sequence[str]) -> Tensor:
            tokens = self._tokenizer(
                list(part), padding=True, truncation=True, max_length=most, return_tensors="pt"
            ).to(self._network.device)
            pooled = self._network.text_model(**tokens).pooler_output
            embedded: Tensor = self._network.text_projection(pooled)
            return embedded

        return _in_parts(embed, texts)


class HubDino:
    """A public or local DINO or DINOv2 of transformers."""

    def __init__(self, source: str, device: torch.device | str = "cpu") -> None:
        from transformers import AutoConfig, Dinov2Model, ViTModel

        config = _obtained(lambda: AutoConfig.from_pretrained(source), source, "--dino")
        kinds: dict[str, tuple[Any, dict[str, Any]]] = {
            "vit": (ViTModel, {"add_pooling_layer": False}),
            "dinov2": (Dinov2Model, {}),
        }
        if config.model_type not in kinds:
            raise EvaluationError(
                f"--dino {source}", expected="a ViT (DINO) or a Dinov2", got=config.model_type
            )
        kind, settings = kinds[config.model_type]
        self._network = _load(kind, source, "--dino", **settings).to(device)
        self.name = _name_of(self._network, source)
        self._size = config.image_size
        if config.model_type == "dinov2" and config.image_size > _DINO_V2_PX:
            # A name of its own: what was measured at another size is not taken for this.
            self._size, self.name = _DINO_V2_PX, f"{self.name} at {_DINO_V2_PX} px"

    def images(self, pictures: Sequence[Pixels]) -> Tensor:
        """(N, d) unit vectors; resized and cut as DINO's own evaluation does, at most 224 px."""
        network, size = self._network, self._size
        return _in_parts(lambda part: _class_tokens(network, part, size, _DINO_MARGIN), pictures)


def prepared(
    pictures: Sequence[Pixels],
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    margin: float = 1.0,
) -> Tensor:
    """Cut the centre square, resize and normalise.

    Args:
        pictures: (H, W, 3) uint8 each, of any sizes.
        size: side in pixels of what comes out.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        margin: the square is resized to `margin * size` and its centre kept.

    Returns:
        (N, 3, size, size) float32.
    """
    whole = round(size * margin)
    cut = (whole - size) // 2
    rows = []
    for pixels in pictures:
        square = ImageOps.fit(Image.fromarray(pixels), (whole, whole), Image.Resampling.BICUBIC)
        rows.append(np.asarray(square)[cut : cut + size, cut : cut + size])
    unit = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return encoder_pixels(unit, size, mean, std)


def _class_tokens(
    network: Any, pictures: Sequence[Pixels], size: int, margin: float = 1.0
) -> Tensor:
    shown = prepared(pictures, size, DINO_MEAN, DINO_STD, margin)
    moved = shown.to(network.device, network.dtype)
    tokens: Tensor = network(moved).last_hidden_state[:, 0]
    return tokens


@torch.no_grad()
def _in_parts(embed: Any, items: Sequence[Any]) -> Tensor:
    """Embed in batches; unit vectors on the CPU."""
    parts = [embed(items[at : at + _AT_ONCE]) for at in range(0, len(items), _AT_ONCE)]
    return F.normalize(torch.cat(parts).float().cpu(), dim=-1)


def _load(kind: Any, source: str, option: str, **settings: Any) -> Any:
    settings = {"use_safetensors": True, "output_loading_info": True, **settings}
    with _without_bars(source):
        network, report = _obtained(
            lambda: kind.from_pretrained(source, **settings), source, option
        )
    absent = [*report["missing_keys"], *report["mismatched_keys"]]
    if absent:
        raise EvaluationError(
            f"{option} {source}", expected=f"the weights of a {kind.__name__}",
            got=f"{len(absent)} tensors wanting, e.g. {absent[0]}",
        )  # fmt: skip
    return network.requires_grad_(False).eval().float()


def _obtained(load: Any, source: str, option: str) -> Any:
    try:
        return load()
    except Exception as error:  # the hub's client and the libraries raise almost anything
        raise EvaluationError(
            f"{option} {source}",
            expected="a local folder, or a hub id that is cached or can be fetched",
            got=f"{type(error).__name__}: {str(error).strip()[:200]}",
            remedy=f"Go online once, unset HF_HUB_OFFLINE, or pass {option} FOLDER",
        ) from error


@contextmanager
def _without_bars(source: str) -> Iterator[None]:
    """Without transformers' bars over a local folder's tensors; downloads keep theirs."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging

    # transformers' switch is also the hub's: who has silenced the hub wants neither.
    had_bars = logging.is_progress_bar_enabled() and not are_progress_bars_disabled()
    if Path(source).is_dir():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_bars:
            logging.enable_progress_bar()


def _name_of(network: Any, source: str) -> str:
    """The source and which version of it: the weights' hash, or the hub's commit."""
    folder = Path(source)
    weights = folder / "model.safetensors"
    if weights.is_file():
        return f"{folder.name}@{sha256_of(weights)[:12]}"
    if folder.is_dir():
        shards = {file.name: sha256_of(file) for file in folder.glob("*.safetensors")}
        return f"{folder.name}@{content_hash(shards)[:12]}"
    commit = getattr(network.config, "_commit_hash", None)
    return f"{source}@{commit[:12]}" if commit else source


def _own_name(session: Session, kind: str, *components: str) -> str:
    """The bundle's name and a hash of these networks alone: another regressor changes nothing."""
    bundle = session.bundle
    parts = {name: bundle.components[name] for name in components}
    digest = replace(bundle, components=parts).hash
    return f"{bundle.info.name} {kind}@{digest[:12]}"
