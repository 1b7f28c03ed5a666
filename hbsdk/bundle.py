"""A bundle: which networks, where their files are, and that they are what they say (hashes).

Importing this module imports no torch; loading a network does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hbsdk.bundle_check import (
    check_added,
    check_components,
    check_listed,
    check_single_file,
    check_stated,
    config_of,
    derived_info,
    part_of,
    sizes_of,
)
from hbsdk.bundle_info import (
    COMPONENTS,
    MANIFEST,
    BundleInfo,
    counts_for,
    read_info,
    read_json,
    sha256_of,
)
from hbsdk.bundle_source import Source, find_bundle, find_configs, find_piece
from hbsdk.bundle_write import write_manifest, write_model_index
from hbsdk.errors import BundleError

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPVisionModel, Dinov2Model

    from hbsdk.regressor import PromptRegressor
    from hbsdk.tokenizer import PromptTokenizer

__all__ = ["MINI", "Bundle", "BundleInfo", "Source", "write_manifest", "write_model_index"]

MINI = Path(__file__).parent / "mini" / "weights"
_SINGLE_FILE_NETWORKS = ("text_encoder", "unet", "vae")
_TO_PERSONALIZE = {
    "image_encoder": 'Bundle.compose(base=..., image_encoder="openai/clip-vit-large-patch14")',
    "dino": 'Bundle.compose(base=..., dino="facebook/dinov2-large")',
    "regressor": "`hbsdk train` makes one, then Bundle.compose(base=..., regressor=FOLDER)",
}


@dataclass(frozen=True, eq=False)
class Bundle:
    """The networks and files that draw and personalize, not yet loaded.

    Each `load_...` verifies a network's files, then returns the network frozen, in evaluation mode,
    on `device`, in `dtype` (None is float32) whatever the files hold. It raises BundleError where
    the bundle has no such network, or its files are damaged or were changed. On the CPU, in the
    dtype of the file, weights stay mapped to it: replace files of an open bundle, never write into
    them.

    Attributes:
        info: what the bundle says of itself.
        components: by name, the folder of each that is present, or the single file it is in.
        folder: the bundle's own, or None if it was composed from several places.
        configs: the diffusers folder that describes a single-file base, or None.
    """

    info: BundleInfo
    components: Mapping[str, Path]
    folder: Path | None = None
    configs: Path | None = None

    @classmethod
    def open(cls, source: Source | None = None) -> Bundle:
        """Open a bundle; its networks are loaded, and its files hashed, when first needed.

        Args:
            source: a bundle's folder, a hub id (fetched by huggingface_hub, which honours HF_HOME
                and HF_HUB_OFFLINE), or None for the embedded mini bundle. A diffusers folder of
                the SD 1.5 family without hbsdk.json opens too: it generates, nothing of it is
                hashed against a manifest, and its class word is "object".

        Raises:
            BundleError: it is nowhere, incomplete, not safetensors, or contradicts its manifest.
        """
        folder = find_bundle(MINI if source is None else source)
        info = read_info(folder) if (folder / MANIFEST).exists() else None
        if info is not None:
            check_listed(info, folder)
        components = {name: folder / name for name in COMPONENTS if (folder / name).is_dir()}
        check_components(components)
        sizes = sizes_of(components)
        if info is None:
            info = derived_info(folder.name, folder, sizes)
        check_stated(info, sizes)
        return cls(info, MappingProxyType(components), folder)

    @classmethod
    def compose(
        cls,
        *,
        base: Source,
        image_encoder: Source | None = None,
        dino: Source | None = None,
        regressor: Source | None = None,
        config: Source | None = None,
        class_word: str | None = None,
        name: str | None = None,
    ) -> Bundle:
        """Make a bundle of pieces that stay where they are; nothing is copied.

        Args:
            base: a bundle, a diffusers folder or hub id of the SD 1.5 family, or a single
                `.safetensors` checkpoint of that family.
            image_encoder: a folder or hub id of CLIP's vision tower, alone or in a whole CLIP.
            dino: a folder or hub id of a DINOv2 without registers.
            regressor: a folder or hub id of a PromptRegressor trained for these networks.
            config: for a single file: a diffusers folder or hub id with its configurations, its
                tokenizer and its scheduler; by default the public ones of SD 1.5.
            class_word: the words' start; by default the regressor's bundle's, or the base's.
            name: for people; by default the base's.

        Raises:
            BundleError: a piece is nowhere, damaged, a pickle, or does not fit the others.
        """
        given = {"image_encoder": image_encoder, "dino": dino, "regressor": regressor}
        path = Path(os.path.expanduser(base))
        if path.is_file():
            whole = cls._from_single_file(path, find_configs(config))
        else:
            whole = cls.open(base)
        components, info = dict(whole.components), whole.info
        files = {name: info.files_of(name) for name in components}
        for component, source in given.items():
            if source is None:
                continue
            components[component], home = find_piece(source, component)
            stated = read_info(home) if home else None
            files[component] = stated.files_of(component) if stated else {}
            if stated and component == "regressor":
                info = replace(info, class_word=stated.class_word, background=stated.background)
        check_components(components, whole.configs)
        info = replace(
            info,
            name=name or info.name,
            class_word=class_word or info.class_word,
            files={path: digest for part in files.values() for path, digest in part.items()},
            **sizes_of(components, whole.configs),
        )
        return cls(info, MappingProxyType(components), None, whole.configs)

    @classmethod
    def _from_single_file(cls, path: Path, configs: Path) -> Bundle:
        check_single_file(path, configs)
        components = dict.fromkeys(_SINGLE_FILE_NETWORKS, path)
        components |= {name: configs / name for name in ("tokenizer", "scheduler")}
        check_components(components, configs)
        info = derived_info(path.stem, configs, sizes_of(components, configs))
        return cls(info, MappingProxyType(components), None, configs)

    @property
    def hash(self) -> str:
        """The bundle's identity: sha256 over the (path, sha256) of all that is loaded.

        A copy elsewhere has the same; a byte changed in a network, tokenizer or scheduler gives
        another. Taken from the manifest where there is one; the files are hashed where not.

        Raises:
            BundleError: a file that has to be hashed cannot be read.
        """
        digests: dict[str, str] = {}
        for component in self.components:
            listed = self.info.files_of(component)
            digests |= listed or self._hashed(component)
        lines = [
            f"{digest}  {path}\n"
            for path, digest in sorted(digests.items())
            if counts_for(path.split("/")[0], path.split("/", 1)[1])
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _hashed(self, component: str) -> dict[str, str]:
        """The sha256s of a component that no manifest lists, by the paths a bundle would have."""
        source = self.components[component]
        if not source.is_file():
            paths = {path.name: path for path in source.iterdir() if path.is_file()}
        else:
            # Named as in a bundle, whatever the checkpoint's file is called.
            assert self.configs is not None
            config = self.configs / component / "config.json"
            paths = {"config.json": config, "model.safetensors": source}
        return {
            f"{component}/{name}": sha256_of(path)
            for name, path in paths.items()
            if counts_for(component, name)
        }

    def verify(self, component: str) -> None:
        """Check a component's files, or one file at the bundle's root, against the manifest.

        Each file is hashed once in a process; what no manifest lists is not checked.

        Raises:
            BundleError: a file is missing, was changed, or was added.
        """
        listed = self.info.files_of(component)
        if not listed:
            return
        for path, expected in listed.items():
            got = sha256_of(self._path(path))
            if got != expected:
                raise BundleError(
                    f"{self._path(path)} was changed",
                    expected=f"sha256 {expected}",
                    got=got,
                    remedy="Copy the bundle again from where it came; never load a changed file",
                )
        if component in self.components:
            check_added(self.components[component].parent, component, listed)

    def _path(self, listed: str) -> Path:
        component, _, rest = listed.partition("/")
        if component in self.components:
            return self.components[component] / rest
        assert self.folder is not None
        return self.folder / listed

    def load_tokenizer(self) -> PromptTokenizer:
        """Load the tokenizer; a text has as many tokens as the text encoder has positions.

        Raises:
            BundleError: its files are damaged, changed, or of another text encoder.
        """
        from hbsdk.tokenizer import load_tokenizer

        self.verify("tokenizer")
        config = config_of(self.components["text_encoder"], "text_encoder", self.configs)
        text = part_of(config, "text_config")
        return load_tokenizer(
            self.components["tokenizer"],
            max_tokens=text.get("max_position_embeddings", 77),  # where not stated, as in CLIP
            vocabulary_rows=text.get("vocab_size", 49408),
        )

    def load_text_encoder(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> CLIPTextModel:
        """Load the text encoder, frozen."""
        network: CLIPTextModel = self._load("text_encoder", dtype, device)
        return network

    def load_unet(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> UNet2DConditionModel:
        """Load the denoiser, frozen."""
        network: UNet2DConditionModel = self._load("unet", dtype, device)
        return network

    def load_vae(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> AutoencoderKL:
        """Load the autoencoder, frozen."""
        network: AutoencoderKL = self._load("vae", dtype, device)
        return network

    def load_image_encoder(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> CLIPVisionModel:
        """Load CLIP's vision tower, frozen, also from a folder of a whole CLIP."""
        network: CLIPVisionModel = self._load("image_encoder", dtype, device)
        return network

    def load_dino(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Dinov2Model:
        """Load DINOv2, frozen."""
        network: Dinov2Model = self._load("dino", dtype, device)
        return network

    def load_regressor(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> PromptRegressor:
        """Load the prompt regressor, frozen."""
        network: PromptRegressor = self._load("regressor", dtype, device)
        return network

    def _load(self, component: str, dtype: torch.dtype | None, device: torch.device | str) -> Any:
        self._require(component)
        import torch

        from hbsdk.bundle_load import load_network

        self.verify(component)
        source = self.components[component]
        configs = self.configs if source.is_file() else None
        return load_network(component, source, dtype or torch.float32, device, configs=configs)

    def _require(self, component: str) -> None:
        if component not in self.components:
            raise BundleError(
                f"bundle {self.info.name!r} has no {component}: it generates pictures, also with "
                "subjects made elsewhere, but cannot personalize",
                remedy=f"Add one: {_TO_PERSONALIZE[component]}",
            )

    def scheduler_config(self) -> dict[str, Any]:
        """Return scheduler/scheduler_config.json: betas, prediction type and so on.

        Raises:
            BundleError: it is damaged or changed.
        """
        self.verify("scheduler")
        return read_json(self.components["scheduler"] / "scheduler_config.json")
