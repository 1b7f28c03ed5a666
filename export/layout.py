"""What makes an engine folder one that optimum opens: configurations, tokenizer, scheduler."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from hbsdk.bundle import Bundle, write_model_index
from hbsdk.bundle_check import config_of
from hbsdk.engine_spec import NETWORKS, EngineSpec

_CONFIGS = {  # of an engine folder's networks, from the bundle's components
    "regressor": "regressor", "text_encoder": "text_encoder", "unet": "unet",
    "vae_encoder": "vae", "vae_decoder": "vae",
}  # fmt: skip


def write_layout(bundle: Bundle, folder: Path, specs: Mapping[str, EngineSpec]) -> None:
    """Write every file of the folder that is no graph; `specs` are of the graphs to come."""
    for network in networks_of(specs):
        (folder / network).mkdir()
        if network in _CONFIGS:
            component = _CONFIGS[network]
            config = config_of(bundle.components[component], component, bundle.configs)
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
            (folder / network / "config.json").write_text(text, "utf-8")
    for component in ("tokenizer", "scheduler"):
        bundle.verify(component)
        (folder / component).mkdir()
        for path in bundle.components[component].iterdir():
            if path.suffix in {".json", ".txt"}:
                shutil.copyfile(path, folder / component / path.name)
    write_model_index(folder)


def networks_of(specs: Mapping[str, EngineSpec]) -> list[str]:
    """Return the networks that graphs are of, in building order."""
    present = {spec.network for spec in specs.values()}
    return [network for network in NETWORKS if network in present]
