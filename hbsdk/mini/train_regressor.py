"""Stage 5: the prompt regressor (Eq. 7), from one picture of an identity to another of it."""

from __future__ import annotations

from pathlib import Path

from hbsdk.bundle import Bundle
from hbsdk.regressor import PromptRegressor
from hbsdk.training.loop import train as train_on_pairs
from hbsdk.training.options import TrainOptions
from hbsdk.training.world_source import WorldSource

FOLDER = "regressor"  # of the run, within the work folder
OPTIONS = TrainOptions(
    steps=4400,
    batch_size=64,
    optimizer="muon",
    learning_rate=1e-3,
    muon_rate=1e-3,
    warmup_steps=100,
    decay_fraction=0.35,
    ema_decay=0.998,
    background_weight=0.25,
    mixed_precision="bf16",
    checkpoint_steps=200,
    log_steps=50,
)


def train(
    bundle: Bundle, source: WorldSource, work: Path, options: TrainOptions, *, go_on: bool
) -> PromptRegressor:
    """Train a regressor, from its newest checkpoint if there is one.

    Args:
        bundle: the mini bundle.
        source: the world's pictures.
        work: folder of the training.
        options: `OPTIONS`, or shorter.
        go_on: start from the bundle's own regressor.
    """
    result = train_on_pairs(
        bundle,
        source,
        work / FOLDER,
        options,
        regressor=bundle.load_regressor() if go_on else None,
        resume=True,
        encoded=work / "encoded",
    )
    trained: PromptRegressor = PromptRegressor.from_pretrained(
        result.regressor, local_files_only=True
    )
    return trained
