"""How much faster is refinement than the plain loop, with the same losses, and in what memory?

    python benchmarks/refine.py --out benchmarks/results/refine_mini.json
    python benchmarks/refine.py --bundle DIR --dtype bfloat16 --option timesteps_per_step=8 \
        --steps 1 --repeats 1 --out benchmarks/results/refine_sd15.json

The plain loop is written here, on its own: one noise level at a time, gradients of all weights
everywhere, and the photo encoded anew for each. It draws the noise that hbsdk draws, so that its
losses have to be hbsdk's to 1e-3; as a control, the losses of another step's noise must not be.
hbsdk runs in micro-batches of 1, 2, 4 and 8. Every case has processes of its own, whose peak memory
is theirs alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from hbsdk.bench.arguments import failures, parser_of, run, setup_of
from hbsdk.bench.cases import read_case
from hbsdk.bench.process import Case
from hbsdk.bench.questions import MICRO_BATCHES, Setup, ask_refine
from hbsdk.bench.room import refinement_need
from hbsdk.bench.tasks import draw_photo, open_session
from hbsdk.bundle import Bundle
from hbsdk.features import extract_features
from hbsdk.generate import tokenize
from hbsdk.image import load_photo, make_reference
from hbsdk.mask import find_mask
from hbsdk.options import PersonalizeOptions

PLAIN = "plain loop"
MOST_DIFFERENCE = 1e-3
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


class PlainLoop:
    """Refines one photo as one would write it down first."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Load all networks and let all of them have gradients."""
        self.options = PersonalizeOptions(**settings["options"])
        self.session = open_session({**settings, "memory": "high"})
        self.nets = {name: self.session.torch_backend.network(name) for name in NETWORKS}
        for network in self.nets.values():
            network.requires_grad_(True)
        self.kept: list[Tensor] = []
        for name, layer in self.nets["unet"].named_modules():
            if name.endswith("attn2"):
                layer.set_processor(PlainAttention(self.kept))
        self.photo, self.mask = draw_photo(self.session.bundle.info.image_size_px)

    def run(self) -> dict[str, Any]:
        """Refine once; return the seconds and the losses."""
        started = time.perf_counter()
        losses = self.refine()
        steps = self.options.steps
        samples = {f"probe and {steps} steps": [time.perf_counter() - started]}
        return {"samples": samples, "facts": {"losses": losses}}

    def refine(self) -> list[float]:
        """Return each step's loss."""
        options, info = self.options, self.session.bundle.info
        photo = load_photo(self.photo)
        found = find_mask(photo, self.mask)
        reference = make_reference(photo, found.values, size=info.image_size_px)
        prompt = tokenize(self.session.tokenizer, options.prompt, {"s*": info.num_words})
        pixels = torch.from_numpy(reference.pixels).permute(2, 0, 1)[None]
        mask = torch.from_numpy(reference.mask)[None, None]
        regressor = self.nets["regressor"]
        moved = {
            name: torch.zeros_like(weight).requires_grad_()
            for name, weight in regressor.named_parameters()
            if name.endswith("weight") and ("pool." in name or "to_words." in name)
        }
        optimizer = torch.optim.AdamW(
            moved.values(), lr=options.effective_step / options.residual_scale, eps=1e-12,
            weight_decay=options.weight_decay,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(options.seed)
        losses = []
        for _ in range(options.steps):
            total, count = 0.0, options.timesteps_per_step
            shape = (
                info.latent_channels,
                *(side // info.vae_scale_factor for side in pixels.shape[2:]),
            )
            noise = torch.randn((count, *shape), generator=generator)
            parts = (torch.arange(count) + torch.rand(count, generator=generator)) / count
            for level in range(count):
                loss = self.loss(
                    pixels, mask, prompt, moved, noise[level : level + 1],
                    int(parts[level] * 1000), mirrored=options.mirror and level % 2 == 1,
                )  # fmt: skip
                (loss / count).backward()
                total += loss.item() / count
            optimizer.step()
            optimizer.zero_grad()
            for network in self.nets.values():
                network.zero_grad()
            losses.append(total)
        return losses

    def words(self, pixels: Tensor, mask: Tensor, moved: Mapping[str, Tensor]) -> Tensor:
        """Encode the photo and predict its words with W + lambda dW."""
        regressor = self.nets["regressor"]
        features = extract_features(
            self.nets["image_encoder"], self.nets["dino"], pixels, mask,
            background=self.session.bundle.info.background,
        )  # fmt: skip
        weights = dict(regressor.named_parameters())
        changed = {
            name: weights[name] + self.options.residual_scale * dw for name, dw in moved.items()
        }
        latents = self.latents(pixels)
        return functional_call(regressor, changed, (latents, features.to(torch.float32)))

    def latents(self, pixels: Tensor) -> Tensor:
        """Encode a picture."""
        vae = self.nets["vae"]
        mode = vae.encode(pixels.to(vae.dtype)).latent_dist.mode().float()
        return (mode - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def loss(
        self, pixels: Tensor, mask: Tensor, prompt: Any, moved: Mapping[str, Tensor],
        noise: Tensor, timestep: int, *, mirrored: bool,
    ) -> Tensor:  # fmt: skip
        """Eq. 7 at one noise level."""
        options, unet, encoder = self.options, self.nets["unet"], self.nets["text_encoder"]
        words = self.words(pixels, mask, moved)[0]
        ((places,),) = prompt.places.values()
        ids = torch.from_numpy(prompt.ids)[None]

        def put(_: Any, __: Any, embedded: Tensor) -> Tensor:
            rows = list(embedded[0])
            for place, word in zip(places, words, strict=True):
                rows[place] = word
            return torch.stack(rows)[None]

        handle = encoder.get_input_embeddings().register_forward_hook(put)
        states = encoder(ids).last_hidden_state
        handle.remove()
        latents = self.latents(pixels.flip(-1) if mirrored else pixels)
        small = F.interpolate(mask, latents.shape[-2:], mode="area")
        small = small.flip(-1) if mirrored else small
        level = self.session.torch_backend.scheduler.alphas_cumprod[timestep]
        noisy = level.sqrt() * latents + (1.0 - level).sqrt() * noise
        self.kept.clear()
        predicted = unet(noisy.to(unet.dtype), timestep, states.to(unet.dtype), return_dict=False)[
            0
        ].float()
        weight = options.background_weight + (1.0 - options.background_weight) * small
        weight = weight.expand_as(noise)
        target = noise
        if self.session.torch_backend.scheduler.config.prediction_type == "v_prediction":
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


def plain_case(setup: Setup, dtype: str, options: Mapping[str, Any]) -> Case:
    """Return the plain loop as a case."""
    bundle = Bundle.open(setup.source)
    steps = PersonalizeOptions().steps if setup.steps is None else setup.steps
    chosen = {**options, "steps": steps}
    alone = PersonalizeOptions(**{**chosen, "micro_batch_size": 1})
    kind = "float32" if dtype == "auto" else dtype
    settings = {"bundle": setup.source, "engine": "torch", "dtype": dtype, "options": chosen}
    return Case(
        PLAIN, str(Path(__file__).resolve()), "PlainLoop", settings,
        need_bytes=refinement_need(bundle, alone, kind, everywhere=True),
    )  # fmt: skip


def problems(data: Mapping[str, Any]) -> list[str]:
    """Say which losses are not the plain loop's, and which controls do not tell."""
    found = failures(data)
    for name, case in data["cases"].items():
        facts = case.get("facts", {})
        difference = facts.get("largest_loss_difference")
        if difference is None:
            continue
        if not difference <= MOST_DIFFERENCE:
            found.append(f"{name}: losses differ by {difference:.1e} from the plain loop's")
        if len(facts["losses"]) > 1 and facts["control_loss_difference"] <= MOST_DIFFERENCE:
            found.append(f"{name}: another step's losses pass too; this proves nothing")
    return found


def main() -> int:
    """Measure, compare and write the JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--dtype", default="auto", help="of UNet, VAE and image encoders")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE; may repeat")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=MICRO_BATCHES)
    parser.add_argument("--without-plain", action="store_true", help="measure hbsdk alone")
    arguments = parser.parse_args()
    setup = setup_of(arguments)

    def ask() -> Any:
        options = read_case(",".join(["=torch", *arguments.option]), PersonalizeOptions).options
        plain = None if arguments.without_plain else plain_case(setup, arguments.dtype, options)
        return ask_refine(
            setup, dtype=arguments.dtype, options=options, plain=plain,
            micro_batches=arguments.micro_batches,
        )  # fmt: skip

    return run(ask, problems)


if __name__ == "__main__":
    sys.exit(main())
