"""Thin modules whose `forward` is just what an engine computes: arrays in, arrays out.

Each has the arguments of its `EngineSpec`, in order; export traces it and parity compares it with
the untouched networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionModel, Dinov2Model

from hbsdk.bundle import Bundle
from hbsdk.deep_features import shallow_pass, whole_pass
from hbsdk.engine_spec import SHALLOW_STEP
from hbsdk.features import CLIP_MEAN, CLIP_STD, DINO_MEAN, DINO_STD, ImageFeatures, encoder_pixels
from hbsdk.regressor import PromptRegressor


class EncoderPixels(nn.Module):
    """`features.encoder_pixels` as two matrix products.

    An antialiased resize from one fixed size to another is linear in rows and in columns; ONNX's
    Resize has an antialias that TensorRT lacks, and every runtime multiplies matrices.
    """

    def __init__(
        self,
        image_size: int,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        unit = torch.eye(image_size).expand(1, 1, -1, -1)
        # Resizing the columns of the unit matrix alone gives the matrix that resizes columns.
        resized = nn.functional.interpolate(
            unit, (size, image_size), mode="bicubic", antialias=True
        )
        self.register_buffer("rows", resized[0, 0].clone(), persistent=False)
        self.is_identity = size == image_size

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, 3, size, size), normalised."""
        normal = encoder_pixels(pixels, pixels.shape[-1], self.mean, self.std, mask)
        if self.is_identity:
            return normal
        rows = self.get_buffer("rows")
        return rows @ normal @ rows.T


class ImageFeaturesEngine(nn.Module):
    """`pixels` (and `mask`) -> `clip`, `dino`: both encoders on the same crop (Eq. 3)."""

    def __init__(self, image_encoder: CLIPVisionModel, dino: Dinov2Model, image_size: int) -> None:
        super().__init__()
        self.image_encoder, self.dino_encoder = image_encoder, dino
        clip_size = int(image_encoder.config.image_size)
        grid = clip_size // int(image_encoder.config.patch_size)
        dino_size = grid * int(dino.config.patch_size)
        self.clip_pixels = EncoderPixels(image_size, clip_size, CLIP_MEAN, CLIP_STD)
        self.dino_pixels = EncoderPixels(image_size, dino_size, DINO_MEAN, DINO_STD)

    def forward(self, pixels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See the class."""
        clip, dino = self.image_encoder, self.dino_encoder
        return (
            clip(self.clip_pixels(pixels, mask).to(clip.dtype)).last_hidden_state,
            dino(self.dino_pixels(pixels, mask).to(dino.dtype)).last_hidden_state,
        )


class RegressorEngine(nn.Module):
    """`latents`, `clip`, `dino` -> `words` (Eq. 4)."""

    def __init__(self, regressor: PromptRegressor) -> None:
        super().__init__()
        self.regressor = regressor

    def forward(self, latents: Tensor, clip: Tensor, dino: Tensor) -> Tensor:
        """See the class."""
        words: Tensor = self.regressor(latents.to(clip.dtype), ImageFeatures(clip, dino))
        return words.float()


class TextEncoderEngine(nn.Module):
    """`input_ids` -> `last_hidden_state`: optimum's text encoder."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """See the class."""
        states: Tensor = self.text_encoder(input_ids).last_hidden_state
        return states


class TokenEmbeddingEngine(nn.Module):
    """`input_ids` -> `inputs_embeds`: rows of the token table, in which subjects' words go."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.token_embedding = text_encoder.get_input_embeddings()

    def forward(self, input_ids: Tensor) -> Tensor:
        """See the class."""
        embedded: Tensor = self.token_embedding(input_ids)
        return embedded


class TextEncoderEmbedsEngine(nn.Module):
    """`inputs_embeds` -> `last_hidden_state`: positions are added inside, as for any word."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        ids = torch.zeros(1, text_encoder.config.max_position_embeddings, dtype=torch.int64)
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        """See the class."""
        table = self.text_encoder.get_input_embeddings()
        handle = table.register_forward_hook(lambda *_: inputs_embeds)
        try:
            count, tokens = inputs_embeds.shape[:2]
            ids = self.get_buffer("ids")[:, :tokens].expand(count, -1)
            states: Tensor = self.text_encoder(ids).last_hidden_state
        finally:
            handle.remove()
        return states


class UNetEngine(nn.Module):
    """`sample`, `timestep`, `encoder_hidden_states` -> `out_sample`: optimum's UNet."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return out


class DenoiseStepEngine(nn.Module):
    """One step of the loop: the UNet, guidance, and the sampler's rule, the last two in float32.

    Guidance is a matrix over the batch's rows, so that one graph serves all: with N pictures and
    the rows [without prompt, with prompt] it is [[(1 - s) I, s I], [(1 - s) I, s I]], which keeps
    both halves equal; without guidance it is I over N rows.
    """

    def __init__(self, unet: UNet2DConditionModel, *, deep_features: bool = False) -> None:
        super().__init__()
        self.unet, self.deep_features = unet, deep_features

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        previous_x0: Tensor,
        guidance: Tensor,
        coefficients: Tensor,
    ) -> tuple[Tensor, ...]:
        """x0 = p x + q eps; x' = a x + b x0 + c x0_before; returns x', x0 (and deep features)."""
        own, states = sample.to(self.unet.dtype), encoder_hidden_states
        if not self.deep_features:
            predicted = self.unet(own, timestep, states, return_dict=False)[0]
            return _sampled(sample, predicted, previous_x0, guidance, coefficients)
        predicted, deep = whole_pass(self.unet, own, timestep, states)
        return *_sampled(sample, predicted, previous_x0, guidance, coefficients), deep


class ShallowDenoiseStepEngine(nn.Module):
    """The same step with the UNet's fine part alone, over `deep_features` of an earlier one."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        previous_x0: Tensor,
        guidance: Tensor,
        coefficients: Tensor,
        deep_features: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See the class; returns x' and x0."""
        own = sample.to(self.unet.dtype)
        predicted = shallow_pass(self.unet, own, timestep, encoder_hidden_states, deep_features)
        return _sampled(sample, predicted, previous_x0, guidance, coefficients)


def _sampled(
    sample: Tensor, predicted: Tensor, previous_x0: Tensor, guidance: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor]:
    guided = (guidance @ predicted.float().flatten(1)).view_as(sample)
    p, q, a, b, c = coefficients.unbind()
    x0 = p * sample + q * guided
    return a * sample + b * x0 + c * previous_x0, x0


class VaeEncoderEngine(nn.Module):
    """`sample` -> `latent_parameters`: means, then log variances, not scaled; optimum's."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, sample: Tensor) -> Tensor:
        """See the class."""
        hidden = self.encoder(sample)
        parameters: Tensor = hidden if self.quant_conv is None else self.quant_conv(hidden)
        return parameters


class VaeDecoderEngine(nn.Module):
    """`latent_sample`, divided by the scaling factor -> `sample` in about [-1, 1]; optimum's."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        """See the class."""
        convolve = self.post_quant_conv
        hidden = latent_sample if convolve is None else convolve(latent_sample)
        picture: Tensor = self.decoder(hidden)
        return picture


def load_networks(network: str, bundle: Bundle) -> dict[str, Any]:
    """Load what one network of an engine folder is made of, untouched, in float32 on the CPU."""
    loaders: dict[str, dict[str, Callable[[], Any]]] = {
        "image_features": {"image_encoder": bundle.load_image_encoder, "dino": bundle.load_dino},
        "regressor": {"regressor": bundle.load_regressor},
        "text_encoder": {"text_encoder": bundle.load_text_encoder},
        "unet": {"unet": bundle.load_unet},
        "vae_encoder": {"vae": bundle.load_vae},
        "vae_decoder": {"vae": bundle.load_vae},
    }
    return {name: load() for name, load in loaders[network].items()}


def wrap(
    network: str, parts: dict[str, Any], image_size_px: int, *, deep_features: bool = False
) -> dict[str, nn.Module]:
    """Return the wrappers of one network by engine name; they hold the networks themselves."""
    for part in parts.values():
        if hasattr(part, "set_attn_implementation"):
            # Fused attention exports with guards against rows that see nothing; none here does.
            part.set_attn_implementation("eager")
    if network == "image_features":
        return {network: ImageFeaturesEngine(**parts, image_size=image_size_px)}
    if network == "text_encoder":
        text = parts[network]
        return {
            network: TextEncoderEngine(text),
            "token_embedding": TokenEmbeddingEngine(text),
            "text_encoder_embeds": TextEncoderEmbedsEngine(text),
        }
    if network == "unet":
        unet = parts[network]
        step = DenoiseStepEngine(unet, deep_features=deep_features)
        shallow = {SHALLOW_STEP: ShallowDenoiseStepEngine(unet)} if deep_features else {}
        return {network: UNetEngine(unet), "denoise_step": step, **shallow}
    kinds: dict[str, Callable[..., nn.Module]] = {
        "regressor": RegressorEngine,
        "vae_encoder": VaeEncoderEngine,
        "vae_decoder": VaeDecoderEngine,
    }
    return {network: kinds[network](**parts)}
