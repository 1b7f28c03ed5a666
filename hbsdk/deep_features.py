"""Reuse of a UNet's deep features between steps: DeepCache, on diffusers' own forward.

From one step to the next most of what a UNet computes changes little. Its last layer joins that,
the deep features, with the first convolution of the new sample. A whole pass keeps what comes in
there; a shallow pass computes the first convolution and the last layer alone, over what was kept.

Both run diffusers' code on a second UNet object that shares the first one's layers: nothing is
copied, neither weights nor code, and the first stays as it is.

Source: Ma et al. 2024, "DeepCache: Accelerating Diffusion Models for Free", section 3.2, with the
shallowest branch.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

_ModuleT = TypeVar("_ModuleT", bound=nn.Module)


def whole_pass(
    unet: UNet2DConditionModel, sample: Tensor, timestep: Any, states: Tensor
) -> tuple[Tensor, Tensor]:
    """Run the whole UNet, and keep its deep features on the way.

    Args:
        unet: as diffusers makes it.
        sample: (N, C, h, w).
        timestep: as of the UNet.
        states: (N, tokens, d).

    Returns:
        (N, C, h, w), to the last bit what the UNet itself gives; and its deep features,
        (N, `deep_width(unet)`, h, w).
    """
    last = unet.up_blocks[-1]
    keeper = _Keeper(last.resnets[-1], deep_width(unet))
    joining = _sharing(last, resnets=[*last.resnets[:-1], keeper])
    up_blocks = [*unet.up_blocks[:-1], joining]
    predicted: Tensor = _sharing(unet, up_blocks=up_blocks)(
        sample, timestep, states, return_dict=False
    )[0]
    assert keeper.kept is not None
    return predicted, keeper.kept


def shallow_pass(
    unet: UNet2DConditionModel, sample: Tensor, timestep: Any, states: Tensor, deep: Tensor
) -> Tensor:
    """Run the UNet's fine part over deep features that were kept.

    Args:
        unet: the same.
        sample: (N, C, h, w).
        timestep: as of the UNet.
        states: (N, tokens, d).
        deep: as of `whole_pass`, for the same N, h and w.

    Returns:
        (N, C, h, w).
    """
    last = unet.up_blocks[-1]
    layers = {name: getattr(last, name, None) for name in ("resnets", "attentions")}
    joining = _sharing(last, **{name: [of[-1]] for name, of in layers.items() if of is not None})
    twin = _sharing(unet, down_blocks=[], mid_block=_Given(deep), up_blocks=[joining])
    predicted: Tensor = twin(sample, timestep, states, return_dict=False)[0]
    return predicted


def deep_width(unet: UNet2DConditionModel) -> int:
    """Return the channels of a UNet's deep features."""
    # The last layer is given them and then the first convolution's output.
    return int(unet.up_blocks[-1].resnets[-1].in_channels) - int(unet.conv_in.out_channels)


class _Keeper(nn.Module):
    """A resnet that keeps the first channels of what it is given."""

    def __init__(self, resnet: nn.Module, width: int) -> None:
        super().__init__()
        self.resnet, self.width = resnet, width
        self.kept: Tensor | None = None

    def forward(self, hidden: Tensor, *others: Any) -> Any:
        self.kept = hidden[:, : self.width]
        return self.resnet(hidden, *others)


class _Given(nn.Module):
    """In the middle's place: deep features, whatever comes in."""

    def __init__(self, deep: Tensor) -> None:
        super().__init__()
        self.deep = deep

    def forward(self, *_: Any) -> Tensor:
        return self.deep


def _sharing(module: _ModuleT, **parts: Any) -> _ModuleT:
    """Return another object with the same weights and parts, but for those given."""
    twin = copy.copy(module)
    lists = {k: nn.ModuleList(v) if isinstance(v, list) else v for k, v in parts.items()}
    twin._modules = {**module._modules, **lists}
    return twin
