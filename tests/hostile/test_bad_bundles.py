"""Bundles that are incomplete, changed or made to harm are refused, each with a clear error."""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file  # load_file would map what save_file overwrites
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from hbsdk.bundle import Bundle, write_manifest
from hbsdk.bundle_info import read_info
from hbsdk.errors import BundleError
from tests.single_file import write_single_file

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reload_unet(folder: Path) -> None:
    """Accept the folder as it is, so that what is wrong can only show when it is loaded."""
    write_manifest(folder, read_info(folder))
    Bundle.open(folder).load_unet()


# What is on the disk is not what the manifest says.


@pytest.mark.parametrize("name", [str(UNET), "vae/config.json", "tokenizer/tokenizer.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing.*Copy the bundle again"):
        Bundle.open(copy)


def test_a_missing_component_is_named(copy: Path) -> None:
    (copy / "hbsdk.json").unlink()
    shutil.rmtree(copy / "vae")
    with pytest.raises(BundleError, match=r"bundle without vae"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        (str(UNET), Bundle.load_unet),
        ("regressor/config.json", Bundle.load_regressor),
        ("tokenizer/tokenizer.json", Bundle.load_tokenizer),
        ("scheduler/scheduler_config.json", Bundle.scheduler_config),
    ],
)
def test_a_changed_byte_is_found_before_loading(
    copy: Path, name: str, load: Callable[[Bundle], object]
) -> None:
    bundle = Bundle.open(copy)
    load(bundle)  # the hash of the file as it was is remembered
    data = bytearray((copy / name).read_bytes())
    place = data.rindex(b"0") if name.endswith("json") else len(data) - 1
    data[place] ^= 1  # JSON stays JSON
    (copy / name).write_bytes(data)
    with pytest.raises(
        BundleError, match=r"was changed: expected sha256 [0-9a-f]{64}, got [0-9a-f]"
    ):
        load(bundle)


def test_only_the_changed_component_is_refused(copy: Path) -> None:
    with (copy / UNET).open("ab") as file:
        file.write(b"\0")
    bundle = Bundle.open(copy)
    bundle.load_vae()
    with pytest.raises(BundleError, match=r"was changed"):
        bundle.load_unet()


def test_a_file_that_goes_while_open_is_named(copy: Path) -> None:
    bundle = Bundle.open(copy)
    (copy / UNET).unlink()
    with pytest.raises(BundleError, match=f"{UNET} cannot be read"):
        bundle.load_unet()


@pytest.mark.parametrize("name", ["adapter_config.json", "model.safetensors.index.json"])
def test_an_added_file_that_a_library_might_load_is_refused(copy: Path, name: str) -> None:
    opened = Bundle.open(copy)
    (copy / "text_encoder" / name).write_text("{}")
    with pytest.raises(BundleError, match=f"{name} was added"):
        Bundle.open(copy)
    with pytest.raises(BundleError, match=f"{name} was added"):
        opened.load_text_encoder()


# The manifest itself.


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": 1}',
        "[" * 100_000,
        "\xff\xfe",
        '{"schema": 1, "name": "\ud800"}',
        " " * (5 << 20),
    ],
    ids=["empty", "cut", "list", "null", "keys", "deep", "latin", "surrogate", "large"],
)
def test_a_manifest_that_is_no_json_object_or_lacks_keys(copy: Path, text: str) -> None:
    (copy / "hbsdk.json").write_bytes(text.encode("latin-1", "replace"))
    with pytest.raises(BundleError, match=r"hbsdk.json"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 2),
        ("schema", "1"),
        ("schema", True),
        ("name", ""),
        ("name", 5),
        ("class_word", None),
        ("image_size_px", 0),
        ("image_size_px", 33),
        ("image_size_px", 32.0),
        ("image_size_px", 1 << 40),
        ("num_words", True),
        ("num_words", 4),
        ("word_dim", 33),
        ("latent_channels", 16),
        ("vae_scale_factor", 8),
        ("guidance_scale", float("nan")),
        ("guidance_scale", "7.5"),
        ("background", "blur"),
        ("background", []),
        ("files", []),
        ("licence", ["MIT"]),
    ],
)
def test_a_wrong_value_is_named(copy: Path, key: str, value: object) -> None:
    change_json(copy / "hbsdk.json", **{key: value})
    with pytest.raises(BundleError, match=f"{key} in .*expected .*got"):
        Bundle.open(copy)


def test_an_unknown_schema_is_told_before_its_keys(copy: Path) -> None:
    (copy / "hbsdk.json").write_text('{"schema": 9, "other": 1}')
    with pytest.raises(BundleError, match=r"expected 1, got 9. Install the hbsdk that wrote"):
        Bundle.open(copy)


def test_an_unknown_key_is_refused(copy: Path) -> None:
    change_json(copy / "hbsdk.json", code="import os")
    with pytest.raises(BundleError, match=r"with unknown.*code"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "path",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "unet/../../outside.json",
        "unet/./config.json",
        "unet//config.json",
        "..\\outside",
        "C:/outside",
        "",
        ".",
        "..",
        "hbsdk.json",
        "unet/\0",
    ],
)
def test_a_path_that_leaves_the_bundle_is_refused(copy: Path, path: str) -> None:
    (copy.parent / "outside.safetensors").write_bytes(b"")
    change_json(copy / "hbsdk.json", files={path: "0" * 64})
    with pytest.raises(BundleError, match=r"expected relative paths inside of the bundle"):
        Bundle.open(copy)


@pytest.mark.parametrize("digest", [None, 5, "0" * 63, "A" * 64, "g" * 64, "0" * 64 + "\n"])
def test_a_digest_that_is_none_is_refused(copy: Path, digest: object) -> None:
    change_json(copy / "hbsdk.json", files={"unet/config.json": digest})
    with pytest.raises(BundleError, match=r"64 lower-case hexadecimal digits"):
        Bundle.open(copy)


def test_an_empty_list_of_files_does_not_switch_checking_off(copy: Path) -> None:
    change_json(copy / "hbsdk.json", files={})
    with pytest.raises(BundleError, match=r"was added: expected only files that hbsdk.json lists"):
        Bundle.open(copy)


# The weights.


def test_a_pickle_is_never_read(copy: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(copy / "harmed"),)

    (copy / UNET).unlink()
    pickled = copy / "unet" / "diffusion_pytorch_model.bin"
    pickled.write_bytes(pickle.dumps(Harm()))
    for with_manifest in (True, False):
        if with_manifest:
            write_manifest(copy, read_info(copy))
        else:
            (copy / "hbsdk.json").unlink()
        with pytest.raises(BundleError, match=r"only a pickle, diffusion_pytorch_model.bin"):
            Bundle.open(copy).load_unet()
    assert not (copy / "harmed").exists()


def test_a_pickle_called_safetensors_is_never_read(copy: Path) -> None:
    torch.save({"conv_in.weight": torch.zeros(1)}, copy / UNET)
    with pytest.raises(BundleError, match=r"unet in .*expected files that are whole"):
        reload_unet(copy)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 8, struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 4) + b"null"],
    ids=["empty", "zeros", "long header", "null header"],
)
def test_damaged_safetensors(copy: Path, data: bytes) -> None:
    (copy / UNET).write_bytes(data)
    with pytest.raises(BundleError, match=r"unet in "):
        reload_unet(copy)


def test_truncated_safetensors(copy: Path) -> None:
    (copy / UNET).write_bytes((copy / UNET).read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"unet in "):
        reload_unet(copy)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "dino", "regressor"])
@pytest.mark.parametrize("damage", ["absent", "other shape"])
def test_a_tensor_that_is_wanting_is_not_made_up(copy: Path, component: str, damage: str) -> None:
    (path,) = (copy / component).glob("*.safetensors")
    tensors = load(path.read_bytes())
    name = max(tensors)
    if damage == "absent":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(*tensors[name].shape, 2)
    save_file(tensors, path, {"format": "pt"})
    write_manifest(copy, read_info(copy))
    with pytest.raises(BundleError, match=f"{component} in "):
        getattr(Bundle.open(copy), f"load_{component}")()


def test_shards_outside_of_the_folder_are_not_followed(copy: Path) -> None:
    outside = copy.parent / "outside.safetensors"
    shutil.move(copy / UNET, outside)
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(load(outside.read_bytes()), f"../../{outside.name}"),
    }
    (copy / f"{UNET}.index.json").write_text(json.dumps(index))
    with pytest.raises(BundleError, match=r"shards"):
        reload_unet(copy)


def test_a_dino_with_registers_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    config = Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56
    )
    Dinov2WithRegistersModel(config).save_pretrained(tmp_path / "dino")
    with pytest.raises(BundleError, match=r"expected dinov2, got dinov2_with_registers.*without"):
        Bundle.compose(base=tiny_bundle, dino=tmp_path / "dino")


def test_a_network_of_another_class_is_refused(copy: Path) -> None:
    (copy / "hbsdk.json").unlink()
    change_json(copy / "vae" / "config.json", _class_name="AsymmetricAutoencoderKL")
    with pytest.raises(BundleError, match=r"expected AutoencoderKL, got Asymmetric"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("component", "change"),
    [
        ("unet", {"cross_attention_dim": 2048}),
        ("vae", {"latent_channels": 16}),
        ("regressor", {"word_dim": 768}),
        ("regressor", {"clip_dim": 1024}),
        ("dino", {"hidden_size": 64}),
        ("text_encoder", {"hidden_size": "wide"}),
        ("regressor", {"num_words": 0}),
        ("vae", {"block_out_channels": 3}),
    ],
)
def test_networks_that_do_not_fit_each_other(
    copy: Path, component: str, change: dict[str, object]
) -> None:
    (copy / "hbsdk.json").unlink()
    change_json(copy / component / "config.json", **change)
    with pytest.raises(BundleError, match=r"do not fit each other|whole number"):
        Bundle.open(copy)


@pytest.mark.parametrize("text", ["", "{", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'])
def test_a_damaged_tokenizer(copy: Path, text: str) -> None:
    for path in (copy / "tokenizer").iterdir():
        path.write_text(text)
    write_manifest(copy, read_info(copy))
    with pytest.raises(BundleError, match=r"tokenizer in "):
        Bundle.open(copy).load_tokenizer()


def test_a_tokenizer_of_another_text_encoder(copy: Path) -> None:
    (copy / "hbsdk.json").unlink()
    change_json(copy / "text_encoder" / "config.json", vocab_size=500)
    with pytest.raises(BundleError, match=r"expected token ids below 500.*got 57"):
        Bundle.open(copy).load_tokenizer()


# What is not there.


def test_a_bundle_without_regressor_says_what_works_and_how_to_train_one(copy: Path) -> None:
    shutil.rmtree(copy / "regressor")
    write_manifest(copy, read_info(copy))
    bundle = Bundle.open(copy)
    bundle.load_unet()
    with pytest.raises(BundleError, match=r"no regressor: it generates.*`hbsdk train`.*compose\("):
        bundle.load_regressor()


@pytest.mark.parametrize("source", ["nobody/no-such-bundle", "spaces are/not allowed"])
def test_a_hub_id_that_cannot_be_had(source: str) -> None:
    with pytest.raises(BundleError, match=f"bundle '{source}'"):
        Bundle.open(source)


@pytest.mark.parametrize(
    "source", ["", "/no/such/folder", "./no", "no-slash", "a/b/c", "~/no/x", Path("no/path")]
)
def test_a_path_is_never_looked_up_on_the_hub(
    source: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(BundleError, match=r"no such folder"):
        Bundle.open(source)


def test_only_what_is_loaded_is_fetched_from_the_hub(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fnmatch

    import huggingface_hub

    asked = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(tiny_bundle)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    Bundle.open("somebody/bundle")
    kept = {*read_info(tiny_bundle).files, "hbsdk.json", "unet/model-00001-of-00002.safetensors"}
    left = {
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/modeling.py",
        "safety_checker/model.safetensors",
    }
    matched = {
        name for name in kept | left if any(fnmatch.fnmatch(name, pattern) for pattern in asked)
    }
    assert matched == kept


# Single-file checkpoints.


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_single_file_that_is_a_pickle(tiny_bundle: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"community{suffix}"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(BundleError, match=r"expected a .safetensors file"):
        Bundle.compose(base=path, config=tiny_bundle)
    with pytest.raises(BundleError, match=r"got a file.*compose"):
        Bundle.open(path)


def test_a_single_file_needs_configurations(tmp_path: Path, tiny_bundle: Path) -> None:
    path = write_single_file(tiny_bundle, tmp_path / "community.safetensors")
    with pytest.raises(
        BundleError, match=r"configurations of a single-file.*compose\(config=FOLDER"
    ):
        Bundle.compose(base=path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"config.json is missing"):
        Bundle.compose(base=path, config=tmp_path / "empty")


@pytest.mark.parametrize("network", ["model.", "first_stage_model.", "cond_stage_model."])
def test_a_single_file_without_a_network(tiny_bundle: Path, tmp_path: Path, network: str) -> None:
    path = write_single_file(tiny_bundle, tmp_path / "community.safetensors")
    part = {
        key: value for key, value in load(path.read_bytes()).items() if not key.startswith(network)
    }
    save_file(part, path)
    with pytest.raises(BundleError, match=r"expected a whole checkpoint of the SD 1.5 family"):
        Bundle.compose(base=path, config=tiny_bundle)


def test_a_single_file_that_is_damaged(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "community.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(BundleError, match=r"expected a readable safetensors file"):
        Bundle.compose(base=path, config=tiny_bundle)


def test_an_inpainting_checkpoint_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    path = write_single_file(tiny_bundle, tmp_path / "community.safetensors")
    state = load(path.read_bytes())
    state["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)
    save_file(state, path)
    with pytest.raises(BundleError, match=r"expected 4 channels into the UNet, got 9"):
        Bundle.compose(base=path, config=tiny_bundle)


@pytest.mark.parametrize(
    ("component", "key"),
    [
        ("unet", "model.diffusion_model.out.2.weight"),
        ("vae", "first_stage_model.decoder.conv_out.weight"),
        (
            "text_encoder",
            "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.weight",
        ),
    ],
)
def test_a_single_file_that_lacks_a_tensor(
    tiny_bundle: Path, tmp_path: Path, component: str, key: str
) -> None:
    path = write_single_file(tiny_bundle, tmp_path / "community.safetensors")
    state = load(path.read_bytes())
    del state[key]
    save_file(state, path)
    bundle = Bundle.compose(base=path, config=tiny_bundle)
    with pytest.raises(BundleError, match=f"{component} in .*wanting"):
        getattr(bundle, f"load_{component}")()
