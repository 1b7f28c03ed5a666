"""Puts a base model, image encoders and a trained regressor together into one bundle folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hbsdk.bundle import Bundle, Source
from hbsdk.bundle_info import COMPONENTS, MANIFEST, ROOT_FILES, BundleInfo, counts_for, read_json
from hbsdk.bundle_write import write_manifest, write_model_index
from hbsdk.errors import BundleError, HbsdkError
from hbsdk.model_card import model_card
from hbsdk.training.refusal import refusal_of

TRAINING_RECORD = "training.json"  # what `hbsdk train` writes beside the regressor
EVALUATION_RECORD = "evaluation.json"
_TO_PERSONALIZE = ("image_encoder", "dino", "regressor")


def pack(
    out: Path,
    *,
    base: Source,
    regressor: Source,
    image_encoder: Source | None = None,
    dino: Source | None = None,
    config: Source | None = None,
    name: str | None = None,
    licence: str | None = None,
    class_word: str | None = None,
    evaluation: Path | None = None,
    link: bool = False,
) -> Bundle:
    """Write a bundle folder that is whole: nothing in it refers to where its pieces came from.

    Args:
        out: the folder to write; one that is there must be empty.
        base: a bundle, a diffusers folder or hub id of the SD 1.5 family, or a `.safetensors`
            checkpoint, whose networks are then written as diffusers has them.
        regressor: what `hbsdk train` wrote, or a folder or hub id of a PromptRegressor.
        image_encoder: CLIP's vision tower; None where the base has one.
        dino: a DINOv2 without registers; None where the base has one.
        config: for a single file; as of `Bundle.compose`.
        name: of the bundle; the folder's by default.
        licence: of all its weights together; by default the base's.
        class_word: the words' start; by default the regressor's bundle's, or the base's.
        evaluation: a JSON of results, for the card.
        link: hard-link files where the file system can, rather than copy them.

    Returns:
        The new bundle, opened.

    Raises:
        BundleError: a piece is nowhere, damaged or missing, pieces do not fit each other, the
            folder is not empty, or the disk is full. Nothing is left behind then.
    """
    out = Path(os.path.expanduser(out))
    _check_free(out)
    composed = Bundle.compose(
        base=base, image_encoder=image_encoder, dino=dino, regressor=regressor, config=config,
        class_word=class_word, name=name or out.name,
    )  # fmt: skip
    _check_whole(composed)
    training = _training_record(composed.components["regressor"])
    results = {} if evaluation is None else read_json(evaluation)
    info = _described(composed, base, training, licence)
    with _temporary_beside(out) as folder:
        for component in COMPONENTS:
            composed.verify(component)
            _place(composed, component, folder / component, link=link)
        if image_encoder is None:
            _place_root_files(base, folder, link=link)
        write_model_index(folder)
        info = write_manifest(folder, info)
        for record, data in ((TRAINING_RECORD, training), (EVALUATION_RECORD, results)):
            if data:
                _write_text(folder / record, json.dumps(data, indent=2))
        _write_text(folder / "README.md", model_card(info, _sizes(folder), training, results))
        _check_result(folder, composed)
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
    return Bundle.open(out)


def _check_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BundleError(
            f"output {out}", expected="a new folder, or an empty one",
            got="a folder with files in it" if out.is_dir() else "a file",
            remedy="Choose another name: a bundle is never written over",
        )  # fmt: skip


def _training_record(folder: Path) -> dict[str, Any]:
    """Return the training.json of a regressor's folder or of the one around it, if there is one.

    Args:
        folder: where its files are: for a hub id, in the hub's cache.
    """
    for place in (folder, folder.parent):
        if (place / TRAINING_RECORD).is_file():
            return read_json(place / TRAINING_RECORD)
    return {}


def _check_whole(composed: Bundle) -> None:
    missing = [name for name in _TO_PERSONALIZE if name not in composed.components]
    if missing:
        raise BundleError(
            f"pack without {', '.join(missing)}",
            expected=f"{', '.join(_TO_PERSONALIZE)} beside the base model",
            got=f"a base with {', '.join(composed.components)}",
            remedy=f"Pass --{missing[0].replace('_', '-')}: a folder or a hub id",
        )
    config = read_json(composed.components["regressor"] / "config.json")
    channels = (config.get("unet") or {}).get("in_channels")
    if channels is not None and channels != composed.info.latent_channels:
        raise BundleError(
            "networks that do not fit each other",
            expected=f"a regressor for latents of {composed.info.latent_channels} channels",
            got=f"one for {channels}", remedy="Train the regressor on this base: hbsdk train",
        )  # fmt: skip


def _described(
    composed: Bundle, base: Source, training: Mapping[str, Any], licence: str | None
) -> BundleInfo:
    """Return what the new bundle says of itself."""
    info = composed.info
    data = training.get("source")
    trained_on = data if isinstance(data, str) and data.strip() else info.trained_on
    return replace(
        info,
        licence=licence or info.licence,
        trained_on=trained_on,
        base=_name_of_base(base, composed),
        files={},
    )


def _name_of_base(base: Source, composed: Bundle) -> str:
    """Return what the base's bundle says of itself, or else the hub id or name that it came by."""
    if Path(os.path.expanduser(base)).exists():
        return composed.info.base if composed.info.base != "unknown" else Path(base).name
    has_manifest = (composed.components["unet"].parent / MANIFEST).exists()
    return composed.info.base if has_manifest else os.fspath(base)


@contextmanager
def _temporary_beside(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`; what is still there at the end is removed.

    Raises:
        BundleError: it cannot be written.
    """
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
        yield folder
    except HbsdkError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        refused = refusal_of(error)
        if refused is None:
            raise
        raise BundleError(
            f"output {out}", expected="a place that can be written, with room for the bundle",
            got=str(refused), remedy="Free some space or choose another place",
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(bundle: Bundle, component: str, target: Path, *, link: bool) -> None:
    """Bring the files of a component that count into the new bundle."""
    source = bundle.components[component]
    target.mkdir()
    if source.is_file():
        _write_network(bundle, component, target)
        return
    for path in sorted(source.iterdir()):
        if path.is_file() and counts_for(component, path.name):
            _bring(path, target / path.name, link=link)


def _bring(source: Path, target: Path, *, link: bool) -> None:
    source = source.resolve()  # the hub's cache has links into another folder
    if link:
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            pass
        else:
            return
    shutil.copyfile(source, target)


def _write_network(bundle: Bundle, component: str, target: Path) -> None:
    """Write a network of a single-file checkpoint as diffusers does, in the file's precision."""
    import torch
    from safetensors import safe_open

    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    with safe_open(bundle.components[component], framework="pt") as file:
        kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    widest = next((dtypes[kind] for kind in dtypes if kind in kinds), torch.float32)
    load = getattr(bundle, f"load_{component}")
    load(widest).save_pretrained(target)


def _place_root_files(base: Source, folder: Path, *, link: bool) -> None:
    """Bring what lies beside the base's networks and belongs to its encoders."""
    if Path(os.path.expanduser(base)).is_file():
        return
    home = Bundle.open(base)
    assert home.folder is not None
    for name in ROOT_FILES:
        if name != "model_index.json" and (home.folder / name).is_file():
            home.verify(name)
            _bring(home.folder / name, folder / name, link=link)


def _write_text(path: Path, text: str) -> None:
    path.write_text(f"{text.rstrip()}\n", "utf-8")


def _sizes(folder: Path) -> dict[str, int]:
    """Return component -> bytes of weights."""
    found = {
        name: sum(path.stat().st_size for path in (folder / name).glob("*.safetensors"))
        for name in COMPONENTS
    }
    return {name: size for name, size in found.items() if size}


def _check_result(folder: Path, composed: Bundle) -> None:
    """Open what was written, and check its files and its regressor, before anyone sees it."""
    import torch

    opened = Bundle.open(folder)
    _check_whole(opened)
    for component in COMPONENTS:
        opened.verify(component)
    comes_from_folders = all(source.is_dir() for source in composed.components.values())
    if comes_from_folders and opened.hash != composed.hash:
        raise BundleError(
            f"the copy in {folder}", expected=f"bundle hash {composed.hash}", got=opened.hash,
            remedy="A file was changed while it was copied: pack again",
        )  # fmt: skip
    regressor = opened.load_regressor()
    for name, weight in regressor.named_parameters():
        if not torch.isfinite(weight).all():
            raise BundleError(
                f"regressor's {name}", expected="finite weights", got="nan or infinity",
                remedy="Take an earlier checkpoint of the training",
            )  # fmt: skip
