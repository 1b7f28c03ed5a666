"""optimum's side of optimum_check.py, which starts it: hbsdk is not imported here.

Reads lines of JSON: first the settings, then for each picture {"sampler", "from_text",
"io_binding"}. Answers each with a line of JSON on stdout, after the picture is in picture.npy, or
with an "error".
"""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from optimum.onnxruntime import ORTStableDiffusionPipeline

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
}
PACKAGES = (
    "optimum-onnx", "optimum", "onnxruntime", "diffusers", "transformers", "torch", "numpy"
)  # fmt: skip


class Messages(logging.Handler):
    """Keeps what libraries warn of, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        logging.captureWarnings(True)
        # Libraries that keep their messages from the root logger are asked themselves.
        for name in (None, "optimum", "diffusers", "transformers"):
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        text = f"{record.name}: {' '.join(record.getMessage().split())}"
        if text not in self.texts:
            self.texts.append(text)


def draw(
    pipeline: Any, settings: dict[str, Any], inputs: dict[str, torch.Tensor], *, from_text: bool
) -> Any:
    """Return one picture, (H, W, 3) in [0, 1]."""
    keys = ("num_inference_steps", "guidance_scale", "height", "width")
    if from_text:
        texts = {key: settings[key] for key in ("prompt", "negative_prompt")}
    else:
        texts = {key: inputs[key] for key in ("prompt_embeds", "negative_prompt_embeds")}
    return pipeline(
        **texts, **{key: settings[key] for key in keys}, latents=inputs["latents"], output_type="np"
    ).images[0]


def main() -> None:
    """Answer until stdin is closed."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    settings = json.loads(sys.stdin.readline())
    folder = Path(settings["folder"])
    with np.load(folder / "inputs.npz", allow_pickle=False) as arrays:
        inputs = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    messages = Messages()
    pipeline = ORTStableDiffusionPipeline.from_pretrained(
        settings["engines"], export=False, provider=settings["provider"], local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    own_scheduler = pipeline.scheduler.config
    versions = {name: version(name) for name in PACKAGES}
    answer(versions={"python": platform.python_version(), **versions})
    for line in sys.stdin:
        asked = json.loads(line)
        pipeline.scheduler = SCHEDULERS[asked["sampler"]].from_config(own_scheduler)
        pipeline.use_io_binding = asked["io_binding"]
        start = time.perf_counter()
        try:
            picture = draw(pipeline, settings, inputs, from_text=asked["from_text"])
        except Exception as error:  # whatever it is, it is the answer
            traceback.print_exc()
            answer(error=f"{type(error).__name__}: {error}", messages=messages.texts)
            continue
        seconds = time.perf_counter() - start
        np.save(folder / "picture.npy", picture)
        scheduler = type(pipeline.scheduler).__name__
        answer(seconds=seconds, scheduler=scheduler, messages=messages.texts)


if __name__ == "__main__":
    main()
