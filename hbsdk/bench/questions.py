"""The questions of `hbsdk bench` and of benchmarks/*.py: their cases, and what the answers say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hbsdk.bench.answer import answer, end_work, work_folder
from hbsdk.bench.cases import Asked, generate_case, personalize_case, read_case, usable_engines
from hbsdk.bench.process import Case
from hbsdk.bench.report import Report
from hbsdk.bench.summary import linear_fit
from hbsdk.bundle import Bundle
from hbsdk.options import GenerateOptions, PersonalizeOptions

MICRO_BATCHES = (1, 2, 4, 8)
_SCALING = "hbsdk.bench.scaling"


@dataclass(frozen=True)
class Setup:
    """What all questions are asked with.

    Attributes:
        source: of the bundle, as a session takes it.
        output: the JSON.
        cases: as `read_case` reads them; none is what can run here.
        engines: an engine folder, or a folder of them.
        device: as torch names it.
        repeats: runs that count.
        steps: of drawing, or of refinement; None is the default.
        one_at_a_time: one process at a time.
        progress: show a bar.
    """

    source: str | None
    output: Path
    cases: Sequence[str] = ()
    engines: Path | None = None
    device: str | None = None
    repeats: int = 5
    steps: int | None = None
    one_at_a_time: bool = False
    progress: bool = True

    def asked(self, bundle: Bundle, kind: Any) -> list[Asked]:
        """Return the cases that are asked for, with engines and device filled in."""
        read = [read_case(text, kind) for text in self.cases]
        found = read or usable_engines(bundle, self.engines)
        common = {"engines": None if self.engines is None else str(self.engines)}
        common["device"] = self.device
        filled = {key: value for key, value in common.items() if value is not None}
        return [Asked(one.name, _without_engines(filled, one), one.options) for one in found]

    def answer(
        self, question: str, cases: Sequence[Case], bundle: Bundle, settings: Mapping[str, Any]
    ) -> Report:
        """Measure."""
        return answer(
            question, cases, bundle, self.output, settings=settings, repeats=self.repeats,
            device=self.device, one_at_a_time=self.one_at_a_time, progress=self.progress,
        )  # fmt: skip


def _without_engines(common: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """A session in torch takes no engines."""
    is_torch = asked.session.get("engine") == "torch"
    kept = {key: value for key, value in common.items() if not (is_torch and key == "engines")}
    return {**kept, **asked.session}


def drawing_prompt(bundle: Bundle) -> str:
    """Return what is drawn."""
    return f"a photo of a {bundle.info.class_word}"


def ask_generate(setup: Setup, peers: Sequence[Case] = ()) -> Report:
    """One guided step, and one whole picture: engines, precisions, options, and peers.

    Args:
        setup: its first case is what pictures are compared with.
        peers: cases of other libraries; see benchmarks/peers.
    """
    bundle, folder = Bundle.open(setup.source), work_folder(setup.output)
    steps = setup.steps or GenerateOptions().num_inference_steps
    options = {"num_inference_steps": steps, "seed": 0}
    cases = [
        generate_case(
            bundle, setup.source, one, options, prompt=drawing_prompt(bundle),
            picture=folder / f"case-{number}.npy",
        )
        for number, one in enumerate(setup.asked(bundle, GenerateOptions))
    ]  # fmt: skip
    settings = {"prompt": drawing_prompt(bundle), "options": options}
    report = setup.answer("generate", [*cases, *peers], bundle, settings)
    end_work(report)
    return report


def ask_personalize(setup: Setup) -> Report:
    """One photo to a subject: the probe on each engine, and with refinement in torch."""
    bundle = Bundle.open(setup.source)
    steps = PersonalizeOptions().steps if setup.steps is None else setup.steps
    cases = []
    for one in setup.asked(bundle, PersonalizeOptions):
        cases.append(_personalize(bundle, setup.source, one, {"steps": 0}, "probe"))
        if one.session.get("engine") == "torch" and steps:
            more = {"steps": steps}
            cases.append(_personalize(bundle, setup.source, one, more, f"{steps} steps"))
    return setup.answer("personalize", cases, bundle, {"steps": steps})


def _personalize(
    bundle: Bundle, source: str | None, asked: Asked, options: Mapping[str, Any], word: str
) -> Case:
    named = Asked(f"{asked.name}, {word}", asked.session, asked.options)
    return personalize_case(bundle, source, named, options)


def ask_refine(
    setup: Setup,
    *,
    dtype: str = "auto",
    options: Mapping[str, Any] | None = None,
    plain: Case | None = None,
    micro_batches: Sequence[int] = MICRO_BATCHES,
) -> Report:
    """Refinement in micro-batches of several sizes, each in processes of its own.

    Args:
        setup: of which the cases play no part.
        dtype: of torch.
        options: of `PersonalizeOptions`, beside steps and micro-batch.
        plain: a loop to compare with; its "losses" have to be the same.
        micro_batches: noise levels at once.
    """
    bundle = Bundle.open(setup.source)
    steps = PersonalizeOptions().steps if setup.steps is None else setup.steps
    common = {"steps": steps, **(options or {})}
    session = {"engine": "torch", "dtype": dtype, "memory": "low"}
    if setup.device is not None:
        session["device"] = setup.device
    cases = [
        personalize_case(
            bundle, setup.source, Asked(f"micro-batch {size}", session),
            {**common, "micro_batch_size": size},
        )
        for size in micro_batches
    ]  # fmt: skip
    if plain is not None:
        cases.append(plain)
    settings = {"dtype": dtype, "options": asdict(PersonalizeOptions(**common))}
    report = setup.answer("refine", cases, bundle, settings)
    _compare_losses(report, [case.name for case in cases])
    report.write()
    return report


def _compare_losses(report: Report, names: Sequence[str]) -> None:
    """How far each case's losses are from the last one's, as a share; and a control.

    The control compares with the losses of the next step, on other noise: it has to be far off.
    """
    losses = {name: report.case(name).get("facts", {}).get("losses") for name in names}
    expected = losses[names[-1]]
    if not expected:
        return
    for name in names[:-1]:
        if losses[name] and len(losses[name]) == len(expected):
            facts = report.case(name)["facts"]
            facts["largest_loss_difference"] = largest_difference(losses[name], expected)
            facts["control_loss_difference"] = largest_difference(
                losses[name], [*expected[1:], expected[0]]
            )


def largest_difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest |loss - expected| / |expected|."""
    pairs = zip(losses, expected, strict=True)
    return max(abs(loss - other) / abs(other) for loss, other in pairs)


def ask_scale(setup: Setup, numbers: Mapping[str, Sequence[int]] | None = None) -> Report:
    """Time over steps, pictures, size, subjects, files and threads.

    Args:
        setup: of which the first case is the engine.
        numbers: by what; None is `scaling_numbers`.
    """
    bundle = Bundle.open(setup.source)
    (asked, *_) = setup.asked(bundle, GenerateOptions)
    chosen = scaling_numbers(bundle) if numbers is None else numbers
    common = {
        "bundle": setup.source, **asked.session, "prompt": drawing_prompt(bundle),
        "steps": setup.steps or 4,
    }  # fmt: skip
    cases = [
        Case(
            what, _SCALING, "Scaling", {**common, "what": what, "numbers": list(values)},
            notes={"settings": dict(asked.session), "numbers": list(values)},
        )
        for what, values in chosen.items()
    ]  # fmt: skip
    settings = {"numbers": {what: list(values) for what, values in chosen.items()}, **common}
    report = setup.answer("scale", cases, bundle, settings)
    _add_fits(report)
    report.write()
    return report


def scaling_numbers(bundle: Bundle) -> dict[str, Sequence[int]]:
    """Return how far each quantity goes by default."""
    side = bundle.info.image_size_px
    found: dict[str, Sequence[int]] = {
        "steps": (5, 10, 20, 40),
        "pictures": (1, 2, 4, 8),
        "size": (side, side * 3 // 2, side * 2),
        "threads": (1, 2, 4),
        "files": (1000,),
    }
    if {"image_encoder", "dino", "regressor"} <= set(bundle.components):
        found["subjects"] = (1, 10, 100)
    return found


def _add_fits(report: Report) -> None:
    for what in ("steps", "pictures", "subjects"):
        case = report.data["cases"].get(what, {})
        medians = [one["median_s"] for one in case.get("measures", {}).values()]
        numbers = case.get("numbers", [])
        if len(medians) != len(numbers) or len(numbers) < 2:
            continue
        fit = linear_fit(numbers, medians)
        case.setdefault("facts", {})["fit"] = fit
        report.data["facts"][f"time over {what}"] = (
            f"{fit['seconds_fixed']:.4g} s + {fit['seconds_each']:.4g} s each, off by at most "
            f"{fit['largest_residual']:.1%} of the longest"
        )
        rates = [n / second for n, second in zip(numbers, medians, strict=True)]
        case["facts"]["each_second"] = dict(zip(map(str, numbers), rates, strict=True))


QUESTIONS: Mapping[str, Callable[[Setup], Report]] = {
    "personalize": ask_personalize,
    "generate": ask_generate,
    "refine": ask_refine,
    "scale": ask_scale,
}
