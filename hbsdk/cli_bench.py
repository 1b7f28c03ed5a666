"""The command line's `hbsdk bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hbsdk.cli_errors import errors_in_one_line
from hbsdk.errors import OptionError


def bench(
    what: Annotated[
        list[str] | None,
        typer.Option(help="personalize, generate, refine or scale; may repeat. The first two."),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The folder to write; resumes what is there.")
    ] = Path("hbsdk-bench"),
    bundle: Annotated[
        str | None, typer.Option(help="A bundle's folder or hub id; the embedded mini by default.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help='An engine, or "NAME=ENGINE,dtype=bfloat16,OPTION=VALUE" with options of the '
            "call; may repeat. By default all that can run here."
        ),
    ] = None,
    engines: Annotated[
        Path | None,
        typer.Option(help="An engine folder, or a folder of them; $HBSDK_ENGINES by default."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="As torch names it; the GPU if there is one.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs that count, after one more.")] = 5,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of drawing, or of refinement; the usual number.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Measure time and memory on this machine; prints a table, writes JSON and a plot."""
    with errors_in_one_line():
        from hbsdk.bench.questions import QUESTIONS, Setup
        from hbsdk.bench.table import markdown

        asked = what or ["personalize", "generate"]
        for question in asked:
            if question not in QUESTIONS:
                raise OptionError(
                    "--what", expected=f"one of {', '.join(QUESTIONS)}", got=repr(question)
                )
        failed = False
        for question in asked:
            setup = Setup(
                source=bundle, output=output / f"{question}.json", cases=tuple(engine or ()),
                engines=engines, device=device, repeats=repeats, steps=steps, progress=not quiet,
            )  # fmt: skip
            report = QUESTIONS[question](setup)
            print(markdown(report.data))
            failed = failed or any("failed" in case for case in report.data["cases"].values())
    if failed:
        raise typer.Exit(1)
