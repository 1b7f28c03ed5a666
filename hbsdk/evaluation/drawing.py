"""Draws an evaluation's pictures: any networks of the bundle's kind, many prompts in one batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hbsdk.backends.torch import TorchBackend
from hbsdk.bundle import Bundle
from hbsdk.errors import EvaluationError, OptionError
from hbsdk.evaluation.subjects import Pixels
from hbsdk.generate import Canvas, denoise, initial_noise
from hbsdk.options import GenerateOptions
from hbsdk.schedule import Sampler, make_schedule
from hbsdk.speed import pace_of
from hbsdk.text import tokenize_prompt

if TYPE_CHECKING:
    from hbsdk.session import Session

Floats = npt.NDArray[np.float32]
OPTIONS = GenerateOptions()
"""Drawn with where nothing else is asked for."""

# Of `GenerateOptions`, with their types: noise, size and number of pictures are the protocol's.
_CHANGEABLE: Mapping[str, type] = {
    "num_inference_steps": int, "guidance_scale": float, "sampler": str, "timestep_spacing": str,
    "use_karras_sigmas": bool, "speed": str, "guidance_stop": float, "feature_interval": int,
}  # fmt: skip
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
        """Return the session's own networks, which are frozen and shared: copy before training.

        Args:
            session: with a torch runtime.
        """
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
    """Return "a " or "an ", as the noun's first letter suggests.

    Args:
        noun: such as "owl".
    """
    return "an " if noun[:1].lower() in tuple("aeiou") else "a "


def fill(prompt: str, phrase: str) -> str:
    """Put a noun phrase, such as "a backpack" or "a sks backpack", in a prompt's place for it.

    Its article is left out where the prompt has one: "a red {}" gives "a red backpack".

    Args:
        prompt: with {} where the phrase goes.
        phrase: with its article.
    """
    before = prompt.partition("{}")[0]
    if _ARTICLE.search(_NEW_PHRASE.split(before)[-1]):
        phrase = _ARTICLE.sub("", phrase, count=1) if _ARTICLE.match(phrase) else phrase
    return prompt.replace("{}", phrase)


def with_noun(prompt: str, noun: str) -> str:
    """Return a prompt with the class noun for the subject: "a picture of {}" of a "fox".

    Args:
        prompt: with {} for the subject.
        noun: without an article.
    """
    return fill(prompt, article(noun) + noun)


def parse_drawing(text: str) -> GenerateOptions:
    """Return the options of a text such as "num_inference_steps=12,guidance_stop=0.5".

    Args:
        text: options of `GenerateOptions` as key=value with commas between; "" is the usual.

    Raises:
        EvaluationError: it is not of that form, or an option is not one that can be changed.
        OptionError: a value is out of its range, or the sampler is no table of schedule.py.
    """
    changes: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in _CHANGEABLE or key in changes:
            raise EvaluationError(
                f"--drawing {text!r}", got=repr(part),
                expected=f"each once, as key=value: {', '.join(_CHANGEABLE)}",
            )  # fmt: skip
        try:
            changes[key] = typed(value, _CHANGEABLE[key])
        except ValueError as error:
            expected = _CHANGEABLE[key].__name__
            raise OptionError(f"{key} of --drawing", expected=expected, got=value) from error
    options = GenerateOptions(**changes)
    if options.sampler not in get_args(Sampler):
        raise OptionError(
            "sampler of --drawing", expected=f"one of {', '.join(get_args(Sampler))}",
            got=options.sampler,
        )  # fmt: skip
    return options


def typed(value: str, kind: type) -> Any:
    """Return a text's value of a type; bool("False") would be True.

    Args:
        value: as typed.
        kind: bool, int, float or str.

    Raises:
        ValueError: it has none.
    """
    if kind is not bool:
        return kind(value)
    if value not in ("True", "False"):
        raise ValueError(value)
    return value == "True"


def drawing_settings(session: Session, options: GenerateOptions = OPTIONS) -> dict[str, Any]:
    """Return what, beside networks and noise, decides how pictures come out; JSON-able.

    Args:
        session: its bundle has a guidance scale of its own.
        options: of drawing.
    """
    pace, plain = pace_of(options), pace_of(GenerateOptions())
    settings: dict[str, Any] = {
        "sampler": options.sampler,
        "num_inference_steps": pace.num_inference_steps,
        "guidance_scale": _guidance_scale(session, options),
    }
    # Only where they change something: what was drawn before there were these options is kept.
    for name in ("guidance_stop", "feature_interval"):
        if getattr(pace, name) != getattr(plain, name):
            settings[name] = getattr(pace, name)
    for name in ("timestep_spacing", "use_karras_sigmas"):
        if getattr(options, name) is not None:
            settings[name] = getattr(options, name)
    return settings


def _guidance_scale(session: Session, options: GenerateOptions) -> float:
    own = session.bundle.info.guidance_scale
    return own if options.guidance_scale is None else options.guidance_scale


@torch.no_grad()
def draw_prompts(
    session: Session,
    networks: DrawingNetworks,
    prompts: Sequence[str],
    seeds: Sequence[int],
    words: Mapping[str, Floats] | None = None,
    options: GenerateOptions | None = None,
) -> Pixels:
    """Draw one picture a prompt, up to 16 in a batch, guided, DPM++ 2M, 20 steps by default.

    Args:
        session: its tokenizer, scheduler, picture size and guidance scale are used.
        networks: what draws; they are left in the mode that they are in.
        prompts: text, in which "S*" or "<name>" may stand for `words`.
        seeds: one a prompt. A picture's noise depends on its own seed alone, so that methods that
            draw the same seed start from the same noise.
        words: placeholder, lower case, such as "s*" -> (n, d) token embeddings.
        options: of `parse_drawing`; None is `OPTIONS`.

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
              words or {}, options or OPTIONS)
        for at in range(0, len(prompts), _MOST_AT_ONCE)
    ]  # fmt: skip
    return np.concatenate(parts)


def _draw(
    session: Session,
    backend: _DrawingBackend,
    prompts: Sequence[str],
    seeds: Sequence[int],
    words: Mapping[str, Floats],
    options: GenerateOptions,
) -> Pixels:
    info = session.bundle.info
    side = info.image_size_px // info.vae_scale_factor
    canvas = Canvas(info.latent_channels, side, side)
    noise = np.concatenate([initial_noise(seed, 1, canvas) for seed in seeds])
    pace, scale = pace_of(options), _guidance_scale(session, options)
    schedule = make_schedule(
        session.bundle.scheduler_config(), sampler=cast("Sampler", options.sampler),
        num_inference_steps=pace.num_inference_steps, timestep_spacing=options.timestep_spacing,
        use_karras_sigmas=options.use_karras_sigmas,
    )  # fmt: skip
    states = _states(session, backend, prompts, words, guided=scale > 1.0)
    latents = denoise(backend, noise, states, schedule, scale, pace=pace)
    pictures: Pixels = np.rint(backend.decode(latents) * 255.0).astype(np.uint8)
    return pictures


def _states(
    session: Session,
    backend: _DrawingBackend,
    prompts: Sequence[str],
    words: Mapping[str, Floats],
    *,
    guided: bool,
) -> Tensor:
    """Encode the empty prompt for guidance, and each different prompt once."""
    lengths = {name: len(rows) for name, rows in words.items()}
    different = list(dict.fromkeys(prompts))
    texts = ["", *different]
    tokens = [tokenize_prompt(session.tokenizer, text, lengths) for text in texts]
    encoded = backend.encode_prompts(tokens, words, copies=1)
    places = [1 + different.index(text) for text in prompts]
    if not guided:
        return encoded[places]
    return encoded[[0] * len(prompts) + places]
