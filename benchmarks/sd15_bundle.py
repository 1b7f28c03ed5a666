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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
)
from transformers.utils.logging import disable_progress_bar

from hbsdk.bundle import Bundle, BundleInfo, write_manifest, write_model_index
from hbsdk.mini.tokenizer import learn_tokenizer, save_tokenizer
from hbsdk.regressor import PromptRegressor

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
CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 768}
TEXT_ENCODER = CLIPTextConfig(
    vocab_size=49408,
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=77,
    bos_token_id=0,
    eos_token_id=2,
    pad_token_id=1,
    **CLIP,
)
IMAGE_ENCODER = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
    **CLIP,
)
DINO = Dinov2Config(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    mlp_ratio=4,
    image_size=518,
    patch_size=14,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    layerscale_value=1.0,
    qkv_bias=True,
    use_swiglu_ffn=False,
)
UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
}
VAE: dict[str, Any] = {
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
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
BUILDERS: dict[str, Callable[[], Any]] = {
    "text_encoder": lambda: CLIPTextModel(TEXT_ENCODER),
    "unet": lambda: UNet2DConditionModel(**UNET),
    "vae": lambda: AutoencoderKL(**VAE),
    "image_encoder": lambda: CLIPVisionModel(IMAGE_ENCODER),
    "dino": lambda: Dinov2Model(DINO),
}


@contextmanager
def half_precision() -> Iterator[None]:
    """Make new networks in fp16 at once: never twice the memory."""
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


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
    with half_precision():
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
    for name, build in BUILDERS.items():
        write_network(folder, name, build)
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
