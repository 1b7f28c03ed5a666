"""Engine folders open where everything matches; each mismatch names field, values and command."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from export.recipe import read_recipe
from hbsdk.bundle import MINI, Bundle
from hbsdk.engine_folder import EngineFolder, default_root, scan_engines
from hbsdk.errors import EngineError
from hbsdk.manifest import (
    Manifest,
    Runtime,
    build_command,
    folder_name,
    machine_platform,
    read_manifest,
    write_manifest,
)
from hbsdk.network_sizes import network_sizes
from tests.engine_files import (
    CAPABILITY,
    VERSIONS,
    change_byte,
    change_manifest,
    manifest_of,
    reopen,
    write_engine_files,
    write_engines,
)

RUNTIMES: tuple[Runtime, ...] = ("onnxruntime", "tensorrt_rtx", "tensorrt")
COMMAND = "python export/build_engines.py --recipe mini-cpu"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    return write_engines(tmp_path / folder_name("mini-cpu", bundle.hash), bundle)


# What is written is read, and opens.


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_was_written_opens(bundle: Bundle, tmp_path: Path, runtime: Runtime) -> None:
    opened = reopen(write_engines(tmp_path / "engines", bundle, runtime), bundle)
    assert opened.manifest == read_manifest(tmp_path / "engines")
    assert opened.manifest.runtime == runtime
    recipe = read_recipe(opened.manifest.recipe_name)
    assert dict(opened.specs) == recipe.specs(network_sizes(bundle))
    opened.verify()
    suffix = ".onnx" if runtime == "onnxruntime" else ".engine"
    assert opened.path("denoise_step") == tmp_path / "engines" / "unet" / f"denoise_step{suffix}"
    assert opened.path(opened.specs["unet"], ".onnx") == tmp_path / "engines" / "unet/model.onnx"


def test_every_file_is_listed_with_its_sha256(folder: Path) -> None:
    listed = read_manifest(folder).files
    there = {path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"}
    assert {folder / path for path in listed} == there
    for path, digest in listed.items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == digest


def test_the_manifest_tells_when_and_by_what_it_was_made(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.created.endswith("+00:00")
    assert manifest.hbsdk_version == "0.1.0"
    assert (manifest.seconds, manifest.image_psnr_db) == (1.5, 60.0)
    assert manifest.parity == {"unet": {"max_abs": 1e-6, "cosine": 1.0}}
    assert manifest.compute_capabilities == ()


def test_writing_again_leaves_no_trace(folder: Path, bundle: Bundle) -> None:
    before = read_manifest(folder)
    specs = read_recipe("mini-cpu").specs(network_sizes(bundle))
    after = write_manifest(folder, replace(before, seconds=2.0), specs)
    assert after.files == before.files
    assert reopen(folder, bundle).manifest.seconds == 2.0


def test_names_and_commands(bundle: Bundle, tmp_path: Path) -> None:
    assert folder_name("mini-cpu", "0123456789abcdef") == "mini-cpu-0123456789ab"
    assert bundle.folder == MINI
    assert build_command(bundle, "mini-cpu") == COMMAND
    moved = replace(bundle, folder=tmp_path / "my bundle")
    assert f"--bundle '{tmp_path}/my bundle' --recipe x" in build_command(moved, "x")
    assert "--bundle BUNDLE --recipe x" in build_command(replace(bundle, folder=None), "x")


def test_a_moved_folder_opens(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    reopen(folder.rename(tmp_path / "elsewhere"), bundle).verify()


def test_what_file_managers_leave_is_no_addition(folder: Path, bundle: Bundle) -> None:
    (folder / "unet" / ".DS_Store").write_bytes(b"\0")
    reopen(folder, bundle).path("unet")


# Each field that does not match names itself, both values, and the command.


def assert_names(error: EngineError, field: str, expected: str, got: str, command: str) -> None:
    assert field in error.what
    assert expected in str(error.expected)
    assert got in str(error.got)
    assert command in str(error.remedy)
    assert all(text in str(error) for text in (field, expected, got, command))


def test_another_bundle(folder: Path, bundle: Bundle) -> None:
    files = dict(bundle.info.files) | {"unet/config.json": "0" * 64}
    other = replace(bundle, info=replace(bundle.info, files=files))
    assert other.hash != bundle.hash
    with pytest.raises(EngineError) as raised:
        reopen(folder, other)
    assert_names(raised.value, "bundle_hash", other.hash, bundle.hash, COMMAND)


def test_another_recipe(folder: Path, bundle: Bundle) -> None:
    here = read_manifest(folder).recipe_hash
    reopen(folder, bundle, recipe_hash=here)
    with pytest.raises(EngineError) as raised:
        reopen(folder, bundle, recipe_hash="1" * 64)
    assert_names(raised.value, "recipe_hash", "1" * 64, here, COMMAND)


def test_the_folders_recipe_was_edited(folder: Path, bundle: Bundle) -> None:
    text = (folder / "recipe.toml").read_bytes() + b"# mine\n"
    (folder / "recipe.toml").write_bytes(text)
    with pytest.raises(EngineError) as raised:
        reopen(folder, bundle)
    edited, built = hashlib.sha256(text).hexdigest(), read_manifest(folder).recipe_hash
    assert_names(raised.value, "recipe_hash", edited, built, COMMAND)


@pytest.mark.parametrize("version", ["1.30.0", "2.31.0", "1.3", "1"])
def test_another_onnxruntime(folder: Path, bundle: Bundle, version: str) -> None:
    with pytest.raises(EngineError) as raised:
        reopen(folder, bundle, runtimes={"onnxruntime": version})
    assert_names(raised.value, "runtime_version", version, "1.31.0", COMMAND)


@pytest.mark.parametrize("version", ["1.31.0", "1.31.7", "1.31.1.post2"])
def test_a_bug_fix_of_onnxruntime_is_no_other(folder: Path, bundle: Bundle, version: str) -> None:
    reopen(folder, bundle, runtimes={"onnxruntime": version})


@pytest.mark.parametrize("runtime", ["tensorrt_rtx", "tensorrt"])
def test_another_tensorrt_is_always_another(
    bundle: Bundle, tmp_path: Path, runtime: Runtime
) -> None:
    folder = write_engines(tmp_path / "engines", bundle, runtime)
    version = VERSIONS[runtime] + "1"  # the last figure differs
    with pytest.raises(EngineError) as raised:
        reopen(folder, bundle, runtimes={runtime: version})
    command = build_command(bundle, read_manifest(folder).recipe_name)
    assert_names(raised.value, "runtime_version", version, VERSIONS[runtime], command)


def test_another_runtime(folder: Path, bundle: Bundle) -> None:
    with pytest.raises(EngineError) as raised:
        reopen(folder, bundle, runtimes={"tensorrt": "10.3"})
    assert_names(raised.value, "runtime", "tensorrt", "onnxruntime", 'pip install "hbsdk[cpu]"')
    assert "python export/build_engines.py" in str(raised.value)
    assert "--recipe" not in str(raised.value)


@pytest.mark.parametrize("runtime", ["tensorrt_rtx", "tensorrt"])
@pytest.mark.parametrize("capability", ["9.0", "8.90", None])
def test_another_gpu(
    bundle: Bundle, tmp_path: Path, runtime: Runtime, capability: str | None
) -> None:
    folder = write_engines(tmp_path / "engines", bundle, runtime)
    with pytest.raises(EngineError) as raised:
        reopen(folder, bundle, compute_capability=capability)
    expected = capability or "no NVIDIA GPU"
    command = "python export/build_engines.py"
    assert_names(raised.value, "compute_capabilities", expected, f"8.6, {CAPABILITY}", command)


def test_onnxruntime_needs_no_gpu(folder: Path, bundle: Bundle) -> None:
    reopen(folder, bundle, compute_capability=None)


def test_another_platform(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_engines(tmp_path / "engines", bundle, "tensorrt")
    portable = write_engines(tmp_path / "portable", bundle, "tensorrt_rtx")
    built_on = machine_platform()
    monkeypatch.setattr("platform.machine", lambda: "ARM64")
    assert machine_platform() == f"{sys.platform}-aarch64"
    with pytest.raises(EngineError) as raised:
        reopen(folder, bundle)
    command = "python export/build_engines.py --recipe sd15-tensorrt"
    assert_names(raised.value, "platform", "aarch64", built_on, command)
    reopen(portable, bundle)


def test_another_schema_is_told_before_other_keys(folder: Path, bundle: Bundle) -> None:
    (folder / "manifest.json").write_text('{"schema": 2, "new": true}')
    with pytest.raises(EngineError) as raised:
        reopen(folder, bundle)
    assert_names(raised.value, "schema", "1", "2", COMMAND)


def test_a_manifest_edited_by_hand_is_noticed(folder: Path, bundle: Bundle) -> None:
    change_manifest(folder, seconds=1.25)
    with pytest.raises(EngineError, match=r"manifest.json was changed.*--recipe mini-cpu"):
        reopen(folder, bundle)
    change_manifest(folder, seconds=1.5)
    reopen(folder, bundle)


# Scanning.


def scan(root: Path, bundle: Bundle) -> dict[str, EngineFolder | EngineError]:
    found = scan_engines(root, bundle, runtimes=VERSIONS, compute_capability=CAPABILITY)
    return {folder.name: result for folder, result in found}


def test_scanning_tells_which_fit_and_why_not(bundle: Bundle, tmp_path: Path) -> None:
    write_engines(tmp_path / "b-fits", bundle)
    write_engines(tmp_path / "a-old", bundle, runtime_version="1.20.0")
    (tmp_path / "c-empty").mkdir()
    (tmp_path / ".building-d").mkdir()
    (tmp_path / "file").write_text("")
    found = scan(tmp_path, bundle)
    assert list(found) == ["a-old", "b-fits", "c-empty"]
    assert isinstance(found["b-fits"], EngineFolder)
    for name, field in (("a-old", "runtime_version"), ("c-empty", "manifest.json is missing")):
        error = found[name]
        assert isinstance(error, EngineError)
        assert field in str(error)


def test_scanning_one_engine_folder_finds_it(folder: Path, bundle: Bundle) -> None:
    assert list(scan(folder, bundle)) == [folder.name]


def test_scanning_where_nothing_is(bundle: Bundle, tmp_path: Path) -> None:
    assert scan(tmp_path / "none", bundle) == {}
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"HBSDK_ENGINES"):
        scan(tmp_path / "file", bundle)


def test_where_engines_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HBSDK_ENGINES", raising=False)
    assert default_root() == Path("engines/built")
    monkeypatch.setenv("HBSDK_ENGINES", "/data/engines")
    assert default_root() == Path("/data/engines")


# What cannot be written.


def write_with(
    folder: Path, bundle: Bundle, change: Callable[[Path], object], **changes: Any
) -> Manifest:
    recipe = read_recipe("mini-cpu")
    write_engine_files(folder, recipe, bundle)
    change(folder)
    specs = recipe.specs(network_sizes(bundle))
    return write_manifest(folder, replace(manifest_of(recipe, bundle), **changes), specs)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"parity": {"unet": {"max_abs": float("nan")}}}, r"expected finite numbers"),
        ({"parity": {"unet": {"max_abs": object()}}}, r"expected finite numbers"),
        ({"image_psnr_db": float("inf")}, r"expected finite numbers"),
        ({"recipe_hash": "0" * 64}, r"recipe_hash .*sha256 of its recipe.toml"),
        ({"bundle_hash": "0"}, r"bundle_hash .*64 lower-case"),
        ({"compute_capabilities": ("8.9",)}, r"compute_capabilities .*none for onnxruntime"),
        ({"runtime": "tensorrt"}, r"compute_capabilities .*some for TensorRT"),
        ({"providers": ()}, r"providers .*some for onnxruntime"),
        ({"platform": "linux"}, r"platform .*null"),
        ({"precision": {"unett": "float16"}}, r"precision in"),
        ({"recipe_name": "../x"}, r"recipe_name in"),
    ],
)
def test_a_manifest_without_meaning_is_not_written(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(EngineError, match=match):
        write_with(tmp_path, bundle, lambda _: None, **changes)
    assert not list(tmp_path.glob("*manifest.json*"))


def test_an_engine_without_a_file_is_not_listed(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"unet/denoise_step.onnx is missing"):
        write_with(tmp_path, bundle, lambda folder: (folder / "unet/denoise_step.onnx").unlink())


def test_a_link_is_not_listed(bundle: Bundle, tmp_path: Path) -> None:
    for target in ("/etc/passwd", "/etc"):
        home = tmp_path / target.replace("/", "_")
        home.mkdir()
        with pytest.raises(EngineError, match=r"expected an ordinary file, got a link"):
            write_with(home, bundle, lambda folder, to=target: (folder / "a").symlink_to(to))


def test_every_field_has_a_rule(folder: Path) -> None:
    stated = set(json.loads((folder / "manifest.json").read_text()))
    assert stated == {entry.name for entry in fields(Manifest)} | {"manifest_sha256"}


def test_hashes_are_checked_before_each_use_and_remembered(folder: Path, bundle: Bundle) -> None:
    opened = reopen(folder, bundle)
    opened.path("unet")
    change_byte(folder / "vae_decoder" / "model.onnx")
    opened.path("unet")
    with pytest.raises(EngineError, match=r"vae_decoder/model.onnx was changed"):
        opened.path("vae_decoder")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, hbsdk.engine_folder; "
        "print([name for name in ('torch', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'diffusers', "
        "'transformers', 'tomllib') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
