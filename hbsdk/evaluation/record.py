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
    made: Mapping[str, str | None],
    drawing: GenerateOptions = OPTIONS,
) -> dict[str, Any]:
    """Return what was run, JSON-able.

    Args:
        session: that ran it.
        evaluation_set: its subjects. "prompts" are one text a prompt's number; where subjects have
            different ones there, all of them with " / " between.
        methods: with their settings.
        seeds: pictures a prompt.
        metrics: the checkpoints that measured.
        judge: the judge's name, None without one.
        command: as it was typed.
        made: "device" and "commit" of this run, as of `made_by`; rows that an earlier one left say
            their own.
        drawing: how pictures were drawn.
    """
    subjects, backend = evaluation_set.subjects, session.torch_backend
    columns = zip(*(subject.prompts for subject in subjects), strict=True)
    return {
        "command": command,
        "date": now(),
        **made,
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
        "peak_bytes": f"of the {'GPU' if backend.device.type == 'cuda' else 'process'}, a fit",
    }


def made_by(session: Session) -> dict[str, str | None]:
    """Return "device" and "commit": where and by which code this session works.

    Args:
        session: whose device is told, of a CPU with the number of threads that torch uses.
    """
    device = session.torch_backend.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{cpu_model()}, {torch.get_num_threads()} threads"
    return {"device": name, "commit": commit()}
