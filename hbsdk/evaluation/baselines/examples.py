"""From texts and pictures to what a training step takes: ids, states, latents, noise, errors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from hbsdk.errors import EvaluationError
from hbsdk.evaluation.subjects import Pixels
from hbsdk.objective import NoisyBatch, noised
from hbsdk.text import PromptTokens, tokenize_prompt

if TYPE_CHECKING:
    from hbsdk.session import Session

PLACEHOLDER = "<new1>"
_ENCODED_AT_ONCE = 16  # pictures


def tokenize(session: Session, text: str, words: Tensor | None = None) -> PromptTokens:
    """Tokenize a text, with room for the words where it holds `PLACEHOLDER`.

    Args:
        session: its tokenizer is used.
        text: may hold `PLACEHOLDER`.
        words: (n, d); None where the text has none.
    """
    lengths = {} if words is None else {PLACEHOLDER: len(words)}
    return tokenize_prompt(session.tokenizer, text, lengths)


def token_ids(session: Session, tokens: Sequence[PromptTokens]) -> Tensor:
    """Return (N, tokens) int64 on the session's device.

    Args:
        session: its device is used.
        tokens: N texts.
    """
    ids = torch.from_numpy(np.stack([one.ids for one in tokens]))
    return ids.to(session.torch_backend.device)


def word_positions(session: Session, tokens: Sequence[PromptTokens]) -> Tensor:
    """Return (N, n) int64, where the words stand in texts that each hold `PLACEHOLDER` once.

    Args:
        session: its device is used.
        tokens: N texts.
    """
    places = [one.places[PLACEHOLDER][0] for one in tokens]
    return torch.tensor(places, device=session.torch_backend.device)


@torch.no_grad()
def text_states(session: Session, text: str) -> Tensor:
    """Return the (1, tokens, d) states of a text, by the session's text encoder.

    Args:
        session: whose networks and tokenizer are used.
        text: without words of a subject.
    """
    encoder: Any = session.torch_backend.network("text_encoder")
    states: Tensor = encoder(token_ids(session, [tokenize(session, text)])).last_hidden_state
    return states


@torch.no_grad()
def initial_words(session: Session, text: str, count: int) -> Tensor:
    """Return (count, d) trainable words that each start as a text's token.

    Deviation: the scripts refuse a text of several tokens; here it is their mean.

    Args:
        session: whose networks and tokenizer are used.
        text: such as the class noun.
        count: how many words.

    Raises:
        EvaluationError: the tokenizer has no token for the text.
    """
    check_known(session, text)
    rows = session.torch_backend.network("text_encoder").get_input_embeddings().weight
    word: Tensor = rows[session.tokenizer.encode(text)].float().mean(dim=0)
    return word.expand(count, -1).clone().requires_grad_(True)


def check_known(session: Session, text: str) -> None:
    """Do nothing if every piece of a text is a token of the bundle's.

    Args:
        session: its tokenizer is used.
        text: an identifier or a class noun.

    Raises:
        EvaluationError: a piece is not, or the text is empty.
    """
    ids = session.tokenizer.encode(text)
    if not ids or session.tokenizer.eos_token_id in ids:
        raise EvaluationError(
            f"word {text!r}", expected="text that the bundle's tokenizer knows",
            got=f"tokens {ids}", remedy="Choose another identifier or class noun",
        )  # fmt: skip


def trainable_copy(network: nn.Module, *, trained: bool) -> nn.Module:
    """Return a float32 copy, all of it trained or none.

    Args:
        network: is left as it is.
        trained: whether the copy's parameters are.
    """
    return copy.deepcopy(network).float().requires_grad_(trained)


def square(photo: Pixels, size: int) -> Image.Image:
    """Return the photo's centre square, of `size` px. Source: --center_crop of the scripts.

    Args:
        photo: (H, W, 3) uint8.
        size: side in pixels of what comes out.
    """
    return ImageOps.fit(Image.fromarray(photo), (size, size), Image.Resampling.BICUBIC)


def to_tensor(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) float32 in -1..1.

    Args:
        picture: RGB.
    """
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1.0


def encode(session: Session, pixels: Tensor) -> Tensor:
    """(N, 3, H, W) in -1..1 -> (N, C, h, w) latents, some at a time.

    Deviation: the scripts draw from the posterior at every step; here it is its mode, as everywhere
    in hbsdk, which lets pictures that do not change be encoded once.

    Args:
        session: its VAE is used.
        pixels: of the bundle's size.
    """
    backend = session.torch_backend
    return torch.cat(
        [backend.encode_image(part.to(backend.device)) for part in pixels.split(_ENCODED_AT_ONCE)]
    )


def squared_errors(
    session: Session, unet: Any, latents: Tensor, states: Tensor, generator: torch.Generator
) -> Tensor:
    """Return (N, C, h, w) squared errors of what the UNet says of newly noised latents.

    Timesteps are uniform, as in all four scripts; they and the noise are drawn on the CPU.

    Args:
        session: its scheduler is used.
        unet: called as diffusers' UNet2DConditionModel.
        latents: (N, C, h, w), clean.
        states: (N, tokens, d) of the texts.
        generator: draws noise, then timesteps.
    """
    scheduler, device = session.torch_backend.scheduler, latents.device
    noise = torch.randn(latents.shape, generator=generator).to(device)
    total = scheduler.config.num_train_timesteps
    timesteps = torch.randint(total, (len(latents),), generator=generator).to(device)
    nothing = timesteps.new_zeros(len(latents), 0)
    whole = latents.new_ones(len(latents), 1, *latents.shape[-2:])
    noisy, target = noised(
        scheduler, NoisyBatch(latents, noise, timesteps, whole, ids=nothing, positions=nothing)
    )
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        told = states.to(unet.dtype)
        predicted: Tensor = unet(noisy.to(unet.dtype), timesteps, told, return_dict=False)[0]
    return (predicted.float() - target.float()).square()


def drawn_from(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` rows of `values`, each drawn anew.

    Args:
        values: (M, ...).
        count: of rows.
        generator: draws which.
    """
    return values[torch.randint(len(values), (count,), generator=generator).to(values.device)]
