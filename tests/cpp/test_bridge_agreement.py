"""Engine folders whose files disagree are refused, before anything is read past its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cpp import library as lib
from tests.cpp.conftest import change_engines, replace_file
from tests.cpp.library import Bridge, BridgeError


def refused(message: str, call, *arguments, status: int = lib.MISMATCH, **options) -> None:
    with pytest.raises(BridgeError, match=message) as caught:
        call(*arguments, **options)
    assert caught.value.status == status


def set_size(engine: str, tensors: str, index: int, axis: int, size: int | str):
    """Return a change of one size in engines.json."""

    def change(engines: Any) -> None:
        engines[engine][tensors][index]["shape"][axis] = size

    return change


def test_the_copy_draws_before_it_is_changed(bridge: Bridge, copied: Path):
    """The control: what the tests below refuse is refused for their change alone."""
    change_engines(copied, "engines.json", lambda engines: None)
    change_engines(copied, "bridge.json", lambda data: None)
    context = bridge.open(copied)
    assert bridge.generate(context, "a cat", num_inference_steps=1).shape == (1, 64, 64, 3)
    bridge.close(context)


@pytest.mark.parametrize("word_dim", [64, 256])
def test_words_of_another_width_than_the_embeddings(word_dim, bridge: Bridge, copied: Path):
    change_engines(copied, "bridge.json", lambda data: data.update(word_dim=word_dim))
    refused(f"texts of 77 tokens by {word_dim} numbers.* got texts, 77, 128", bridge.open, copied)


def test_texts_of_another_length_than_the_tokenizers(bridge: Bridge, copied: Path):
    change_engines(copied, "engines.json", set_size("token_embedding", "outputs", 0, 1, 76))
    refused("texts of 77 tokens by 128 numbers.* got texts, 76, 128", bridge.open, copied)


@pytest.mark.parametrize(
    "change",
    [
        lambda step: step["outputs"].reverse(),
        lambda step: step["outputs"][0].update(dtype="float16"),
        lambda step: step["outputs"].pop(),
        lambda step: step["inputs"].reverse(),
        lambda step: step["inputs"].pop(),
        lambda step: step["inputs"][0].update(dtype="int64"),
        lambda step: step["inputs"][5].update(shape=[]),
    ],
    ids=["order", "type", "fewer", "inputs", "fewer inputs", "whole numbers", "rank"],
)
def test_another_step_than_the_loops(change, bridge: Bridge, copied: Path):
    change_engines(copied, "engines.json", lambda engines: change(engines["denoise_step"]))
    refused("puts of engine denoise_step in engines.json", bridge.open, copied)


def test_deep_features_after_the_steps_outputs_are_let_pass(bridge: Bridge, copied: Path):
    def keep(engines: Any) -> None:
        deep = {"name": "deep_features", "dtype": "float32", "shape": ["rows", 8, "height"]}
        engines["denoise_step"]["outputs"].append(deep)

    change_engines(copied, "engines.json", keep)
    context = bridge.open(copied)  # the graph has none, which is seen when it is loaded
    refused("outputs of engine denoise_step", bridge.generate, context, "a cat")
    bridge.close(context)


@pytest.mark.parametrize(
    ("engine", "tensors", "axis", "size", "message"),
    [
        ("vae_decoder", "outputs", 1, 1, "expected 1 x 1 x 64 x 64, got 1 x 3 x 64 x 64"),
        ("vae_decoder", "outputs", 2, "16 * height", "expected 1 x 3 x 128 x 64"),
        ("text_encoder_embeds", "outputs", 0, 1, "expected 1 x 77 x 128, got 2 x 77 x 128"),
        ("text_encoder_embeds", "outputs", 2, 64, "got 2 x 77 x 128"),
        ("token_embedding", "outputs", 0, 8, "expected 8 x 77 x 128, got 2 x 77 x 128"),
        ("vae_decoder", "inputs", 0, 0, "rows of latent_sample .* got 0"),
        ("vae_decoder", "inputs", 0, "width", "rows of latent_sample .* got width"),
    ],
)
def test_arrays_of_another_shape_than_engines_json_says(
    engine, tensors, axis, size, message, bridge: Bridge, copied: Path
):
    change_engines(copied, "engines.json", set_size(engine, tensors, 0, axis, size))
    context = bridge.open(copied)
    refused(message, bridge.generate, context, "a cat", num_inference_steps=1)
    bridge.close(context)


@pytest.mark.parametrize(
    ("engine", "index", "axis", "size", "message"),
    [
        ("vae_encoder", 0, 1, 31, "expected 1 x 31 x 8 x 8, got 1 x 32 x 8 x 8"),
        ("regressor", 0, 1, 9, "expected 1 x 9 x 128, got 1 x 5 x 128"),
        ("image_features", 1, 2, 64, "expected 1 x 65 x 64, got 1 x 65 x 128"),
    ],
)
def test_a_probes_arrays_of_another_shape(
    engine, index, axis, size, message, bridge: Bridge, copied: Path, cat_photo, cat_mask
):
    change_engines(copied, "engines.json", set_size(engine, "outputs", index, axis, size))
    context = bridge.open(copied)
    refused(message, bridge.probe, context, cat_photo, cat_mask)
    bridge.close(context)


def test_a_probe_of_another_number_of_words(bridge: Bridge, copied: Path, cat_photo, cat_mask):
    change_engines(copied, "bridge.json", lambda data: data.update(num_words=7))
    context = bridge.open(copied)
    refused("words: expected 1 x 7 x 128, got 1 x 5 x 128", bridge.probe, context, cat_photo,
            cat_mask)  # fmt: skip
    bridge.close(context)


def grey_decoder() -> bytes:
    """Return a decoder whose graph gives one channel: (n, 16, h, w) -> (n, 1, 8 h, 8 w)."""
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.ones((16, 1, 8, 8), np.float32), "weight")
    node = helper.make_node(
        "ConvTranspose", ["latent_sample", "weight"], ["sample"], strides=[8, 8]
    )
    graph = helper.make_graph(
        [node], "grey",
        [helper.make_tensor_value_info("latent_sample", floats, ["n", 16, "h", "w"])],
        [helper.make_tensor_value_info("sample", floats, ["n", 1, "H", "W"])], [weight],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def test_pictures_without_colours_are_no_pictures(bridge: Bridge, copied: Path):
    """Where graph and engines.json agree with one another, and not with what a picture is."""
    replace_file(copied, "vae_decoder/model.onnx", grey_decoder())
    change_engines(copied, "engines.json", set_size("vae_decoder", "outputs", 0, 1, 1))
    context = bridge.open(copied)
    refused("decoded pictures: expected 1 x 3 x 64 x 64, got 1 x 1 x 64 x 64", bridge.generate,
            context, "a cat", num_inference_steps=1)  # fmt: skip
    bridge.close(context)


def test_latents_of_another_size_than_the_pictures(bridge: Bridge, copied: Path):
    change_engines(copied, "bridge.json", lambda data: data.update(vae_scale_factor=4))
    context = bridge.open(copied)
    refused("decoded pictures: expected 1 x 3 x 32 x 32, got 1 x 3 x 64 x 64", bridge.generate,
            context, "a cat", num_inference_steps=1, height=32, width=32)  # fmt: skip
    bridge.close(context)


@pytest.mark.parametrize("field", ["image_size_px", "vae_scale_factor"])
def test_a_picture_that_is_no_whole_number_of_cells(field, bridge: Bridge, copied: Path):
    change_engines(copied, "bridge.json", lambda data: data.update({field: 60}))
    refused("a multiple of vae_scale_factor", bridge.open, copied, status=lib.DAMAGED)


def test_latents_that_no_memory_holds_are_refused_first(bridge: Bridge, copied: Path):
    change_engines(copied, "bridge.json", lambda data: data.update(latent_channels=2**20))
    context = bridge.open(copied)
    refused("shape of sample of engine denoise_step", bridge.generate, context, "a cat",
            num_images=4, height=4096, width=4096, status=lib.INVALID_ARGUMENT)  # fmt: skip
    bridge.close(context)
