"""The options of each operation: frozen dataclasses, with units and sources beside the fields."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar, get_args

from hbsdk.errors import OptionError

MAX_STEPS = 1000
MAX_SEED = 2**64 - 1
MAX_SIDE_PX = 4096
Mode = Literal["default", "paper"]
Segmenter = Literal["auto", "grabcut", "inspyrenet"]
Refined = Literal["head", "attention", "keys-values", "words"]
Speed = Literal["exact", "balanced", "fast"]


@dataclass(frozen=True)
class PersonalizeOptions:
    """How a photo becomes a subject.

    Raises:
        OptionError: a value is out of its range.
    """

    steps: int = 5  # refinement steps; 0 keeps the probe. Source: HybridBooth, section 5.1
    mode: Mode = "default"  # "paper" takes Eq. 5 literally: a rate of 2e-5 on dW, plain losses
    # What is refined: the regressor's head, which pools its regions into words; Q, K and V of its
    # cross-attention (the paper's); K and V alone; or the words. Deviation: see refine.py
    refined: Refined = "head"
    residual_scale: float = 1e-2  # lambda of Eq. 5
    effective_step: float = 1e-4  # of lambda * dW, a step of AdamW on the regressor's weights
    word_step: float = 8e-3  # a step of AdamW on the words themselves, of the probe words' RMS
    mirror: bool = True  # every other noise level sees the photo mirrored
    weight_decay: float = 1e-2  # Source: HybridBooth, section 5.1
    timesteps_per_step: int = 16  # noise levels a step, stratified over the schedule
    micro_batch_size: int = 16  # noise levels at once, fewer where memory is short: same result
    mask_loss_weight: float = 1e-3  # alpha of Eq. 7
    mask_loss: Literal["area", "paper"] = "area"  # how Eq. 6 takes its means
    background_weight: float = 0.1  # of L_eps outside of the mask; 1 is Eq. 1
    prompt: str = "a photo of S*"  # what the reference is said to show
    segmenter: Segmenter = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 0, MAX_STEPS)
        check_whole("timesteps_per_step", self.timesteps_per_step, 1, 256)
        check_whole("micro_batch_size", self.micro_batch_size, 1, 256)
        check_whole("seed", self.seed, 0, MAX_SEED)
        _check_range("residual_scale", self.residual_scale, 1e-8, 1.0)
        _check_range("effective_step", self.effective_step, 0.0, 1.0)
        _check_range("word_step", self.word_step, 0.0, 1.0)
        _check_choice("mirror", self.mirror, (True, False))
        _check_range("weight_decay", self.weight_decay, 0.0, 1.0)
        _check_range("mask_loss_weight", self.mask_loss_weight, 0.0, 1000.0)
        _check_range("background_weight", self.background_weight, 0.0, 1.0)
        _check_text("prompt", self.prompt)
        _check_choice("mode", self.mode, ("default", "paper"))
        _check_choice("mask_loss", self.mask_loss, ("area", "paper"))
        _check_choice("refined", self.refined, get_args(Refined))


@dataclass(frozen=True)
class GenerateOptions:
    """How a prompt becomes pictures; the names are diffusers'.

    Raises:
        OptionError: a value is out of its range.
    """

    negative_prompt: str | None = None
    num_images_per_prompt: int = 1
    num_inference_steps: int = 20  # of which `speed` may take a share
    guidance_scale: float | None = None  # None is the bundle's own; 1 and less is without
    height: int | None = None  # px, a multiple of the VAE's factor; None is the bundle's own
    width: int | None = None
    seed: int = 0  # picture i of a call starts from seed + i
    # One of the tables of schedule.py, or the name of a diffusers scheduler, which runs in torch.
    sampler: str = "dpm++2m"
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None  # None: the bundle's
    use_karras_sigmas: bool | None = None  # None: the bundle's
    # What trades quality for time: a preset of speed.py, which takes a share of the steps and says
    # what guidance_stop and feature_interval are where they are None. "exact" trades nothing.
    speed: Speed = "exact"
    # The share of the steps with classifier-free guidance, from the first one on; then the prompt
    # alone is computed: half the work. 1 is all. diffusers: ClassifierFreeGuidance(stop=...).
    guidance_stop: float | None = None
    # Every n-th step runs the whole UNet, the others its fine part over the deep features of the
    # last whole one. 1 is all whole. Source: DeepCache, Ma et al. 2024; its cache_interval.
    feature_interval: int | None = None
    output_type: Literal["pil", "np", "latent"] = "pil"

    def __post_init__(self) -> None:
        _check_text("negative_prompt", self.negative_prompt or "")
        check_whole("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        _check_choice("speed", self.speed, get_args(Speed))
        if self.guidance_stop is not None:
            _check_range("guidance_stop", self.guidance_stop, 0.0, 1.0)
        if self.feature_interval is not None:
            check_whole("feature_interval", self.feature_interval, 1, MAX_STEPS)
        check_whole("num_images_per_prompt", self.num_images_per_prompt, 1, 64)
        check_whole("seed", self.seed, 0, MAX_SEED)
        if self.guidance_scale is not None:
            _check_range("guidance_scale", self.guidance_scale, 0.0, 100.0)
        if not _is_scheduler_name(self.sampler):
            _check_choice("sampler", self.sampler, ("ddim", "euler", "dpm++2m"))
        if self.timestep_spacing is not None:
            _check_choice(
                "timestep_spacing", self.timestep_spacing, ("leading", "linspace", "trailing")
            )
        if self.use_karras_sigmas is not None:
            _check_choice("use_karras_sigmas", self.use_karras_sigmas, (True, False))
        _check_choice("output_type", self.output_type, ("pil", "np", "latent"))

    def size_px(self, default: int, factor: int) -> tuple[int, int]:
        """Return (height, width) in pixels.

        Args:
            default: the bundle's image size.
            factor: pixels a latent cell.

        Raises:
            OptionError: a side is not a positive multiple of `factor` up to 4096.
        """
        height, width = (default if side is None else side for side in (self.height, self.width))
        for name, side in (("height", height), ("width", width)):
            if type(side) is not int or not factor <= side <= MAX_SIDE_PX or side % factor:
                raise OptionError(
                    name,
                    expected=f"a multiple of {factor} in {factor}..{MAX_SIDE_PX} px",
                    got=repr(side),
                    remedy=f"Use {_nearest_side(side, default, factor)}.",
                )
        return height, width


def _nearest_side(side: object, default: int, factor: int) -> int:
    """Return the allowed side nearest to what was asked for, or the default."""
    if not isinstance(side, int | float) or not abs(side) < 1e9:
        return default
    largest = MAX_SIDE_PX // factor
    return min(max(1, round(side / factor)), largest) * factor


def _is_scheduler_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and name.endswith("Scheduler")


_Options = TypeVar("_Options", PersonalizeOptions, GenerateOptions)


def changed(kind: type[_Options], options: _Options | None, changes: dict[str, Any]) -> _Options:
    """Return options, or the defaults, with single settings changed.

    Args:
        kind: the class.
        options: None is the defaults.
        changes: by field.

    Raises:
        OptionError: the options are of another class, or have no such field, or a value is out of
            its range.
    """
    options = kind() if options is None else options
    if not isinstance(options, kind):
        raise OptionError("options", expected=f"hbsdk.{kind.__name__}", got=repr(options)[:100])
    unknown = sorted(set(changes) - set(asdict(options)))
    if unknown:
        raise OptionError(
            f"option {unknown[0]!r}", expected=f"one of {', '.join(asdict(options))}",
            got=unknown[0], remedy=f"See hbsdk.{kind.__name__}",
        )  # fmt: skip
    return replace(options, **changes)


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Refuse what is not a whole number from `low` to `high`, both included.

    Raises:
        OptionError: it is not.
    """
    if type(value) is not int or not low <= value <= high:
        raise OptionError(
            name,
            expected=f"a whole number from {low} to {high}",
            got=repr(value),
            remedy=f"Choose {name} in this range.",
        )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise OptionError(
            name,
            expected=f"a number from {low:g} to {high:g}",
            got=repr(value),
            remedy=f"Choose {name} in this range.",
        )


def _check_text(name: str, value: str) -> None:
    if not isinstance(value, str):
        raise OptionError(name, expected="text", got=repr(value), remedy="Leave it out for none.")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise OptionError(
            name,
            expected=f"one of {', '.join(map(str, choices))}",
            got=repr(value),
            remedy=f"Use {choices[0]!r}.",
        )
