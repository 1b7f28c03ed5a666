"""Which runtime a session takes on machines of many kinds, and what it says of the others."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from export import build_engines
from hbsdk.backends import choose as choose_module
from hbsdk.backends.choose import (
    Candidate,
    candidates,
    choose,
    open_engine_backend,
    torch_cuda_version,
)
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import default_root
from hbsdk.errors import EngineError, MissingDependencyError, OptionError
from hbsdk.runtimes import cpu_has_bfloat16
from tests.engine_files import CAPABILITY, VERSIONS, change_byte, reopen, write_engines
from tests.machine import CARD, CPU, CUDA, pretend


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open()


@pytest.fixture(scope="module")
def root(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of three kinds: for a CPU, for ONNX Runtime on a GPU, for TensorRT for RTX."""
    root = tmp_path_factory.mktemp("built")
    write_engines(root / "mini-cpu-0", bundle)
    write_engines(root / "mini-cuda-0", bundle, providers=(CUDA, CPU))
    write_engines(root / "mini-tensorrt-rtx-0", bundle, "tensorrt_rtx")
    return root


@pytest.fixture(autouse=True)
def nowhere_else(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HBSDK_ENGINES", str(root))


def order(bundle: Bundle, engines: Path | None = None) -> list[tuple[str, str, bool]]:
    return [(one.engine, one.place, one.problem is None) for one in candidates(bundle, engines)]


def taken(bundle: Bundle, engine="auto", engines=None, device=None) -> tuple[str, str, str | None]:
    one = choose(bundle, engine, engines, device)
    return one.engine, one.place, one.path and one.path.name


def test_with_a_gpu_and_everything_tensorrt_comes_first(bundle, monkeypatch) -> None:
    pretend(monkeypatch, gpu=CARD, providers=(CUDA, CPU), torch_cuda="13.0")
    assert order(bundle) == [
        ("tensorrt", "gpu", True), ("onnxruntime", "gpu", True), ("torch", "gpu", True),
        ("onnxruntime", "cpu", True),
    ]  # fmt: skip
    assert taken(bundle) == ("tensorrt", "gpu", "mini-tensorrt-rtx-0")
    assert taken(bundle, "onnxruntime") == ("onnxruntime", "gpu", "mini-cuda-0")
    assert taken(bundle, "torch")[0] == "torch"
    assert taken(bundle, device="cuda:0") == taken(bundle)


def test_on_a_cpu_engines_come_before_torch(bundle, root, monkeypatch) -> None:
    pretend(monkeypatch)
    assert order(bundle)[:3] == [
        ("onnxruntime", "cpu", True), ("onnxruntime", "cpu", True), ("torch", "cpu", True)
    ]  # fmt: skip
    assert taken(bundle) == ("onnxruntime", "cpu", "mini-cpu-0")
    (last,) = candidates(bundle)[3:]
    assert (last.engine, last.place, last.folder) == ("tensorrt", "gpu", None)
    assert last.path == root / "mini-tensorrt-rtx-0"
    assert "there is no NVIDIA GPU here" in str(last.problem)
    assert "for ONNX Runtime: python export/build_engines.py" in str(last.remedy)


def test_a_gpu_that_torch_and_onnxruntime_cannot_use(bundle, monkeypatch) -> None:
    pretend(monkeypatch, gpu=CARD, cuda_python=False)
    assert order(bundle) == [
        ("onnxruntime", "cpu", True), ("onnxruntime", "cpu", True), ("torch", "cpu", True),
        ("tensorrt", "gpu", False),
    ]  # fmt: skip
    assert "pip install cuda-python" in str(candidates(bundle)[-1].problem)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_torch_is_taken_for_any_device_where_no_engines_are(
    bundle, tmp_path, monkeypatch, device
) -> None:
    """Torch itself refuses devices that are not there."""
    monkeypatch.setenv("HBSDK_ENGINES", str(tmp_path))
    pretend(monkeypatch, gpu=CARD, torch_cuda="13.0")
    assert taken(bundle, device=device) == ("torch", "gpu", None)


def test_for_the_cpu_tensorrt_is_not_taken(bundle, monkeypatch) -> None:
    pretend(monkeypatch, gpu=CARD, providers=(CUDA, CPU), torch_cuda="13.0")
    assert taken(bundle, device="cpu")[0] == "onnxruntime"
    with pytest.raises(EngineError, match="none that runs on device 'cpu'"):
        choose(bundle, "tensorrt", None, "cpu")


def test_where_engines_are_asked_for_torch_is_not_taken(bundle, tmp_path, monkeypatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(EngineError) as raised:
        choose(bundle, "auto", tmp_path, None)
    assert f"onnxruntime: no engines of it for this bundle in {tmp_path}" in str(raised.value)
    assert "torch" not in str(raised.value)
    assert taken(bundle, "torch", tmp_path)[0] == "torch"


def test_without_torch_and_without_runtimes_every_reason_is_told(bundle, monkeypatch) -> None:
    pretend(monkeypatch, runtimes={}, torch=False)
    assert not any(usable for _, _, usable in order(bundle))
    with pytest.raises(EngineError) as raised:
        choose(bundle, "auto", None, None)
    for extra in ("torch", "cpu", "tensorrt-rtx"):
        assert f'pip install "hbsdk[{extra}]"' in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("missing", ["diffusers", "transformers"])
def test_torch_alone_is_not_enough(bundle, tmp_path, monkeypatch, missing) -> None:
    monkeypatch.setenv("HBSDK_ENGINES", str(tmp_path))
    pretend(monkeypatch)
    assert taken(bundle) == ("torch", "cpu", None)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(EngineError, match=f"torch: {missing} not installed"):
        choose(bundle, "auto", None, None)


def test_a_damaged_onnxruntime_is_told_and_torch_taken(bundle, monkeypatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert taken(bundle) == ("torch", "cpu", None)
    reasons = [str(one.problem) for one in candidates(bundle) if one.engine == "onnxruntime"]
    assert len(reasons) == 2
    assert all("install one of them again" in reason for reason in reasons)


def test_folders_that_do_not_fit_say_why_under_their_own_engine(
    bundle, tmp_path, monkeypatch
) -> None:
    pretend(monkeypatch, gpu=CARD, torch_cuda="13.0")
    old = write_engines(tmp_path / "old-0", bundle, "tensorrt_rtx", runtime_version="1.6.0.1")
    other = write_engines(tmp_path / "other-0", bundle, bundle_hash="f" * 64)
    damaged = write_engines(tmp_path / "damaged-0", bundle)
    change_byte(damaged / "engines.json")
    (tmp_path / "empty-0").mkdir()
    found: dict[Path | None, Candidate] = {one.path: one for one in candidates(bundle, tmp_path)}
    assert found[old].engine == "tensorrt"
    assert "runtime_version (tensorrt_rtx)" in str(found[old].problem)
    assert "1.6.0.1" in str(found[old].problem)
    assert VERSIONS["tensorrt_rtx"] in str(found[old].problem)
    assert "bundle_hash" in str(found[other].problem)
    assert "engines.json was changed" in str(found[damaged].problem)
    assert "manifest.json" in str(found[tmp_path / "empty-0"].problem)
    for one in found.values():
        assert one.path is None or "python export/build_engines.py" in str(one.remedy)
    assert taken(bundle, engines=write_engines(tmp_path / "z-0", bundle))[2] == "z-0"


def test_an_engine_that_is_none_is_refused(bundle) -> None:
    with pytest.raises(
        OptionError, match=re.escape("one of auto, torch, onnxruntime, openvino, tensorrt")
    ):
        choose(bundle, "onnx", None, None)


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", "13.0"),
        ("cuda = '12.8'\n", "12.8"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", None),
        ("", None),
        (None, None),
    ],
)
def test_the_cuda_of_torch_is_read_off_its_files(tmp_path, monkeypatch, text, cuda) -> None:
    if text is not None:
        (tmp_path / "version.py").write_text(text)
    spec = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("hbsdk.backends.choose.find_spec", lambda name: spec)
    assert torch_cuda_version() == cuda


def test_the_cuda_of_the_torch_that_is_here_is_what_it_says_itself() -> None:
    import torch

    assert importlib.util.find_spec("torch") is not None
    assert torch_cuda_version() == torch.version.cuda


@pytest.mark.parametrize("capability", ["9.0", None])
def test_a_build_for_other_gpus_draws_with_its_graphs(capability, bundle, root, monkeypatch):
    """RTX engines may be built on an H200, which cannot run them: nothing of them is loaded."""
    engines = reopen(root / "mini-tensorrt-rtx-0", bundle)
    monkeypatch.setattr(choose_module, "compute_capability", lambda: capability)
    assert open_engine_backend(bundle, engines).name == "onnxruntime"


def test_a_build_for_this_gpu_draws_with_its_engines(bundle, root, monkeypatch):
    engines = reopen(root / "mini-tensorrt-rtx-0", bundle)
    monkeypatch.setattr(choose_module, "compute_capability", lambda: CAPABILITY)
    opened = []
    monkeypatch.setattr(
        "hbsdk.backends.tensorrt.TensorRTBackend", lambda *_, **__: opened.append("tensorrt")
    )
    open_engine_backend(bundle, engines)
    assert opened == ["tensorrt"]


@pytest.mark.parametrize(
    ("own", "built_for", "expected"),
    [
        ("8.9", ("8.6", "8.9"), "8.9"), ("9.0", ("8.6", "8.9"), "8.6"), (None, ("8.6",), "8.6"),
        ("9.0", ("9.0",), "9.0"), ("9.0", (), "9.0"), (None, (), None),
    ],
)  # fmt: skip
def test_builds_are_opened_as_what_they_are_for(own, built_for, expected, monkeypatch):
    monkeypatch.setattr(build_engines, "compute_capability", lambda: own)
    assert build_engines.capability_of(built_for) == expected


@pytest.mark.parametrize(
    ("bfloat16", "small", "first"),
    [(True, False, "torch"), (True, True, "onnxruntime"), (False, False, "onnxruntime")],
)
def test_on_a_cpu_torch_comes_first_for_large_bundles_in_bfloat16(
    bundle, monkeypatch, bfloat16, small, first
) -> None:
    pretend(monkeypatch, bfloat16=bfloat16)
    if not small:
        monkeypatch.setattr("hbsdk.backends.precision._SMALL_UNET_BYTES", 1_000)
    assert taken(bundle)[0] == first
    # Engines that are asked for by folder are taken all the same.
    assert taken(bundle, engines=default_root() / "mini-cpu-0")[0] == "onnxruntime"


def test_which_cpus_have_bfloat16(monkeypatch, tmp_path) -> None:
    def told(text: str | None) -> bool:
        cpu_has_bfloat16.cache_clear()

        def read_text(*_: object) -> str:
            if text is None:
                raise FileNotFoundError
            return text

        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_text", read_text)
            return cpu_has_bfloat16()

    assert told("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 gfni\n")
    assert told("Features\t: fp asimd i8mm bf16\n")
    assert not told("model name\t: bf16 machine\nflags\t\t: fpu avx512f avx2\n")
    assert not told(None)
    cpu_has_bfloat16.cache_clear()


WITH_OPENVINO = {**VERSIONS, "openvino": "2026.4.1"}


@pytest.mark.parametrize(
    ("bfloat16", "small", "expected"),
    [
        (True, False, ["openvino", "torch", "onnxruntime"]),
        (True, True, ["onnxruntime", "openvino", "torch"]),
        (False, False, ["onnxruntime", "openvino", "torch"]),
    ],
)
def test_openvino_runs_onnx_runtimes_engines(
    bundle, root, monkeypatch, bfloat16, small, expected
) -> None:
    pretend(monkeypatch, bfloat16=bfloat16, runtimes=WITH_OPENVINO)
    if not small:
        monkeypatch.setattr("hbsdk.backends.precision._SMALL_UNET_BYTES", 1_000)
    usable = list(dict.fromkeys(one for one, _, works in order(bundle) if works))
    assert usable == expected
    found = choose(bundle, "openvino", root / "mini-cpu-0", None)
    assert (found.engine, found.place, found.path) == ("openvino", "cpu", root / "mini-cpu-0")
    assert choose(bundle, "openvino", None, "cpu").engine == "openvino"
    with pytest.raises(EngineError, match="none that runs on device 'cuda'"):
        choose(bundle, "openvino", None, "cuda")


def test_openvino_without_engines_says_whose_it_needs(bundle, tmp_path, monkeypatch) -> None:
    pretend(monkeypatch, runtimes=WITH_OPENVINO)
    with pytest.raises(EngineError, match=r"no engines of ONNX Runtime, which it runs.*build_engi"):
        choose(bundle, "openvino", tmp_path, None)


def test_openvino_that_is_not_installed_is_told(bundle, monkeypatch) -> None:
    pretend(monkeypatch)
    with pytest.raises(MissingDependencyError, match=r'pip install "hbsdk\[openvino\]"'):
        choose(bundle, "openvino", None, None)
    assert "openvino" not in {one for one, *_ in order(bundle)}


def test_openvino_that_cannot_be_found_is_told(bundle, monkeypatch) -> None:
    pretend(monkeypatch, runtimes=WITH_OPENVINO)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        EngineError, match=r"openvino is installed, and cannot be found\. .*force-reinstall"
    ):
        choose(bundle, "openvino", None, None)
    assert choose(bundle, "auto", None, None).engine == "onnxruntime"
