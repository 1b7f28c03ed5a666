"""Writes a bundle's Stable Diffusion as one checkpoint with CompVis' names (SD 1.x)."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def write_single_file(bundle: Path, path: Path, *, layers_per_block: int = 1) -> Path:
    """Write the checkpoint of a bundle with two UNet levels and three VAE levels; return it."""
    text = load_file(bundle / "text_encoder" / "model.safetensors")
    unet = load_file(bundle / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(bundle / "vae" / "diffusion_pytorch_model.safetensors")
    levels = 1 + max(int(key.split(".")[2]) for key in vae if key.startswith("encoder.down_blocks"))
    state = {
        f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}": value
        for key, value in text.items()
    }
    for key, value in unet.items():
        state[f"model.diffusion_model.{_unet_key(key, unet, layers_per_block + 1)}"] = value
    for key, value in vae.items():
        name = _vae_key(key, levels)
        is_projection = ".attn_1." in name and value.ndim == 2
        state[f"first_stage_model.{name}"] = value[:, :, None, None] if is_projection else value
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def _unet_key(key: str, unet: dict[str, Tensor], stride: int) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    parts = key.split(".")
    if parts[0] == "mid_block":
        place = 1 if parts[1] == "attentions" else 2 * int(parts[2])
        return _inner(f"middle_block.{place}", parts[1], ".".join(parts[3:]))
    side, block = parts[0], int(parts[1])
    kind, layer, rest = parts[2], int(parts[3]), ".".join(parts[4:])
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * stride}.0.op.{rest.removeprefix('conv.')}"
        slot = 0 if kind == "resnets" else 1
        return _inner(f"input_blocks.{1 + block * stride + layer}.{slot}", kind, rest)
    if kind == "upsamplers":
        has_attention = any(name.startswith(f"up_blocks.{block}.attentions") for name in unet)
        return f"output_blocks.{(block + 1) * stride - 1}.{2 if has_attention else 1}.{rest}"
    slot = 0 if kind == "resnets" else 1
    return _inner(f"output_blocks.{block * stride + layer}.{slot}", kind, rest)


def _inner(prefix: str, kind: str, rest: str) -> str:
    if kind == "resnets":
        name, end = rest.rsplit(".", 1)
        rest = f"{_RESNET[name]}.{end}"
    return f"{prefix}.{rest}"


def _vae_key(key: str, levels: int) -> str:
    key = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(
        r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", key
    )
    key = re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key
    )
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if "mid_block.attentions.0." in key:
        prefix, rest = key.split("mid_block.attentions.0.")
        name, end = rest.rsplit(".", 1)
        key = f"{prefix}mid.attn_1.{_VAE_ATTENTION[name]}.{end}"
    return key
