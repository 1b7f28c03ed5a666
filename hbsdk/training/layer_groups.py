"""The regressor's layers by kind, and how far a fine-tuning moved each kind (section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

GROUPS = (
    "cross-attention Q/K/V", "self-attention Q/K/V", "attention outputs", "feed-forward",
    "convolutions", "feature merge", "query head", "other",
)  # fmt: skip
_QUERY_HEAD = (
    "region_norms", "region_projections", "feature_projection", "pool", "to_words", "queries",
    "base_words",
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Layers of one kind: layer -> the parameters it owns, by name."""

    layers: Mapping[str, Mapping[str, Tensor]]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """All parameters by name."""
        return {name: w for owned in self.layers.values() for name, w in owned.items()}


def layer_groups(regressor: nn.Module) -> dict[str, Group]:
    """Return group -> its layers, those of `GROUPS` that the regressor has.

    A layer is a module with parameters of its own, its weight and bias taken together; `queries`
    and `base_words` are a layer each.

    Args:
        regressor: a `PromptRegressor`.
    """
    found: dict[str, dict[str, dict[str, Tensor]]] = {name: {} for name in GROUPS}
    for layer, module in regressor.named_modules():
        for name, weight in module.named_parameters(layer, recurse=False):
            owner = layer or name
            owned = found[_group_of(owner, module)].setdefault(owner, {})
            owned[name] = weight.detach()
    return {name: Group(layers) for name, layers in found.items() if layers}


def _group_of(layer: str, module: nn.Module) -> str:
    parts = layer.split(".")
    if parts[0] in _QUERY_HEAD:
        return "query head"
    if parts[0] == "feature_merge":
        return "feature merge"
    if parts[-1] in ("to_q", "to_k", "to_v"):
        return f"{'cross' if 'attn2' in parts else 'self'}-attention Q/K/V"
    if "to_out" in parts:
        return "attention outputs"
    if "ff" in parts:
        return "feed-forward"
    return "convolutions" if isinstance(module, nn.Conv2d) else "other"


def changes(group: Group, after: Mapping[str, Tensor]) -> dict[str, float]:
    """Return how far a group's layers moved, each measure the mean over its layers.

    Layers of zeros, which have no direction, are left out.

    Args:
        group: its layers, before.
        after: their parameters' new values, by name; others are passed over.

    Returns:
        cosine_distance, 1 - cos(theta, theta'), the paper's; and relative_change,
        |theta' - theta| / |theta|, Custom Diffusion's.
    """
    distances, relative = [], []
    for owned in group.layers.values():
        old = torch.cat([weight.double().flatten() for weight in owned.values()])
        new = torch.cat([after[name].double().flatten() for name in owned])
        if old.norm() == 0.0 or new.norm() == 0.0:
            continue
        # Half the squared distance of the unit vectors: 1 - cos would be rounded away.
        apart = new / new.norm() - old / old.norm()
        distances.append(0.5 * apart.square().sum().item())
        relative.append(((new - old).norm() / old.norm()).item())
    return {
        "cosine_distance": float(np.mean(distances)) if distances else 0.0,
        "relative_change": float(np.mean(relative)) if relative else 0.0,
    }
