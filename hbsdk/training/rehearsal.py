"""A training step without numbers: what memory and how many operations it takes, calculated.

The step runs on torch's fake tensors, which have shapes and no storage, while every operation and
every tensor that lives is counted. So it takes no memory itself, and sees gradient checkpointing,
precision and the mask loss as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers.initialization import no_init_weights

from hbsdk.objective import ObjectiveWeights, objective
from hbsdk.regressor import PromptRegressor
from hbsdk.training.encode import FrozenNetworks, PairEncoder, use_plain_attention
from hbsdk.training.machine import DTYPES
from hbsdk.training.options import TrainOptions
from hbsdk.training.pairs import Pair
from hbsdk.training.random_bundle import RandomBundle
from hbsdk.training.start import pool_size

_PROMPT = "a photo of S*"


@dataclass(frozen=True)
class Rehearsal:
    """What one step takes.

    trained_parameters: of the regressor. frozen_parameters: of all else. peak_bytes: of weights,
    gradients, the optimizer's state, the average and all tensors that live at once. operations:
    floating-point ones of the products (matrices, convolutions, attention) of one optimizer step.
    """

    trained_parameters: int
    frozen_parameters: int
    peak_bytes: int
    operations: int


def rehearse(
    bundle: RandomBundle,
    options: TrainOptions,
    device: torch.device | None = None,
    config: Mapping[str, Any] | None = None,
) -> Rehearsal:
    """Calculate what a step takes.

    Args:
        bundle: says the sizes; see `same_size`.
        options: batch, precision, checkpointing and so on.
        device: decides which attention runs; nothing is put on it. None is the CPU.
        config: of the regressor, as `PromptRegressor` takes it, where it is not that of
            `fresh_regressor`.
    """
    device = torch.device("cpu") if device is None else device
    memory = LiveBytes()
    # CPUs have a fused attention of their own, which torch's counter does not know.
    counter = FlopCounterMode(
        display=False,
        custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention},
    )
    with FakeTensorMode(allow_non_fake_inputs=True), memory:
        precision = DTYPES[options.mixed_precision]
        with no_init_weights():  # its numbers look at the tensors', of which there are none
            networks = FrozenNetworks.load(
                bundle, device, torch.float32 if device.type == "cpu" else precision
            )
        with device:
            regressor = _regressor(networks, bundle, config or {}).train()
        if device.type == "cpu":
            use_plain_attention(regressor)
        if options.gradient_checkpointing:
            networks.denoiser.unet.enable_gradient_checkpointing()
            regressor.enable_gradient_checkpointing()
        with counter:
            _step(networks, regressor, options, precision)
        trained = list(regressor.parameters())
        frozen = [
            weight
            for network in (
                networks.denoiser.unet, networks.denoiser.text_encoder, networks.vae,
                networks.image_encoder, networks.dino,
            )
            for weight in network.parameters()
        ]  # fmt: skip
    kept = 2 + bool(options.ema_decay) + (options.gradient_accumulation_steps > 1)
    return Rehearsal(
        trained_parameters=sum(weight.numel() for weight in trained),
        frozen_parameters=sum(weight.numel() for weight in frozen),
        peak_bytes=memory.peak + kept * sum(weight.nbytes for weight in trained),
        operations=counter.get_total_flops() * options.gradient_accumulation_steps,
    )


def _regressor(
    networks: FrozenNetworks, bundle: RandomBundle, config: Mapping[str, Any]
) -> PromptRegressor:
    """Return a regressor of the size that training starts from, by no number of the UNet's."""
    unet = networks.denoiser.unet
    pool_dim, pool_heads = pool_size(bundle.info.word_dim)
    fresh = {
        "unet": {key: value for key, value in unet.config.items() if not key.startswith("_")},
        "clip_dim": networks.image_encoder.config.hidden_size,
        "dino_dim": networks.dino.config.hidden_size,
        "word_dim": bundle.info.word_dim,
        "num_words": bundle.info.num_words,
        "pool_dim": pool_dim,
        "num_pool_heads": pool_heads,
    }
    regressor: PromptRegressor = PromptRegressor(**{**fresh, **config})
    return regressor


def _step(
    networks: FrozenNetworks, regressor: Any, options: TrainOptions, precision: torch.dtype
) -> None:
    """Run forward and backward of one batch, as the loop does."""
    size = networks.image_size_px
    blank = np.zeros((size, size, 3), np.uint8)
    mask = np.ones((size, size), np.uint8)
    pairs = [Pair(blank, mask, blank, mask, _PROMPT)] * options.batch_size
    encoder = PairEncoder(networks, regressor.config.num_words, 0)
    weights = ObjectiveWeights(
        options.mask_loss_weight, options.mask_loss, options.background_weight
    )
    device = networks.denoiser.unet.device
    is_half = precision != torch.float32
    with torch.autocast(device.type, precision if is_half else None, enabled=is_half):
        encoded = encoder.encode(pairs, 0, range(len(pairs)))
        words = regressor(encoded.latents, encoded.features)
        loss = objective(networks.denoiser, words.float(), encoded.batch, weights).total
    loss.backward()


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Return the operations of fused attention, from the shapes of what it is given."""
    return int(sdpa_flop_count(query, key, value))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, as long as each lives.

    A context: what is made while it is open is counted, and taken off when it is freed, then or
    later. Views share their storage and count once; storages from before are not counted.

    Attributes:
        now: bytes that live.
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._live: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        made = operation(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return

        def gone(_: object) -> None:
            del self._live[key]
            self.now -= size

        self._live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
