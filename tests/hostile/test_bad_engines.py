"""Engine folders and ONNX files that are damaged or made to harm are refused before any load."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.check_onnx import check_onnx
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import scan_engines
from hbsdk.engine_spec import Axis, EngineSpec, TensorSpec
from hbsdk.errors import EngineError
from hbsdk.manifest import read_manifest
from hbsdk.manifest_rules import SEAL
from tests.engine_files import (
    CAPABILITY,
    VERSIONS,
    change_byte,
    change_manifest,
    reopen,
    write_engines,
)

COMMAND = "python export/build_engines.py --recipe mini-"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    return write_engines(tmp_path / "mini-tensorrt-rtx-0123", bundle, "tensorrt_rtx")


# The folder's files. Each test opens it first, so that hashes of the files as they were are known.


@pytest.mark.parametrize(
    ("path", "use"),
    [
        ("unet/denoise_step.engine", lambda engines: engines.path("denoise_step")),
        ("unet/denoise_step.onnx", lambda engines: engines.path("denoise_step", ".onnx")),
        ("unet/model.onnx_data", lambda engines: engines.path("denoise_step", ".onnx")),
        ("unet/config.json", lambda engines: engines.path("denoise_step")),
        ("unet/config.json", lambda engines: engines.path("denoise_step", ".onnx")),
        ("tokenizer/tokenizer.json", lambda engines: engines.verify("tokenizer")),
        ("scheduler/scheduler_config.json", lambda engines: engines.verify("scheduler")),
        ("model_index.json", lambda engines: engines.verify("model_index.json")),
        ("recipe.toml", lambda engines: engines.verify("recipe.toml")),
        ("engines.json", lambda engines: engines.verify()),
    ],
)
def test_a_changed_byte_is_found_before_use(
    folder: Path, bundle: Bundle, path: str, use: Callable[[Any], object]
) -> None:
    opened = reopen(folder, bundle)
    use(opened)
    change_byte(folder / path)
    with pytest.raises(EngineError) as raised:
        use(opened)
    assert raised.value.what == f"{folder / path} was changed"
    assert opened.manifest.files[path] in str(raised.value.expected)
    assert COMMAND in str(raised.value)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("engines.json", r"engines.json was changed"),
        ("recipe.toml", r"recipe_hash of engines"),
        ("manifest.json", r"manifest.json"),
    ],
)
def test_a_changed_byte_is_found_on_opening(
    folder: Path, bundle: Bundle, path: str, match: str
) -> None:
    change_byte(folder / path)
    with pytest.raises(EngineError, match=f"{match}.*{COMMAND}"):
        reopen(folder, bundle)


def test_every_byte_of_the_manifest_counts(folder: Path, bundle: Bundle) -> None:
    """A bit is flipped in each of its characters but white space, one at a time."""
    path = folder / "manifest.json"
    data = path.read_bytes()
    reopen(folder, bundle)
    places = [i for i, byte in enumerate(data) if not chr(byte).isspace()]
    for place in places[:: max(1, len(places) // 200)]:
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(EngineError):
            reopen(folder, bundle)


def test_only_what_was_changed_is_refused(folder: Path, bundle: Bundle) -> None:
    change_byte(folder / "vae_decoder" / "model.engine")
    opened = reopen(folder, bundle)
    opened.path("denoise_step")
    with pytest.raises(EngineError, match=r"vae_decoder/model.engine was changed"):
        opened.path("vae_decoder")


@pytest.mark.parametrize(
    "path", ["unet/denoise_step.engine", "unet/model.onnx_data", "engines.json", "recipe.toml",
             "manifest.json", "tokenizer/tokenizer.json"],
)  # fmt: skip
def test_a_missing_file_is_named(folder: Path, bundle: Bundle, path: str) -> None:
    opened = reopen(folder, bundle)
    (folder / path).unlink()
    with pytest.raises(EngineError, match=f"{path} .*{COMMAND}"):
        reopen(folder, bundle)
    if path.startswith("unet"):
        with pytest.raises(EngineError, match=f"{path} is missing.*{COMMAND}"):
            opened.path("denoise_step")


@pytest.mark.parametrize("path", ["unet/evil.so", "tokenizer/added_tokens.json", "x", ".hidden"])
def test_an_added_file_is_named(folder: Path, bundle: Bundle, path: str) -> None:
    opened = reopen(folder, bundle)
    (folder / path).write_text("{}")
    with pytest.raises(EngineError, match=f"{path} was added.*{COMMAND}"):
        reopen(folder, bundle)
    with pytest.raises(EngineError, match=f"{path} was added"):
        opened.verify(path.rpartition("/")[0] or None)


def test_a_link_in_place_of_a_file_is_refused(folder: Path, bundle: Bundle) -> None:
    weights = folder / "unet" / "model.onnx_data"
    elsewhere = weights.rename(folder.parent / "weights")
    weights.symlink_to(elsewhere)  # the same bytes today
    with pytest.raises(EngineError, match=r"expected an ordinary file, got a link"):
        reopen(folder, bundle).path("denoise_step", ".onnx")


def test_a_link_in_place_of_a_folder_is_refused(folder: Path, bundle: Bundle) -> None:
    elsewhere = (folder / "unet").rename(folder.parent / "unet")
    (folder / "unet").symlink_to(elsewhere)
    with pytest.raises(EngineError, match=r"unet"):
        reopen(folder, bundle)


def test_an_engine_that_is_not_there(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    opened = reopen(folder, bundle)
    with pytest.raises(EngineError, match=r"engine unett .*expected .*denoise_step"):
        opened.path("unett")
    with pytest.raises(EngineError, match=r"nothing of .*expected files that manifest.json lists"):
        opened.verify("nothing")
    for_cpu = reopen(write_engines(tmp_path / "cpu", bundle), bundle)
    with pytest.raises(EngineError, match=r"expected unet/model.engine, got no such file"):
        for_cpu.path("unet", ".engine")


# The manifest.


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, "\xff\xfe", " " * (5 << 20)],
    ids=["empty", "cut", "list", "null", "deep", "latin", "large"],
)  # fmt: skip
def test_a_manifest_that_is_no_json_object(folder: Path, bundle: Bundle, text: str) -> None:
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(EngineError, match=r"manifest.json.*python export/build_engines.py"):
        reopen(folder, bundle)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 2), ("schema", True), ("schema", "1"), ("bundle_name", ""),
        ("bundle_hash", "0" * 63), ("bundle_hash", None), ("recipe_name", "../../x"),
        ("recipe_name", 5), ("recipe_hash", "G" * 64), ("runtime", "torch"), ("runtime", []),
        ("runtime_version", 11), ("opset", "20"), ("opset", 0), ("opset", True),
        ("precision", {}), ("precision", {"unet": "int8"}), ("precision", {"evil": "float16"}),
        ("compute_capabilities", "8.9"), ("compute_capabilities", [8.9]),
        ("compute_capabilities", []), ("compute_capabilities", ["8.9; rm"]),
        ("providers", ["CPUExecutionProvider"]), ("platform", 5), ("platform", "linux-x86_64"),
        ("seconds", -1), ("seconds", "1"), ("seconds", float("nan")), ("seconds", 10**400),
        ("parity", []), ("image_psnr_db", "60"), ("hbsdk_version", None), ("created", 0),
        ("files", []), ("manifest_sha256", "0"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(folder: Path, bundle: Bundle, key: str, value: object) -> None:
    change_manifest(folder, **{key: value})
    with pytest.raises(EngineError, match=f"{key} in .*manifest.json: expected .*got"):
        reopen(folder, bundle)


def test_missing_and_unknown_keys_are_named(folder: Path, bundle: Bundle) -> None:
    change_manifest(folder, evil="import os")
    with pytest.raises(EngineError, match=r"with unknown \['evil'\]"):
        reopen(folder, bundle)
    (folder / "manifest.json").write_text('{"schema": 1}')
    with pytest.raises(EngineError, match=r"without \['bundle_hash'"):
        reopen(folder, bundle)


@pytest.mark.parametrize(
    "path",
    ["../outside.engine", "/etc/passwd", "unet/../../x", "unet/./model.onnx", "unet//model.onnx",
     "..\\outside", "C:/outside", "", ".", "..", "manifest.json", "unet/\0"],
)  # fmt: skip
def test_a_path_that_leaves_the_folder_is_refused(folder: Path, bundle: Bundle, path: str) -> None:
    files = dict(read_manifest(folder).files)
    change_manifest(folder, files=files | {path: "0" * 64})
    with pytest.raises(EngineError, match=r"relative paths inside of the folder"):
        reopen(folder, bundle)


@pytest.mark.parametrize("digest", [None, 5, "0" * 63, "A" * 64, "0" * 64 + "\n"])
def test_a_digest_that_is_none_is_refused(folder: Path, bundle: Bundle, digest: object) -> None:
    files = dict(read_manifest(folder).files)
    change_manifest(folder, files=files | {"unet/model.onnx": digest})
    with pytest.raises(EngineError, match=r"files in .*sha256s by relative paths"):
        reopen(folder, bundle)


def seal_again(folder: Path, engines: object) -> None:
    """Do all that someone can who knows how manifests are written, but for what is in `engines`."""
    (folder / "engines.json").write_text(json.dumps(engines))
    data = json.loads((folder / "manifest.json").read_text())
    data["files"]["engines.json"] = hashlib.sha256(
        (folder / "engines.json").read_bytes()
    ).hexdigest()
    del data[SEAL]
    seal = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(data | {SEAL: seal}))


def test_sealing_again_is_right(folder: Path, bundle: Bundle) -> None:
    seal_again(folder, json.loads((folder / "engines.json").read_text()))
    reopen(folder, bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../outside.onnx"}, {"file": "/etc/passwd"}, {"file": "unet/none.onnx"},
        {"file": 5}, {"network": "evil"}, {"network": []}, {"name": "other"}, {"axes": []},
        {"axes": {"rows": {"min": 1}}}, {"inputs": [{}]}, {"inputs": 5},
    ],
)  # fmt: skip
def test_engines_that_are_none(folder: Path, bundle: Bundle, change: dict[str, Any]) -> None:
    engines = json.loads((folder / "engines.json").read_text())
    engines["unet"] |= change
    seal_again(folder, engines)
    with pytest.raises(EngineError, match=f"engines.json.*{COMMAND}"):
        reopen(folder, bundle)


def test_one_bad_folder_does_not_hide_the_others(folder: Path, bundle: Bundle) -> None:
    write_engines(folder.parent / "good", bundle)
    (folder / "manifest.json").write_bytes(b"\0" * 100)
    found = scan_engines(folder.parent, bundle, runtimes=VERSIONS, compute_capability=CAPABILITY)
    assert [isinstance(result, EngineError) for _, result in found] == [False, True]


# ONNX files: y = x W + b, with W outside of the graph and b in it.

OPSET = 20
SPEC = EngineSpec(
    "linear", "unet", "unet/model.onnx",
    (TensorSpec("x", "float32", ("rows", 4)),), (TensorSpec("y", "float32", ("rows", 8)),),
    {"rows": Axis(1, 2, 4)},
)  # fmt: skip
WEIGHT_BYTES = 4 * 8 * 4


def external(**entries: str) -> TensorProto:
    tensor = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=(4, 8))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def good_weight() -> TensorProto:
    return external(location="model.onnx_data", offset="16", length=str(WEIGHT_BYTES))


def write_onnx(
    folder: Path,
    weight: TensorProto | None = None,
    *,
    opset: int = OPSET,
    inputs: tuple[Any, ...] = (("x", TensorProto.FLOAT, ["rows", 4]),),
    outputs: tuple[Any, ...] = (("y", TensorProto.FLOAT, ["rows", 8]),),
    data: bytes = bytes(16 + WEIGHT_BYTES),
) -> Path:
    """Write a graph and its external data; the names of its values follow inputs and outputs."""
    (folder / "model.onnx_data").write_bytes(data)
    bias = numpy_helper.from_array(np.ones(8, np.float32), "b")
    first = inputs[0][0] if inputs else "b"
    nodes = [
        helper.make_node("MatMul", [first, "W"], ["h"]),
        helper.make_node("Add", ["h", "b"], [outputs[0][0] if outputs else "y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [weight or good_weight(), bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_good_graph_passes_and_runs(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = write_onnx(tmp_path)
    check_onnx(path, SPEC, opset=OPSET)
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.ones((2, 4), np.float32)})
    assert (y == 1).all()


@pytest.mark.parametrize(
    "location",
    ["../model.onnx_data", "../x", "/etc/passwd", "sub/model.onnx_data", "./model.onnx_data", "..",
     "", "..\\x", "C:\\x", "C:x", "model.onnx_data/../../x", "x\0"],
)  # fmt: skip
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "x").write_bytes(bytes(1000))  # it is there, only not to be read
    (tmp_path / "model.onnx_data").write_bytes(bytes(1000))
    home = tmp_path / "unet"
    (home / "sub").mkdir(parents=True)
    (home / "sub" / "model.onnx_data").write_bytes(bytes(1000))
    path = write_onnx(home, external(location=location, length=str(WEIGHT_BYTES)))
    with pytest.raises(EngineError, match=r"external data of W .*in the graph's own folder"):
        check_onnx(path, SPEC, opset=OPSET)


def test_external_data_behind_a_link_is_refused(tmp_path: Path) -> None:
    path = write_onnx(tmp_path)
    outside = (tmp_path / "model.onnx_data").rename(tmp_path.parent / "outside_data")
    (tmp_path / "model.onnx_data").symlink_to(outside)
    with pytest.raises(EngineError, match=r"in the graph's own folder"):
        check_onnx(path, SPEC, opset=OPSET)


def test_external_data_without_a_location(tmp_path: Path) -> None:
    path = write_onnx(tmp_path, external(length=str(WEIGHT_BYTES)))
    with pytest.raises(EngineError, match=r"got no location"):
        check_onnx(path, SPEC, opset=OPSET)


def test_external_data_that_names_two_places(tmp_path: Path) -> None:
    weight = good_weight()
    weight.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(EngineError, match=r"expected each key once"):
        check_onnx(write_onnx(tmp_path, weight), SPEC, opset=OPSET)


def test_missing_external_data(tmp_path: Path) -> None:
    path = write_onnx(tmp_path)
    (tmp_path / "model.onnx_data").unlink()
    with pytest.raises(EngineError, match=r"model.onnx_data, 128 bytes, got no such file"):
        check_onnx(path, SPEC, opset=OPSET)


@pytest.mark.parametrize("size", [0, 16, 16 + WEIGHT_BYTES - 1])
def test_truncated_external_data(tmp_path: Path, size: int) -> None:
    path = write_onnx(tmp_path, data=bytes(size))
    with pytest.raises(EngineError, match=rf"expected 144 bytes or more in .*got {size} bytes"):
        check_onnx(path, SPEC, opset=OPSET)


def test_truncated_external_data_of_unstated_length(tmp_path: Path) -> None:
    weight = external(location="model.onnx_data", offset="32")
    with pytest.raises(EngineError, match=r"expected 160 bytes or more in .*got 144 bytes"):
        check_onnx(write_onnx(tmp_path, weight), SPEC, opset=OPSET)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"offset": "-16"}, r"offset of .*whole number"),
        ({"offset": "9" * 18}, r"bytes or more"),
        ({"offset": "9" * 30}, r"offset of .*whole number"),
        ({"offset": "a"}, r"offset of .*whole number"),
        ({"offset": "٣"}, r"offset of .*whole number"),
        ({"length": "127"}, r"length of .*expected 128 bytes by its shape, got 127"),
        ({"length": "-1"}, r"length of .*whole number"),
    ],
)
def test_offsets_that_are_none(tmp_path: Path, entries: dict[str, str], match: str) -> None:
    stated = {"location": "model.onnx_data", "offset": "16", "length": "128"} | entries
    with pytest.raises(EngineError, match=match):
        check_onnx(write_onnx(tmp_path, external(**stated)), SPEC, opset=OPSET)


def test_external_data_of_a_constant_in_a_sub_graph_or_function(tmp_path: Path) -> None:
    evil = external(location="/etc/passwd")
    constant = helper.make_node("Constant", [], ["c"], value=evil)
    value = helper.make_tensor_value_info("c", TensorProto.FLOAT, [4, 8])
    branch = helper.make_graph([constant], "branch", [], [value])
    branching = helper.make_node("If", ["k"], ["c"], then_branch=branch, else_branch=branch)
    function = helper.make_function(
        "local", "f", [], ["c"], [constant], [helper.make_opsetid("", OPSET)]
    )
    for number, (nodes, functions) in enumerate(
        [([constant], []), ([branching], []), ([], [function])]
    ):
        home = tmp_path / str(number)
        home.mkdir()
        path = write_onnx(home)
        model = onnx.load(path, load_external_data=False)
        check_onnx(path, SPEC, opset=OPSET)
        model.graph.node.extend(nodes)
        model.functions.extend(functions)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(EngineError, match=r"external data of W .*got /etc/passwd"):
            check_onnx(path, SPEC, opset=OPSET)


@pytest.mark.parametrize("opset", [18, 21])
def test_another_opset(tmp_path: Path, opset: int) -> None:
    path = write_onnx(tmp_path, opset=opset)
    with pytest.raises(EngineError, match=f"opset of .*expected 20, got {opset}.*build_engines"):
        check_onnx(path, SPEC, opset=OPSET)
    check_onnx(path, SPEC, opset=opset)


def test_no_opset(tmp_path: Path) -> None:
    path = write_onnx(tmp_path)
    model = onnx.load(path, load_external_data=False)
    del model.opset_import[:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"opset of .*got none"):
        check_onnx(path, SPEC, opset=OPSET)


X = ("x", TensorProto.FLOAT, ["rows", 4])
Y = ("y", TensorProto.FLOAT, ["rows", 8])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"inputs": (("input_0", *X[1:]),)}, r"inputs of .*expected x, got input_0"),
        ({"inputs": ()}, r"inputs of .*expected x, got none"),
        ({"inputs": (X, ("z", *X[1:]))}, r"inputs of .*expected x, got x, z"),
        ({"outputs": (("y_0", *Y[1:]),)}, r"outputs of .*expected y, got y_0"),
        ({"outputs": (Y, ("h", *Y[1:]))}, r"outputs of .*expected y, got y, h"),
        ({"inputs": (("x", TensorProto.FLOAT16, X[2]),)}, r": x: expected float32, got float16"),
        ({"outputs": (("y", TensorProto.DOUBLE, Y[2]),)}, r": y: expected float32, got double"),
        ({"inputs": (("x", X[1], ["rows", 5]),)}, r": x: expected shape .*4\], got .*5\]"),
        ({"inputs": (("x", X[1], [2, 4]),)}, r": x: expected shape \['rows', 4\], got \[2, 4\]"),
        ({"inputs": (("x", X[1], ["rows", "n"]),)}, r": x: expected shape"),
        ({"inputs": (("x", X[1], ["rows"]),)}, r": x: expected shape"),
        ({"inputs": (("x", X[1], None),)}, r": x: expected shape"),
    ],
)
def test_inputs_and_outputs_that_are_not_the_specs(
    tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(EngineError, match=match):
        check_onnx(write_onnx(tmp_path, **changes), SPEC, opset=OPSET)


@pytest.mark.parametrize("data", [b"", b"\0" * 50, b"not a graph", b"\x08"])
def test_a_file_that_is_no_graph(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(EngineError, match=r"model.onnx"):
        check_onnx(path, SPEC, opset=OPSET)


def test_a_graph_cut_short_or_not_there(tmp_path: Path) -> None:
    path = write_onnx(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(EngineError, match=r"an ONNX file that can be read"):
        check_onnx(path, SPEC, opset=OPSET)
    with pytest.raises(EngineError, match=r"an ONNX file that can be read"):
        check_onnx(tmp_path / "none.onnx", SPEC, opset=OPSET)
