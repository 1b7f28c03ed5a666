"""Manifests, engines.json, JSON, hashes: the bridge against hbsdk's readers of the same files."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hbsdk.bundle import MINI, Bundle
from hbsdk.engine_spec import EngineSpec
from hbsdk.errors import BundleError, EngineError
from hbsdk.manifest import ENGINES, files_of, read_manifest
from hbsdk.manifest_rules import SEAL, is_inside
from tests.cpp.files_check import FilesCheck, damaged, is_error, status_of
from tests.cpp.library import DAMAGED, MISMATCH, NOT_FOUND
from tests.engine_files import change_byte, reopen, write_engines

RUNTIMES = ("onnxruntime", "tensorrt_rtx", "tensorrt")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


@pytest.fixture(params=RUNTIMES)
def any_folder(request, bundle: Bundle, tmp_path: Path) -> Path:
    return write_engines(tmp_path / "engines-0123", bundle, request.param)


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    return write_engines(tmp_path / "engines-0123", bundle)


def opened(check: FilesCheck, folder: Path, **more: str) -> Any:
    return check.one("open", {"folder": str(folder), **more})


def seal(data: dict[str, Any]) -> dict[str, Any]:
    """Seal an object's fields anew."""
    others = {key: value for key, value in data.items() if key != SEAL}
    digest = hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
    return {**others, SEAL: digest}


def change_sealed(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(seal(json.loads(path.read_text()) | changes)))


def dim_of(dim: int | str) -> list[Any]:
    if isinstance(dim, int):
        return [dim, ""]
    factor, _, axis = dim.rpartition(" * ")
    return [int(factor or 1), axis]


def spec_as_json(spec: EngineSpec) -> dict[str, Any]:
    return {
        "network": spec.network,
        "file": spec.file,
        "axes": {n: [a.min, a.opt, a.max, a.multiple] for n, a in spec.axes.items()},
        **{
            key: [
                {"name": one.name, "dtype": one.dtype, "shape": [dim_of(dim) for dim in one.shape]}
                for one in getattr(spec, key)
            ]
            for key in ("inputs", "outputs")
        },
    }


def test_a_folder_is_read_as_in_python(files_check, any_folder: Path, bundle: Bundle) -> None:
    answer = opened(files_check, any_folder)
    assert not is_error(answer), answer
    python = reopen(any_folder, bundle)
    assert answer.pop("specs") == {name: spec_as_json(s) for name, s in python.specs.items()}
    expected = json.loads((any_folder / "manifest.json").read_text())
    assert set(answer) <= {entry.name for entry in fields(python.manifest)}
    assert answer == {key: expected[key] for key in answer}
    assert len(answer["files"]) > 10


def test_engines_are_found_as_in_python(files_check, any_folder: Path, bundle: Bundle) -> None:
    python = reopen(any_folder, bundle)
    for name in python.specs:
        assert opened(files_check, any_folder, engine=name)["path"] == str(python.path(name))


@pytest.mark.parametrize(
    ("path", "more", "is_seen"),
    [
        ("unet/denoise_step.onnx", {"engine": "denoise_step"}, True),
        ("unet/model.onnx_data", {"engine": "denoise_step"}, True),
        ("unet/config.json", {"engine": "denoise_step"}, True),
        ("unet/model.onnx", {"engine": "denoise_step"}, False),
        ("vae_decoder/model.onnx", {"engine": "denoise_step"}, False),
        ("tokenizer/tokenizer.json", {"verify": "tokenizer/tokenizer.json"}, True),
        ("engines.json", {}, True),
        ("recipe.toml", {}, True),
        ("manifest.json", {}, True),
    ],
)
def test_a_changed_byte_is_found_before_use(files_check, folder, path, more, is_seen) -> None:
    assert not is_error(opened(files_check, folder, **more))
    change_byte(folder / path)
    answer = opened(files_check, folder, **more)
    assert is_error(answer) == is_seen
    if is_seen:
        assert status_of(answer) == DAMAGED
        assert path in answer["error"]
        assert path == "manifest.json" or "was changed: expected sha256" in answer["error"]


def test_every_byte_of_the_manifest_counts(files_check, folder: Path) -> None:
    data = (folder / "manifest.json").read_bytes()
    places = [i for i, byte in enumerate(data) if not chr(byte).isspace()]
    changed = [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in places]
    answers = files_check.ask("manifest", [data, *changed])
    assert not is_error(answers[0])
    assert {status_of(one) for one in answers[1:]} == {DAMAGED, MISMATCH}


def test_missing_and_added_files(files_check, folder: Path) -> None:
    for path in files_of(folder):
        kept = (folder / path).read_bytes()
        (folder / path).unlink()
        answer = opened(files_check, folder)
        assert status_of(answer) == NOT_FOUND
        assert f"{path} is missing" in answer["error"]
        (folder / path).write_bytes(kept)
    for path in ("unet/evil.so", "x", ".hidden", "unet/manifest.json", "new/folder/file"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("{}")
        answer = opened(files_check, folder)
        assert status_of(answer) == DAMAGED
        assert f"{path} was added" in answer["error"]
        (folder / path).unlink()
    for stray in (".DS_Store", "unet/Thumbs.db", "desktop.ini"):
        (folder / stray).touch()
    assert not is_error(opened(files_check, folder))


def test_links_are_refused(files_check, folder: Path) -> None:
    weights = folder / "unet" / "model.onnx_data"
    elsewhere = weights.rename(folder.parent / "weights")
    weights.symlink_to(elsewhere)  # the same bytes today
    answer = opened(files_check, folder, engine="denoise_step")
    assert "expected an ordinary file, got a link" in answer["error"]
    weights.unlink()
    elsewhere.rename(weights)
    elsewhere = (folder / "unet").rename(folder.parent / "unet")
    (folder / "unet").symlink_to(elsewhere)
    assert is_error(opened(files_check, folder))


def test_what_is_no_engine_folder(files_check, folder: Path, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "no", folder / "manifest.json"):
        answer = opened(files_check, place)
        assert status_of(answer) == NOT_FOUND
        assert "manifest.json" in answer["error"]
    answer = opened(files_check, folder, verify="no/such")
    assert (status_of(answer), "'no/such'" in answer["error"]) == (NOT_FOUND, True)


CHANGES = [
    ("schema", 2), ("schema", True), ("schema", "1"), ("schema", 1.0), ("bundle_name", ""),
    ("bundle_name", " \u3000\x1c"), ("bundle_hash", "0" * 63), ("bundle_hash", None),
    ("bundle_hash", "0" * 64 + "\n"), ("recipe_name", "../../x"), ("recipe_name", 5),
    ("recipe_name", "-a"), ("recipe_name", "a" * 65), ("recipe_hash", "G" * 64),
    ("recipe_hash", "0" * 64),
    ("runtime", "torch"), ("runtime", []), ("runtime", "tensorrt"), ("runtime_version", 11),
    ("opset", "20"), ("opset", 0), ("opset", True), ("opset", 20.0), ("precision", {}),
    ("precision", {"unet": "int8"}), ("precision", {"evil": "float16"}), ("precision", ["unet"]),
    ("compute_capabilities", "8.9"), ("compute_capabilities", ["8.9"]),
    ("compute_capabilities", [8.9]),
    ("providers", []), ("providers", "CPU"), ("providers", [" "]), ("platform", 5),
    ("platform", "linux-x86_64"), ("seconds", -1), ("seconds", "1"), ("seconds", 10**400),
    ("seconds", 1e18), ("seconds", True), ("parity", []), ("image_psnr_db", "60"),
    ("hbsdk_version", None), ("created", 0), ("files", []), ("files", {"../a": "0" * 64}),
    ("files", {"a": 5}), ("files", {"manifest.json": "0" * 64}), ("evil", 1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), CHANGES)
def test_wrong_fields_are_refused_as_in_python(files_check, folder, bundle, key, value) -> None:
    assert not is_error(opened(files_check, folder))
    change_sealed(folder, **{key: value})
    answer = opened(files_check, folder)
    assert status_of(answer) in (DAMAGED, MISMATCH), answer
    is_anothers = key == "schema" or (key, value) == ("recipe_hash", "0" * 64)
    assert (status_of(answer) == MISMATCH) == is_anothers
    with pytest.raises(EngineError):
        reopen(folder, bundle)


@pytest.mark.parametrize(
    "changes",
    [
        {"bundle_name": "Füchse 狐 \U0001f98a \x7f \"\\\n"}, {"seconds": 1.5e-7}, {"seconds": 0},
        {"image_psnr_db": None},
        {"parity": {"b": {"z": 1e-05, "ä": [True, None, -0.0, "x"]}, "a": {}}},
        {"seconds": 123456789.125, "image_psnr_db": 1e17}, {"bundle_hash": "a" * 64},
        {"precision": {"unet": "float16"}}, {"providers": ["A", "B"]}, {"opset": 21},
    ],
)  # fmt: skip
def test_other_good_fields_are_accepted_as_in_python(files_check, folder, changes) -> None:
    """The control: it is not any change that is refused, if the seal is right."""
    change_sealed(folder, **changes)
    answer = opened(files_check, folder)
    assert not is_error(answer), answer
    read_manifest(folder)
    for key in set(changes) & set(answer):
        assert answer[key] == changes[key]


def test_missing_keys(files_check, folder: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    keys = [key for key in data if key != SEAL]
    without = [{k: v for k, v in data.items() if k != key} for key in keys]
    lines = [json.dumps(seal(one)) for one in without]
    for answer in files_check.ask("manifest", lines):
        assert status_of(answer) == DAMAGED
        assert "keys of" in answer["error"]


def test_damaged_manifests_are_refused(files_check, folder: Path) -> None:
    text = (folder / "manifest.json").read_bytes()
    for answer in files_check.ask("manifest", damaged(text, 400)):
        # A change of white space alone is none of the manifest's fields.
        assert is_error(answer) or answer["files"] == read_manifest(folder).files


SPEC_CHANGES = [
    {"unet": None}, {"unet": []}, {"other": {}}, {"unet": {"name": "vae"}},
    {"unet": {"network": "evil"}},
    {"unet": {"file": "../x"}}, {"unet": {"file": "no.onnx"}},
    {"unet": {"file": "/unet/model.onnx"}},
    {"unet": {"inputs": []}}, {"unet": {"inputs": {}}}, {"unet": {"inputs": [{"name": "x"}]}},
    {"unet": {"inputs": [{"name": "x", "dtype": "float64", "shape": []}]}},
    {"unet": {"inputs": [{"name": "x", "dtype": "float32", "shape": ["nowhere"]}]}},
    {"unet": {"inputs": [{"name": "x", "dtype": "float32", "shape": ["8 * nowhere"]}]}},
    {"unet": {"inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}]}},
    {"unet": {"inputs": [{"name": "x", "dtype": "float32", "shape": [1.5]}]}},
    {"unet": {"inputs": [{"name": "x", "dtype": "float32", "shape": ["-8 * rows"]}]}},
    {"unet": {"inputs": [{"name": "x", "dtype": "float32", "shape": ["99999999999 * rows"]}]}},
    {"unet": {"inputs": [{"name": 5, "dtype": "float32", "shape": []}]}},
    {"unet": {"axes": {"rows": {"min": 2, "opt": 1, "max": 3}}}},
    {"unet": {"axes": {"rows": {"min": 1, "opt": 1}}}}, {"unet": {"axes": []}},
    {"unet": {"axes": {"rows": {"min": 0, "opt": 1, "max": 3}}}},
    {"unet": {"axes": {"rows": {"min": 1, "opt": 1, "max": 3, "multiple": 0}}}},
]  # fmt: skip


@pytest.mark.parametrize("change", SPEC_CHANGES)
def test_engines_that_are_none(files_check, folder: Path, change: dict[str, Any]) -> None:
    """The hash of engines.json is put right in the manifest, so that its content is looked at."""
    path = folder / ENGINES
    for is_bad in (False, True):
        data = json.loads(path.read_text())
        for name, value in change.items() if is_bad else ():
            data[name] = data[name] | value if isinstance(value, dict) and name in data else value
        path.write_text(json.dumps(data))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        listed = json.loads((folder / "manifest.json").read_text())["files"]
        change_sealed(folder, files=listed | {ENGINES: digest})
        answer = opened(files_check, folder)
        assert status_of(answer) == (DAMAGED if is_bad else 0), answer
    assert "engines.json" in answer["error"]


def test_paths_are_judged_as_in_python(files_check) -> None:
    parts = ("a", "b.onnx", "..", ".", "", "/", "\\", ":", "\0", "é", " ", "...", "manifest.json")
    rng = random.Random(0)
    paths = ["", ".", "..", "/", "//", "a/", "/a", "a//b", "a/./b", "a/..", "C:x", "a\\b"]
    paths += ["/".join(rng.choices(parts, k=rng.randint(1, 4))) for _ in range(500)]
    for path, answer in zip(paths, files_check.ask("inside", paths), strict=True):
        assert answer == (is_inside(path) or path == "manifest.json"), path


def test_json_is_written_as_python_does(files_check) -> None:
    rng = random.Random(0)
    numbers = [struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))[0] for _ in range(3_000)]
    numbers = [n for n in numbers if n == n and abs(n) != float("inf")]
    numbers += [10.0**exponent for exponent in range(-310, 309)]
    numbers += [rng.uniform(-1, 1) * 10.0 ** rng.randint(-6, 20) for _ in range(2_000)]
    numbers += [0.0, -0.0, 5e-324, 1e16, 1e-4, 9.999e-5, 123456789012345680.0, 1 / 3, 2.0**63]
    values: list[Any] = [{"a": number} for number in numbers]
    values += [{"a": n} for n in (0, -1, 2**63 - 1, -(2**63), 2**64 - 1, True, False, None)]
    values += [
        {"z": 1, "a": {"é": "é\U0001f98a\ud7ff\uffff", "\x7f": '\x00\x1f"\\/\b\f\n'}, "": []}
    ]
    values += [{"狐": 1, "\U0001f98a": 2, "\uffff": 3, "B": [[], {}, [1, [2.5]]]}]
    got = files_check.ask("python-json", values)
    assert got == [json.dumps(value, sort_keys=True) for value in values]


BAD_JSON = (
    b"", b"{", b"[]", b"null", b"3", b'"a"', b'{"a":1,"a":2}', b'{"b":{"a":1,"a":1}}',
    b'{"a":[{"k":1,"k":2}]}',
    b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1e999}', b'{"a":"\xff"}', b'{"\xed\xa0\x80":1}',
    b'{"a":"\\ud800"}',
    b"\xef\xbb\xbf{}", b"{} {}", b"{}\0", b"{'a':1}", b'{"a":01}', b'{"a":1,}', b'{"a":"\n"}',
    b"/**/{}",
    b'{"a":' * 65 + b"1" + b"}" * 65, b'{"a":' + b"[" * 64 + b"]" * 64 + b"}", b"[" * 1_000_000,
    b'{"a":' * 1_000_000,
)  # fmt: skip
GOOD_JSON = (
    b"{}", b' {"a" : [1, 2.5, null, true, "\\u00e9\xc3\xa9"]}\n', b'{"a":' * 64 + b"1" + b"}" * 64,
    b'{"a":{"k":1},"b":{"k":1}}', b'[{"k":1},{"k":1}]'.join((b'{"x":', b"}")),
)  # fmt: skip


def test_json_that_is_refused_and_that_is_not(files_check) -> None:
    for data, answer in zip(BAD_JSON, files_check.ask("json", list(BAD_JSON)), strict=True):
        assert status_of(answer) == DAMAGED, data[:60]
        assert "expected a JSON object, got" in answer["error"]
    for data, answer in zip(GOOD_JSON, files_check.ask("json", list(GOOD_JSON)), strict=True):
        assert answer == json.loads(data)


def test_the_hash_of_a_bundle(files_check, bundle: Bundle, tmp_path: Path) -> None:
    assert files_check.one("bundle-hash", str(MINI)) == bundle.hash
    copy = Path(shutil.copytree(MINI, tmp_path / "copy"))
    (copy / "hbsdk.json").unlink()  # now its files are hashed
    for name in ("unet/model.fp16.safetensors", "unet/notes.txt", "tokenizer/other.json"):
        (copy / name).write_text("left alone")
    (copy / "unet" / "model-00001-of-00002.safetensors").write_text("counts")
    unlisted = files_check.one("bundle-hash", str(copy))
    assert unlisted == Bundle.open(copy).hash != bundle.hash
    change_byte(copy / "unet" / "model-00001-of-00002.safetensors")
    assert files_check.one("bundle-hash", str(copy)) == Bundle.open(copy).hash != unlisted
    shutil.rmtree(copy / "regressor")
    assert files_check.one("bundle-hash", str(copy)) == Bundle.open(copy).hash
    shutil.rmtree(copy / "vae")
    assert status_of(files_check.one("bundle-hash", str(copy))) == NOT_FOUND
    assert status_of(files_check.one("bundle-hash", str(tmp_path / "no"))) == NOT_FOUND


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"schema": 2}, MISMATCH), ({"files": []}, DAMAGED), ({"files": {"../a": "0" * 64}}, DAMAGED),
     ({"files": {"a": "0"}}, DAMAGED)],
)  # fmt: skip
def test_a_damaged_bundle_has_no_hash(files_check, tmp_path: Path, changes, status: int) -> None:
    for part in ("tokenizer", "text_encoder", "unet", "vae", "scheduler"):
        shutil.copytree(MINI / part, tmp_path / part)
    path = tmp_path / "hbsdk.json"
    path.write_text(json.dumps(json.loads((MINI / "hbsdk.json").read_text()) | changes))
    assert status_of(files_check.one("bundle-hash", str(tmp_path))) == status
    with pytest.raises(BundleError):
        Bundle.open(tmp_path)


def test_sha256(files_check, tmp_path: Path) -> None:
    for size in (0, 1, 55, 56, 64, 5_000_000):
        path = tmp_path / str(size)
        path.write_bytes(random.Random(size).randbytes(size))
        assert files_check.one("sha256", str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert status_of(files_check.one("sha256", str(tmp_path))) == NOT_FOUND
