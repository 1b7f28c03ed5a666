"""Refinement as one would write it down first; refine.py measures hbsdk's beside it.

One noise level at a time, gradients of all weights everywhere, and the photo encoded anew for each.
It draws the noise that hbsdk draws.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor
from torch.func import functional_call

from hbsdk.bench.stopwatch import synchronise
from hbsdk.bench.tasks import REFINEMENT_STEP, draw_photo, open_session, whole_refinement
from hbsdk.features import extract_features
from hbsdk.generate import tokenize
from hbsdk.image import load_photo, make_reference
from hbsdk.mask import find_mask
from hbsdk.options import PersonalizeOptions
from hbsdk.refine import REFINED_LAYERS

NETWORKS = ("image_encoder", "dino", "vae", "regressor", "text_encoder", "unet")


class PlainAttention:
    """Cross-attention written out, which keeps its probabilities."""

    def __init__(self, kept: list[Tensor]) -> None:
        self.kept = kept

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> Tensor:
        """(1, cells, width) -> the same; keeps (heads, cells, tokens)."""
        query, key, value = (
            layer(source).unflatten(-1, (attn.heads, -1)).transpose(1, 2)[0]
            for layer, source in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        probabilities = scores.softmax(-1)
        self.kept.append(probabilities)
        out = (probabilities @ value).transpose(0, 1).flatten(1)[None]
        return attn.to_out[1](attn.to_out[0](out))


@dataclass(frozen=True)
class PlainStep:
    """One step: its wall time, and the loss at each of its noise levels."""

    seconds: float
    losses: list[float]


class PlainLoop:
    """Refines one photo as one would write it down first."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Load all networks and let all of them have gradients."""
        self.options = PersonalizeOptions(**settings["options"])
        self.session = open_session({**settings, "memory": "high"})
        self.scheduler = self.session.torch_backend.scheduler
        self.nets = {name: self.session.torch_backend.network(name) for name in NETWORKS}
        for network in self.nets.values():
            network.requires_grad_(True)
        self.kept: list[Tensor] = []
        self.nets["unet"].set_attn_processor(AttnProcessor2_0())  # diffusers' own, not hbsdk's
        for name, layer in self.nets["unet"].named_modules():
            if name.endswith("attn2"):
                layer.set_processor(PlainAttention(self.kept))
        self.photo, self.mask = draw_photo(self.session.bundle.info.image_size_px)

    def run(self) -> dict[str, Any]:
        """Refine once; return the seconds, and the losses of steps and of their noise levels."""
        synchronise()
        started = time.perf_counter()
        steps = list(self.refine())
        seconds = time.perf_counter() - started
        samples = {
            REFINEMENT_STEP: [one.seconds for one in steps],
            whole_refinement(len(steps)): [seconds],
        }
        levels = [one.losses for one in steps]
        losses = [statistics.fmean(one) for one in levels]
        return {"samples": samples, "facts": {"losses": losses, "level_losses": levels}}

    def refine(self) -> Iterator[PlainStep]:
        """Take the steps, one by one."""
        options, info = self.options, self.session.bundle.info
        photo = load_photo(self.photo)
        found = find_mask(photo, self.mask)
        reference = make_reference(photo, found.values, size=info.image_size_px)
        prompt = tokenize(self.session.tokenizer, options.prompt, {"s*": info.num_words})
        device = self.session.torch_backend.device
        pixels = torch.from_numpy(reference.pixels).permute(2, 0, 1)[None].to(device)
        mask = torch.from_numpy(reference.mask)[None, None].to(device)
        layers = REFINED_LAYERS[options.refined]
        moved = {
            name: torch.zeros_like(weight).requires_grad_()
            for name, weight in self.nets["regressor"].named_parameters()
            if name.endswith("weight") and any(layer in name for layer in layers)
        }
        optimizer = torch.optim.AdamW(
            moved.values(), lr=options.effective_step / options.residual_scale, eps=1e-12,
            weight_decay=options.weight_decay,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(options.seed)
        last = self.scheduler.config.num_train_timesteps
        count = options.timesteps_per_step
        sides = (side // info.vae_scale_factor for side in pixels.shape[2:])
        shape = (count, info.latent_channels, *sides)
        for _ in range(options.steps):
            started = time.perf_counter()
            noise = torch.randn(shape, generator=generator).to(device)
            parts = (torch.arange(count) + torch.rand(count, generator=generator)) / count
            losses = []
            for level in range(count):
                loss = self.loss(
                    pixels, mask, prompt, moved, noise[level : level + 1],
                    int(parts[level] * last), mirrored=options.mirror and level % 2 == 1,
                )  # fmt: skip
                (loss / count).backward()
                losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
            for network in self.nets.values():
                network.zero_grad()
            synchronise()
            yield PlainStep(time.perf_counter() - started, losses)

    def words(
        self, pixels: Tensor, latents: Tensor, mask: Tensor, moved: Mapping[str, Tensor]
    ) -> Tensor:
        """Compute the photo's features and predict its words with W + lambda dW."""
        regressor = self.nets["regressor"]
        features = extract_features(
            self.nets["image_encoder"], self.nets["dino"], pixels, mask,
            background=self.session.bundle.info.background,
        )  # fmt: skip
        weights = dict(regressor.named_parameters())
        changed = {
            name: weights[name] + self.options.residual_scale * dw for name, dw in moved.items()
        }
        return functional_call(regressor, changed, (latents, features.to(torch.float32)))

    def latents(self, pixels: Tensor) -> Tensor:
        """Encode a picture."""
        vae = self.nets["vae"]
        mode = vae.encode(pixels.to(vae.dtype)).latent_dist.mode().float()
        return (mode - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def states(self, prompt: Any, words: Tensor) -> Tensor:
        """Encode the prompt with the words in their places."""
        encoder = self.nets["text_encoder"]
        ((places,),) = prompt.places.values()
        ids = torch.from_numpy(prompt.ids)[None].to(words.device)

        def put(_: Any, __: Any, embedded: Tensor) -> Tensor:
            rows = list(embedded[0])
            for place, word in zip(places, words, strict=True):
                rows[place] = word
            return torch.stack(rows)[None]

        handle = encoder.get_input_embeddings().register_forward_hook(put)
        states = encoder(ids).last_hidden_state
        handle.remove()
        return states

    def loss(
        self, pixels: Tensor, mask: Tensor, prompt: Any, moved: Mapping[str, Tensor],
        noise: Tensor, timestep: int, *, mirrored: bool,
    ) -> Tensor:  # fmt: skip
        """Eq. 7 at one noise level, from the photo on."""
        options, unet = self.options, self.nets["unet"]
        ((places,),) = prompt.places.values()
        latents = self.latents(pixels)
        states = self.states(prompt, self.words(pixels, latents, mask, moved)[0])
        small = F.interpolate(mask, latents.shape[-2:], mode="area")
        if mirrored:
            latents, small = self.latents(pixels.flip(-1)), small.flip(-1)
        level = self.scheduler.alphas_cumprod[timestep].to(latents.device)
        noisy = level.sqrt() * latents + (1.0 - level).sqrt() * noise
        self.kept.clear()
        predicted = unet(noisy.to(unet.dtype), timestep, states.to(unet.dtype)).sample.float()
        weight = options.background_weight + (1.0 - options.background_weight) * small
        weight = weight.expand_as(noise)
        target = noise
        if self.scheduler.config.prediction_type == "v_prediction":
            target = level.sqrt() * noise - (1.0 - level).sqrt() * latents
        denoising = ((predicted - target) ** 2 * weight).sum() / weight.sum()
        return denoising + options.mask_loss_weight * self.mask_loss(small, list(places))

    def mask_loss(self, mask: Tensor, places: list[int]) -> Tensor:
        """Eq. 6 by areas, over layers at half the latent's resolution and coarser."""
        height, width = mask.shape[-2:]
        losses = []
        for probabilities in self.kept:
            cells = probabilities.shape[1]
            factor = 1
            while -(-height // factor) * -(-width // factor) > cells:
                factor *= 2
            if factor == 1:
                continue
            size = (-(-height // factor), -(-width // factor))
            inside = F.interpolate(mask, size, mode="area").flatten()
            seen = probabilities.float().mean(0)[:, places]  # (cells, words)
            within = (inside @ seen) / inside.sum().clamp(min=1e-6)
            beyond = ((1.0 - inside) @ seen) / (1.0 - inside).sum().clamp(min=1e-6)
            losses.append((beyond - within).mean())
        return torch.stack(losses).mean()
