"""Which cases a question has: engines, precisions and options, by name."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hbsdk.backends.choose import candidates, choose
from hbsdk.backends.precision import prefers_bfloat16
from hbsdk.bench.machine import files_digest, memory_bytes
from hbsdk.bench.process import Case
from hbsdk.bench.tasks import REFINEMENT_STEP, is_exact, whole_refinement
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder
from hbsdk.errors import HbsdkError, OptionError
from hbsdk.options import GenerateOptions, PersonalizeOptions
from hbsdk.room import (
    TO_DRAW,
    engines_need,
    generation_need,
    refinement_need,
    weights_bytes,
    without_room,
)

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
    found: list[Asked] = []
    for one in candidates(bundle, engines):
        if one.problem is not None or one.engine in [other.name for other in found]:
            continue  # of several engine folders, a session takes the first
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
    guided_step: bool = False,
) -> Case:
    """Return a case that draws one picture with hbsdk.

    Args:
        bundle: which networks.
        source: it, as a session takes it.
        asked: engine and options.
        options: of all cases; the case's own come first.
        prompt: text.
        guided_step: measure one guided step alone, and no picture.
    """
    chosen = {**options, **asked.options}
    problem = _fault(GenerateOptions, chosen)
    if guided_step and problem is None and not is_exact(chosen):
        problem = "its options leave work out, so that no step is like the others: draw pictures"
    dtype, folder = _precision(bundle, asked.session)
    least, peak = least_of_generation(bundle, chosen, dtype)
    need = generation_need(bundle, dtype, peak)
    if folder is not None:
        need = engines_need(folder.folder, peak, TO_DRAW)
    return Case(
        asked.name, _TASKS, "Generate",
        {
            "bundle": source, **asked.session, "options": chosen, "prompt": prompt,
            "guided_step": guided_step, "built": built(folder),
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
    dtype, folder = _precision(bundle, asked.session)
    need, remedy, least = weights_bytes(bundle, dtype), "", {}
    if problem is None:
        settled = PersonalizeOptions(**chosen)
        if settled.steps and find_spec("torch") is not None:
            dtype = torch_dtype(bundle, asked.session)  # whatever runs the probe
            need = refinement_need(bundle, settled, dtype, memory=asked.session.get("memory"))
            least = _least_of_refinement(bundle, settled, dtype)
            room = memory_bytes()
            if room is not None and need > room:
                remedy = without_room(bundle, settled, dtype, room)
    return Case(
        asked.name, _TASKS, "Personalize",
        {"bundle": source, **asked.session, "options": chosen, "built": built(folder)},
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


def _precision(bundle: Bundle, session: Mapping[str, Any]) -> tuple[str, EngineFolder | None]:
    """Return the dtype of the UNet's products, and the engine folder that a session would take."""
    folder = session.get("engines")
    try:
        chosen = choose(
            bundle, session.get("engine", "auto"), None if folder is None else Path(folder),
            session.get("device"),
        )  # fmt: skip
        if chosen.engine == "openvino":
            return "bfloat16" if prefers_bfloat16(bundle) else "float32", chosen.folder
        if chosen.folder is not None:
            return chosen.folder.manifest.precision.get("unet", "float32"), chosen.folder
        return torch_dtype(bundle, session), None
    except HbsdkError:
        return "float32", None  # such a session does not open: its row says why


def built(engines: EngineFolder | None) -> str | None:
    """Return a name for what engines are, which changes when they are built anew."""
    return None if engines is None else files_digest([engines.folder / "manifest.json"])


def torch_dtype(bundle: Bundle, session: Mapping[str, Any]) -> str:
    """Return the precision that the torch backend takes with a session's dtype and device.

    Raises:
        OptionError: there is no such precision, or no such device here.
    """
    if find_spec("torch") is None:
        return "float32"
    from hbsdk.backends.torch import TorchBackend

    backend = TorchBackend(
        bundle, device=session.get("device"), dtype=session.get("dtype", "auto")
    )  # loads nothing
    return str(backend.dtype).removeprefix("torch.")


def least_of_generation(
    bundle: Bundle, options: Mapping[str, Any], dtype: str, *, with_text: bool = True
) -> tuple[dict[str, Any], int]:
    """Return operations and weight bytes of what is measured, and the largest part's memory.

    Args:
        bundle: says the sizes.
        options: of `GenerateOptions`, by name.
        dtype: of the products.
        with_text: a picture's time holds encoding the prompt.

    Returns:
        What is measured -> its parts, for `Case.notes["least"]`, nothing without torch; and bytes.
    """
    if find_spec("torch") is None or _fault(GenerateOptions, options) is not None:
        return {}, 0
    from hbsdk.bench.counting import count_generation

    pictures = options.get("num_images_per_prompt", 1)
    parts = count_generation(
        bundle, pictures=pictures, height_px=options.get("height"), width_px=options.get("width"),
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

    picture = [row("guided_step", steps), row("decode", pictures)]
    if with_text:
        picture.insert(0, row("text_encoder", 1))
    least = {"guided step": [row("guided_step", 1)], f"picture of {steps} steps": picture}
    # Options that leave work out have no limit that is known here.
    return least if is_exact(options) else {}, max(part.peak_bytes for part in parts.values())


def _least_of_refinement(bundle: Bundle, options: PersonalizeOptions, dtype: str) -> dict[str, Any]:
    from hbsdk.bench.counting import count_refinement

    part = count_refinement(bundle, options, dtype=dtype)
    at_once = min(options.micro_batch_size, options.timesteps_per_step)

    def row(steps: int) -> dict[str, Any]:
        return {
            "part": "loss, forward and backward",
            "times": steps * options.timesteps_per_step / at_once, "operations": part.operations,
            "bytes": 2 * part.weight_bytes, "dtype": dtype,
        }  # fmt: skip

    return {REFINEMENT_STEP: [row(1)], whole_refinement(options.steps): [row(options.steps)]}
