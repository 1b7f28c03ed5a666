"""What the C++ bridge reads beside the graphs: numbers that Python computes, and the tokenizer.

    bridge.json             the bundle's sizes, and every sampler's table for the usual steps
    prompt_tokenizer.json   the tokenizer in the one form that the `tokenizers` library writes

An engine folder has both whatever its runtime, and its manifest lists them with the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from hbsdk.backends.engine_math import latent_scale
from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError
from hbsdk.options import GenerateOptions
from hbsdk.schedule import Sampler, Schedule, make_schedule
from hbsdk.tokenizer import PromptTokenizer

BRIDGE = "bridge.json"
PROMPT_TOKENIZER = "prompt_tokenizer.json"
SCHEMA = 1
STEPS = (*range(1, 51), 100)
"""The numbers of steps that are tabulated: an app in C++ can ask for these."""


def write_bridge_files(bundle: Bundle, folder: Path) -> None:
    """Write both files into an engine folder, before its manifest is written.

    Raises:
        BundleError: the bundle's scheduler, VAE or tokenizer cannot be read.
    """
    _write(folder / BRIDGE, bridge_description(bundle))
    _write(folder / PROMPT_TOKENIZER, tokenizer_description(bundle.load_tokenizer()))


def bridge_description(bundle: Bundle) -> dict[str, Any]:
    """Return what bridge.json says, as JSON objects, lists, texts and numbers.

    Raises:
        BundleError: the bundle's scheduler or VAE cannot be read.
    """
    info, scale = bundle.info, latent_scale(bundle)
    schedules = _schedules(bundle.scheduler_config())
    default = GenerateOptions().sampler
    return {
        "schema": SCHEMA,
        "bundle": info.name,
        "class_word": info.class_word,
        "num_words": info.num_words,
        "word_dim": info.word_dim,
        "image_size_px": info.image_size_px,
        "latent_channels": info.latent_channels,
        "vae_scale_factor": info.vae_scale_factor,
        "guidance_scale": info.guidance_scale,
        "latent_scale": scale.factor,
        "latent_shift": scale.shift,
        "background": info.background,
        "default_sampler": default if default in schedules else next(iter(schedules), default),
        "schedules": schedules,
    }


def tokenizer_description(tokenizer: PromptTokenizer) -> dict[str, Any]:
    """Return what prompt_tokenizer.json says."""
    model = json.loads(tokenizer.model.to_str())
    if tokenizer.model.encode_special_tokens:
        # The library does not write this setting down. Special tokens that are never looked for
        # in a text are as good as none: their ids are beside.
        model["added_tokens"] = [one for one in model["added_tokens"] if not one["special"]]
    return {
        "schema": SCHEMA,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "model_max_length": tokenizer.model_max_length,
        "tokenizer": model,
    }


def _schedules(config: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """Return sampler -> number of steps -> table, of those that the bundle's scheduler allows."""
    found: dict[str, dict[str, Any]] = {}
    for sampler in get_args(Sampler):
        tables = {}
        for count in STEPS:
            try:
                table = make_schedule(config, sampler=sampler, num_inference_steps=count)
            except OptionError:
                continue  # Python refuses it too
            tables[str(count)] = _table(table)
        if tables:
            found[sampler] = tables
    return found


def _table(schedule: Schedule) -> dict[str, Any]:
    columns = {key: getattr(schedule, key) for key in ("timesteps", "p", "q", "a", "b", "c")}
    return {
        "initial_noise_scale": float(schedule.initial_noise_scale),
        **{key: np.asarray(column, np.float64).tolist() for key, column in columns.items()},
    }


def _write(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON whose numbers read back as they were, to the last bit.

    The folder is one that is being built, which takes its place as a whole.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    path.write_text(f"{text}\n", "utf-8")
