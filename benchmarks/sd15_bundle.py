"""Writes a random bundle of exactly the size of Stable Diffusion 1.5, CLIP-L and DINOv2-L.

    python benchmarks/sd15_bundle.py /tmp/sd15

It draws nothing worth seeing: it is for measuring time and memory where the public weights cannot
be had. The configurations are those of stable-diffusion-v1-5/stable-diffusion-v1-5,
openai/clip-vit-large-patch14 and facebook/dinov2-large; the numbers of parameters are checked.
The tokenizer is not CLIP's: a small one of the mini bundle's kind, whose ids are rows of the same
49408-row table. Weights are fp16 safetensors, 4.1 GB in all; one network at a time is in memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import PNDMScheduler
from transformers.utils.logging import disable_progress_bar

from hbsdk.bundle import Bundle, BundleInfo, write_manifest, write_model_index
from hbsdk.mini.tokenizer import learn_tokenizer, save_tokenizer
from hbsdk.regressor import PromptRegressor
from hbsdk.training.random_bundle import default_dtype, sd15_bundle

CLASS_WORD = "person"
CAPTIONS = (
    "a photo of a person in the snow",
    "a watercolor of a dog on the beach, at sunset",
    "a pencil sketch of a cat wearing a red hat",
    "pixel art of a robot in the city at night",
)
PARAMETERS = {  # of the public checkpoints; the regressor has no public one
    "text_encoder": 123_060_480,
    "unet": 859_520_964,
    "vae": 83_653_863,
    "image_encoder": 303_179_776,
    "dino": 304_368_640,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def make_regressor(folder: Path) -> PromptRegressor:
    """Start a regressor from the UNet and the class word that are written already."""
    bundle = Bundle.open(folder)
    tokenizer = bundle.load_tokenizer()
    (token,) = tokenizer.encode(CLASS_WORD)
    table = bundle.load_text_encoder(torch.float16).get_input_embeddings()
    unet = bundle.load_unet(torch.float16)  # in the file's dtype: mapped, not copied
    regressor: PromptRegressor = PromptRegressor.from_unet(unet, table.weight[token])
    return regressor


def write_network(folder: Path, name: str, build: Callable[[], Any]) -> None:
    """Build, check, save and forget one network; print its row of the table.

    Raises:
        ValueError: it has not the number of parameters of the public one.
    """
    start = time.perf_counter()
    with default_dtype(torch.float16):  # at once: never twice the memory
        network = build()
    number = sum(parameter.numel() for parameter in network.parameters())
    expected = PARAMETERS.get(name, number)
    if number != expected:
        raise ValueError(f"{name}: expected {expected} parameters, got {number}")
    network.save_pretrained(folder / name)
    size = sum(path.stat().st_size for path in (folder / name).glob("*.safetensors"))
    seconds = time.perf_counter() - start
    print(f"{name:14} {number:>13,} {size / 1e9:>8.2f} GB {seconds:>8.1f} s", flush=True)


def write_bundle(folder: Path, *, seed: int = 0) -> BundleInfo:
    """Write the whole bundle; return what its manifest says."""
    torch.manual_seed(seed)
    save_tokenizer(learn_tokenizer(CAPTIONS, size=700), folder / "tokenizer")
    PNDMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    with TemporaryDirectory() as configurations:
        random = sd15_bundle(Path(configurations))
        for name in PARAMETERS:
            write_network(folder, name, partial(getattr(random, f"load_{name}"), torch.float16))
    write_network(folder, "regressor", lambda: make_regressor(folder))
    write_model_index(folder)
    return write_manifest(
        folder,
        BundleInfo(
            name="sd15-random",
            class_word=CLASS_WORD,
            image_size_px=512,
            licence="Apache-2.0",
            trained_on="nothing: random weights",
            base="random weights of Stable Diffusion 1.5's, CLIP-L/14's and DINOv2-L's sizes",
        ),
    )


def main() -> None:
    """Read the command line and write the bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.folder.exists() and any(arguments.folder.iterdir()):
        parser.error(f"{arguments.folder} is not empty")
    disable_progress_bar()
    start = time.perf_counter()
    write_bundle(arguments.folder, seed=arguments.seed)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - start
    print(f"in all {seconds:.0f} s with hashes, peak memory {peak_bytes / 1e9:.1f} GB")
    print("The tokenizer is a small one, not CLIP's: ids are valid, texts are not comparable.")


if __name__ == "__main__":
    main()
