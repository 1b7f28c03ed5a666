"""From the command line's words to methods: "hybridbooth:steps=5+20,effective_step=0.001"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hbsdk.errors import EvaluationError, OptionError
from hbsdk.evaluation.baselines import BASELINES, baselines
from hbsdk.evaluation.drawing import typed
from hbsdk.evaluation.methods import Method
from hbsdk.evaluation.own_methods import HybridBooth, NoPersonalization, WithoutProbe
from hbsdk.evaluation.results import NO_PERSONALIZATION
from hbsdk.options import PersonalizeOptions

DEFAULT = (NO_PERSONALIZATION, "probe", "hybridbooth")
_REFINING: dict[str, tuple[type[HybridBooth], dict[str, Any]]] = {
    "probe": (HybridBooth, {"steps": 0}),
    "hybridbooth": (HybridBooth, {}),
    "paper": (HybridBooth, {"mode": "paper"}),
    "without-probe": (WithoutProbe, {}),
}
NAMES = (NO_PERSONALIZATION, *_REFINING, *BASELINES)


def parse_method(text: str) -> Method:
    """Return the method that a text names.

    Args:
        text: one of `NAMES`; those that refine take settings of `PersonalizeOptions` after a
            colon, and several numbers of steps as in "hybridbooth:steps=0+5+20"; settings but the
            steps become part of the method's name. Baselines take their own.

    Raises:
        EvaluationError: there is no such method or setting.
        OptionError: a setting is out of its range.
    """
    name, _, settings = text.partition(":")
    if name in BASELINES:
        return baselines([text])[0]
    if name not in NAMES:
        raise EvaluationError(
            f"method {text!r}", expected=f"one of {', '.join(NAMES)}", got=repr(name),
            remedy="Of another regressor: --regressor LABEL=FOLDER",
        )  # fmt: skip
    if name == NO_PERSONALIZATION:
        if settings:
            raise EvaluationError(f"method {text!r}", expected="no settings", got=settings)
        return NoPersonalization()
    kind, fixed = _REFINING[name]
    changes = _settings(text, settings)
    if again := set(changes) & set(fixed):
        raise EvaluationError(
            f"method {text!r}", expected=f"no {sorted(again)[0]}, which {name!r} sets itself",
            got=settings, remedy="Give hybridbooth settings instead",
        )  # fmt: skip
    budgets = changes.pop("steps", None)
    label = "-".join([name, *(f"{key}={value}" for key, value in changes.items())])
    return kind(label, budgets=budgets, **fixed, **changes)


def parse_regressor(text: str) -> list[Method]:
    """Return "LABEL-probe" and "LABEL" of a text "LABEL=FOLDER".

    Args:
        text: of the command line.

    Raises:
        EvaluationError: it is not of that form, or the folder has no regressor.
    """
    label, equals, folder = text.partition("=")
    if not equals or not label or not folder:
        raise EvaluationError(
            "--regressor", expected="LABEL=FOLDER, such as without-dino=runs/clip-only",
            got=repr(text),
        )  # fmt: skip
    path = Path(folder).expanduser()
    return [HybridBooth(f"{label}-probe", regressor=path, steps=0),
            HybridBooth(label, regressor=path)]  # fmt: skip


def parse_methods(methods: Sequence[str], regressors: Sequence[str] = ()) -> list[Method]:
    """Return all methods of a command line, in their order; `DEFAULT` if it names none.

    Args:
        methods: texts of `parse_method`.
        regressors: texts of `parse_regressor`.

    Raises:
        EvaluationError, OptionError: as of `parse_method` and `parse_regressor`.
    """
    chosen = methods or ([] if regressors else DEFAULT)
    parsed = [parse_method(text) for text in chosen]
    return [*parsed, *(method for text in regressors for method in parse_regressor(text))]


def _settings(text: str, settings: str) -> dict[str, Any]:
    """The settings of "a=1,b=x", as the fields' own types; steps as a list."""
    defaults = asdict(PersonalizeOptions())
    found: dict[str, Any] = {}
    for part in filter(None, settings.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in defaults or key in found:
            raise EvaluationError(
                f"method {text!r}", expected=f"each once, as key=value: {', '.join(defaults)}",
                got=repr(part),
            )  # fmt: skip
        try:
            if key == "steps":
                found[key] = [int(one) for one in value.split("+")]
            else:
                found[key] = typed(value, type(defaults[key]))
        except ValueError as error:
            kind = type(defaults[key]).__name__
            raise OptionError(f"{key} of method {text!r}", expected=kind, got=value) from error
    return found
