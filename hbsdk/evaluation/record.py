"""What an evaluation says of itself in run.json: command, code, machine, networks, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hbsdk.bench.machine import commit, cpu_model, now, versions
from hbsdk.evaluation.drawing import OPTIONS, drawing_settings
from hbsdk.evaluation.methods import Method
from hbsdk.evaluation.subjects import EvaluationSet
from hbsdk.options import GenerateOptions

if TYPE_CHECKING:
    from hbsdk.session import Session


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
        "date": now(),
        "commit": commit(),
        "device": torch.cuda.get_device_name(backend.device)
        if is_gpu
        else f"{cpu_model()}, {torch.get_num_threads()} threads",
        "dtype": str(backend.dtype).removeprefix("torch."),
        "versions": versions(),
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
