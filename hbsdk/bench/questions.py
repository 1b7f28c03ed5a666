"""The questions of `hbsdk bench` and of benchmarks/*.py: their cases, and what the answers say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hbsdk.bench.answer import answer, end_work, finish, work_folder
from hbsdk.bench.cases import Asked, generate_case, personalize_case, read_case, usable_engines
from hbsdk.bench.process import Case
from hbsdk.bench.report import Report
from hbsdk.bench.summary import linear_fit
from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError
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
        height: of drawn pictures, in pixels; None is the bundle's own.
        width: as well.
        guided_step: measure guided steps alone, in place of pictures.
        one_at_a_time: one process at a time.
        warm_up: without, a process's first run counts too.
        runs_a_turn: how often a case is measured before the next one's turn.
        progress: show a bar.
    """

    source: str | None
    output: Path
    cases: Sequence[str] = ()
    engines: Path | None = None
    device: str | None = None
    repeats: int = 5
    steps: int | None = None
    height: int | None = None
    width: int | None = None
    guided_step: bool = False
    one_at_a_time: bool = False
    warm_up: bool = True
    runs_a_turn: int = 1
    progress: bool = True

    def drawing_options(self) -> dict[str, Any]:
        """Return what every case and every peer draws with, as `GenerateOptions` names it.

        Raises:
            OptionError: one step alone is to be measured and is the first one.
        """
        usual = 2 if self.guided_step else GenerateOptions().num_inference_steps
        steps = usual if self.steps is None else self.steps
        if self.guided_step and steps < 2:
            raise OptionError(
                "steps", expected="at least 2, of which the first does not count", got=str(steps)
            )
        asked = {"height": self.height, "width": self.width}
        kept = {name: side for name, side in asked.items() if side is not None}
        return {"num_inference_steps": steps, "seed": 0, **kept}

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
            device=self.device, one_at_a_time=self.one_at_a_time, warm_up=self.warm_up,
            runs_a_turn=self.runs_a_turn, progress=self.progress,
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
    prompt, options = drawing_prompt(bundle), setup.drawing_options()
    cases = [
        generate_case(
            bundle, setup.source, one, options, prompt=prompt, guided_step=setup.guided_step
        )
        for one in setup.asked(bundle, GenerateOptions)
    ]
    settings = {"prompt": prompt, "options": options, "guided_step": setup.guided_step}
    drawing = [one.drawing_into(folder) for one in (*cases, *peers)]
    report = setup.answer("generate", drawing, bundle, settings)
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
    memories: Sequence[str] = ("high", "low"),
) -> Report:
    """Refinement in micro-batches of several sizes, each in processes of its own.

    Args:
        setup: of which the cases play no part.
        dtype: of torch.
        options: of `PersonalizeOptions`, beside steps and micro-batch.
        plain: a loop to compare with; its "losses" have to be the same.
        micro_batches: noise levels at once.
        memories: of the session: "high" holds all networks from the start, as the plain loop does;
            "low" loads each when it is its turn, which is in its time.
    """
    bundle = Bundle.open(setup.source)
    steps = PersonalizeOptions().steps if setup.steps is None else setup.steps
    common = {"steps": steps, **(options or {})}
    session = {"engine": "torch", "dtype": dtype}
    if setup.device is not None:
        session["device"] = setup.device
    cases = [
        personalize_case(
            bundle, setup.source,
            Asked(refine_name(size, memory), {**session, "memory": memory}),
            {**common, "micro_batch_size": size},
        )
        for memory in memories
        for size in micro_batches
    ]  # fmt: skip
    ours = [case.name for case in cases]
    if plain is not None:
        cases.append(plain)
    settings = {"dtype": dtype, "options": asdict(PersonalizeOptions(**common))}
    report = setup.answer("refine", cases, bundle, settings)
    if plain is not None:
        _compare_losses(report, ours, plain.name)
        _compare_times(report, ours, plain.name)
    finish(report, cases)
    return report


def refine_name(micro_batch: int, memory: str) -> str:
    """Return a row's name."""
    return f"micro-batch {micro_batch}" + (", memory low" if memory == "low" else "")


def _compare_losses(report: Report, names: Sequence[str], plain: str) -> None:
    """How far each case's losses are from the plain loop's, as a share; and a control.

    The control compares with what the plain loop would have found on other noise: the losses of
    single noise levels of the same step, which it tells one by one, and of other steps.
    """
    expected = report.case(plain).get("facts", {})
    if not expected.get("losses"):
        return
    for name in names:
        facts = report.case(name).get("facts", {})
        if len(facts.get("losses", ())) == len(expected["losses"]):
            facts["largest_loss_difference"] = largest_difference(
                facts["losses"], expected["losses"]
            )
            facts["control_loss_difference"] = _control_difference(facts["losses"], expected)


def _control_difference(losses: Sequence[float], expected: Mapping[str, Any]) -> float:
    """Return how far losses are from those on other noise; 0 where the plain loop had no other."""
    rotated = [*expected["losses"][1:], expected["losses"][0]]
    found = [largest_difference(losses, rotated)]
    for loss, levels in zip(losses, expected["level_losses"], strict=True):
        found.append(largest_difference([loss] * len(levels), levels))
    return max(found)


def _compare_times(report: Report, names: Sequence[str], plain: str) -> None:
    """How many times as long the plain loop takes; the processes took turns."""
    for what, slow in report.case(plain).get("measures", {}).items():
        for name in names:
            fast = report.case(name).get("measures", {}).get(what)
            if fast is not None:
                times = slow["median_s"] / fast["median_s"]
                report.data["facts"][f"{what}: the plain loop beside {name}"] = f"{times:.2f} times"


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
            need_bytes=_scaling_need(bundle, asked, what, max(values)),
            notes={"settings": dict(asked.session), "numbers": list(values)},
        )
        for what, values in chosen.items()
    ]  # fmt: skip
    settings = {"numbers": {what: list(values) for what, values in chosen.items()}, **common}
    report = setup.answer("scale", cases, bundle, settings)
    _add_fits(report)
    finish(report, cases)
    return report


def _scaling_need(bundle: Bundle, asked: Asked, what: str, most: int) -> int:
    """Return the bytes that the largest of a quantity's values needs, as far as it is known."""
    if what == "files":
        return 0
    if what == "subjects":
        return personalize_case(bundle, None, asked, {"steps": 0}).need_bytes
    options = {"pictures": {"num_images_per_prompt": most}, "size": {"height": most, "width": most}}
    case = generate_case(bundle, None, asked, options.get(what, {}), prompt="")
    return case.need_bytes


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
