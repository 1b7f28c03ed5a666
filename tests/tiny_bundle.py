"""Writes a complete bundle of tiny random networks as diffusers and transformers write folders."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
)

from hbsdk.bundle import BundleInfo, write_manifest, write_model_index
from hbsdk.mini.tokenizer import learn_tokenizer, save_tokenizer
from hbsdk.regressor import PromptRegressor
from hbsdk.tokenizer import PromptTokenizer, load_tokenizer

WIDTH = 32  # of words and of text states
LATENT_SIZE = 8
IMAGE_SIZE = 32  # px: three levels of the VAE, 4x down
CLASS_WORD = "person"
CAPTIONS = (
    "a photo of a person in the snow",
    "a watercolor of a cat on the beach",
    "a pencil drawing of a dog with a red hat",
    "an oil painting of a fox at night",
)


def write_tiny_bundle(folder: Path, *, seed: int = 0, regressor: bool = True) -> Path:
    """Write the bundle into `folder`, made if need be; return it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = learn_tokenizer(CAPTIONS, size=600)
        save_tokenizer(tokenizer, folder / "tokenizer")
        text_encoder, unet = tiny_text_encoder(tokenizer), tiny_unet()
        networks = {
            "text_encoder": text_encoder,
            "unet": unet,
            "vae": tiny_vae(),
            "image_encoder": tiny_image_encoder(),
            "dino": tiny_dino(),
        }
        if regressor:
            networks["regressor"] = tiny_regressor(unet, text_encoder, tokenizer)
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")
    write_model_index(folder)
    write_manifest(folder, tiny_info())
    return folder


def tiny_info() -> BundleInfo:
    return BundleInfo(
        name="tiny",
        class_word=CLASS_WORD,
        image_size_px=IMAGE_SIZE,
        licence="Apache-2.0",
        trained_on="nothing: random weights",
        base="random weights",
    )


def prompt_tokenizer(tokenizer: CLIPTokenizer) -> PromptTokenizer:
    """hbsdk's tokenizer of the same vocabulary, by way of the files of both."""
    with TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        return load_tokenizer(Path(folder), max_tokens=77, vocabulary_rows=len(tokenizer))


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def tiny_vae() -> AutoencoderKL:
    levels = 3
    return AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
    )


def tiny_image_encoder() -> CLIPVisionModel:
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
        )
    )


def tiny_dino() -> Dinov2Model:
    return Dinov2Model(
        Dinov2Config(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=56,
            patch_size=14,
        )
    )


def tiny_regressor(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> PromptRegressor:
    (token,) = tokenizer(CLASS_WORD, add_special_tokens=False).input_ids
    word = text_encoder.get_input_embeddings().weight[token]
    return PromptRegressor.from_unet(
        unet, word, clip_dim=WIDTH, dino_dim=WIDTH, pool_dim=WIDTH, num_pool_heads=2
    )
