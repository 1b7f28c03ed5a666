"""Draws an evaluation's pictures: any networks of the bundle's kind, many prompts in one batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hbsdk.backends.torch import TorchBackend
from hbsdk.bundle import Bundle
from hbsdk.errors import EvaluationError
from hbsdk.evaluation.methods import Pixels
from hbsdk.generate import Canvas, denoise, initial_noise
from hbsdk.schedule import Sampler, make_schedule
from hbsdk.text import tokenize_prompt

if TYPE_CHECKING:
    from hbsdk.session import Session

Floats = npt.NDArray[np.float32]
SAMPLER: Sampler = "dpm++2m"
STEPS = 20
_MOST_AT_ONCE = 16  # pictures in a batch
_ARTICLE = re.compile(r"(an?|the) ", re.IGNORECASE)
_NEW_PHRASE = re.compile(r"\b(?:of|in|on|with|at|and|as|by|for)\b")


@dataclass(frozen=True)
class DrawingNetworks:
    """What draws: a method's own networks, or the bundle's.

    unet: called as diffusers' UNet2DConditionModel. text_encoder: a CLIPTextModel.
    vae: an AutoencoderKL. All on one device.
    """

    unet: Any
    text_encoder: Any
    vae: Any

    @classmethod
    def of(cls, session: Session) -> DrawingNetworks:
        """Return the session's own networks, which are frozen and shared: copy before training."""
        backend = session.torch_backend
        return cls(*(backend.network(name) for name in ("unet", "text_encoder", "vae")))


class _DrawingBackend(TorchBackend):
    """hbsdk's torch runtime over networks that are given."""

    def __init__(self, bundle: Bundle, networks: DrawingNetworks) -> None:
        super().__init__(bundle, device=str(networks.unet.device))
        self._networks = networks

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's precision, which text states are moved to."""
        dtype: torch.dtype = self._networks.unet.dtype
        return dtype

    def network(self, name: str) -> Any:
        """Return the given network."""
        return getattr(self._networks, name)


def article(noun: str) -> str:
    """Return "a " or "an ", as the noun's first letter suggests."""
    return "an " if noun[:1].lower() in tuple("aeiou") else "a "


def fill(prompt: str, phrase: str) -> str:
    """Put a noun phrase, such as "a backpack" or "a sks backpack", in a prompt's place for it.

    Its article is left out where the prompt has one: "a red {}" gives "a red backpack".
    """
    before = prompt.partition("{}")[0]
    if _ARTICLE.search(_NEW_PHRASE.split(before)[-1]):
        phrase = _ARTICLE.sub("", phrase, count=1) if _ARTICLE.match(phrase) else phrase
    return prompt.replace("{}", phrase)


def with_noun(prompt: str, noun: str) -> str:
    """Return a prompt with the class noun for the subject: "a picture of {}" of a "fox"."""
    return fill(prompt, article(noun) + noun)


def drawing_settings(session: Session) -> dict[str, Any]:
    """Return what, beside networks and noise, decides how pictures come out; JSON-able."""
    scale = session.bundle.info.guidance_scale
    return {"sampler": SAMPLER, "num_inference_steps": STEPS, "guidance_scale": scale}


@torch.no_grad()
def draw_prompts(
    session: Session,
    networks: DrawingNetworks,
    prompts: Sequence[str],
    seeds: Sequence[int],
    words: Mapping[str, Floats] | None = None,
) -> Pixels:
    """Draw one guided picture a prompt, up to 16 in a batch: DPM++ 2M, 20 steps.

    Args:
        session: its tokenizer, scheduler, picture size and guidance scale are used.
        networks: what draws; they are left in the mode that they are in.
        prompts: text, in which "S*" or "<name>" may stand for `words`.
        seeds: one a prompt. A picture's noise depends on its own seed alone, so that methods that
            draw the same seed start from the same noise.
        words: placeholder, lower case, such as "s*" -> (n, d) token embeddings.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        EvaluationError: there are not as many seeds as prompts.
        PromptError: a placeholder without words, or too long a prompt.
    """
    if len(seeds) != len(prompts):
        raise EvaluationError(
            "drawing", expected=f"{len(prompts)} seeds, one a prompt", got=f"{len(seeds)}"
        )
    backend = _DrawingBackend(session.bundle, networks)
    parts = [
        _draw(session, backend, prompts[at : at + _MOST_AT_ONCE], seeds[at : at + _MOST_AT_ONCE],
              words or {})
        for at in range(0, len(prompts), _MOST_AT_ONCE)
    ]  # fmt: skip
    return np.concatenate(parts)


def _draw(
    session: Session,
    backend: _DrawingBackend,
    prompts: Sequence[str],
    seeds: Sequence[int],
    words: Mapping[str, Floats],
) -> Pixels:
    info = session.bundle.info
    side = info.image_size_px // info.vae_scale_factor
    canvas = Canvas(info.latent_channels, side, side)
    noise = np.concatenate([initial_noise(seed, 1, canvas) for seed in seeds])
    schedule = make_schedule(
        session.bundle.scheduler_config(), sampler=SAMPLER, num_inference_steps=STEPS
    )
    states = _states(session, backend, prompts, words)
    latents = denoise(backend, noise, states, schedule, info.guidance_scale)
    pictures: Pixels = np.rint(backend.decode(latents) * 255.0).astype(np.uint8)
    return pictures


def _states(
    session: Session,
    backend: _DrawingBackend,
    prompts: Sequence[str],
    words: Mapping[str, Floats],
) -> Tensor:
    """Encode the empty prompt for guidance, and each different prompt once."""
    lengths = {name: len(rows) for name, rows in words.items()}
    different = list(dict.fromkeys(prompts))
    texts = ["", *different]
    tokens = [tokenize_prompt(session.tokenizer, text, lengths) for text in texts]
    encoded = backend.encode_prompts(tokens, words, copies=1)
    places = [1 + different.index(text) for text in prompts]
    if session.bundle.info.guidance_scale <= 1.0:
        return encoded[places]
    return encoded[[0] * len(prompts) + places]
