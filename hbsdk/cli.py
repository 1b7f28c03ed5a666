"""The command line: demo, personalize, generate, doctor; what trains and evaluates is elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from hbsdk.cli_bench import bench
from hbsdk.cli_errors import errors_in_one_line
from hbsdk.cli_evaluate import evaluate
from hbsdk.cli_pack import pack
from hbsdk.cli_train import layers, train
from hbsdk.errors import MissingDependencyError

if TYPE_CHECKING:
    from hbsdk.backends.choose import Engine as EngineName
    from hbsdk.session import Session

# Advice to those who call transformers themselves, such as to install torchvision, is not for here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="One photo of a subject in; pictures of that subject in any prompt out.",
)  # fmt: skip

for _command in (train, evaluate, layers, pack, bench):
    app.command()(_command)

Bundle = Annotated[
    str | None, typer.Option(help="A bundle's folder or hub id; the embedded mini by default.")
]
Device = Annotated[str | None, typer.Option(help="As torch names it; the GPU if there is one.")]
Engine = Annotated[
    str, typer.Option(help="auto, torch, onnxruntime, openvino or tensorrt; refinement is torch's.")
]
Engines = Annotated[
    str | None,
    typer.Option(help="An engine folder, or a folder of them; $HBSDK_ENGINES by default."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def _open(
    bundle: str | None, engine: str, engines: str | None, device: str | None, quiet: bool
) -> Session:
    from hbsdk.session import Session

    # The session itself refuses what is no engine.
    return Session(
        bundle, engine=cast("EngineName", engine), engines=engines, device=device,
        progress=not quiet,
    )  # fmt: skip


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("hbsdk-demo"),
    seed: Annotated[int, typer.Option(help="Which characters, and the noise.")] = 0,
    engine: Engine = "auto",
    engines: Engines = None,
    quiet: Quiet = False,
) -> None:
    """Personalize characters that the mini bundle never saw, and draw a contact sheet."""
    with errors_in_one_line():
        try:
            from hbsdk.demo import run_demo
        except ImportError as error:
            raise MissingDependencyError(
                "hbsdk demo", expected="torch, which refines and measures", got=str(error),
                remedy='Install it: pip install "hbsdk[torch]"',
            ) from error  # fmt: skip
        name = cast("EngineName", engine)
        print(run_demo(out, seed=seed, progress=not quiet, engine=name, engines=engines))
        print(f"\nLook at {out / 'contact_sheet.png'}")


@app.command()
def personalize(
    image: Annotated[Path, typer.Argument(help="One photo of the subject.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .safetensors file.")],
    mask: Annotated[Path | None, typer.Option(help="A picture, white on the subject.")] = None,
    bundle: Bundle = None,
    steps: Annotated[int, typer.Option(help="Refinement steps; 0 keeps the probe.")] = 5,
    device: Device = None,
    engine: Engine = "auto",
    engines: Engines = None,
    quiet: Quiet = False,
) -> None:
    """Turn one photo into a subject file."""
    with errors_in_one_line():
        session = _open(bundle, engine, engines, device, quiet)
        subject = session.personalize(image, mask, name=output.stem.lower(), steps=steps)
        path = subject.save(output)
        print(f"{path}: {len(subject.words)} words of {subject.words.shape[1]}")
        if subject.report is not None:
            report = subject.report
            print(
                f"loss {report.loss_before:.4f} -> {report.loss_after:.4f}, words moved "
                f"{report.word_change:.2%}, in {report.seconds:.2f} s"
            )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help='Text, with "S*" or "<name>" for a subject.')],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .png, numbered if several.")],
    subject: Annotated[list[Path] | None, typer.Option(help="A subject file; may repeat.")] = None,
    number: Annotated[int, typer.Option("-n", help="Pictures.")] = 4,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the noise; picture i starts from seed + i.")] = 0,
    guidance: Annotated[float | None, typer.Option(help="The prompt's weight.")] = None,
    speed: Annotated[str, typer.Option(help="exact, balanced or fast.")] = "exact",
    negative: Annotated[str, typer.Option(help="What to avoid.")] = "",
    bundle: Bundle = None,
    device: Device = None,
    engine: Engine = "auto",
    engines: Engines = None,
    quiet: Quiet = False,
) -> None:
    """Draw pictures of a prompt."""
    from hbsdk.subject import Subject

    with errors_in_one_line():
        session = _open(bundle, engine, engines, device, quiet)
        subjects = [Subject.load(path) for path in subject or []]
        pictures = session.generate(
            prompt, subjects, num_images_per_prompt=number, num_inference_steps=steps, seed=seed,
            negative_prompt=negative, guidance_scale=guidance, speed=speed,
        )  # fmt: skip
        for path, picture in zip(_numbered(output, len(pictures)), pictures, strict=True):
            picture.save(path)
            print(path)


def _numbered(output: Path, count: int) -> list[Path]:
    output = output if output.suffix else output / "picture.png"
    output.parent.mkdir(parents=True, exist_ok=True)
    if count == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{index}") for index in range(count)]


@app.command()
def doctor(
    bundle: Bundle = None,
    engines: Engines = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what hardware, runtimes, bundle and engines there are, what is used, and why."""
    import json

    from hbsdk.doctor import diagnose, in_words

    with errors_in_one_line():
        findings = diagnose(bundle, engines)
        print(json.dumps(findings, indent=2) if as_json else in_words(findings))


if __name__ == "__main__":
    app()
