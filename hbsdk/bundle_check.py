"""Reads the networks' configurations: what they say of a bundle, and whether they fit. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbsdk.bundle_info import (
    COMPONENTS,
    MANIFEST,
    MAX_WORDS,
    REQUIRED,
    BundleInfo,
    counts_for,
    listable_files,
    read_json,
)
from hbsdk.errors import BundleError

_NEUTRAL_CLASS_WORD = "object"  # a single token in CLIP's vocabulary; says nothing of the subject
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_CLASSES = {  # component: the key of its configuration that names the class, the classes read
    "text_encoder": ("model_type", ("clip_text_model", "clip")),
    "unet": ("_class_name", ("UNet2DConditionModel",)),
    "vae": ("_class_name", ("AutoencoderKL",)),
    "image_encoder": ("model_type", ("clip_vision_model", "clip")),
    "dino": ("model_type", ("dinov2",)),
    "regressor": ("_class_name", ("PromptRegressor",)),
}
# Keys of an SD 1.5 family checkpoint as CompVis wrote it: one a network.
_CHECKPOINT_KEYS = {
    "unet": "model.diffusion_model.input_blocks.0.0.weight",
    "vae": "first_stage_model.encoder.conv_in.weight",
    "text_encoder": "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
}
_NETWORK_FITS = (
    ("unet's cross_attention_dim", "text_encoder's width"),
    ("unet's in_channels", "vae's latent_channels"),
)
_REGRESSOR_FITS = {
    "word_dim": "text_encoder's width",
    "clip_dim": "image_encoder's width",
    "dino_dim": "dino's width",
}


def config_of(source: Path, component: str, configs: Path | None) -> dict[str, Any]:
    """Return a component's configuration; `configs` describes a single-file checkpoint's."""
    if source.is_file():
        assert configs is not None
        source = configs / component
    return read_json(source / "config.json")


def part_of(config: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a nested configuration, as a whole CLIP's has, or the configuration itself."""
    part = config.get(key)
    return part if isinstance(part, dict) else config


def sizes_of(components: Mapping[str, Path], configs: Path | None = None) -> dict[str, Any]:
    """Return the fields of `BundleInfo` that the networks' configurations tell.

    Args:
        components: the folder, or single file, of each component that is present.
        configs: the diffusers folder that describes a single file.

    Raises:
        BundleError: a configuration cannot be read, or a size in it has no meaning.
    """
    text = part_of(config_of(components["text_encoder"], "text_encoder", configs), "text_config")
    vae = config_of(components["vae"], "vae", configs)
    levels = vae.get("block_out_channels")
    sizes = {
        "word_dim": text.get("hidden_size"),
        "latent_channels": vae.get("latent_channels"),
        "vae_scale_factor": 2 ** (len(levels) - 1) if isinstance(levels, list) else None,
    }
    if "regressor" in components:
        sizes["num_words"] = config_of(components["regressor"], "regressor", None).get("num_words")
    for name, size in sizes.items():
        if type(size) is not int or size < 1 or (name == "num_words" and size > MAX_WORDS):
            raise BundleError(
                f"{name}, as the networks' config.json tell it",
                expected="a whole number above 0",
                got=str(size)[:100],
                remedy="Copy the bundle again from where it came",
            )
    return sizes


def check_stated(info: BundleInfo, sizes: Mapping[str, Any]) -> None:
    """Refuse a manifest that contradicts the networks' configurations."""
    for name, size in sizes.items():
        if getattr(info, name) != size:
            raise BundleError(
                f"{name} in {MANIFEST} of bundle {info.name!r}",
                expected=f"{size}, as the networks' config.json tell it",
                got=str(getattr(info, name)),
                remedy="Take the networks that were made for this bundle",
            )


def derived_info(name: str, folder: Path, sizes: Mapping[str, Any]) -> BundleInfo:
    """Return what can be said of a diffusers folder that has no hbsdk.json.

    Args:
        name: of the bundle.
        folder: with the UNet's configuration.
        sizes: as of `sizes_of`.
    """
    size = read_json(folder / "unet" / "config.json").get("sample_size")
    if type(size) is not int or not 1 <= size <= 512:
        size = 64  # not told, or not square: Stable Diffusion 1.5's
    scale = sizes["vae_scale_factor"]
    return BundleInfo(
        name=name,
        class_word=_NEUTRAL_CLASS_WORD,
        image_size_px=size * scale,
        licence="unknown",
        trained_on="unknown",
        base=name,
        **sizes,
    )


def check_components(components: Mapping[str, Path], configs: Path | None = None) -> None:
    """Check what can be told without reading weights: presence, classes, and that widths agree."""
    missing = [name for name in REQUIRED if name not in components]
    if missing:
        place = next(iter(components.values())).parent if components else "the folder"
        raise BundleError(
            f"bundle without {', '.join(missing)}",
            expected=f"the sub-folders {', '.join(REQUIRED)}",
            got=f"{', '.join(components) or 'none of them'} in {place}",
            remedy="Pass a diffusers folder of the SD 1.5 family, or a bundle",
        )
    networks = {}
    for name, source in components.items():
        if source.is_dir():
            _check_component(name, source)
        if name not in ("tokenizer", "scheduler"):
            networks[name] = config_of(source, name, configs)
    _check_fit(networks)


def check_listed(info: BundleInfo, folder: Path) -> None:
    """Refuse a bundle that lacks a listed file or has one that is not listed."""
    for path in info.files:
        if not (folder / path).is_file():
            raise BundleError(
                f"{folder / path} is missing",
                expected="every file that hbsdk.json lists",
                remedy="Copy the bundle again from where it came",
            )
    for component in COMPONENTS:
        check_added(folder, component, info.files)


def check_added(folder: Path, component: str, listed: Mapping[str, str]) -> None:
    """Refuse a component's file that is not listed: the libraries might load it."""
    added = [path for path in listable_files(folder, component) if path not in listed]
    if added:
        raise BundleError(
            f"{folder / added[0]} was added",
            expected="only files that hbsdk.json lists",
            remedy="Remove it, or write the manifest anew if it is yours",
        )


def _check_component(component: str, folder: Path) -> None:
    """Check that a component's folder has what is loaded, as safetensors, of the right class.

    Raises:
        BundleError: a file is missing, the weights are a pickle, or the class is another.
    """
    if component in ("tokenizer", "scheduler"):
        if not any(counts_for(component, path.name) for path in _files(folder)):
            raise BundleError(f"{component} in {folder}", got="none of its files")
        return
    key, classes = _CLASSES[component]
    found = read_json(folder / "config.json").get(key)
    if found not in classes:
        remedy = f"Pass a {component} of that class"
        if found == "dinov2_with_registers":
            remedy = "Its extra tokens are no patches: take one without, facebook/dinov2-large"
        raise BundleError(
            f"{key} in {folder}/config.json",
            expected=" or ".join(classes),
            got=str(found),
            remedy=remedy,
        )
    _check_weights(component, folder)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _check_weights(component: str, folder: Path) -> None:
    names = [path.name for path in _files(folder)]
    weights = [name for name in names if counts_for(component, name) and name != "config.json"]
    if weights:
        return
    pickles = [name for name in names if name.endswith(_PICKLES)]
    raise BundleError(
        f"weights of {component} in {folder}",
        expected="model.safetensors or diffusion_pytorch_model.safetensors",
        got=f"only a pickle, {pickles[0]}, which can run code" if pickles else "none",
        remedy="Convert it with save_pretrained(safe_serialization=True) where you trust it",
    )


def _check_fit(configs: Mapping[str, dict[str, Any]]) -> None:
    """Check that the networks' widths agree, as far as their configurations tell.

    Args:
        configs: config.json by component; those absent are not compared.

    Raises:
        BundleError: two networks do not fit each other.
    """
    vision = configs.get("image_encoder", {})
    text = configs.get("text_encoder", {})
    widths = {
        "text_encoder's width": part_of(text, "text_config").get("hidden_size"),
        "unet's cross_attention_dim": configs["unet"].get("cross_attention_dim"),
        "unet's in_channels": configs["unet"].get("in_channels"),
        "vae's latent_channels": configs["vae"].get("latent_channels"),
        "image_encoder's width": part_of(vision, "vision_config").get("hidden_size"),
        "dino's width": configs.get("dino", {}).get("hidden_size"),
    }
    regressor = configs.get("regressor", {})
    widths |= {f"regressor's {key}": regressor.get(key) for key in _REGRESSOR_FITS}
    pairs = [*_NETWORK_FITS, *((f"regressor's {key}", to) for key, to in _REGRESSOR_FITS.items())]
    for left, right in pairs:
        if None not in (widths[left], widths[right]) and widths[left] != widths[right]:
            raise BundleError(
                "networks that do not fit each other",
                expected=f"{left} to be {right}",
                got=f"{widths[left]} and {widths[right]}",
                remedy="Take networks of one family; the regressor is trained for its bundle",
            )


def check_single_file(path: Path, configs: Path) -> None:
    """Check that a file is a checkpoint of the SD 1.5 family and fits the configurations.

    Args:
        path: of the `.safetensors` file; only its header is read.
        configs: a diffusers folder.

    Raises:
        BundleError: it is a pickle, damaged, of another family, or of other sizes.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise BundleError(
            f"checkpoint {path}",
            expected="a .safetensors file",
            got=path.suffix or "no suffix",
            remedy="Convert it to safetensors where you trust it: a pickle can run code",
        )
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            absent = [network for network, key in _CHECKPOINT_KEYS.items() if key not in names]
            if absent:
                raise BundleError(
                    f"checkpoint {path}",
                    expected="a whole checkpoint of the SD 1.5 family",
                    got=f"no {', '.join(absent)} of that family",
                    remedy="SD 2, SDXL, LoRA and bare UNet files cannot be a base",
                )
            channels = file.get_slice(_CHECKPOINT_KEYS["unet"]).get_shape()[1]
    except (OSError, SafetensorError) as error:
        raise BundleError(
            f"checkpoint {path}",
            expected="a readable safetensors file",
            got=str(error),
            remedy="Download it again",
        ) from error
    expected = read_json(configs / "unet" / "config.json").get("in_channels")
    if channels != expected:
        raise BundleError(
            f"checkpoint {path}",
            expected=f"{expected} channels into the UNet",
            got=str(channels),
            remedy="Inpainting and other variants are not supported",
        )
