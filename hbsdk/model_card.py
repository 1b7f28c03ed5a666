"""The model card of a packed bundle: what it is, what it was made of, and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from hbsdk.bundle_info import BundleInfo

_MOST_ROWS = 80  # of a table: a card is to be read
_INTENDED = """\
**For**: making subjects from one photo each and drawing them with this bundle, in `hbsdk`; plain
text-to-image generation with `diffusers`. **Not for**: pictures of people without their consent,
passing drawn pictures off as photographs, decisions about people. The regressor knows subjects
like those it was trained on; others need more refinement steps, and may still come out wrong."""
_USE = """\
```python
import hbsdk

session = hbsdk.Session("PATH/TO/THIS/FOLDER")
subject = session.personalize("photo.png")
pictures = session.generate("a watercolor of S* in the snow", subject)
```"""


def model_card(
    info: BundleInfo,
    weights_bytes: Mapping[str, int],
    training: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> str:
    """Return README.md, with the front matter that the hub reads.

    Args:
        info: the bundle's.
        weights_bytes: component -> size of its weights.
        training: training.json, or nothing where the regressor came without one.
        evaluation: a JSON object of results, or nothing where none was measured.
    """
    words = f"{info.num_words} words of {info.word_dim}, started from {info.class_word!r}"
    summary = f"A bundle for hbsdk: one photo of a subject becomes {words}. "
    rights = "The base model's and the encoders' licences and the rights in the data hold besides."
    parts = [
        _front_matter(info),
        f"# {info.name}",
        f"{summary}Pictures are {info.image_size_px} px.",
        _USE,
        f"## Made of\n\nBase: {info.base}.\n\n{_weights_table(weights_bytes)}",
        f"## Training of the regressor\n\nData: {info.trained_on}.\n\n{_training(training)}",
        f"## Figures\n\n{_evaluation(evaluation)}",
        f"## Intended use and limits\n\n{_INTENDED}\n\n{_limits(info, training, evaluation)}",
        f"## Licence\n\n{info.licence}. {rights}",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(info: BundleInfo) -> str:
    lines = [
        "---",
        f"license: {_hub_licence(info.licence)}",
        "library_name: hbsdk",
        "pipeline_tag: text-to-image",
        "tags: [stable-diffusion, personalization, hbsdk]",
        "---",
    ]
    return "\n".join(lines)


def _hub_licence(licence: str) -> str:
    known = {"apache-2.0", "mit", "cc-by-4.0", "creativeml-openrail-m", "openrail++"}
    return licence.lower() if licence.lower() in known else "other"


def _weights_table(weights_bytes: Mapping[str, int]) -> str:
    rows = [f"| {name} | {size / 1e6:,.1f} MB |" for name, size in weights_bytes.items()]
    return "\n".join(["| network | weights |", "|---|---|", *rows])


def _training(training: Mapping[str, Any]) -> str:
    if not training:
        return "No record of the training came with the regressor: its options are unknown."
    return "Everything that `hbsdk train` recorded (`training.json`):\n\n" + _table(training)


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    if not evaluation:
        return "None were measured for this card: run `hbsdk evaluate` before relying on it."
    return "As measured (`evaluation.json`):\n\n" + _table(evaluation)


def _limits(info: BundleInfo, training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    limits = [
        f"Words fit this bundle and others with the same text encoder (width {info.word_dim}).",
        "What the base model cannot draw, no subject makes it draw.",
    ]
    if not training:
        limits.append("How the regressor was trained cannot be checked.")
    if not evaluation:
        limits.append("Nothing says yet how well it does.")
    return "\n".join(f"- {limit}" for limit in limits)


def _table(data: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {_shown(value)} |" for key, value in _flat(data)]
    left_out = len(rows) - _MOST_ROWS
    more = [f"| ... | {left_out} more in the file |"] if left_out > 0 else []
    return "\n".join(["| what | value |", "|---|---|", *rows[:_MOST_ROWS], *more])


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all single values; lists, which are curves, are left out."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float | None):
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    text = " ".join(str(value).split()).replace("|", "\\|")
    return text if len(text) <= 200 else f"{text[:200]}..."
