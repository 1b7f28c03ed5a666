"""Which runtime a session takes, and what it says when it cannot take the one asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnxruntime
import pytest

from hbsdk.backends.choose import choose
from hbsdk.backends.onnxruntime import choose_providers
from hbsdk.bundle import Bundle
from hbsdk.errors import EngineError, OptionError
from hbsdk.runtimes import compute_capability
from hbsdk.session import Session
from tests.engine_files import change_manifest
from tests.tiny_bundle import write_tiny_bundle

CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))
no_gpu = pytest.mark.skipif(compute_capability() is not None, reason="needs a machine without GPU")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Path:
    """Another bundle: the same networks, other weights."""
    return write_tiny_bundle(tmp_path_factory.mktemp("stranger") / "tiny", seed=1)


def opened(bundle: Path, **settings) -> str:
    return Session(bundle, progress=False, **settings).backend.name


def test_auto_takes_engines_that_match_and_else_pytorch(
    tiny_bundle, tiny_engines, stranger, tmp_path, monkeypatch
):
    assert opened(tiny_bundle) == "torch"
    monkeypatch.setenv("HBSDK_ENGINES", str(tiny_engines.parent))
    assert opened(tiny_bundle) == "onnxruntime"
    assert opened(tiny_bundle, engine="torch") == "torch"
    assert opened(tiny_bundle, engine="onnxruntime") == "onnxruntime"
    assert opened(stranger) == "torch"
    monkeypatch.setenv("HBSDK_ENGINES", str(tiny_engines))  # the folder itself
    assert opened(tiny_bundle) == "onnxruntime"
    assert opened(tiny_bundle, device="cpu") == "onnxruntime"
    monkeypatch.setenv("HBSDK_ENGINES", str(tmp_path / "nowhere"))
    assert opened(tiny_bundle) == "torch"
    # In the current folder, where the build puts them.
    monkeypatch.delenv("HBSDK_ENGINES")
    shutil.copytree(tiny_engines, tmp_path / "engines" / "built" / tiny_engines.name)
    monkeypatch.chdir(tmp_path)
    assert opened(tiny_bundle) == "onnxruntime"


def test_engines_that_are_asked_for_are_not_replaced_by_pytorch(
    tiny_bundle, tiny_engines, stranger, tmp_path
):
    assert opened(tiny_bundle, engines=tiny_engines) == "onnxruntime"
    assert opened(tiny_bundle, engines=str(tiny_engines.parent)) == "onnxruntime"
    hashes = [Bundle.open(folder).hash for folder in (stranger, tiny_bundle)]
    for engine in ("auto", "onnxruntime"):
        with pytest.raises(EngineError) as caught:
            Session(stranger, engine=engine, engines=tiny_engines)
        message = str(caught.value)
        assert f"bundle_hash of engines {tiny_engines}: expected {hashes[0]}" in message
        assert f"got {hashes[1]}" in message
        assert "python export/build_engines.py" in message
    with pytest.raises(EngineError, match=r"onnxruntime: no engines of it.*build_engines\.py"):
        Session(tiny_bundle, engines=tmp_path / "nowhere")


def test_a_manifest_that_does_not_fit_is_told(tiny_bundle, tiny_engines, tmp_path):
    copied = tmp_path / tiny_engines.name
    shutil.copytree(tiny_engines, copied)
    assert opened(tiny_bundle, engines=copied) == "onnxruntime"
    change_manifest(copied, runtime_version="1.2.0")
    with pytest.raises(EngineError, match=r"runtime_version \(onnxruntime\).*got 1\.2\.0"):
        Session(tiny_bundle, engines=copied)


def test_a_graph_that_was_changed_is_told_when_it_is_first_needed(
    tiny_bundle, tiny_engines, tmp_path
):
    copied = tmp_path / tiny_engines.name
    shutil.copytree(tiny_engines, copied)
    with (copied / "unet" / "model.onnx_data").open("r+b") as file:
        file.seek(5000)
        file.write(b"\0\1\2\3")
    session = Session(tiny_bundle, engines=copied, progress=False)
    with pytest.raises(EngineError, match=r"model\.onnx_data was changed: expected sha256"):
        session.generate("a cat", num_inference_steps=2)
    whole = Session(tiny_bundle, engines=tiny_engines, progress=False)
    assert whole.generate("a cat", num_inference_steps=2)


@no_gpu
def test_tensorrt_without_a_gpu_is_told(tiny_bundle, tiny_engines):
    message = r"engine 'tensorrt' for bundle 'tiny'.*tensorrt: there is no NVIDIA GPU here"
    for engines in (None, tiny_engines):
        with pytest.raises(EngineError, match=message):
            Session(tiny_bundle, engine="tensorrt", engines=engines)


@no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_told(device, tiny_bundle, tiny_engines):
    for settings in ({}, {"engine": "torch"}):
        with pytest.raises(OptionError, match=f"device: expected a device.*got {device}"):
            Session(tiny_bundle, device=device, **settings)
    for settings in ({}, {"engine": "onnxruntime"}):
        with pytest.raises(EngineError, match=f"device '{device}'"):
            Session(tiny_bundle, device=device, engines=tiny_engines, **settings)


@pytest.mark.parametrize("engine", ["onnx", "ONNXRuntime", "", None, "tensorrt_rtx"])
def test_an_engine_that_there_is_not_is_told(engine, tiny_bundle):
    with pytest.raises(OptionError, match="one of auto, torch, onnxruntime, openvino, tensorrt"):
        Session(tiny_bundle, engine=engine)


@pytest.mark.parametrize("memory", ["tiny", "", None])
def test_a_choice_of_memory_that_there_is_not_is_told(memory, tiny_bundle, tiny_engines):
    for settings in ({"engine": "torch"}, {"engines": tiny_engines}):
        with pytest.raises(OptionError, match="memory: expected one of high, low"):
            Session(tiny_bundle, memory=memory, **settings)


def test_the_best_candidate_comes_first(tiny_bundle, tiny_engines):
    bundle = Bundle.open(tiny_bundle)
    chosen = choose(bundle, "auto", tiny_engines, None)
    assert (chosen.engine, chosen.problem) == ("onnxruntime", None)
    assert chosen.folder.folder == tiny_engines
    assert choose(bundle, "torch", tiny_engines, None).engine == "torch"


@pytest.mark.parametrize(
    ("available", "wanted", "device", "providers", "place"),
    [
        ([CPU], [CPU], None, [CPU], "cpu"),
        ([CPU], [CUDA, CPU], None, [CPU], "cpu"),
        ([CUDA, CPU], [CPU], None, [CPU], "cpu"),  # the recipe's word counts
        ([CUDA, CPU], [CUDA, CPU], "cpu", [CPU], "cpu"),
        ([CUDA, CPU], [CUDA, CPU], None, [(CUDA, {"device_id": 0}), CPU], "cuda:0"),
        ([CUDA, CPU], [CUDA], "cuda", [(CUDA, {"device_id": 0}), CPU], "cuda:0"),
        ([CUDA, CPU], [CUDA, CPU], "cuda:2", [(CUDA, {"device_id": 2}), CPU], "cuda:2"),
        (
            [CUDA, TENSORRT, CPU], [TENSORRT, CUDA, CPU], None,
            [(TENSORRT, {"device_id": 0}), (CUDA, {"device_id": 0}), CPU], "cuda:0",
        ),
        ([CUDA, CPU], [TENSORRT, CUDA], "cuda:1", [(CUDA, {"device_id": 1}), CPU], "cuda:1"),
    ],
)  # fmt: skip
def test_providers(available, wanted, device, providers, place, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    assert choose_providers(wanted, device) == (providers, place)


@pytest.mark.parametrize(
    ("available", "wanted", "device", "message"),
    [
        ([CPU], [CPU], "cuda", "has none for a GPU, got cuda"),
        ([CPU], [CUDA, CPU], "cuda:0", f"cpu: of the recipe's {CUDA}, {CPU} this ONNX Runtime"),
        ([CUDA, CPU], [CPU], "cuda", "has none for a GPU"),
        ([CUDA, CPU], [CUDA], "cuda:x", "expected cpu, cuda, cuda:0 and so on, got cuda:x"),
        ([CUDA, CPU], [CUDA], "gpu", "expected cpu, cuda, cuda:0 and so on, got gpu"),
        ([CUDA, CPU], [CUDA], "", "expected cpu, cuda, cuda:0"),
    ],
)
def test_devices_without_a_provider(available, wanted, device, message, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with pytest.raises(OptionError, match=message):
        choose_providers(wanted, device)
