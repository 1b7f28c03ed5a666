"""Where a regressor starts from: the bundle's UNet and class word; and whether it fits a bundle."""

from __future__ import annotations

import torch

from hbsdk.bundle import Bundle
from hbsdk.bundle_check import config_of, part_of
from hbsdk.errors import TrainingError
from hbsdk.features import Encoders
from hbsdk.regressor import PromptRegressor

_POOL_DIM, _POOL_HEADS = 512, 8  # of SD 1.5's size; a smaller bundle pools in its words' width
_SMALL_POOL_HEADS = 4


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
    small = bundle.info.word_dim < _POOL_DIM
    clip_dim, dino_dim = _widths(bundle)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        regressor: PromptRegressor = PromptRegressor.from_unet(
            bundle.load_unet(),
            class_word,
            clip_dim=clip_dim,
            dino_dim=dino_dim,
            num_words=num_words or bundle.info.num_words,
            pool_dim=bundle.info.word_dim if small else _POOL_DIM,
            num_pool_heads=_SMALL_POOL_HEADS if small else _POOL_HEADS,
            encoders=encoders,
        )
    return regressor


def check_fits(regressor: PromptRegressor, bundle: Bundle) -> None:
    """Refuse to train a regressor of other widths than the bundle's networks.

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
