"""The command line's `hbsdk train` and `hbsdk layers`."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from hbsdk.cli_errors import errors_in_one_line, needed_by
from hbsdk.errors import OptionError
from hbsdk.training.options import TrainOptions

if TYPE_CHECKING:
    from hbsdk.bundle import Bundle
    from hbsdk.training.folder import Group as GroupKind
    from hbsdk.training.observers import SampleSheets, TensorBoard
    from hbsdk.training.pairs import PairSource
    from hbsdk.training.start import Start as StartKind

_DEFAULT = TrainOptions()
_WORLD = "world"
_PACKAGES = "torch, diffusers, transformers and accelerate"

# What to train on, and from where.
Data = Annotated[
    str,
    typer.Argument(help='A folder of pictures, tar shards such as "x-{000..099}.tar", or "world".'),
]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="The run's folder.")]
BundleName = Annotated[
    str | None, typer.Option(help="A bundle's folder or hub id; the embedded mini by default.")
]
ImageEncoder = Annotated[
    str | None, typer.Option(help="CLIP's vision tower, if the base has none.")
]
Dino = Annotated[str | None, typer.Option(help="A DINOv2, for a plain base.")]
Shards = Annotated[bool, typer.Option("--shards", help="DATA is a folder of tar shards.")]
Group = Annotated[
    str, typer.Option(help="subject: the pictures of a sub-folder show one subject; or none.")
]
Segmenter = Annotated[str, typer.Option(help="Of pictures without a mask: auto, grabcut, ...")]
Flip = Annotated[bool, typer.Option(help="Mirror pictures; not for writing.")]
Cache = Annotated[
    Path | None, typer.Option(help="Keeps masks, or the world's pictures; OUTPUT/cache, or none.")
]
Identities = Annotated[int, typer.Option(help="Of the world.")]
Start = Annotated[str, typer.Option(help="bundle goes on from its regressor; unet begins anew.")]
NumWords = Annotated[int | None, typer.Option(help="Of a subject; by default the bundle's.")]
Encoders = Annotated[
    str | None, typer.Option(help="both, clip or dino; by default of what --start goes on from.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]

# The settings, as of `TrainOptions`.
Steps = Annotated[int, typer.Option(help="Of the optimizer.")]
Rate = Annotated[float, typer.Option(help="Of AdamW.")]
Batch = Annotated[int, typer.Option(help="Pairs at once in each process.")]
Accumulation = Annotated[int, typer.Option(help="Batches that make up one step.")]
Optimizer = Annotated[str, typer.Option(help="adamw, or muon for matrices.")]
MuonRate = Annotated[float, typer.Option(help="Of Muon.")]
Decay = Annotated[float, typer.Option(help="Of the weights, towards zero.")]
Warmup = Annotated[int, typer.Option(help="Steps over which the rates rise.")]
DecayFraction = Annotated[float, typer.Option(help="Of the steps, over which the rates fall.")]
MaskWeight = Annotated[float, typer.Option(help="alpha of Eq. 7.")]
MaskKind = Annotated[str, typer.Option(help="area, or paper for Eq. 6 as printed.")]
Background = Annotated[float, typer.Option(help="Of the loss outside of the mask; 1 is Eq. 1.")]
Ema = Annotated[float, typer.Option(help="Of the weights' average that is saved; 0 is none.")]
Precision = Annotated[str, typer.Option(help="no, bf16 or fp16.")]
Checkpointing = Annotated[bool, typer.Option(help="Less memory for a third more time.")]
Norm = Annotated[float, typer.Option(help="That gradients are limited to.")]
Seed = Annotated[int, typer.Option(help="Of pairs and noise.")]
CheckpointSteps = Annotated[int, typer.Option(help="Between checkpoints.")]
Keep = Annotated[int, typer.Option(help="Checkpoints that stay.")]
LogSteps = Annotated[int, typer.Option(help="Between lines of losses.jsonl.")]
SampleSteps = Annotated[int, typer.Option(help="Between sheets of samples; 0 is none.")]

# How to run.
Board = Annotated[bool | None, typer.Option(help="By default if it is installed.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from OUTPUT's last checkpoint.")]
EstimateOnly = Annotated[bool, typer.Option("--estimate", help="Only say what it would take.")]
Size = Annotated[str, typer.Option(help="Of --estimate: bundle, or sd15 to measure that instead.")]


def train(
    data: Data,
    output: Output = None,
    bundle: BundleName = None,
    image_encoder: ImageEncoder = None,
    dino: Dino = None,
    shards: Shards = False,
    group: Group = "none",
    segmenter: Segmenter = "auto",
    flip: Flip = True,
    cache: Cache = None,
    identities: Identities = 12_000,
    start: Start = "unet",
    num_words: NumWords = None,
    encoders: Encoders = None,
    steps: Steps = _DEFAULT.steps,
    learning_rate: Rate = _DEFAULT.learning_rate,
    batch_size: Batch = _DEFAULT.batch_size,
    gradient_accumulation_steps: Accumulation = _DEFAULT.gradient_accumulation_steps,
    optimizer: Optimizer = _DEFAULT.optimizer,
    muon_rate: MuonRate = _DEFAULT.muon_rate,
    weight_decay: Decay = _DEFAULT.weight_decay,
    warmup_steps: Warmup = _DEFAULT.warmup_steps,
    decay_fraction: DecayFraction = _DEFAULT.decay_fraction,
    mask_loss_weight: MaskWeight = _DEFAULT.mask_loss_weight,
    mask_loss: MaskKind = _DEFAULT.mask_loss,
    background_weight: Background = _DEFAULT.background_weight,
    ema_decay: Ema = _DEFAULT.ema_decay,
    mixed_precision: Precision = _DEFAULT.mixed_precision,
    gradient_checkpointing: Checkpointing = _DEFAULT.gradient_checkpointing,
    max_gradient_norm: Norm = _DEFAULT.max_gradient_norm,
    seed: Seed = _DEFAULT.seed,
    checkpoint_steps: CheckpointSteps = _DEFAULT.checkpoint_steps,
    keep_checkpoints: Keep = _DEFAULT.keep_checkpoints,
    log_steps: LogSteps = _DEFAULT.log_steps,
    sample_steps: SampleSteps = 500,
    tensorboard: Board = None,
    resume: Resume = False,
    estimate: EstimateOnly = False,
    size: Size = "bundle",
    quiet: Quiet = False,
) -> None:
    """Train a regressor for a bundle, or say what that would take.

    For many GPUs: accelerate launch -m hbsdk.training DATA -o OUTPUT, with the same options.
    """
    given = locals()
    with errors_in_one_line(), needed_by("train", _PACKAGES, "torch"):
        options = TrainOptions(**{field.name: given[field.name] for field in fields(TrainOptions)})
        from hbsdk.training.start import Start as StartKind

        begin = StartKind(cast("Any", start), num_words, cast("Any", encoders))  # it refuses others
        if estimate:
            _estimate(given, options, begin)
        else:
            _train(given, options, begin)


def _train(given: Mapping[str, Any], options: TrainOptions, begin: StartKind) -> None:
    output: Path | None = given["output"]
    if output is None:
        raise OptionError("-o", expected="the folder of the run", got="none")
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]

    from hbsdk.training.loop import train as run

    processes = PartialState(cpu=not torch.accelerator.is_available())
    bundle = _bundle(given["bundle"], image_encoder=given["image_encoder"], dino=given["dino"])
    start = begin.regressor(bundle, options.seed)
    progress = not given["quiet"]
    if given["data"] != _WORLD and given["cache"] is None:
        given = {**given, "cache": output / "cache"}  # of masks, which take long
    with processes.main_process_first():  # which fills the caches
        source = _given_source(given, bundle, progress=progress and processes.is_main_process)
    board, sheets = _observers(given, bundle, source, output)
    try:
        result = run(
            bundle, source, output, options, regressor=start,
            resume=given["resume"], progress=progress,
            observers=[one for one in (board, sheets) if one is not None],
            encoded=given["cache"] if given["data"] == _WORLD else None,
        )  # fmt: skip
    finally:
        if board is not None:
            board.close()
    if not processes.is_main_process:
        return
    losses = ", ".join(f"{name} {value:.4g}" for name, value in result.figures.items())
    print(
        f"{result.steps} steps in {result.seconds:.0f} s, {result.images_per_second:.1f} images/s"
        f"{f', {result.skipped} pictures skipped' if result.skipped else ''}: {losses}"
    )
    print(f"the regressor is in {result.regressor}; make a bundle of it:")
    print(f"  {_pack_line(given, result.regressor)}")


def _pack_line(given: Mapping[str, Any], regressor: Path) -> str:
    from hbsdk.bundle import MINI

    parts = {
        "--base": given["bundle"] or MINI,
        "--image-encoder": given["image_encoder"],
        "--dino": given["dino"],
        "--regressor": regressor,
    }
    given_parts = [(flag, str(value)) for flag, value in parts.items() if value is not None]
    words = [word for part in given_parts for word in part]
    return shlex.join(["hbsdk", "pack", *words, "-o", "MY-BUNDLE"])


def _estimate(given: Mapping[str, Any], options: TrainOptions, begin: StartKind) -> None:
    from hbsdk.training.estimate import estimate, estimate_sd15

    if given["size"] not in ("bundle", "sd15"):
        raise OptionError("--size", expected="bundle or sd15", got=repr(given["size"]))

    def tell(stage: str) -> None:
        if not given["quiet"]:
            print(f"{stage} ...", flush=True)

    if given["size"] == "bundle" or begin.source == "bundle":
        bundle = _bundle(given["bundle"], image_encoder=given["image_encoder"], dino=given["dino"])
    if given["size"] == "bundle":
        source = _given_source(given, bundle, progress=not given["quiet"])
        measured = estimate(bundle, source, options, start=begin, on_stage=tell)
        print(measured.in_words(options.steps), flush=True)
    # Beside another bundle, SD 1.5's size is only calculated, which takes seconds.
    anew = begin.anew(bundle) if begin.source == "bundle" else begin
    steps = 3 if given["size"] == "sd15" else 0
    sd15 = estimate_sd15(options, start=anew, steps=steps, on_stage=tell)
    print(sd15.in_words(options.steps))


def _bundle(base: str | None, **encoders: str | None) -> Bundle:
    from hbsdk.bundle import MINI, Bundle

    pieces = {name: source for name, source in encoders.items() if source is not None}
    if pieces or (base is not None and Path(os.path.expanduser(base)).is_file()):
        return Bundle.compose(base=base or MINI, **pieces)
    return Bundle.open(base)


def _given_source(given: Mapping[str, Any], bundle: Bundle, *, progress: bool) -> PairSource:
    names = ("data", "shards", "group", "identities", "cache", "segmenter", "flip")
    how = {name: given[name] for name in names}
    return _source(size_px=bundle.info.image_size_px, progress=progress, **how)


def _source(
    data: str,
    size_px: int,
    *,
    shards: bool = False,
    group: str = "none",
    identities: int = 12_000,
    cache: Path | None = None,
    **how: Any,
) -> PairSource:
    """Open what DATA names; `how` is for folders and shards alone."""
    if data == _WORLD:
        return _world(identities, cache, size_px)
    is_pattern = any(sign in data for sign in "*?[{") and not Path(data).is_dir()
    if shards or is_pattern or data.endswith(".tar"):
        from hbsdk.training.shards import ShardSource

        return ShardSource(data, image_size_px=size_px, cache=cache, **how)
    from hbsdk.training.folder import FolderSource

    kind = cast("GroupKind", group)  # the source refuses what is none
    return FolderSource(data, image_size_px=size_px, group=kind, cache=cache, **how)


def _world(identities: int, cache: Path | None, size: int) -> PairSource:
    from hbsdk.mini.cache import draw_cache
    from hbsdk.training.world_source import WorldSource

    if cache is not None:
        draw_cache(cache, identities, workers=os.cpu_count() or 1)
    return WorldSource(identities, cache, size=size)


def _observers(
    given: Mapping[str, Any], bundle: Bundle, source: PairSource, output: Path
) -> tuple[TensorBoard | None, SampleSheets | None]:
    from hbsdk.training.observers import SampleSheets, TensorBoard, has_tensorboard

    asked = given["tensorboard"]
    wanted = has_tensorboard() if asked is None else asked
    board = TensorBoard(output / "tensorboard") if wanted else None
    if not given["sample_steps"]:
        return board, None
    return board, SampleSheets(bundle, source, output / "samples", board=board)


def layers(
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to write.")],
    bundle: BundleName = None,
    data: Annotated[str, typer.Option(help="As of `hbsdk train`.")] = _WORLD,
    subjects: Annotated[int, typer.Option(help="How many are fine-tuned on, one by one.")] = 8,
    steps: Annotated[int, typer.Option(help="Of each fine-tuning.")] = 20,
    seed: Annotated[int, typer.Option(help="Of pairs and noise.")] = 0,
    group: Group = "none",
    device: Annotated[str | None, typer.Option(help="As torch names it.")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure which of the regressor's layers matter when it is adapted to one subject."""
    with errors_in_one_line(), needed_by("layers", f"{_PACKAGES}, matplotlib", "research"):
        from hbsdk.training.layer_importance import (
            PLOT,
            LayerOptions,
            layer_importance,
        )
        from hbsdk.training.layer_report import in_words

        if importlib.util.find_spec("matplotlib") is None:
            raise ImportError("no matplotlib")  # before the work, not after it
        opened = _bundle(bundle)
        source = _source(data, opened.info.image_size_px, group=group, progress=not quiet)
        options = LayerOptions(subjects=subjects, steps=steps, seed=seed)
        results = layer_importance(
            opened, source, output, options, device=device, progress=not quiet
        )
        print(in_words(results))
        print(f"\nLook at {output / PLOT}")
