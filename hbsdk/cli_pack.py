"""The command line's `hbsdk pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hbsdk.cli_errors import errors_in_one_line, needed_by
from hbsdk.errors import OptionError


def pack(
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle's new folder.")],
    regressor: Annotated[str, typer.Option(help="What `hbsdk train` wrote; or a hub id.")],
    base: Annotated[
        str | None, typer.Option(help="Stable Diffusion 1.5: folder, hub id or .safetensors.")
    ] = None,
    bundle: Annotated[
        str | None, typer.Option(help="In place of --base: a bundle to give this regressor to.")
    ] = None,
    image_encoder: Annotated[
        str | None, typer.Option(help="CLIP's vision tower, for a plain base.")
    ] = None,
    dino: Annotated[str | None, typer.Option(help="A DINOv2, for a plain base.")] = None,
    config: Annotated[str | None, typer.Option(help="Configurations of a .safetensors.")] = None,
    name: Annotated[str | None, typer.Option(help="By default the folder's.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of all weights together.")] = None,
    class_word: Annotated[str | None, typer.Option(help="That the words start from.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="Results, a JSON, for the card.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Hard-link files, do not copy.")] = False,
) -> None:
    """Make one bundle of a base model, image encoders and a trained regressor, with its card."""
    with errors_in_one_line(), needed_by("pack", "torch, diffusers and transformers", "torch"):
        if (base is None) == (bundle is None):
            raise OptionError(
                "--base and --bundle", expected="one of them", got="both" if base else "neither"
            )
        from hbsdk.pack import pack as make

        packed = make(
            output, base=base or bundle or "", regressor=regressor, image_encoder=image_encoder,
            dino=dino, config=config, name=name, licence=licence, class_word=class_word,
            evaluation=evaluation, link=link,
        )  # fmt: skip
        print(f"{packed.folder}: bundle {packed.info.name!r}, hash {packed.hash[:16]}")
        if packed.info.licence == "unknown":
            print("its licence is not known: say it by --licence before you pass it on")
