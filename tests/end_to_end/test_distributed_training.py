"""`accelerate launch -m hbsdk.training`: two processes over gloo are one of twice the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hbsdk.bundle import Bundle
from hbsdk.regressor import PromptRegressor
from hbsdk.training.loop import train
from hbsdk.training.options import TrainOptions
from hbsdk.training.world_source import WorldSource
from tests.tiny_bundle import IMAGE_SIZE

IDENTITIES = 67
OPTIONS = TrainOptions(steps=4, batch_size=4, learning_rate=1e-3, log_steps=1)
LAUNCH = (
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
)  # fmt: skip
# What would be wrong of two processes, each made by one change: the negative controls.
WRONG = {
    "both take the first share": """
from hbsdk.training import run
read = run.read_batches
run.read_batches = lambda *how: read(*how[:3], 0, how[4])
""",
    "each goes by its own gradient": """
from accelerate import Accelerator
Accelerator.prepare_model = lambda self, model, *_, **__: model
""",
}


def launch(bundle: Path, out: Path, *more: str, script: Path | None = None) -> None:
    """Train with two processes by `-m hbsdk.training`, or by a script that changes it first."""
    program = ["-m", "hbsdk.training"] if script is None else [str(script)]
    command = [
        sys.executable, "-m", *LAUNCH, *program, "world", "-o", str(out), "--bundle", str(bundle),
        "--identities", str(IDENTITIES), "--start", "bundle", "--batch-size", "2",
        "--learning-rate", "1e-3", "--log-steps", "1", "--sample-steps", "0", "--no-tensorboard",
        "--quiet", *more,
    ]  # fmt: skip
    # One thread each, and no GPU: both processes of a machine with one would have to share it.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("the regressor is in") == 1  # the main process's


def alone(bundle: Path, out: Path, options: TrainOptions) -> list[float]:
    opened = Bundle.open(bundle)
    source = WorldSource(IDENTITIES, size=IMAGE_SIZE)
    train(opened, source, out, options, regressor=opened.load_regressor(), progress=False)
    return losses(out)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "losses.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tiny_bundle: Path, tmp_path: Path) -> None:
    whole = alone(tiny_bundle, tmp_path / "one", OPTIONS)
    launch(tiny_bundle, tmp_path / "two", "--steps", "2")
    launch(tiny_bundle, tmp_path / "two", "--steps", "4", "--resume")
    assert losses(tmp_path / "two") == pytest.approx(whole, rel=1e-4)
    another = alone(tiny_bundle, tmp_path / "seed", TrainOptions(**vars(OPTIONS) | {"seed": 1}))
    assert another != pytest.approx(whole, rel=1e-3)
    account = json.loads((tmp_path / "two" / "training.json").read_text())
    assert (account["processes"], account["options"]["batch_size"]) == (2, 2)
    one, two = (
        PromptRegressor.from_pretrained(tmp_path / name / "regressor").state_dict()
        for name in ("one", "two")
    )
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=2e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("change", WRONG)
def test_two_processes_that_do_not_work_together_are_noticed(
    tiny_bundle: Path, tmp_path: Path, change: str
) -> None:
    """By the comparison of the test before, within its first two steps."""
    whole = alone(tiny_bundle, tmp_path / "one", OPTIONS)[:2]
    script = tmp_path / "wrong.py"
    script.write_text(
        f"{WRONG[change]}\nimport runpy\nrunpy.run_module('hbsdk.training', run_name='__main__')\n"
    )
    launch(tiny_bundle, tmp_path / "two", "--steps", "2", script=script)
    assert len(losses(tmp_path / "two")) == len(whole)
    assert losses(tmp_path / "two") != pytest.approx(whole, rel=1e-4)
