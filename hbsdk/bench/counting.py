"""What the method's parts take at least: operations, bytes and memory, counted without weights.

The networks run on torch's fake tensors, which have shapes and no storage. An operation is a
multiplication or an addition, of products only (matrices, convolutions, attention).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers.initialization import no_init_weights

from hbsdk.bundle import Bundle
from hbsdk.network_sizes import network_sizes
from hbsdk.objective import Denoiser, NoisyBatch, ObjectiveWeights, objective
from hbsdk.options import PersonalizeOptions
from hbsdk.training.random_bundle import same_size
from hbsdk.training.rehearsal import LiveBytes


@dataclass(frozen=True)
class Part:
    """What one run of a part takes.

    operations: floating-point ones. weight_bytes: each weight once. peak_bytes: of the tensors
    that live at once, beside the weights; an estimate, which no allocator's habits are in.
    """

    operations: int
    weight_bytes: int
    peak_bytes: int


@cache  # several cases ask for the same
def count_generation(
    bundle: Bundle,
    *,
    pictures: int = 1,
    height_px: int | None = None,
    width_px: int | None = None,
    dtype: str = "float32",
) -> Mapping[str, Part]:
    """Count the text encoder, one guided step of the UNet, and the VAE's decoder.

    Args:
        bundle: says the sizes; its weights are not read.
        pictures: at once.
        height_px: of the pictures; None is the bundle's own.
        width_px: as well.
        dtype: of the networks.
    """
    sizes = network_sizes(bundle)
    height, width = (
        (side or sizes.image_size_px) // sizes.vae_scale_factor for side in (height_px, width_px)
    )
    kind: torch.dtype = getattr(torch, dtype)
    noise = (sizes.latent_channels, height, width)

    def text(network: Any) -> None:
        network(torch.zeros(2, sizes.text_tokens, dtype=torch.long))

    def step(network: Any) -> None:
        states = torch.zeros(2 * pictures, sizes.text_tokens, sizes.context_dim, dtype=kind)
        network(torch.zeros(2 * pictures, *noise, dtype=kind), 1, states)

    def decode(network: Any) -> None:
        network.decode(torch.zeros(1, *noise, dtype=kind))  # the backend decodes one at a time

    return {
        "text_encoder": _count(bundle, "text_encoder", torch.float32, text),
        "guided_step": _count(bundle, "unet", kind, step),
        "decode": _count(bundle, "vae", kind, decode),
    }


@cache
def count_refinement(
    bundle: Bundle, options: PersonalizeOptions, *, dtype: str = "float32"
) -> Part:
    """Count forward and backward of one micro-batch of the loss: input gradients only.

    The regressor's own pass, once a step, is not in it.

    Args:
        bundle: says the sizes.
        options: of the refinement; `micro_batch_size` noise levels run at once.
        dtype: of the UNet; the text encoder is float32.
    """
    sizes = network_sizes(bundle)
    side = sizes.image_size_px // sizes.vae_scale_factor
    count = min(options.micro_batch_size, options.timesteps_per_step)
    kind: torch.dtype = getattr(torch, dtype)
    weights = ObjectiveWeights(
        options.mask_loss_weight, options.mask_loss, options.background_weight
    )
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(bundle.scheduler_config())
    random, memory, counter = same_size(bundle), LiveBytes(), _counter()
    with FakeTensorMode(allow_non_fake_inputs=True):
        with no_init_weights():
            denoiser = Denoiser(
                random.load_unet(kind, "cpu"), random.load_text_encoder(torch.float32, "cpu"),
                scheduler,
            )  # fmt: skip
        words = torch.zeros(count, sizes.num_words, sizes.word_dim, requires_grad=True)
        picture = (count, sizes.latent_channels, side, side)
        batch = NoisyBatch(
            latents=torch.zeros(picture), noise=torch.zeros(picture),
            timesteps=torch.zeros(count, dtype=torch.long), mask=torch.zeros(count, 1, side, side),
            ids=torch.zeros(count, sizes.text_tokens, dtype=torch.long),
            positions=torch.arange(1, 1 + sizes.num_words).expand(count, -1),
        )  # fmt: skip
        with memory, counter, torch.enable_grad():
            objective(denoiser, words, batch, weights).total.backward(inputs=[words])
        held = _bytes(denoiser.unet) + _bytes(denoiser.text_encoder)
    return Part(counter.get_total_flops(), held, memory.peak)


def _count(bundle: Bundle, name: str, dtype: torch.dtype, run: Callable[[Any], None]) -> Part:
    memory, counter = LiveBytes(), _counter()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with no_init_weights():
            own = torch.float32 if name == "text_encoder" else dtype
            network = getattr(same_size(bundle), f"load_{name}")(own, "cpu")
        with memory, counter:
            run(network)
        held = _bytes(network.decoder) if name == "vae" else _bytes(network)
    return Part(counter.get_total_flops(), held, memory.peak)


def _counter() -> FlopCounterMode:
    # CPUs have a fused attention of their own, which torch's counter does not know.
    return FlopCounterMode(
        display=False,
        custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention},
    )


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _bytes(network: Any) -> int:
    return sum(int(weight.nbytes) for weight in network.parameters())
