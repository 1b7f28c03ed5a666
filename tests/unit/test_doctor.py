"""What `hbsdk doctor` finds on machines of many kinds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hbsdk.bundle import Bundle
from hbsdk.doctor import diagnose, in_words
from hbsdk.errors import BundleError, EngineError
from tests.engine_files import write_engines
from tests.machine import CARD, CPU, CUDA, pretend


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One folder for a CPU, one for TensorRT for RTX, one of another bundle."""
    bundle = Bundle.open()
    write_engines(tmp_path / "mini-cpu-0", bundle)
    write_engines(tmp_path / "mini-tensorrt-rtx-0", bundle, "tensorrt_rtx")
    write_engines(tmp_path / "other-0", bundle, bundle_hash="f" * 64)
    monkeypatch.setenv("HBSDK_ENGINES", str(tmp_path))
    return tmp_path


def lines_with(text: str, part: str) -> list[str]:
    return [line for line in text.splitlines() if part in line]


def test_a_machine_with_a_gpu_and_tensorrt(root, monkeypatch) -> None:
    pretend(monkeypatch, gpu=CARD, providers=(CUDA, CPU), torch_cuda="13.0")
    found = diagnose()
    (gpu,) = found["gpus"]
    assert gpu["compute_capability"] == "8.9"
    assert found["runtimes"]["torch"] == {"version": "2.13.0", "cuda": "13.0"}
    assert found["auto"]["takes"] == {
        "engine": "tensorrt", "place": "gpu", "engines": str(root / "mini-tensorrt-rtx-0")
    }  # fmt: skip
    usable = {Path(one["folder"]).name: one["usable"] for one in found["engines"]["folders"]}
    assert usable == {"mini-cpu-0": True, "mini-tensorrt-rtx-0": True, "other-0": False}
    (other,) = (one for one in found["engines"]["folders"] if not one["usable"])
    assert "bundle_hash" in other["problem"]
    assert other["remedy"].endswith("python export/build_engines.py --recipe mini-cpu")
    said = in_words(found)
    assert "GPU 0: NVIDIA GeForce RTX 4090, 24564 MiB, driver 580.65.06" in said
    assert "onnxruntime 1.31.0: CUDAExecutionProvider, CPUExecutionProvider" in said
    assert "torch 2.13.0, built for CUDA 13.0" in said
    assert "takes tensorrt on the GPU (mini-tensorrt-rtx-0)" in said
    (reason,) = lines_with(said, "not onnxruntime on the CPU (mini-cpu-0)")
    assert f"engines='{root / 'mini-cpu-0'}' takes it" in reason
    assert lines_with(said, "not torch on the GPU: usable, but")
    assert "refinement (personalize with steps > 0): torch on the GPU" in said


def test_a_gpu_that_only_cuda_knows(root, monkeypatch) -> None:
    pretend(monkeypatch, gpu=CARD, listed=False)
    found = diagnose()
    assert found["gpus"] == []
    assert "GPU: NVIDIA, compute capability 8.9" in in_words(found)
    assert found["auto"]["takes"]["engine"] == "tensorrt"


def test_a_machine_without_a_gpu(root, monkeypatch) -> None:
    pretend(monkeypatch)
    said = in_words(diagnose())
    assert "GPU: no NVIDIA GPU" in said
    assert "torch 2.13.0, built without CUDA" in said
    assert "takes onnxruntime on the CPU (mini-cpu-0)" in said
    assert lines_with(said, "not tensorrt on the GPU (mini-tensorrt-rtx-0): not usable, see above")
    (reason,) = lines_with(said, "  mini-tensorrt-rtx-0: not usable")
    assert "there is no NVIDIA GPU here" in reason
    assert "python export/build_engines.py" in reason


def test_a_machine_with_nothing_installed(root, monkeypatch) -> None:
    pretend(monkeypatch, runtimes={}, torch=False)
    found = diagnose()
    assert found["auto"]["takes"] is None
    assert set(found["runtimes"].values()) == {None}
    said = in_words(found)
    assert 'Session(engine="auto") takes nothing' in said
    for extra in ("torch", "cpu", "tensorrt", "tensorrt-rtx"):
        assert lines_with(said, f'not installed (pip install "hbsdk[{extra}]")')
    (refinement,) = lines_with(said, "refinement")
    assert "torch not installed" in refinement


def test_asked_for_engines_torch_is_passed_by(root, tmp_path, monkeypatch) -> None:
    pretend(monkeypatch)
    found = diagnose(None, str(root / "mini-cpu-0"))
    assert found["engines"]["root"] == str(root / "mini-cpu-0")
    (torch,) = (one for one in found["auto"]["others"] if one["engine"] == "torch")
    assert torch["reason"].startswith("engines are asked for")
    nothing = diagnose(None, tmp_path / "nowhere")
    assert nothing["auto"]["takes"] is None
    assert nothing["engines"]["folders"] == []
    assert f"engines in {tmp_path / 'nowhere'}: none" in in_words(nothing)


def test_findings_are_json_and_every_candidate_is_in_them_once(root, monkeypatch) -> None:
    pretend(monkeypatch, gpu=CARD)
    found = diagnose()
    assert json.loads(json.dumps(found)) == found
    every = [found["auto"]["takes"], *found["auto"]["others"]]
    named = [one["engines"] for one in every if one["engines"]]
    assert sorted(named) == sorted(one["folder"] for one in found["engines"]["folders"])
    assert all(one["reason"] for one in found["auto"]["others"])


def test_a_system_that_does_not_tell_its_memory(monkeypatch) -> None:
    """Python on Windows has no sysconf."""
    assert diagnose()["system"]["memory_bytes"] > 2**28
    monkeypatch.delattr(os, "sysconf")
    found = diagnose()
    assert found["system"]["memory_bytes"] is None
    assert "memory unknown" in in_words(found)


def test_bad_places_are_told(tmp_path) -> None:
    with pytest.raises(BundleError):
        diagnose(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="expected a folder that can be read"):
        diagnose(None, tmp_path / "file")


def test_it_runs_where_neither_torch_nor_onnxruntime_can_be_imported(root) -> None:
    code = """
import sys
for name in ("torch", "diffusers", "transformers", "onnxruntime", "openvino"):
    sys.modules[name] = None
from hbsdk.cli import app
app(["doctor"])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert 'Session(engine="auto") takes nothing' in run.stdout
    assert "torch, diffusers, transformers not installed" in run.stdout


def test_it_imports_no_torch(root) -> None:
    code = (
        "import sys; from hbsdk.doctor import diagnose; diagnose(); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr
