"""Where a regressor starts from: the bundle's UNet and class word; and whether it fits a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from hbsdk.bundle import Bundle
from hbsdk.bundle_check import config_of, part_of
from hbsdk.bundle_info import MAX_WORDS
from hbsdk.errors import OptionError, TrainingError
from hbsdk.features import Encoders
from hbsdk.options import _check_choice, check_whole
from hbsdk.regressor import PromptRegressor

StartFrom = Literal["unet", "bundle"]

_POOL_DIM, _POOL_HEADS = 512, 8  # of SD 1.5's size; a smaller bundle pools in its words' width
_SMALL_POOL_HEADS = 4


@dataclass(frozen=True)
class Start:
    """What a training starts from.

    Attributes:
        source: "unet" begins anew from the bundle's UNet, "bundle" goes on from its regressor.
        num_words: of a subject; None is the regressor's to go on from, else the bundle's.
        encoders: whose features it sees; None is the regressor's to go on from, else both.

    Raises:
        OptionError: a value is none of these.
    """

    source: StartFrom = "unet"
    num_words: int | None = None
    encoders: Encoders | None = None

    def __post_init__(self) -> None:
        _check_choice("start", self.source, get_args(StartFrom))
        if self.num_words is not None:
            check_whole("num_words", self.num_words, 1, MAX_WORDS)
        if self.encoders is not None:
            _check_choice("encoders", self.encoders, get_args(Encoders))

    def config(self, bundle: Bundle) -> dict[str, Any]:
        """Return what `PromptRegressor` is made with, as far as `fresh_regressor` is told it.

        Reads no weights.

        Args:
            bundle: to train for.

        Raises:
            BundleError: there is no regressor to go on from.
            OptionError: that one has another number of words, or other encoders.
        """
        if self.source == "unet":
            words = bundle.info.num_words if self.num_words is None else self.num_words
            return {"num_words": words, "encoders": self.encoders or "both"}
        if "regressor" not in bundle.components:
            bundle.load_regressor()  # raises, and says where to get one
        read = config_of(bundle.components["regressor"], "regressor", bundle.configs)
        own = {key: value for key, value in read.items() if not key.startswith("_")}
        own = {"num_words": bundle.info.num_words, "encoders": "both"} | own
        for name, asked in (("num_words", self.num_words), ("encoders", self.encoders)):
            if asked is not None and asked != own[name]:
                raise OptionError(
                    name, expected=f"{own[name]}, as of the bundle's regressor", got=str(asked),
                    remedy="Leave it out, or begin anew: --start unet",
                )  # fmt: skip
        return own

    def regressor(self, bundle: Bundle, seed: int) -> PromptRegressor | None:
        """Return the regressor to start from; None is what the loop makes of the UNet by itself.

        Args:
            bundle: to train for.
            seed: of the weights that are neither the UNet's nor a regressor's.

        Raises:
            BundleError: a network is missing or damaged.
            OptionError: as of `config`.
        """
        config = self.config(bundle)
        if self.source == "bundle":
            return bundle.load_regressor()
        if self.num_words is None and self.encoders in (None, "both"):
            return None
        return fresh_regressor(bundle, **config, seed=seed)

    def anew(self, bundle: Bundle) -> Start:
        """Return the start from a UNet of a regressor with as many words and the same encoders.

        Args:
            bundle: to train for.

        Raises:
            BundleError: there is no regressor to go on from.
            OptionError: as of `config`.
        """
        if self.source == "unet":
            return self
        config = self.config(bundle)
        return Start("unet", config["num_words"], config["encoders"])


def pool_size(word_dim: int) -> tuple[int, int]:
    """Return the width of a fresh regressor's pooling attention, and its heads.

    Args:
        word_dim: width of the bundle's word embeddings.
    """
    if word_dim < _POOL_DIM:
        return word_dim, _SMALL_POOL_HEADS
    return _POOL_DIM, _POOL_HEADS


def fresh_regressor(
    bundle: Bundle, *, num_words: int | None = None, encoders: Encoders = "both", seed: int = 0
) -> PromptRegressor:
    """Return an untrained regressor: the UNet's down and mid blocks, words near the class word.

    Args:
        bundle: whose UNet is copied.
        num_words: of a subject; None is the bundle's.
        encoders: "clip" or "dino" leaves the other one's features out (the paper's ablation).
        seed: of the weights that are not the UNet's.

    Raises:
        BundleError: a network is missing.
    """
    words = bundle.load_text_encoder().get_input_embeddings().weight
    class_word = words[bundle.load_tokenizer().encode(bundle.info.class_word)].mean(dim=0)
    pool_dim, pool_heads = pool_size(bundle.info.word_dim)
    clip_dim, dino_dim = _widths(bundle)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        regressor: PromptRegressor = PromptRegressor.from_unet(
            bundle.load_unet(),
            class_word,
            clip_dim=clip_dim,
            dino_dim=dino_dim,
            num_words=bundle.info.num_words if num_words is None else num_words,
            pool_dim=pool_dim,
            num_pool_heads=pool_heads,
            encoders=encoders,
        )
    return regressor


def check_fits(regressor: PromptRegressor, bundle: Bundle) -> None:
    """Refuse to train a regressor of other widths than the bundle's networks.

    Args:
        regressor: to be trained.
        bundle: for which.

    Raises:
        TrainingError: it was made for another bundle.
    """
    clip_dim, dino_dim = _widths(bundle)
    own = {"word_dim": bundle.info.word_dim, "clip_dim": clip_dim, "dino_dim": dino_dim}
    for name, width in own.items():
        if regressor.config[name] != width:
            raise TrainingError(
                f"the regressor's {name}",
                expected=f"{width}, as of bundle {bundle.info.name!r}",
                got=str(regressor.config[name]),
                remedy="Start from the bundle's own regressor, or from none",
            )


def _widths(bundle: Bundle) -> tuple[int, int]:
    """Return the widths of CLIP's and DINO's tokens.

    Raises:
        BundleError: the bundle lacks one of them.
    """
    widths = []
    for name in ("image_encoder", "dino"):
        if name not in bundle.components:
            getattr(bundle, f"load_{name}")()  # raises, and says where to get one
        config = config_of(bundle.components[name], name, bundle.configs)
        widths.append(int(part_of(config, "vision_config")["hidden_size"]))
    return widths[0], widths[1]
