"""Which cases a question has: engines, precisions and options, by name."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hbsdk.backends.choose import candidates
from hbsdk.bench.machine import memory_bytes
from hbsdk.bench.process import Case
from hbsdk.bench.room import (
    engines_need,
    generation_need,
    refinement_need,
    weights_bytes,
    without_room,
)
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder
from hbsdk.errors import OptionError
from hbsdk.options import GenerateOptions, PersonalizeOptions

_TASKS = "hbsdk.bench.tasks"
_SESSION = ("engine", "engines", "device", "dtype", "memory")


@dataclass(frozen=True)
class Asked:
    """One case as it is asked for: a session's settings and options of the call, by name."""

    name: str
    session: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def read_case(text: str, kind: type[GenerateOptions] | type[PersonalizeOptions]) -> Asked:
    """Read "NAME=ENGINE,dtype=bfloat16,FIELD=VALUE": settings of a session and option fields.

    "NAME=" may be left out.

    Raises:
        OptionError: a word is neither a setting of a session nor a field of the options.
    """
    head, _, rest = text.partition(",")
    name, _, engine = head.rpartition("=")
    session: dict[str, Any] = {"engine": engine}
    options: dict[str, Any] = {}
    names = [one.name for one in fields(kind)]
    for pair in filter(None, rest.split(",")):
        key, _, value = pair.partition("=")
        if key in _SESSION:
            session[key] = value
        elif key in names:
            options[key] = _value(value)
        else:
            raise OptionError(
                f"{key!r} of case {text!r}", expected=f"one of {', '.join((*_SESSION, *names))}",
                got=repr(key), remedy="Write NAME=ENGINE,dtype=bfloat16,FIELD=VALUE",
            )  # fmt: skip
    return Asked(name or text, session, options)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def usable_engines(bundle: Bundle, engines: Path | None = None) -> list[Asked]:
    """Return a case for each engine that can run here, the fastest first; on CPUs torch twice."""
    found = []
    for one in candidates(bundle, engines):
        if one.problem is not None:
            continue
        if one.engine != "torch":
            found.append(Asked(one.engine, {"engine": one.engine, "engines": str(one.path)}))
            continue
        for dtype in ("bfloat16", "float32"):
            found.append(Asked(f"torch {dtype}", {"engine": "torch", "dtype": dtype}))
    return found


def generate_case(
    bundle: Bundle,
    source: str | None,
    asked: Asked,
    options: Mapping[str, Any],
    *,
    prompt: str,
    picture: Path | None = None,
) -> Case:
    """Return a case that draws one picture with hbsdk.

    Args:
        bundle: which networks.
        source: it, as a session takes it.
        asked: engine and options.
        options: of all cases; the case's own come first.
        prompt: text.
        picture: the .npy to write the first picture to.
    """
    chosen = {**options, **asked.options}
    problem = _fault(GenerateOptions, chosen)
    dtype, folder = _precision(bundle, asked)
    least, peak = least_of_generation(bundle, chosen, dtype)
    if folder is None:
        need = generation_need(bundle, dtype, peak)
    else:
        need = engines_need(folder.folder, peak)
    return Case(
        asked.name, _TASKS, "Generate",
        {
            "bundle": source, **asked.session, "options": chosen, "prompt": prompt,
            "picture": None if picture is None else str(picture),
        },
        need_bytes=need, problem=problem,
        notes={
            "settings": {**asked.session, "options": dict(asked.options)}, "dtype": dtype,
            "least": least, "remedy": "dtype='bfloat16', or a smaller picture, needs less",
        },
    )  # fmt: skip


def personalize_case(
    bundle: Bundle, source: str | None, asked: Asked, options: Mapping[str, Any]
) -> Case:
    """Return a case that personalizes one photo with hbsdk; as `generate_case`."""
    chosen = {**options, **asked.options}
    problem = _fault(PersonalizeOptions, chosen)
    dtype, _ = _precision(bundle, asked)
    need, remedy, least = weights_bytes(bundle, dtype), "", {}
    if problem is None:
        settled = PersonalizeOptions(**chosen)
        if settled.steps and find_spec("torch") is not None:
            need = refinement_need(bundle, settled, dtype)
            least = _least_of_refinement(bundle, settled, dtype)
            room = memory_bytes()
            if room is not None and need > room:
                remedy = without_room(bundle, settled, dtype, room)
    return Case(
        asked.name, _TASKS, "Personalize", {"bundle": source, **asked.session, "options": chosen},
        need_bytes=need, problem=problem,
        notes={
            "settings": {**asked.session, "options": dict(asked.options)}, "dtype": dtype,
            "least": least, **({"remedy": remedy} if remedy else {}),
        },
    )  # fmt: skip


def _fault(kind: Any, options: Mapping[str, Any]) -> str | None:
    """Say what is wrong with options; None if nothing is."""
    try:
        kind(**options)
    except (OptionError, TypeError) as error:
        return str(error)
    return None


def _precision(bundle: Bundle, asked: Asked) -> tuple[str, EngineFolder | None]:
    """Return the dtype of the products, and the engine folder if there is one."""
    engine, folder = asked.session.get("engine", "auto"), asked.session.get("engines")
    if engine != "torch":
        for one in candidates(bundle, None if folder is None else Path(folder)):
            if engine in ("auto", one.engine) and one.problem is None and one.folder is not None:
                return one.folder.manifest.precision.get("unet", "float32"), one.folder
    dtype = asked.session.get("dtype", "auto")
    if dtype != "auto":
        return dtype, None
    small = weights_bytes(bundle, "float32", ("unet",)) < _SMALL_BYTES
    return ("float32" if small else "bfloat16"), None


# Options that change how much is drawn, not how much of the method's work is done for it.
_EXACT = {"num_inference_steps", "num_images_per_prompt", "height", "width", "seed", "output_type"}
_SMALL_BYTES = 400_000_000  # below, the torch backend takes float32 on CPUs


def least_of_generation(
    bundle: Bundle, options: Mapping[str, Any], dtype: str
) -> tuple[dict[str, Any], int]:
    """Return operations and weight bytes of what is measured, and the largest part's memory.

    Args:
        bundle: says the sizes.
        options: of `GenerateOptions`, by name.
        dtype: of the products.

    Returns:
        What is measured -> its parts, for `Case.notes["least"]`, nothing without torch; and bytes.
    """
    if find_spec("torch") is None or _fault(GenerateOptions, options) is not None:
        return {}, 0
    from hbsdk.bench.counting import count_generation

    parts = count_generation(
        bundle, pictures=options.get("num_images_per_prompt", 1), side_px=options.get("width"),
        dtype=dtype,
    )  # fmt: skip
    steps = options.get("num_inference_steps", GenerateOptions().num_inference_steps)

    def row(name: str, times: int) -> dict[str, Any]:
        kind = "float32" if name == "text_encoder" else dtype
        part = parts[name]
        return {
            "part": name, "times": times, "operations": part.operations,
            "bytes": part.weight_bytes, "dtype": kind,
        }  # fmt: skip

    pictures = options.get("num_images_per_prompt", 1)
    least = {
        "guided step": [row("guided_step", 1)],
        f"picture of {steps} steps": [
            row("text_encoder", 1), row("guided_step", steps), row("decode", pictures)
        ],
    }  # fmt: skip
    if not _EXACT.issuperset(options):
        least = {}  # options that leave work out have no limit that is known here
    return least, max(part.peak_bytes for part in parts.values())


def _least_of_refinement(bundle: Bundle, options: PersonalizeOptions, dtype: str) -> dict[str, Any]:
    from hbsdk.bench.counting import count_refinement

    part = count_refinement(bundle, options, dtype=dtype)
    at_once = min(options.micro_batch_size, options.timesteps_per_step)
    times = options.steps * options.timesteps_per_step / at_once
    row = {
        "part": "loss, forward and backward", "times": times, "operations": part.operations,
        "bytes": 2 * part.weight_bytes, "dtype": dtype,
    }  # fmt: skip
    return {f"probe and {options.steps} steps": [row], f"{options.steps} steps": [row]}


def torch_cases(dtypes: Sequence[str]) -> list[Asked]:
    """Return a case of torch for each precision."""
    return [Asked(f"torch {name}", {"engine": "torch", "dtype": name}) for name in dtypes]
