"""Reads a bundle's networks with diffusers and transformers: safetensors, local, whole or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from torch import nn
from transformers import CLIPTextModel, CLIPVisionModel, Dinov2Model

from hbsdk.errors import BundleError
from hbsdk.regressor import PromptRegressor

_CLASSES: dict[str, Any] = {
    "text_encoder": CLIPTextModel,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "image_encoder": CLIPVisionModel,
    "dino": Dinov2Model,
    "regressor": PromptRegressor,
}
# Both libraries set the process's default dtype while they load, and one logger for all threads.
_LOCK = threading.Lock()


def load_network(
    component: str,
    source: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    configs: Path | None = None,
) -> Any:
    """Load one network, frozen and in evaluation mode.

    Args:
        component: its name in the bundle.
        source: its folder, or the single-file checkpoint it is in.
        dtype: of the weights in memory, whatever they are saved as.
        device: to put them on.
        configs: the diffusers folder that describes a single file.

    Raises:
        BundleError: the weights are damaged, incomplete or do not fit the configuration.
    """
    with _LOCK, _quiet():
        try:
            if configs is None:
                network = _from_folder(component, source, dtype)
            else:
                network = _from_single_file(component, source, configs, dtype)
        except (BundleError, MemoryError):
            raise
        except Exception as error:  # a damaged file makes the libraries raise almost anything
            raise _unreadable(component, source, f"{type(error).__name__}: {error}") from error
    network.requires_grad_(False).eval()
    return network.to(device)


def _from_folder(component: str, folder: Path, dtype: torch.dtype) -> nn.Module:
    kind = _CLASSES[component]
    is_transformers = issubclass(kind, transformers.PreTrainedModel)
    network, report = kind.from_pretrained(
        str(folder),
        **{"dtype" if is_transformers else "torch_dtype": dtype},
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    # The libraries fill what is missing with random numbers, and only log it.
    absent = [*report["missing_keys"], *report["mismatched_keys"], *report["error_msgs"]]
    if absent:
        raise _unreadable(component, folder, f"{len(absent)} tensors wanting, e.g. {absent[0]}")
    assert isinstance(network, nn.Module)
    return network


def _from_single_file(component: str, path: Path, configs: Path, dtype: torch.dtype) -> nn.Module:
    settings: dict[str, Any] = {
        "config": str(configs),
        "torch_dtype": dtype,
        "local_files_only": True,
    }
    if component == "text_encoder":
        # diffusers reads a checkpoint's text encoder only as part of a pipeline, whose import
        # warns of image processors that play no part.
        from diffusers import StableDiffusionPipeline

        others = ("unet", "vae", "tokenizer", "scheduler", "safety_checker", "feature_extractor")
        pipeline = StableDiffusionPipeline.from_single_file(
            str(path), **settings, **dict.fromkeys(others)
        )
        network = pipeline.text_encoder
    else:
        kind = _CLASSES[component]
        try:
            network = kind.from_single_file(str(path), subfolder=component, **settings)
        except NotImplementedError as error:  # torch, of a tensor that was never filled
            raise _unreadable(component, path, "tensors wanting") from error
    empty = [name for name, tensor in network.named_parameters() if tensor.is_meta]
    if empty:
        raise _unreadable(component, path, f"{len(empty)} tensors wanting, e.g. {empty[0]}")
    assert isinstance(network, nn.Module)
    return network


def _unreadable(component: str, source: Path, got: str) -> BundleError:
    return BundleError(
        f"{component} in {source}",
        expected="files that are whole and fit their configuration",
        got=got[:300],
        remedy="Copy it again from where it came",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' progress bars and reports; what matters in them is checked here."""
    logs = (transformers.utils.logging, diffusers.utils.logging)
    levels = [log.get_verbosity() for log in logs]
    # transformers' switch is also the hub's: who has silenced the hub wants neither.
    had_bars = [log.is_progress_bar_enabled() and not are_progress_bars_disabled() for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level, had in zip(logs, levels, had_bars, strict=True):
            log.set_verbosity(level)
            if had:
                log.enable_progress_bar()
