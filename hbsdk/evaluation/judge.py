"""The independent judge: reads the embedded world's identity attributes from a picture.

A network of its own kind (convolutions, not patches), trained by hbsdk/mini/train_judge.py on
identities that no other network sees, so that a method cannot please it by pleasing itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hbsdk.bundle_info import check_rules, read_json, sha256_of, shown
from hbsdk.errors import BundleError, EvaluationError
from hbsdk.evaluation.subjects import Pixels

JUDGE = Path(__file__).parents[1] / "mini" / "judge"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SCHEMA = 1
IMAGE_SIZE_PX = 64
_BATCH_SIZE = 64  # pictures read at once
_REMEDY = "Install hbsdk anew, or train the judge again: python -m hbsdk.mini.train_judge"

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


class _Block(nn.Module):
    """Two convolutions beside the identity; only the branch is normalised, so colours stay."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = min(8, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(groups, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        branch = F.silu(self.first_norm(self.first(x)))
        added: Tensor = x + self.second_norm(self.second(branch))
        return added


class JudgeNetwork(nn.Module):
    """A residual network to 8 x 8 cells; each factor looks where it wants, then a linear head."""

    def __init__(self, sizes: Sequence[int], channels: Sequence[int] = (32, 64, 112)) -> None:
        """Build with random weights.

        Args:
            sizes: how many values each factor has.
            channels: at 32 x 32, 16 x 16 and 8 x 8; each a multiple of 8.
        """
        super().__init__()
        fine, middle, coarse = channels
        self.body = nn.Sequential(
            nn.Conv2d(3, fine, 5, stride=2, padding=2), nn.SiLU(),
            _Block(fine), _Block(fine),
            nn.Conv2d(fine, middle, 3, stride=2, padding=1),
            _Block(middle), _Block(middle),
            nn.Conv2d(middle, coarse, 3, stride=2, padding=1),
            _Block(coarse), nn.SiLU(),
        )  # fmt: skip
        self.look = nn.Conv2d(coarse, len(sizes), 1)
        # Where a factor mostly is: an ear is above an eye. (Muon leaves embeddings to AdamW.)
        self.place_embedding = nn.Parameter(torch.zeros(len(sizes), (IMAGE_SIZE_PX // 8) ** 2))
        self.heads = nn.ModuleList(nn.Linear(coarse, size) for size in sizes)

    def forward(self, batch: Tensor) -> list[Tensor]:
        """(N, 3, 64, 64) in [-1, 1] -> for each factor the logits of its values, (N, values)."""
        cells = self.body(batch)
        scores = self.look(cells).flatten(2) + self.place_embedding  # (N, factors, 64)
        seen = scores.softmax(dim=-1).to(cells.dtype) @ cells.flatten(2).mT  # (N, factors, coarse)
        return [head(seen[:, number]) for number, head in enumerate(self.heads)]


def judge_input(pixels: Pixels) -> Tensor:
    """(N, 64, 64, 3) uint8 -> (N, 3, 64, 64) float32 in [-1, 1].

    Args:
        pixels: of the judge's size.
    """
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1.0


@dataclass(frozen=True, eq=False)
class Judge:
    """Reads attributes from pictures.

    Attributes:
        name: "hbsdk-judge-" and the start of a hash over its config and weights.
        factors: those that `accuracy` counts: the judge itself reads them well enough.
        values: all factors it reads, with the number of their values.
        figures: its own accuracy, that of chance, and how they were measured, as in config.json.
    """

    name: str
    factors: tuple[str, ...]
    values: Mapping[str, int]
    figures: Mapping[str, Any]
    network: JudgeNetwork

    @torch.inference_mode()
    def read(self, pixels: Pixels) -> dict[str, Numbers]:
        """Return for every factor of `values` the (N,) int64 indices of the values seen.

        Args:
            pixels: (N, 64, 64, 3) uint8 RGB.

        Raises:
            EvaluationError: the pictures have another shape or type.
        """
        _check_pixels(pixels)
        parts = [
            torch.stack([logits.argmax(1) for logits in self.network(judge_input(batch))])
            for batch in np.split(pixels, range(_BATCH_SIZE, len(pixels), _BATCH_SIZE))
        ]
        return dict(zip(self.values, torch.cat(parts, dim=1).numpy(), strict=True))

    def accuracy(
        self, pixels: Pixels, attributes: Sequence[Mapping[str, int]]
    ) -> tuple[npt.NDArray[np.float64], dict[str, Flags]]:
        """Compare what is seen with what should be there.

        Args:
            pixels: (N, 64, 64, 3) uint8 RGB.
            attributes: N identities' factor -> index, as of `hbsdk.mini.world.attributes`.

        Returns:
            The share of `factors` read right in each picture, (N,) in 0..1, a plain mean; and for
            each of `factors` whether it was read right, (N,) bool.

        Raises:
            EvaluationError: the pictures have another shape or type, there are not as many
                identities, or one lacks a factor or has a value that the factor has not.
        """
        seen = self.read(pixels)
        if len(attributes) != len(pixels):
            raise EvaluationError(
                "identities to judge pictures by",
                expected=f"{len(pixels)}, one a picture", got=str(len(attributes)),
            )  # fmt: skip
        right = {
            factor: seen[factor] == _values(factor, self.values[factor], attributes)
            for factor in self.factors
        }
        return np.stack(list(right.values())).mean(axis=0), right


def _check_pixels(pixels: Pixels) -> None:
    expected = (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 4:
        got = f"{getattr(pixels, 'shape', type(pixels).__name__)} {getattr(pixels, 'dtype', '')}"
    elif pixels.shape[1:] != expected or not len(pixels):
        got = str(pixels.shape)
    else:
        return
    raise EvaluationError(
        "pictures for the judge",
        expected=f"a (N, {IMAGE_SIZE_PX}, {IMAGE_SIZE_PX}, 3) uint8 array of at least one picture",
        got=got,
        remedy="The judge reads pictures of the embedded world only",
    )


def _values(factor: str, count: int, attributes: Sequence[Mapping[str, int]]) -> Numbers:
    """Return each identity's value of a factor, checked."""
    values = [identity.get(factor) for identity in attributes]
    for value in values:
        if not isinstance(value, (int, np.integer)) or not 0 <= value < count:
            raise EvaluationError(
                f"attribute {factor}", expected=f"a whole number from 0 to {count - 1}",
                got=shown(value), remedy="Take it from hbsdk.mini.world.attributes",
            )  # fmt: skip
    return np.array(values, np.int64)


def load_judge(folder: Path = JUDGE) -> Judge:
    """Load a judge, by default the one that is embedded in hbsdk, on the CPU in float32.

    Args:
        folder: with config.json and model.safetensors.

    Raises:
        EvaluationError: a file is missing or damaged, or is not what config.json says.
    """
    config_path, weights_path = folder / CONFIG, folder / WEIGHTS
    try:
        config = read_json(config_path)
        check_rules(
            config, _RULES, config_path, EvaluationError,
            remedy=_REMEDY, remedy_schema="Install the hbsdk that trained this judge",
        )  # fmt: skip
        digest = sha256_of(weights_path)
    except BundleError as error:
        raise EvaluationError(
            f"judge: {error.what}", expected=error.expected, got=error.got, remedy=_REMEDY
        ) from error
    if digest != config["weights_sha256"]:
        raise EvaluationError(
            f"sha256 of {weights_path}", expected=config["weights_sha256"], got=digest,
            remedy=_REMEDY,
        )  # fmt: skip
    sizes = {factor: len(values) for factor, values in config["factors"].items()}
    if unknown := sorted(set(config["judged"]) - set(sizes)):
        raise EvaluationError(
            f"judged in {config_path}", expected="factors that the network reads",
            got=shown(", ".join(unknown)), remedy=_REMEDY,
        )  # fmt: skip
    network = JudgeNetwork(tuple(sizes.values()), config["channels"])
    try:
        network.load_state_dict(load_file(weights_path))  # half precision, copied into float32
    except (SafetensorError, RuntimeError) as error:
        raise EvaluationError(
            str(weights_path), expected="the weights of the network in config.json",
            got=shown(str(error)), remedy=_REMEDY,
        ) from error  # fmt: skip
    return Judge(
        name=judge_name(config),
        factors=tuple(config["judged"]),
        values=sizes,
        figures=config["figures"],
        network=network.eval().requires_grad_(False),
    )


def judge_name(config: Mapping[str, Any]) -> str:
    """Return the name under which results cite a judge: another config or weights, another name.

    Args:
        config: of config.json, which has the weights' hash.
    """
    content = json.dumps(config, sort_keys=True).encode()
    return f"hbsdk-judge-{hashlib.sha256(content).hexdigest()[:12]}"


def _are_factors(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(
        isinstance(names, list) and len(names) > 1 and all(isinstance(n, str) for n in names)
        for names in value.values()
    )  # fmt: skip


def _are_channels(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(n) is int and 8 <= n <= 1024 and n % 8 == 0 for n in value)
    )


_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "schema": (str(SCHEMA), lambda value: type(value) is int and value == SCHEMA),
    "weights_sha256": (
        "64 lower-case hexadecimal digits",
        lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{64}", value)),
    ),
    "channels": ("three multiples of 8 from 8 to 1024", _are_channels),
    "factors": ("an object of lists of values by factor", _are_factors),
    "judged": (
        "a list of factors",
        lambda value: isinstance(value, list) and bool(value) and set(map(type, value)) == {str},
    ),
    "figures": ("an object", lambda value: isinstance(value, dict)),
}
