"""The mini bundle's networks: Stable Diffusion 1.5's classes at a hundredth of its size."""

from __future__ import annotations

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
)

IMAGE_SIZE = 64  # px
LATENT_CHANNELS = 16
LATENT_SIZE = 8
WIDTH = 128  # of words, of text states and of image tokens


def vae() -> AutoencoderKL:
    """8x down, 16 channels; normalisation over 2 groups keeps absolute colours."""
    levels = 4
    return AutoencoderKL(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(32, 32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Four layers over 77 tokens, as wide as a word."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH // 2,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",
        )
    )


def image_encoder() -> CLIPVisionModel:
    """Three layers over 64 patches of 8 px and a class token."""
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH // 2,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=8,
            attn_implementation="eager",
        )
    )


def dino() -> Dinov2Model:
    """Four layers over 64 patches of 8 px and a class token."""
    return Dinov2Model(
        Dinov2Config(
            hidden_size=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            mlp_ratio=4,
            image_size=IMAGE_SIZE,
            patch_size=8,
            attn_implementation="eager",
        )
    )


def unet() -> UNet2DConditionModel:
    """Two levels (8x8, 4x4), v-prediction, text at 8x8 and in the middle."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(96, 96),
        layers_per_block=1,
        attention_head_dim=3,  # diffusers' name for the number of heads
        cross_attention_dim=WIDTH,
        norm_num_groups=16,
        time_embedding_dim=256,
    )
