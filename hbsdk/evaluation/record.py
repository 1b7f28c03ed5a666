"""What an evaluation says of itself in run.json: command, code, machine, networks, settings."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import hbsdk
from hbsdk.evaluation.drawing import OPTIONS, drawing_settings
from hbsdk.evaluation.methods import Method
from hbsdk.evaluation.subjects import EvaluationSet
from hbsdk.options import GenerateOptions

if TYPE_CHECKING:
    from hbsdk.session import Session

_PACKAGES = ("diffusers", "transformers", "accelerate", "peft", "numpy")


def describe(
    session: Session,
    evaluation_set: EvaluationSet,
    methods: Sequence[Method],
    *,
    seeds: int,
    metrics: Mapping[str, str],
    judge: str | None,
    command: str | None,
    drawing: GenerateOptions = OPTIONS,
) -> dict[str, Any]:
    """Return what was run, JSON-able.

    Its "prompts" are one text a prompt's number; where subjects have different ones there, all of
    them with " / " between.
    """
    subjects, backend = evaluation_set.subjects, session.torch_backend
    columns = zip(*(subject.prompts for subject in subjects), strict=True)
    is_gpu = backend.device.type == "cuda"
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "commit": _commit(),
        "device": torch.cuda.get_device_name(backend.device) if is_gpu else _cpu(),
        "dtype": str(backend.dtype).removeprefix("torch."),
        "versions": _versions(),
        "bundle": session.bundle.info.name,
        "bundle_hash": session.bundle.hash,
        "set": evaluation_set.name,
        "subjects": [subject.name for subject in subjects],
        "class_nouns": [subject.class_noun for subject in subjects],
        "prompts": [" / ".join(dict.fromkeys(column)) for column in columns],
        "seeds": seeds,
        "drawing": drawing_settings(session, drawing),
        "metrics": dict(metrics),
        "judge": judge,
        "methods": {
            method.name: {**method.settings, "budgets": list(method.budgets)} for method in methods
        },
        "peak_bytes": "of the GPU, a fit" if is_gpu else "high-water of the process so far",
    }


def _cpu() -> str:
    return f"CPU {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _versions() -> dict[str, str]:
    found = {"hbsdk": hbsdk.__version__, "torch": torch.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "python": platform.python_version()}


def _commit() -> str | None:
    """The commit of the checkout that hbsdk runs from, "-dirty" if it was changed; else None."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603 - constant arguments
            command, cwd=folder, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
