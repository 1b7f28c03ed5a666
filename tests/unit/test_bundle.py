"""A bundle opens, says what it is, loads what was saved, and diffusers loads it too."""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from hbsdk.bundle import Bundle, write_manifest
from hbsdk.bundle_info import read_info, sha256_of
from hbsdk.errors import BundleError
from tests.single_file import write_single_file
from tests.tiny_bundle import tiny_dino, tiny_image_encoder, write_tiny_bundle

NETWORKS = ("text_encoder", "unet", "vae", "image_encoder", "dino", "regressor")


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def plain_folder(bundle: Path) -> Path:
    """The bundle made what diffusers writes: no hbsdk.json, none of our networks."""
    (bundle / "hbsdk.json").unlink()
    for name in ("image_encoder", "dino", "regressor"):
        shutil.rmtree(bundle / name)
    return bundle


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def holds_exactly(network: torch.nn.Module, folder: Path) -> bool:
    """Whether the network, saved again, is what the folder has; transformers renames in between."""
    with tempfile.TemporaryDirectory() as again:
        network.save_pretrained(again)
        saved, loaded = weights(folder), weights(Path(again))
    return saved.keys() == loaded.keys() and all(torch.equal(saved[k], loaded[k]) for k in saved)


def test_importing_imports_no_torch() -> None:
    code = (
        "import sys, hbsdk.bundle; print(sorted({'torch', 'diffusers', 'numpy'} & {*sys.modules}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_load_frozen_with_the_saved_weights(tiny_bundle: Path, name: str) -> None:
    network = getattr(Bundle.open(tiny_bundle), f"load_{name}")()
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert holds_exactly(network, tiny_bundle / name)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1
    assert not holds_exactly(network, tiny_bundle / name)


@pytest.mark.parametrize("name", NETWORKS)
def test_half_precision_files_load_as_the_dtype_asked_for(
    copy: Path, tiny_bundle: Path, name: str
) -> None:
    half = getattr(Bundle.open(copy), f"load_{name}")(torch.float16)
    half.save_pretrained(copy / name)
    write_manifest(copy, read_info(copy))
    for dtype in (torch.float32, torch.bfloat16):
        network = getattr(Bundle.open(copy), f"load_{name}")(dtype)
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    assert weights(copy / name).keys() == weights(tiny_bundle / name).keys()


def test_the_tokenizer_loads_with_the_text_encoders_length(tiny_bundle: Path) -> None:
    tokenizer = Bundle.open(tiny_bundle).load_tokenizer()
    expected = CLIPTokenizer.from_pretrained(tiny_bundle / "tokenizer")
    assert tokenizer.model_max_length == 77
    assert tokenizer.encode("a photo of a person") == expected.encode(
        "a photo of a person", add_special_tokens=False
    )


def test_info_and_scheduler(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    info = bundle.info
    assert (info.name, info.class_word, info.num_words) == ("tiny", "person", 5)
    assert (info.word_dim, info.latent_channels, info.vae_scale_factor) == (32, 4, 4)
    assert info.image_size_px == 32
    assert bundle.scheduler_config()["beta_schedule"] == "scaled_linear"
    assert set(info.files) >= {"model_index.json", "unet/diffusion_pytorch_model.safetensors"}


def test_the_manifest_is_written_the_same_each_time(copy: Path) -> None:
    before = (copy / "hbsdk.json").read_bytes()
    write_manifest(copy, replace(read_info(copy), files={}))
    assert (copy / "hbsdk.json").read_bytes() == before
    assert not list(copy.glob(".hbsdk*"))
    assert list(json.loads(before)) == sorted(json.loads(before))


def test_the_hash_is_that_of_a_copy_and_of_no_other(tiny_bundle: Path, copy: Path) -> None:
    own = Bundle.open(tiny_bundle).hash
    assert Bundle.open(copy).hash == own
    (copy / "hbsdk.json").unlink()
    assert Bundle.open(copy).hash == own, "hashing the files gives what the manifest says"
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert Bundle.open(copy).hash != own


def test_files_that_are_never_loaded_do_not_change_the_hash(copy: Path) -> None:
    (copy / "hbsdk.json").unlink()
    own = Bundle.open(copy).hash
    (copy / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    (copy / "README.md").write_text("a card")
    assert Bundle.open(copy).hash == own


def test_a_file_is_hashed_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_bundle / "unet" / "diffusion_pytorch_model.safetensors"
    digest = sha256_of(path)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("read again"))
    assert sha256_of(path) == digest


def test_diffusers_opens_it_as_plain_stable_diffusion(tiny_bundle: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny_bundle)
    assert isinstance(pipeline, StableDiffusionPipeline)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a photo of a cat", num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, 32, 32, 3)
    assert holds_exactly(pipeline.unet, tiny_bundle / "unet")


def test_the_model_index_is_what_diffusers_writes(tiny_bundle: Path, tmp_path: Path) -> None:
    DiffusionPipeline.from_pretrained(tiny_bundle).save_pretrained(tmp_path / "theirs")
    ours = json.loads((tiny_bundle / "model_index.json").read_text())
    theirs = json.loads((tmp_path / "theirs" / "model_index.json").read_text())
    assert {key: value for key, value in theirs.items() if key != "_name_or_path"} == ours


def test_a_diffusers_folder_without_manifest_generates_only(copy: Path) -> None:
    bundle = Bundle.open(plain_folder(copy))
    assert bundle.info.class_word == "object"
    assert bundle.info.image_size_px == 32
    assert (bundle.info.word_dim, bundle.info.num_words) == (32, 5)
    assert bundle.load_unet().config.cross_attention_dim == 32
    assert len(bundle.hash) == 64
    with pytest.raises(BundleError, match=r"has no image_encoder: it generates"):
        bundle.load_image_encoder()


def test_composing_a_bundle_of_its_own_pieces_gives_its_hash(tiny_bundle: Path, copy: Path) -> None:
    base = plain_folder(copy)
    bundle = Bundle.compose(
        base=base,
        image_encoder=tiny_bundle,
        dino=tiny_bundle / "dino",
        regressor=tiny_bundle / "regressor",
        name="composed",
    )
    assert bundle.folder is None
    assert bundle.info.name == "composed"
    assert bundle.info.class_word == "person", "as of the regressor's bundle"
    assert bundle.components["unet"] == base / "unet"
    assert bundle.components["image_encoder"] == tiny_bundle / "image_encoder"
    assert bundle.hash == Bundle.open(tiny_bundle).hash
    assert bundle.load_regressor().config.num_words == 5


def test_a_given_piece_replaces_the_bases(tiny_bundle: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    tiny_dino().save_pretrained(tmp_path / "other")
    bundle = Bundle.compose(base=str(tiny_bundle), dino=str(tmp_path / "other"))
    assert holds_exactly(bundle.load_dino(), tmp_path / "other")
    assert bundle.hash != Bundle.open(tiny_bundle).hash


def test_composed_pieces_keep_their_manifests(tiny_bundle: Path, copy: Path) -> None:
    bundle = Bundle.compose(base=tiny_bundle, dino=copy, class_word="cat")
    assert bundle.info.class_word == "cat"
    path = copy / "dino" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(BundleError, match=r"model.safetensors was changed"):
        bundle.load_dino()


def test_a_whole_clip_serves_as_the_image_encoder(tiny_bundle: Path, tmp_path: Path) -> None:
    tower = tiny_image_encoder()
    text = Bundle.open(tiny_bundle).load_text_encoder().config
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=tower.config.to_dict()))
    clip.save_pretrained(tmp_path / "clip")
    loaded = Bundle.compose(base=tiny_bundle, image_encoder=tmp_path / "clip").load_image_encoder()
    saved = weights(tmp_path / "clip")
    state = loaded.state_dict()
    assert all(torch.equal(saved[f"vision_model.{key}"], value) for key, value in state.items())


@pytest.mark.parametrize("config_is", ["whole bundle", "configurations only"])
def test_a_single_file_checkpoint_gives_the_same_networks(
    tiny_bundle: Path, tmp_path: Path, config_is: str
) -> None:
    path = write_single_file(tiny_bundle, tmp_path / "community.safetensors")
    config = tiny_bundle
    if config_is == "configurations only":
        config = tmp_path / "config"
        shutil.copytree(tiny_bundle, config, ignore=shutil.ignore_patterns("*.safetensors"))
    bundle = Bundle.compose(base=path, config=config, regressor=tiny_bundle)
    assert bundle.info.name == "community"
    for name in ("text_encoder", "unet", "vae", "regressor"):
        network = getattr(bundle, f"load_{name}")(torch.float32)
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert holds_exactly(network, tiny_bundle / name)
    assert {p.dtype for p in bundle.load_text_encoder(torch.bfloat16).parameters()} == {
        torch.bfloat16
    }
    text = "a photo of a person"
    own = Bundle.open(tiny_bundle).load_tokenizer().encode(text)
    assert bundle.load_tokenizer().encode(text) == own
    renamed = shutil.copy(path, tmp_path / "renamed.safetensors")
    assert Bundle.compose(base=renamed, config=config, regressor=tiny_bundle).hash == bundle.hash


def test_two_seeds_give_two_bundles(tiny_bundle: Path, tmp_path: Path) -> None:
    assert Bundle.open(write_tiny_bundle(tmp_path / "same")).hash == Bundle.open(tiny_bundle).hash
    other = write_tiny_bundle(tmp_path / "other", seed=1, regressor=False)
    assert Bundle.open(other).hash != Bundle.open(tiny_bundle).hash
