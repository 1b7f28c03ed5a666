"""The methods that a user would otherwise pick, on the same base model and in the same harness.

Each is its authors' method with diffusers' example settings as defaults, which are for SD 1.5. A
name such as "dreambooth:learning_rate=1e-4,budgets=100+800" changes options; they show in
`Method.name`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hbsdk.errors import EvaluationError, OptionError
from hbsdk.evaluation.baselines.custom_diffusion import CustomDiffusion
from hbsdk.evaluation.baselines.dreambooth import DreamBooth, DreamBoothLora
from hbsdk.evaluation.baselines.few_shot import Baseline
from hbsdk.evaluation.baselines.textual_inversion import TextualInversion
from hbsdk.evaluation.methods import Method

__all__ = ["BASELINES", "baseline", "baselines"]

_KINDS: dict[str, type[Baseline]] = {
    kind.kind: kind for kind in (TextualInversion, DreamBooth, DreamBoothLora, CustomDiffusion)
}
BASELINES = tuple(_KINDS)


def baselines(names: Sequence[str] = BASELINES) -> list[Method]:
    """Return methods by name, each with options after a colon: "name:option=value,option=value".

    Args:
        names: of `BASELINES`, such as "dreambooth" or "dreambooth:seed=1".

    Raises:
        EvaluationError: there is no such method, or two have one name.
        OptionError: there is no such option, or its value makes no sense.
    """
    made: list[Method] = []
    for text in names:
        name, _, rest = text.partition(":")
        pairs = [part.partition("=") for part in rest.split(",") if part]
        made.append(baseline(name, **{key.strip(): value.strip() for key, _, value in pairs}))
    twice = {one.name for one in made if [two.name for two in made].count(one.name) > 1}
    if twice:
        raise EvaluationError(
            "methods", expected="different ones", got=f"{min(twice)} more than once",
            remedy="Leave one out, or change an option of it",
        )  # fmt: skip
    return made


def baseline(name: str, **options: Any) -> Method:
    """Return a method of `BASELINES`.

    Args:
        name: the method's.
        **options: fields of its class; text is read as the field's type.

    Raises:
        EvaluationError: there is no such method.
        OptionError: there is no such option, or its value makes no sense.
    """
    if name not in _KINDS:
        raise EvaluationError(
            f"method {name!r}", expected=f"one of {', '.join(BASELINES)}", got=repr(name)
        )
    known = {one.name: one.default for one in fields(_KINDS[name]) if one.init}
    for option in options:
        if option not in known:
            raise OptionError(
                f"option {option!r} of {name}", expected=f"one of {', '.join(known)}", got=option
            )
    read = {key: _read(key, value, type(known[key])) for key, value in options.items()}
    return _KINDS[name](**read)


def _read(option: str, value: Any, kind: type) -> Any:
    """Return a value that is given as text as what it stands for; others as they are."""
    if not isinstance(value, str) or kind is str:
        return value
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        return tuple(map(int, value.split("+"))) if kind is tuple else kind(value)
    except (KeyError, ValueError) as error:
        raise OptionError(
            option, expected=f"{kind.__name__} as text", got=repr(value)[:100]
        ) from error
