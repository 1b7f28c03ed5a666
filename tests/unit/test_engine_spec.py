"""EngineSpecs: shapes and axes of every graph, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hbsdk.bundle import Bundle
from hbsdk.engine_spec import (
    NETWORKS,
    RUNTIME_ENGINES,
    SHALLOW_STEP,
    TO_PERSONALIZE,
    Axis,
    EngineSpec,
    TensorSpec,
    engine_specs,
)
from hbsdk.errors import EngineError
from hbsdk.network_sizes import NetworkSizes, network_sizes
from tests.tiny_bundle import IMAGE_SIZE, LATENT_SIZE, WIDTH, write_tiny_bundle

# Stable Diffusion 1.5 with CLIP-L/14 and DINOv2-L/14 at 224.
SD15 = NetworkSizes(
    image_size_px=512, latent_channels=4, vae_scale_factor=8, unet_scale_factor=8, text_tokens=77,
    word_dim=768, context_dim=768, num_words=5, image_tokens=257, clip_dim=1024, dino_dim=1024,
    deep_width=320, masked=False,
)  # fmt: skip
FLOAT32 = dict.fromkeys(NETWORKS, "float32")
SIDE = Axis(512, 512, 768)


def specs_of(sizes: NetworkSizes = SD15, **changes) -> dict[str, EngineSpec]:
    given = {"precision": FLOAT32, "pictures": Axis(1, 2, 4), "height": SIDE, "width": SIDE}
    return engine_specs(sizes, **given | changes)


def shapes(spec: EngineSpec) -> dict[str, tuple]:
    return {tensor.name: tensor.shape for tensor in (*spec.inputs, *spec.outputs)}


def test_all_graphs_are_there_and_graphs_of_a_network_share_a_folder():
    specs = specs_of()
    assert set(specs) == {*RUNTIME_ENGINES, "text_encoder", "unet"}
    assert {spec.network for spec in specs.values()} == set(NETWORKS)
    assert all(name == spec.name for name, spec in specs.items())
    files = [spec.file for spec in specs.values()]
    assert len(set(files)) == len(files)
    assert all(spec.file.startswith(f"{spec.network}/") for spec in specs.values())


def test_deep_features_add_an_output_and_a_graph_and_change_nothing_else():
    plain, deep = specs_of(), specs_of(deep_features=True)
    added = {"deep_features": ("rows", 320, "height", "width")}
    assert set(deep) == {*plain, SHALLOW_STEP}
    assert {name for name in plain if plain[name] != deep[name]} == {"denoise_step"}
    whole, shallow = deep["denoise_step"], deep[SHALLOW_STEP]
    assert whole.inputs == plain["denoise_step"].inputs
    assert shapes(whole) == shapes(plain["denoise_step"]) | added
    assert [one.name for one in whole.outputs] == ["next_sample", "x0", "deep_features"]
    assert shallow.outputs == plain["denoise_step"].outputs
    assert shallow.inputs == (*whole.inputs, whole.outputs[-1])
    assert shallow.file == "unet/denoise_step_shallow.onnx"
    half = specs_of(deep_features=True, precision=FLOAT32 | {"unet": "float16"})
    assert half[SHALLOW_STEP].inputs[-1] == half["denoise_step"].outputs[-1]
    assert half[SHALLOW_STEP].inputs[-1].dtype == "float16"


def test_shapes_of_stable_diffusion():
    specs = specs_of()
    latent = ("rows", 4, "height", "width")
    assert shapes(specs["denoise_step"]) == {
        "sample": latent, "timestep": (), "encoder_hidden_states": ("rows", 77, 768),
        "previous_x0": latent, "guidance": ("rows", "rows"), "coefficients": (5,),
        "next_sample": latent, "x0": latent,
    }  # fmt: skip
    assert shapes(specs["vae_decoder"]) == {
        "latent_sample": ("images", 4, "height", "width"),
        "sample": ("images", 3, "8 * height", "8 * width"),
    }
    assert shapes(specs["text_encoder_embeds"]) == {
        "inputs_embeds": ("texts", 77, 768), "last_hidden_state": ("texts", 77, 768)
    }  # fmt: skip
    assert shapes(specs["image_features"]) == {
        "pixels": ("photos", 3, 512, 512), "clip": ("photos", 257, 1024),
        "dino": ("photos", 257, 1024),
    }  # fmt: skip
    assert shapes(specs["regressor"])["words"] == ("photos", 5, 768)
    assert shapes(specs["regressor"])["latents"] == ("photos", 4, 64, 64)
    assert shapes(specs["vae_encoder"])["latent_parameters"] == ("photos", 8, 64, 64)


def test_axes_count_cells_and_rows():
    axes = specs_of()["denoise_step"].axes
    assert axes["rows"] == Axis(1, 4, 8)  # guidance takes two rows for each of four pictures
    assert axes["height"] == axes["width"] == Axis(64, 64, 96, multiple=8)
    assert specs_of()["vae_decoder"].axes["images"] == Axis(1, 2, 4)
    assert specs_of()["text_encoder"].axes["texts"] == Axis(1, 2, 8)
    height, holds = axes["height"], [63, 64, 72, 76, 96, 104]
    assert [height.holds(value) for value in holds] == [False, True, True, False, True, False]


def test_a_masked_bundle_gives_its_encoders_the_mask():
    spec = specs_of(replace(SD15, masked=True))["image_features"]
    assert [tensor.name for tensor in spec.inputs] == ["pixels", "mask"]
    assert shapes(spec)["mask"] == ("photos", 1, 512, 512)
    assert [tensor.name for tensor in specs_of()["image_features"].inputs] == ["pixels"]


def test_only_the_networks_own_tensors_take_its_precision():
    specs = specs_of(precision=FLOAT32 | {"unet": "float16", "regressor": "float16"})
    step = {
        t.name: t.dtype for t in (*specs["denoise_step"].inputs, *specs["denoise_step"].outputs)
    }
    assert step.pop("encoder_hidden_states") == "float16"
    assert set(step.values()) == {"float32"}
    unet = {tensor.name: tensor.dtype for tensor in specs["unet"].inputs}
    assert unet == {
        "sample": "float16", "timestep": "float32", "encoder_hidden_states": "float16"
    }  # fmt: skip
    merge = {t.name: t.dtype for t in (*specs["regressor"].inputs, *specs["regressor"].outputs)}
    assert merge == {
        "latents": "float32", "clip": "float16", "dino": "float16", "words": "float32"
    }  # fmt: skip
    for name in set(specs) - {"unet", "denoise_step", "regressor"}:
        dtypes = {tensor.dtype for tensor in (*specs[name].inputs, *specs[name].outputs)}
        assert dtypes <= {"float32", "int64"}


def test_fixed_axes_become_numbers():
    one, side = Axis(1, 1, 1), Axis(512, 512, 512)
    specs = specs_of(pictures=one, height=side)
    assert shapes(specs["vae_decoder"]) == {
        "latent_sample": (1, 4, 64, "width"), "sample": (1, 3, 512, "8 * width")
    }  # fmt: skip
    assert dict(specs["vae_decoder"].axes) == {"width": Axis(64, 64, 96, multiple=8)}
    assert dict(specs["regressor"].axes) == {}
    assert shapes(specs["denoise_step"])["guidance"] == ("rows", "rows")  # 1 or 2 with guidance
    free = specs_of()["vae_decoder"]
    assert set(free.axes) == {"images", "height", "width"}


@pytest.mark.parametrize("name", ["height", "width"])
def test_sides_are_multiples_of_vae_and_unet_together(name):
    assert SD15.size_step_px == 64
    for side in (Axis(520, 576, 640), Axis(512, 520, 640), Axis(512, 512, 648)):
        with pytest.raises(EngineError, match=rf"^{name} of the pictures in px.*multiples of 64"):
            specs_of(**{name: side})
    assert specs_of(**{name: Axis(512, 576, 640)})


def test_shapes_for_values_of_the_axes():
    spec = specs_of()["vae_decoder"]
    latents, picture = spec.inputs[0], spec.outputs[0]
    values = {"images": 3, "height": 64, "width": 96}
    assert spec.shape(latents, values) == (3, 4, 64, 96)
    assert spec.shape(picture, values) == (3, 3, 512, 768)
    assert spec.shape(picture, {}) == (2, 3, 512, 512)  # the usual ones
    step = specs_of()["denoise_step"]
    by_name = {tensor.name: step.shape(tensor, {"rows": 6}) for tensor in step.inputs}
    assert (by_name["timestep"], by_name["guidance"]) == ((), (6, 6))


@pytest.mark.parametrize("name", sorted(specs_of()))
def test_json_and_back(name):
    for spec in (
        specs_of()[name],
        specs_of(pictures=Axis(1, 1, 1), width=Axis(512, 512, 512))[name],
    ):
        text = json.dumps(spec.to_json())
        assert EngineSpec.from_json(json.loads(text)) == spec
        changed = spec.to_json() | {"file": "elsewhere.onnx"}
        assert EngineSpec.from_json(changed) != spec


def test_axes_follow_from_the_inputs():
    spec = specs_of()["denoise_step"]
    sample, states = (4, 4, 64, 72), (4, 77, 768)
    values = spec.axes_of({"sample": sample, "encoder_hidden_states": states})
    assert values == {"rows": 4, "height": 64, "width": 72}
    assert spec.axes_of({"encoder_hidden_states": states}) == {"rows": 4}
    assert spec.axes_of({"guidance": (4, 4), "timestep": (), "coefficients": (5,)}) == {"rows": 4}
    assert specs_of()["vae_decoder"].axes_of({"latent_sample": (1, 4, 96, 64)}) == {
        "images": 1, "height": 96, "width": 64
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"sample": (2, 4, 64)}, "shape of sample .*expected rows x 4 x height x width, got 2 x 4"),
        ({"sample": (2, 3, 64, 64)}, "shape of sample .*got 2 x 3 x 64 x 64"),
        ({"timestep": (1,)}, "shape of timestep "),
        ({"coefficients": (6,)}, "shape of coefficients .*expected 5, got 6"),
        ({"guidance": (2, 4)}, "shape of guidance .*expected rows x rows, got 2 x 4"),
        (
            {"sample": (2, 4, 64, 64), "encoder_hidden_states": (3, 77, 768)},
            "shape of encoder_hidden_states .*got 3 x 77 x 768",
        ),
        (
            {"sample": (2, 4, 64, 64), "previous_x0": (2, 4, 64, 72)},
            "shape of previous_x0 .*got 2 x 4 x 64 x 72",
        ),
        ({"sample": (9, 4, 64, 64)}, "^rows of engine denoise_step: expected 1..8, got 9"),
        ({"sample": (0, 4, 64, 64)}, "^rows of engine denoise_step: expected 1..8, got 0"),
        ({"sample": (2, 4, 56, 64)}, "^height of .*expected 64..96, a multiple of 8, got 56"),
        ({"sample": (2, 4, 64, 68)}, "^width of .*a multiple of 8, got 68"),
        ({"sample": (2, 4, 64, 104)}, "^width of .*a multiple of 8, got 104"),
    ],
)
def test_shapes_that_an_engine_does_not_take(shapes, message):
    with pytest.raises(EngineError, match=message) as caught:
        specs_of()["denoise_step"].axes_of(shapes)
    assert "engine='torch'" in str(caught.value)


def test_a_number_is_no_axis():
    fixed = specs_of(pictures=Axis(1, 1, 1))["vae_decoder"]
    with pytest.raises(EngineError, match=r"shape of latent_sample .*expected 1 x 4"):
        fixed.axes_of({"latent_sample": (2, 4, 64, 64)})


def test_sizes_are_the_bundles_and_its_networks(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    sizes = network_sizes(bundle)
    unet, encoder, dino = bundle.load_unet(), bundle.load_image_encoder(), bundle.load_dino()
    with torch.no_grad():
        clip = encoder(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape
        dino_tokens = dino(torch.zeros(1, 3, 56, 56)).last_hidden_state.shape
    assert clip[1] == dino_tokens[1]
    assert sizes == NetworkSizes(
        image_size_px=IMAGE_SIZE,
        latent_channels=unet.config.in_channels,
        vae_scale_factor=IMAGE_SIZE // LATENT_SIZE,
        unet_scale_factor=2,
        text_tokens=77,
        word_dim=WIDTH,
        context_dim=unet.config.cross_attention_dim,
        deep_width=unet.up_blocks[-1].resnets[-1].in_channels - unet.conv_in.out_channels,
        num_words=5,
        image_tokens=clip[1],
        clip_dim=clip[2],
        dino_dim=dino_tokens[2],
        masked=False,
    )
    assert sizes.personalizes
    assert sizes.size_step_px == 8


def test_a_bundle_without_a_regressor_has_no_engines_that_personalize(tmp_path):
    sizes = network_sizes(Bundle.open(write_tiny_bundle(tmp_path / "plain", regressor=False)))
    assert not sizes.personalizes
    side = Axis(32, 32, 48)
    specs = specs_of(sizes, height=side, width=side)
    assert set(specs) == {
        "text_encoder", "token_embedding", "text_encoder_embeds", "unet", "denoise_step",
        "vae_decoder",
    }  # fmt: skip
    assert not set(TO_PERSONALIZE) & set(specs)
    assert set(TO_PERSONALIZE) < set(specs_of())


def test_tensors_are_told_apart():
    tensor = TensorSpec("sample", "float32", ("rows", 4))
    assert tensor == TensorSpec("sample", "float32", ("rows", 4))
    assert tensor != TensorSpec("sample", "float16", ("rows", 4))
