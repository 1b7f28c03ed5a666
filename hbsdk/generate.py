"""From prompts and subjects to pictures: one loop over any runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hbsdk.backends.base import Backend, StepCoefficients
from hbsdk.bundle_info import BundleInfo
from hbsdk.errors import OptionError, PromptError
from hbsdk.options import GenerateOptions
from hbsdk.schedule import Schedule
from hbsdk.speed import Pace, plan_steps
from hbsdk.subject import Subject
from hbsdk.text import PromptTokens, placeholders, tokenize_prompt
from hbsdk.tokenizer import PromptTokenizer

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Canvas:
    """What is drawn on: N latents of (channels, height, width)."""

    channels: int
    height: int
    width: int


def initial_noise(seed: int, count: int, canvas: Canvas) -> Floats:
    """Return (count, C, h, w) float32 unit noise, the same on every machine and runtime.

    Picture i is drawn from seed + i: two uniforms in (0, 1] and [0, 1) of a Philox4x64-10 counter
    generator (key = seed, as numpy's `Philox(key=seed)`), 53 bits each, make two normals by
    Box-Muller in double precision.
    """
    size = canvas.channels * canvas.height * canvas.width
    pairs = -(-size // 2)
    pictures = []
    for picture in range(count):
        bits = np.random.Philox(key=(seed + picture) % 2**64)
        uniform = np.random.Generator(bits).random(2 * pairs).reshape(pairs, 2)
        radius = np.sqrt(-2.0 * np.log1p(-uniform[:, 0]))
        angle = 2.0 * np.pi * uniform[:, 1]
        normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        pictures.append(normal.reshape(-1)[:size])
    shape = (count, canvas.channels, canvas.height, canvas.width)
    return np.stack(pictures).astype(np.float32).reshape(shape)


def canvas_of(info: BundleInfo, options: GenerateOptions) -> Canvas:
    """Return the latents' shape for a bundle and a picture size.

    Raises:
        OptionError: the size does not fit the bundle.
    """
    factor = info.vae_scale_factor
    height, width = options.size_px(info.image_size_px, factor)
    return Canvas(info.latent_channels, height // factor, width // factor)


def starting_noise(
    canvas: Canvas, options: GenerateOptions, generator: Any = None, latents: Any = None
) -> Floats:
    """Return (num_images_per_prompt, C, h, w) float32 noise: as given, or drawn.

    Args:
        canvas: the shape of one.
        options: their number, and the seed that counts if the rest is None.
        generator: a torch generator on the CPU, or one a picture.
        latents: the noise itself, an array or a tensor on the CPU.

    Raises:
        OptionError: the latents have another shape or are not finite, or the generators are not
            torch's on the CPU, or not as many as the pictures.
    """
    count = options.num_images_per_prompt
    shape = (count, canvas.channels, canvas.height, canvas.width)
    if latents is not None:
        given = np.asarray(latents, dtype=np.float32)
        if given.shape != shape or not np.isfinite(given).all():
            raise OptionError(
                "latents", expected=f"finite values of shape {shape}",
                got=f"shape {given.shape}" if given.shape != shape else "values that are not",
                remedy="Draw them with numpy.random.Generator.standard_normal(shape)",
            )  # fmt: skip
        return given
    if generator is None:
        return initial_noise(options.seed, count, canvas)
    generators = list(generator) if isinstance(generator, Sequence) else generator
    _check_generators(generators if isinstance(generators, list) else [generators] * count, count)
    from diffusers.utils.torch_utils import randn_tensor

    noise: Floats = randn_tensor(shape, generator=generators).numpy()
    return noise


def _check_generators(generators: Sequence[Any], count: int) -> None:
    if len(generators) != count:
        raise OptionError(
            "generator", expected=f"one, or one for each of {count} pictures",
            got=f"{len(generators)}",
        )  # fmt: skip
    torch = sys.modules.get("torch")  # who has a generator of torch's has imported it
    for generator in generators:
        is_one = torch is not None and isinstance(generator, torch.Generator)
        if not is_one or generator.device.type != "cpu":
            raise OptionError(
                "generator", expected="torch.Generator() on the CPU, or a list of them",
                got=f"a generator on {generator.device}" if is_one else repr(generator)[:100],
                remedy="Or draw from a seed: generate(..., seed=1)",
            )  # fmt: skip


def check_prompts(prompt: str | Sequence[str]) -> list[str]:
    """Return the prompts as a list.

    Raises:
        PromptError: one is not text.
    """
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list | tuple) or not all(isinstance(text, str) for text in prompts):
        raise PromptError("prompt", expected="text, or a list of texts", got=repr(prompt)[:100])
    return list(prompts)


def name_subjects(prompt: str, subjects: Sequence[Subject]) -> dict[str, Subject]:
    """Return placeholder -> subject for a prompt.

    One subject answers to "S*" and to "<its name>", several each to "<its name>" alone.

    Raises:
        PromptError: a subject is given that the prompt does not use, two share a name, or "S*"
            could be any of several.
    """
    named = {f"<{subject.name}>": subject for subject in subjects}
    if len(named) < len(subjects):
        raise PromptError(
            "subjects", expected="different names",
            got=", ".join(subject.name for subject in subjects),
            remedy="Rename one: dataclasses.replace(subject, name=...)",
        )  # fmt: skip
    used = set(placeholders(prompt))
    if "s*" in used and len(subjects) > 1:
        raise PromptError(
            "S* in the prompt", expected=f"one of {', '.join(named)}",
            got=f"S* with {len(subjects)} subjects", remedy="Name each subject in the prompt",
        )  # fmt: skip
    if len(subjects) == 1:
        named["s*"] = subjects[0]
    unused = [subject.name for subject in subjects if not _is_used(subject, named, used)]
    if unused:
        raise PromptError(
            f"prompt {prompt!r}", expected=f"S* or <{unused[0]}> where the subject should be",
            got="no placeholder of it", remedy=f'Write for example "S* on the beach" or '
            f'"<{unused[0]}> on the beach"',
        )  # fmt: skip
    return named


def _is_used(subject: Subject, named: Mapping[str, Subject], used: set[str]) -> bool:
    return any(named[name] is subject for name in used if name in named)


def tokenize(tokenizer: PromptTokenizer, prompt: str, words: Mapping[str, int]) -> PromptTokens:
    """Tokenize a prompt with room for its subjects' words: placeholder -> how many.

    Raises:
        PromptError: it is empty, or as of `tokenize_prompt`.
    """
    if not prompt.strip():
        raise PromptError(
            "prompt", expected="some text", got="nothing", remedy='Describe it: "a photo of S*"'
        )
    return tokenize_prompt(tokenizer, prompt, words)


def denoise(
    backend: Backend,
    noise: Floats,
    states: Any,
    schedule: Schedule,
    guidance_scale: float,
    on_step: Callable[[int, Any], Any] = lambda _, latents: latents,
    pace: Pace = Pace(),  # noqa: B008 - frozen
) -> Any:
    """Run the loop: from unit noise to clean latents on the backend's device.

    Args:
        backend: the runtime.
        noise: (N, C, h, w) float32, of unit variance.
        states: as of `Backend.denoise_step`.
        schedule: the sampler's table.
        guidance_scale: the weight of the prompt.
        on_step: called with 0, 1, ... and the latents after each step; returns those to go on with.
        pace: what steps leave out; the schedule has the number of steps.
    """
    latents = backend.to_device(noise * np.float32(schedule.initial_noise_scale))
    before = None
    guided = guidance_scale > 1.0
    plan = plan_steps(schedule.num_inference_steps, pace, guided=guided)
    for step, planned in enumerate(plan):
        if guided and not planned.guided:
            states, guided = backend.prompts_only(states), False
        coefficients = StepCoefficients(
            *(
                float(column[step])
                for column in (
                    schedule.timesteps, schedule.p, schedule.q, schedule.a, schedule.b, schedule.c
                )
            )
        )  # fmt: skip
        latents, before = backend.denoise_step(
            latents, before, states, guidance_scale, coefficients, planned.features
        )
        latents = on_step(step, latents)
    return latents


def text_states(
    backend: Backend,
    tokenizer: PromptTokenizer,
    prompt: str,
    subjects: Sequence[Subject],
    options: GenerateOptions,
    *,
    guided: bool,
) -> Any:
    """Encode a prompt, after its negative one if `guided`: each once, whatever is drawn of it.

    Returns:
        As of `Backend.denoise_step`, for `options.num_images_per_prompt` pictures.
    """
    named = name_subjects(prompt, subjects)
    words = {name: subject.words for name, subject in named.items()}
    lengths = {name: len(rows) for name, rows in words.items()}
    prompts = [tokenize(tokenizer, prompt, lengths)]
    if guided:
        prompts.insert(0, tokenize_prompt(tokenizer, options.negative_prompt or "", lengths))
    return backend.encode_prompts(prompts, words, options.num_images_per_prompt)
