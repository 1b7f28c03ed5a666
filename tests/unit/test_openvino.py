"""OpenVINO's backend: its precision, its compiled shapes, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="building engines needs onnx and onnxscript")

from hbsdk.backends import openvino as module
from hbsdk.backends.openvino import OpenVinoBackend
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder, open_engines
from hbsdk.errors import EngineError, OptionError
from hbsdk.runtimes import runtime_version
from hbsdk.session import Session

SETTINGS = {"num_inference_steps": 4, "output_type": "np", "seed": 1}


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tiny_engines: Path) -> EngineFolder:
    runtimes = {"onnxruntime": runtime_version("onnxruntime")}
    return open_engines(
        tiny_engines, Bundle.open(tiny_bundle), runtimes=runtimes, compute_capability=None
    )


def session_of(tiny_bundle: Path, tiny_engines: Path) -> Session:
    return Session(tiny_bundle, engine="openvino", engines=tiny_engines, progress=False)


def precision_of(session: Session, name: str) -> str:
    (compiled,) = session.backend.load(name)._compiled.values()
    return compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()


@pytest.mark.parametrize(("preferred", "expected"), [(True, "bf16"), (False, "f32")])
def test_large_bundles_run_in_bfloat16_but_for_their_words(
    tiny_bundle, tiny_engines, preferred, expected, monkeypatch
) -> None:
    exact = session_of(tiny_bundle, tiny_engines).generate("a photo of a cat", **SETTINGS)[0]
    monkeypatch.setattr(module, "prefers_bfloat16", lambda _: preferred)
    session = session_of(tiny_bundle, tiny_engines)
    drawn = session.generate("a photo of a cat", **SETTINGS)[0]
    assert precision_of(session, "denoise_step") == expected
    assert precision_of(session, "vae_decoder") == expected
    assert precision_of(session, "text_encoder_embeds") == "f32"
    # CPUs without bfloat16 may take float32 all the same; the picture is the same one.
    assert np.abs(drawn - exact).max() < 0.1
    other = session.generate("a photo of a cat", **{**SETTINGS, "seed": 2})[0]
    assert np.abs(other - exact).max() > 0.1


def test_two_shapes_of_a_graph_are_kept(tiny_bundle, tiny_engines) -> None:
    session = session_of(tiny_bundle, tiny_engines)
    graph = session.backend.load("denoise_step")
    session.generate("a photo of a cat", guidance_stop=0.5, **SETTINGS)
    kept = dict(graph._compiled)
    assert [shapes[0][0] for shapes in kept] == [2, 1]  # rows with guidance, and without
    session.generate("a photo of a cat", guidance_stop=0.5, **SETTINGS)
    assert graph._compiled == kept  # nothing was compiled anew
    session.generate("a photo of a cat", width=40, **SETTINGS)
    assert len(graph._compiled) == 2
    assert graph._compiled != kept


def test_it_runs_on_cpus_alone(tiny_bundle, folder) -> None:
    with pytest.raises(OptionError, match=r"device: expected cpu.*got cuda"):
        OpenVinoBackend(Bundle.open(tiny_bundle), folder, device="cuda")


def test_a_graph_that_is_not_the_specs_is_refused(tiny_bundle, folder) -> None:
    backend = OpenVinoBackend(Bundle.open(tiny_bundle), folder)
    spec = folder.specs["vae_decoder"]
    wrong = replace(spec, inputs=(replace(spec.inputs[0], name="latents"),))
    with pytest.raises(EngineError, match=r"inputs and outputs of engine vae_decoder.*Build"):
        backend._open(wrong)
    backend._open(spec)


def test_what_is_no_graph_is_refused(tiny_bundle, folder, tmp_path, monkeypatch) -> None:
    backend = OpenVinoBackend(Bundle.open(tiny_bundle), folder)
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no graph")
    monkeypatch.setattr(type(folder), "path", lambda *_: broken)
    with pytest.raises(EngineError, match="expected a graph that OpenVINO reads"):
        backend.load("vae_decoder")
