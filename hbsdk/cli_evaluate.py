"""The command line's `hbsdk evaluate`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hbsdk.cli_errors import errors_in_one_line, needed_by
from hbsdk.errors import EvaluationError

if TYPE_CHECKING:
    from hbsdk.evaluation.measuring import AttributeJudge
    from hbsdk.evaluation.subjects import EvaluationSet

_METHOD_HELP = (
    "class-word, probe, hybridbooth, paper, without-probe, textual-inversion, dreambooth, "
    'dreambooth-lora or custom-diffusion, with settings as in "hybridbooth:steps=0+5+20"; may '
    "repeat. By default the first three."
)


def evaluate(
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")],
    evaluation_set: Annotated[
        str,
        typer.Option(
            "--set",
            help="world (held-out characters), world-out (with features never trained on), "
            "validation-in, validation-out, or a DreamBooth-style FOLDER.",
        ),
    ] = "world",
    subjects: Annotated[
        int | None, typer.Option(help="The set's first; 64 of the world, all of a folder.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Pictures a prompt.")] = 2,
    photo: Annotated[int, typer.Option(help="Of a folder: which photo the methods see.")] = 0,
    method: Annotated[list[str] | None, typer.Option(help=_METHOD_HELP)] = None,
    regressor: Annotated[
        list[str] | None,
        typer.Option(help="LABEL=FOLDER of another regressor: LABEL-probe and LABEL; may repeat."),
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="A bundle's folder or hub id; the embedded mini by default.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="As torch names it; the GPU if there is one.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="The CLIP that measures: hub id or folder.")
    ] = None,
    dino: Annotated[
        str | None, typer.Option(help="The DINO that measures: hub id or folder.")
    ] = None,
    part: Annotated[
        str, typer.Option(help="i/n: every n-th subject from the i-th, 0/1 is all of them.")
    ] = "0/1",
    drawing: Annotated[
        str,
        typer.Option(
            help='How pictures are drawn, where not as ever: "speed=fast", or such as '
            '"num_inference_steps=12,guidance_stop=0.5,feature_interval=2".'
        ),
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Compare methods: subjects x prompts x seeds; resumes where it was stopped."""
    with errors_in_one_line():
        with needed_by("evaluate", "torch, matplotlib, scipy and peft", "research"):
            from hbsdk.evaluation.drawing import parse_drawing
            from hbsdk.evaluation.method_names import parse_methods
            from hbsdk.evaluation.metrics import load_metrics
            from hbsdk.evaluation.report import write_report
            from hbsdk.evaluation.results import read_results
            from hbsdk.evaluation.run import evaluate as run
            from hbsdk.session import Session

        chosen = parse_methods(method or [], regressor or [])
        share, how = _part(part), parse_drawing(drawing)
        session = Session(bundle, engine="torch", device=device, progress=False)
        metrics = load_metrics(session, clip, dino)
        found = _set(evaluation_set, subjects, photo)
        run(
            session, found, chosen, seeds, output, metrics, _judge(found),
            progress=not quiet, part=share, command=shlex.join(["hbsdk", *sys.argv[1:]]),
            drawing=how,
        )  # fmt: skip
        print(write_report(output))
        failures = read_results(output).failures()
    if failures:
        first = f"{failures[0].method} on {failures[0].subject}: {failures[0].failed}"
        print(f"hbsdk: {len(failures)} fits failed, for example: {first}", file=sys.stderr)
        raise typer.Exit(1)


def _set(name: str, subjects: int | None, photo: int) -> EvaluationSet:
    from hbsdk.evaluation.subjects import WORLDS

    if name in WORLDS:
        from hbsdk.evaluation.world_set import world_set

        return world_set(WORLDS[name], 64 if subjects is None else subjects)
    from hbsdk.evaluation.photo_set import photo_set

    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise EvaluationError(
            "--set", expected=f"{', '.join(WORLDS)}, or a folder", got=repr(name),
            remedy="Check the path",
        )  # fmt: skip
    return photo_set(folder, photo=photo, count=subjects)


def _judge(evaluation_set: EvaluationSet) -> AttributeJudge | None:
    """The judge, where it knows the subjects."""
    if any(subject.attributes is None for subject in evaluation_set.subjects):
        return None
    from hbsdk.evaluation.judge import load_judge

    return load_judge()


def _part(text: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise EvaluationError("--part", expected="i/n with 0 <= i < n, such as 0/2", got=repr(text))
    return int(first), int(count)
