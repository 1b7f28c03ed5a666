"""Which of the regressor's layers matter when it is adapted to a subject (section 4.3).

For each subject the whole regressor is fine-tuned on one picture, with refinement's objective, and
two measures say how far each layer moved. Under Adam every weight moves by about the same amount a
step, so how far a layer moves says much about its scale and little about its use. So each group is
also trained alone, and what counts is how much the loss falls: on the same picture under noise
that no step saw, and on another picture of the subject.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

from hbsdk.backends.torch import TorchBackend
from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError, TrainingError
from hbsdk.image import Reference
from hbsdk.objective import Denoiser
from hbsdk.options import PersonalizeOptions

# Just what refinement minimises, so that both mean the same by "the loss".
from hbsdk.refine import EncodedReference, noised_reference, reference_loss
from hbsdk.regressor import PromptRegressor
from hbsdk.text import tokenize_prompt
from hbsdk.training.layer_groups import Group, changes, layer_groups
from hbsdk.training.layer_report import means_of, plot
from hbsdk.training.pairs import Pair, PairSource
from hbsdk.whole_file import write_whole

RESULTS, PLOT = "layer_importance.json", "layer_importance.png"
# Source: HybridBooth, section 4.3; "mean cosine distance of parameters", on a scale of its own.
PAPER = {"cross-attention": 56.3, "self-attention": 43.9, "other layers": 12.4}
_CHECK_LEVELS = 16  # noise levels of the loss before and after, other than the steps' own
_CHECK_SEED = 2**31 - 1


@dataclass(frozen=True)
class LayerOptions:
    """How the importance of layers is measured.

    Attributes:
        subjects: how many, one fine-tuning of everything and one a group each.
        steps: of each fine-tuning.
        seed: which pairs of the data, and the noise.
        personalize: refinement's settings; `effective_step` is the rate of AdamW. What is refined,
            for how many steps and by which seed is decided here instead. The photo is not
            mirrored: the loss that is looked at is the photo's own.

    Raises:
        OptionError: a value is out of its range; or `personalize` mirrors the photo or takes Eq. 5
            literally, neither of which is measured here.
    """

    subjects: int = 8
    steps: int = 20
    seed: int = 0
    personalize: PersonalizeOptions = field(
        default_factory=lambda: PersonalizeOptions(mirror=False)
    )

    def __post_init__(self) -> None:
        for name, most in (("subjects", 10_000), ("steps", 100_000)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise OptionError(name, expected=f"a whole number from 1 to {most}", got=str(value))
        for name, only in (("mirror", False), ("mode", "default")):
            value = getattr(self.personalize, name)
            if value != only:
                raise OptionError(
                    f"personalize.{name}", expected=repr(only), got=repr(value),
                    remedy="One photo is fine-tuned on, as it is: leave this setting to it",
                )  # fmt: skip


def layer_importance(
    bundle: Bundle,
    source: PairSource,
    out: Path,
    options: LayerOptions | None = None,
    *,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure, and write `layer_importance.json` and its plot into `out`.

    Subjects that a run with the same settings has measured before are not measured again.

    Args:
        bundle: with a regressor; none of its networks is changed.
        source: pairs, whose references are fine-tuned on and whose targets are looked at.
        out: a folder, made if need be.
        options: None is the defaults.
        device: as torch names it; None is the GPU if there is one.
        progress: show a progress bar.

    Returns:
        What the JSON says: `groups` (means and standard errors over the subjects), `whole` (the
        loss of all layers together), `subjects` (a row each), `settings`.

    Raises:
        BundleError: the bundle cannot personalize.
        TrainingError: a loss is not finite.
    """
    options = LayerOptions() if options is None else options
    backend = TorchBackend(bundle, device=device)
    settings = {
        "bundle": bundle.info.name,
        "bundle_hash": bundle.hash,
        "data": source.name,
        "data_fingerprint": source.fingerprint,
        "steps": options.steps,
        "seed": options.seed,
        **{f"personalize.{key}": value for key, value in asdict(options.personalize).items()},
    }
    rows = _earlier_rows(out / RESULTS, settings)[: options.subjects]
    groups = layer_groups(backend.network("regressor"))
    total = options.subjects * (len(groups) + 1)
    with tqdm(
        total=total, initial=len(rows) * (len(groups) + 1), desc="layers", unit="fine-tuning",
        disable=not progress,
    ) as bar:  # fmt: skip
        for number in range(len(rows), options.subjects):
            (pair,) = source.pairs(options.seed, 0, [number])
            rows.append(_measure(backend, pair, groups, options, bar.update))
            _write(out / RESULTS, _summary(settings, groups, rows))
    results = _summary(settings, groups, rows)
    _write(out / RESULTS, results)
    plot(results, out / PLOT)
    return results


def fine_tune(
    regressor: PromptRegressor,
    denoiser: Denoiser,
    reference: EncodedReference,
    parameters: Mapping[str, Tensor],
    options: LayerOptions,
) -> dict[str, Tensor]:
    """Fit some of the regressor's parameters to one picture, as refinement does.

    Args:
        regressor: in float32; not changed.
        denoiser: frozen.
        reference: the picture.
        parameters: what is trained, by name; the rest stays.
        options: steps, seed and rate.

    Returns:
        The parameters' new values, by name.

    Raises:
        TrainingError: the loss is not finite.
    """
    settings = options.personalize
    generator = torch.Generator().manual_seed(options.seed)
    moved = {name: torch.zeros_like(w, requires_grad=True) for name, w in parameters.items()}
    optimizer = torch.optim.AdamW(
        moved.values(), lr=settings.effective_step, eps=1e-12, weight_decay=settings.weight_decay
    )
    for _ in range(options.steps):
        words = _words(regressor, reference, {n: parameters[n] + d for n, d in moved.items()})
        batch = noised_reference(denoiser, reference, settings.timesteps_per_step, generator)
        leaf = words.detach().requires_grad_()
        loss = reference_loss(denoiser, leaf, batch, settings)
        if not math.isfinite(loss):
            raise TrainingError(
                "loss of a fine-tuning", expected="a finite number", got=str(loss),
                remedy="Check the bundle: hbsdk doctor; or take a smaller effective_step",
            )  # fmt: skip
        if words.requires_grad:  # else they do not depend on these parameters, which stay
            words.backward(leaf.grad, inputs=list(moved.values()))
        optimizer.step()
        optimizer.zero_grad()
    return {name: (parameters[name] + delta).detach() for name, delta in moved.items()}


def _words(
    regressor: PromptRegressor, reference: EncodedReference, changed: Mapping[str, Tensor]
) -> Tensor:
    inputs = (reference.latents.to(regressor.dtype), reference.features)
    words: Tensor = functional_call(regressor, dict(changed), inputs)
    return words.float()


def _measure(
    backend: TorchBackend,
    pair: Pair,
    groups: Mapping[str, Group],
    options: LayerOptions,
    advance: Callable[[], object],
) -> dict[str, Any]:
    """Return one subject's row."""
    started = time.perf_counter()
    regressor = backend.network("regressor")
    denoiser = Denoiser(backend.network("unet"), backend.network("text_encoder"), backend.scheduler)
    reference = _encode(backend, pair.reference, pair.reference_mask, options.personalize.prompt)
    target = _encode(backend, pair.target, pair.target_mask, pair.prompt)

    def losses(changed: Mapping[str, Tensor]) -> tuple[float, float]:
        with torch.no_grad():
            words = _words(regressor, reference, changed)
            return tuple(_held_loss(denoiser, one, words, options) for one in (reference, target))  # type: ignore[return-value]

    def decreases(changed: Mapping[str, Tensor]) -> dict[str, float]:
        advance()
        same, other = losses(changed)
        return {"loss_decrease": before[0] - same, "other_picture_decrease": before[1] - other}

    before = losses({})
    everything = {name: w for group in groups.values() for name, w in group.parameters.items()}
    after = fine_tune(regressor, denoiser, reference, everything, options)
    row: dict[str, Any] = {
        "whole": {"loss_before": before[0], "other_picture_before": before[1], **decreases(after)},
        "groups": {name: changes(group, after) for name, group in groups.items()},
    }
    for name, group in groups.items():
        alone = fine_tune(regressor, denoiser, reference, group.parameters, options)
        row["groups"][name] |= decreases(alone)
    return row | {"seconds": round(time.perf_counter() - started, 2)}


def _encode(backend: TorchBackend, pixels: Any, mask: Any, prompt: str) -> EncodedReference:
    shown = Reference(pixels.astype(np.float32) / 127.5 - 1.0, mask.astype(np.float32))
    tokens = tokenize_prompt(
        backend.bundle.load_tokenizer(), prompt, {"s*": backend.bundle.info.num_words}
    )
    return backend.encode_references([shown], tokens)


def _held_loss(
    denoiser: Denoiser, reference: EncodedReference, words: Tensor, options: LayerOptions
) -> float:
    """Return the loss under noise that no step sees."""
    generator = torch.Generator().manual_seed(_CHECK_SEED)
    batch = noised_reference(denoiser, reference, _CHECK_LEVELS, generator)
    return reference_loss(denoiser, words, batch, options.personalize)


def _earlier_rows(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an earlier run with the same settings."""
    try:
        earlier = json.loads(path.read_text("utf-8"))
        return list(earlier["subjects"]) if earlier["settings"] == settings else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _summary(
    settings: Mapping[str, Any], groups: Mapping[str, Group], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    described = {
        name: {
            "layers": len(group.layers),
            "parameters": sum(weight.numel() for weight in group.parameters.values()),
            **means_of(row["groups"][name] for row in rows),
        }
        for name, group in groups.items()
    }
    return {
        "settings": dict(settings),
        "date": time.strftime("%Y-%m-%d"),
        "paper, cosine distance on its own scale": PAPER,
        "groups": described,
        "whole": means_of(row["whole"] for row in rows),
        "subjects": list(rows),
    }


def _write(path: Path, results: Mapping[str, Any]) -> None:
    write_whole(path, f"{json.dumps(results, indent=2)}\n".encode())
