"""Recipes are read strictly: what is wrong is named by file and key."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.recipe import (
    LEAST_IMAGE_PSNR_DB,
    RECIPES,
    THRESHOLDS,
    Recipe,
    TensorRTOptions,
    Thresholds,
    default_recipe,
    read_recipe,
    recipe_names,
)
from hbsdk.bundle import Bundle
from hbsdk.engine_spec import NETWORKS, Axis
from hbsdk.errors import EngineError
from hbsdk.network_sizes import NetworkSizes, network_sizes

SD15 = NetworkSizes(
    image_size_px=512, latent_channels=4, vae_scale_factor=8, unet_scale_factor=8, text_tokens=77,
    word_dim=768, context_dim=768, num_words=5, image_tokens=257, clip_dim=1024, dino_dim=1024,
    deep_width=320, masked=False,
)  # fmt: skip
CPU = (RECIPES / "mini-cpu.toml").read_text()
RTX = (RECIPES / "mini-tensorrt-rtx.toml").read_text()


def parse(folder: Path, text: str, name: str = "mini-cpu") -> Recipe:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return read_recipe(path)


# The recipes that come with hbsdk.


def test_the_recipes_that_the_issue_asks_for_are_there() -> None:
    assert recipe_names() == [
        "mini-cpu", "mini-tensorrt-rtx", "sd15-cpu", "sd15-jetson", "sd15-onnxruntime-cuda",
        "sd15-tensorrt", "sd15-tensorrt-rtx",
    ]  # fmt: skip


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_makes_engines_of_its_bundle(name: str) -> None:
    recipe = read_recipe(name)
    sizes = network_sizes(Bundle.open()) if name.startswith("mini") else SD15
    specs = recipe.specs(sizes)
    assert {spec.network for spec in specs.values()} == set(NETWORKS) == set(recipe.precision)
    assert recipe.description
    assert recipe.capabilities or recipe.onnxruntime


def test_a_recipe_holds_what_its_file_says() -> None:
    recipe = read_recipe("sd15-tensorrt-rtx")
    assert recipe.runtime == "tensorrt_rtx"
    assert recipe.opset == 20
    assert set(recipe.precision.values()) == {"float16"}
    assert recipe.pictures == Axis(1, 1, 4)
    assert recipe.height_px == recipe.width_px == Axis(256, 512, 768)
    assert recipe.capabilities == ("8.6", "8.9", "12.0")
    assert recipe.tensorrt == TensorRTOptions(("8.6", "8.9", "12.0"), None, None, False)
    assert recipe.onnxruntime is None
    jetson = TensorRTOptions(("current",), 1024, 3, True)
    assert read_recipe("sd15-jetson").tensorrt == jetson
    assert read_recipe("sd15-jetson").height_px == Axis(512, 512, 512)


def test_the_recipes_capabilities_are_those_of_the_builder() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    known = {name for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    for name in recipe_names():
        for capability in read_recipe(name).capabilities:
            assert capability == "current" or f"SM{capability.replace('.', '')}" in known


def test_precision_of_one_network_may_differ(tmp_path: Path) -> None:
    text = CPU.replace('default = "float32"', 'default = "float32"\nunet = "float16"')
    precision = parse(tmp_path, text).precision
    assert precision["unet"] == "float16"
    assert {precision[network] for network in NETWORKS if network != "unet"} == {"float32"}


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    text = CPU.partition("[parity]")[0].replace("opset = 20\n", "")
    recipe = parse(tmp_path, text)
    assert recipe.opset == 20
    assert recipe.parity == read_recipe("mini-cpu").parity
    assert recipe.hash == read_recipe("mini-cpu").hash


def test_the_recipe_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_recipe().name == "mini-cpu"
    monkeypatch.setattr("export.recipe.find_spec", lambda name: object())
    assert default_recipe("8.9").name == "mini-tensorrt-rtx"
    assert default_recipe("9.0").name == "mini-cpu"
    monkeypatch.setattr("export.recipe.find_spec", lambda name: None)
    assert default_recipe("8.9").name == "mini-cpu"


def test_thresholds_are_those_of_the_issue() -> None:
    assert THRESHOLDS["float32"] == Thresholds(relative_max_abs=1e-4, cosine=None)
    assert THRESHOLDS["float16"] == Thresholds(relative_max_abs=1e-2, cosine=0.9995)
    assert LEAST_IMAGE_PSNR_DB == 35.0


# The hash and the canonical text.


@pytest.mark.parametrize("name", recipe_names())
def test_the_canonical_text_reads_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    copy = parse(tmp_path, recipe.to_toml(), "recipe")  # as it is called in an engine folder
    assert copy == recipe
    assert copy.hash == recipe.hash
    assert copy.to_toml() == recipe.to_toml()
    assert copy.name == name


def test_layout_does_not_change_the_hash(tmp_path: Path) -> None:
    lines = [line for line in CPU.splitlines() if line and not line.startswith("#")]
    lines[lines.index("[parity]") :] = []
    other = (
        "\n".join(lines)
        .replace('description = "hbsdk', 'description = "Another')
        .replace(
            "height_px = { min = 64, opt = 64, max = 128 }", "height_px = {max=128, opt=64, min=64}"
        )
    )
    assert other != CPU
    assert parse(tmp_path, other).hash == read_recipe("mini-cpu").hash


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("opset = 20", "opset = 21"),
        ('default = "float32"', 'default = "float32"\nunet = "float16"'),
        ("max = 4 }", "max = 5 }"),
        ("height_px = { min = 64, opt = 64", "height_px = { min = 64, opt = 80"),
        ('["CPUExecutionProvider"]', '["CUDAExecutionProvider"]'),
        ("num_inference_steps = 20", "num_inference_steps = 21"),
    ],
)
def test_content_changes_the_hash(tmp_path: Path, old: str, new: str) -> None:
    assert old in CPU
    assert parse(tmp_path, CPU.replace(old, new, 1)).hash != read_recipe("mini-cpu").hash


def test_recipes_differ_in_their_hashes() -> None:
    assert len({read_recipe(name).hash for name in recipe_names()}) == len(recipe_names())


# What is wrong is named.


def refused(folder: Path, text: str, key: str, expected: str, got: str, remedy: str = "") -> None:
    with pytest.raises(EngineError) as raised:
        parse(folder, text)
    error = raised.value
    assert error.what.startswith(f"{key} in recipe {folder / 'mini-cpu.toml'}")
    assert expected in str(error.expected)
    assert got in str(error.got)
    assert remedy in str(error.remedy)


@pytest.mark.parametrize(
    ("section", "line", "key", "meant"),
    [
        ("", "opsett = 20", "opsett", "opset"),
        ("[precision]", 'vae_decode = "float32"', "[precision] vae_decode", "vae_decoder"),
        ("[precision]", 'unett = "float32"', "[precision] unett", "unet"),
        ("[shapes]", "heigth_px = 64", "[shapes] heigth_px", "height_px"),
        ("[onnxruntime]", "provider = 1", "[onnxruntime] provider", "providers"),
        ("[parity]", "image_hight_px = 64", "[parity] image_hight_px", "image_height_px"),
    ],
)
def test_an_unknown_key_and_what_was_meant(
    tmp_path: Path, section: str, line: str, key: str, meant: str
) -> None:
    text = CPU.replace(f"\n{section}\n", f"\n{section}\n{line}\n") if section else f"{line}\n{CPU}"
    refused(tmp_path, text, key, meant, "unknown key", f"Did you mean {meant}?")


def test_an_unknown_key_like_no_other(tmp_path: Path) -> None:
    refused(tmp_path, "zzz = 1\n" + CPU, "zzz", "one of", "the unknown key zzz", "Remove it")


def test_an_unknown_key_of_a_shape(tmp_path: Path) -> None:
    text = CPU.replace("max = 4 }", "max = 4, best = 2 }")
    refused(tmp_path, text, "[shapes.pictures] best", "min, opt, max", "best")


@pytest.mark.parametrize(
    ("old", "new", "key", "got"),
    [
        ('name = "mini-cpu"', "name = 5", "name", "5"),
        ('name = "mini-cpu"', 'name = "../x"', "name", "../x"),
        ('name = "mini-cpu"', 'name = "other"', "name", "other"),
        ('description = "hbsdk', 'description = 5 #"', "description", "5"),
        ('runtime = "onnxruntime"', 'runtime = "tensorflow"', "runtime", "tensorflow"),
        ('runtime = "onnxruntime"', "runtime = []", "runtime", "[]"),
        ("opset = 20", 'opset = "20"', "opset", "20"),
        ("opset = 20", "opset = true", "opset", "True"),
        ("opset = 20", "opset = 20.0", "opset", "20.0"),
        ("opset = 20", "opset = 17", "opset", "17"),
        ("opset = 20", "opset = 99", "opset", "99"),
        ('default = "float32"', 'default = "int8"', "[precision] default", "int8"),
        ('default = "float32"', "", "[precision] default", "none"),
        ('["CPUExecutionProvider"]', "[]", "[onnxruntime] providers", "[]"),
        ('["CPUExecutionProvider"]', '"CPU"', "[onnxruntime] providers", "CPU"),
        ('["CPUExecutionProvider"]', "[1]", "[onnxruntime] providers", "1"),
        (
            '["CPUExecutionProvider"]',
            '["CPUExecutionProvider", "CPUExecutionProvider"]',
            "[onnxruntime] providers",
            "CPUExecutionProvider",
        ),
        ("image_height_px = 64", "image_height_px = 256", "[parity] image_height_px", "256"),
        (
            "num_inference_steps = 20",
            "num_inference_steps = 0",
            "[parity] num_inference_steps",
            "0",
        ),
        ("max = 4 }", "max = 0 }", "[shapes.pictures] max", "0"),
        ("min = 1, opt = 1, max = 4", "min = 3, opt = 1, max = 4", "[shapes] pictures", "3, 1, 4"),
        ("min = 1, opt = 1, max = 4", "min = 1, opt = 5, max = 4", "[shapes] pictures", "1, 5, 4"),
        ("min = 1, opt = 1, max = 4", "min = 1, max = 4", "[shapes.pictures] opt", "none"),
        ("max = 4 }", "max = 65 }", "[shapes.pictures] max", "65"),
        ("max = 4 }", "max = 4.0 }", "[shapes.pictures] max", "4.0"),
        ("max = 4 }", "max = -4 }", "[shapes.pictures] max", "-4"),
        ("{ min = 1, opt = 1, max = 4 }", "[1, 4]", "[shapes] pictures", "[1, 4]"),
        ("{ min = 1, opt = 1, max = 4 }", "0", "[shapes.pictures] min", "0"),
        ("max = 128 }", "max = 1000000000000 }", "[shapes.height_px] max", "1000000000000"),
    ],
)
def test_a_wrong_value(tmp_path: Path, old: str, new: str, key: str, got: str) -> None:
    assert old in CPU
    refused(tmp_path, CPU.replace(old, new, 1), key, "", got)


def test_a_provider_almost_right(tmp_path: Path) -> None:
    text = CPU.replace('["CPUExecutionProvider"]', '["CPUExecutionProvide"]')
    key = "[onnxruntime] providers"
    refused(tmp_path, text, key, "", "Provide", "Did you mean CPUExecutionProvider?")


@pytest.mark.parametrize("section", ["precision", "shapes", "onnxruntime"])
def test_a_missing_section(tmp_path: Path, section: str) -> None:
    refused(tmp_path, CPU.replace(f"[{section}]", f"[{section}z]"), section, "a table", "none",
            f"did you mean {section}?")  # fmt: skip


def test_a_section_that_is_no_table(tmp_path: Path) -> None:
    text = "parity = 5\n" + CPU.partition("[parity]")[0]
    refused(tmp_path, text, "parity", "a table", "5")


def test_the_section_of_another_runtime(tmp_path: Path) -> None:
    text = CPU + "\n[tensorrt]\ntiming_cache = true\n"
    refused(tmp_path, text, "tensorrt", "runtime is onnxruntime", "one", "Remove it")


@pytest.mark.parametrize(
    ("old", "new", "key", "got"),
    [
        ('"12.0"]', '"9.0"]', "compute_capabilities", "9.0"),
        ('"12.0"]', '"current"]', "compute_capabilities", "current"),
        ('"12.0"]', '"7.5"]', "compute_capabilities", "7.5"),
        ('"12.0"]', "12.0]", "compute_capabilities", "12.0"),
        ("level = 3", "level = 6", "builder_optimization_level", "6"),
        ("builder_optimization_level = 3", "timing_cache = 1", "timing_cache", "1"),
        ("builder_optimization_level = 3", "timing_cache = true", "timing_cache", "true"),
        ("builder_optimization_level = 3", "workspace_mib = 0", "workspace_mib", "0"),
        ("builder_optimization_level = 3", "fp16 = true", "fp16", "unknown key"),
    ],
)
def test_wrong_values_for_tensorrt(tmp_path: Path, old: str, new: str, key: str, got: str) -> None:
    assert old in RTX
    text = RTX.replace('name = "mini-tensorrt-rtx"', 'name = "mini-cpu"').replace(old, new, 1)
    refused(tmp_path, text, f"[tensorrt] {key}", "", got)


def test_tensorrt_itself_builds_for_the_gpu_at_hand(tmp_path: Path) -> None:
    text = (RECIPES / "sd15-tensorrt.toml").read_text().replace('["current"]', '["8.0"]')
    text = text.replace('name = "sd15-tensorrt"', 'name = "mini-cpu"')
    refused(tmp_path, text, "[tensorrt] compute_capabilities", "current", "8.0")


@pytest.mark.parametrize(
    ("changes", "key", "remedy"),
    [
        ({"height_px": Axis(64, 72, 128)}, "[shapes] height_px.opt", "Write 64"),
        ({"width_px": Axis(60, 64, 128)}, "[shapes] width_px.min", "Write 64"),
    ],
)
def test_sides_that_the_bundle_cannot_draw(changes: Any, key: str, remedy: str) -> None:
    recipe = replace(read_recipe("mini-cpu"), **changes)
    with pytest.raises(EngineError) as raised:
        recipe.specs(network_sizes(Bundle.open()))
    assert raised.value.what == f"{key} of {RECIPES / 'mini-cpu.toml'}"
    assert "a multiple of 16" in str(raised.value.expected)
    assert raised.value.remedy == remedy


def test_a_recipe_of_a_smaller_bundle_does_not_fit() -> None:
    recipe = replace(read_recipe("mini-cpu"), height_px=Axis(64, 80, 128))
    recipe.specs(network_sizes(Bundle.open()))
    with pytest.raises(EngineError, match=r"height_px.opt .*a multiple of 64"):
        recipe.specs(SD15)


# The file itself.


@pytest.mark.parametrize(
    "data",
    [b"name = ", b"\xff\xfe", b"a = 1\na = 2", b"a = " + b"[" * 5000, b"# " + b"x" * 70_000, b""],
    ids=["cut", "bytes", "twice", "deep", "large", "empty"],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"recipe .*bad.toml"):
        read_recipe(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"none there.*mini-cpu"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(EngineError, match=r"a TOML file that can be read"):
        read_recipe(tmp_path)


def test_a_name_almost_right() -> None:
    with pytest.raises(EngineError, match=r"recipe mini-cp: .*Did you mean mini-cpu\?"):
        read_recipe("mini-cp")
    with pytest.raises(EngineError, match=r"or the path of a .toml file"):
        read_recipe("zzzzzz")
