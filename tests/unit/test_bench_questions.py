"""What is measured is the real thing: counts, memory, precisions, many subjects, cases by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hbsdk.backends.torch as torch_backend
from benchmarks.generate import CATALOGUE, PEERS, Interpreters, peer_case, write_inputs
from hbsdk import room
from hbsdk.bench.cases import (
    generate_case,
    personalize_case,
    read_case,
    torch_dtype,
    usable_engines,
)
from hbsdk.bench.counting import count_generation, count_refinement
from hbsdk.bench.questions import Setup, _scaling_need
from hbsdk.bench.scaling import Scaling
from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError
from hbsdk.options import GenerateOptions, PersonalizeOptions
from hbsdk.room import fitting_micro_batch, parameters, refinement_need, without_room
from hbsdk.session import Session


def test_counts_are_those_of_real_networks(tiny_bundle: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    bundle = Bundle.open(tiny_bundle)
    unet = bundle.load_unet(torch.float32)
    counter = FlopCounterMode(display=False)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        unet(torch.zeros(2, 4, 8, 8), 1, torch.zeros(2, 77, 32))
    one, two = count_generation(bundle), count_generation(bundle, pictures=2)
    assert one["guided_step"].operations == counter.get_total_flops()
    assert two["guided_step"].operations == 2 * one["guided_step"].operations
    weights = sum(weight.numel() for weight in unet.parameters())
    assert one["guided_step"].weight_bytes == 4 * weights == 4 * parameters(tiny_bundle / "unet")
    half = count_generation(bundle, dtype="bfloat16")
    assert half["guided_step"].weight_bytes == 2 * weights
    assert half["text_encoder"] == one["text_encoder"]
    large = count_generation(bundle, height_px=64, width_px=64)
    assert large["decode"].operations > 3 * one["decode"].operations
    wide, tall = (count_generation(bundle, **{side: 64}) for side in ("width_px", "height_px"))
    for part in ("guided_step", "decode"):
        assert one[part].operations < wide[part].operations < large[part].operations
        assert wide[part].operations == tall[part].operations


def test_more_noise_levels_at_once_need_more_memory(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    parts = [count_refinement(bundle, PersonalizeOptions(micro_batch_size=size)) for size in (1, 4)]
    assert parts[1].operations == 4 * parts[0].operations
    assert parts[1].peak_bytes > 2 * parts[0].peak_bytes
    assert parts[1].weight_bytes == parts[0].weight_bytes


def test_what_fits_is_found_and_told(tiny_bundle: Path) -> None:
    bundle, options = Bundle.open(tiny_bundle), PersonalizeOptions(micro_batch_size=16)
    needs = {
        size: refinement_need(bundle, replace(options, micro_batch_size=size), "float32")
        for size in (1, 2, 4, 8, 16)
    }
    assert needs[1] < needs[2] < needs[4] < needs[8] < needs[16]
    one = count_refinement(bundle, replace(options, micro_batch_size=1)).peak_bytes
    assert fitting_micro_batch(bundle, options, "float32", one - 1) is None
    assert fitting_micro_batch(bundle, options, "float32", one) == 1
    assert fitting_micro_batch(bundle, options, "float32", 10 * needs[16]) == 16
    between = (needs[4] + needs[8]) // 2
    assert "micro_batch_size=4 fits" in without_room(bundle, options, "float32", between)
    assert "bfloat16" in without_room(bundle, options, "float32", needs[1] - 1)
    assert "more memory" in without_room(bundle, options, "bfloat16", 1)


def test_parameters_are_read_off_headers(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((3, 4)), "b": np.zeros(5, np.float16)}, tmp_path / "x.safetensors")
    assert parameters(tmp_path) == parameters(tmp_path / "x.safetensors") == 17


def test_a_quantity_is_measured_at_each_value(tiny_bundle: Path) -> None:
    settings = {"bundle": str(tiny_bundle), "engine": "torch", "steps": 1, "prompt": "a cat"}
    for what, numbers, expected in (
        ("steps", [1, 2], {"1 steps", "2 steps"}),
        ("pictures", [2], {"2 pictures"}),
        ("size", [32, 48], {"32 px", "48 px"}),
        ("subjects", [3], {"3 subjects"}),
        ("threads", [1, 2], {"2 pictures, 1 threads", "2 pictures, 2 threads"}),
    ):
        found = Scaling({**settings, "what": what, "numbers": numbers}).run()
        assert set(found["samples"]) == expected
        assert all(seconds > 0.0 for one in found["samples"].values() for seconds in one)
        assert set(found["facts"]["peak_rss_bytes_at"]) == {str(number) for number in numbers}
    files = Scaling({**settings, "what": "files", "numbers": [20]}).run()["samples"]
    assert set(files) == {
        f"{verb} one, {where} tenth of 20"
        for verb in ("save", "load")
        for where in ("first", "last")
    }


def test_cases_are_read_by_name() -> None:
    asked = read_case("fast=onnxruntime,engines=x,guidance_scale=3.5,seed=2", GenerateOptions)
    assert asked.name == "fast"
    assert asked.session == {"engine": "onnxruntime", "engines": "x"}
    assert asked.options == {"guidance_scale": 3.5, "seed": 2}
    assert read_case("torch", GenerateOptions).name == "torch"
    assert read_case("a=torch,mirror=False,mode=paper", PersonalizeOptions).options == {
        "mirror": False, "mode": "paper",
    }  # fmt: skip
    with pytest.raises(OptionError, match="'colour' of case"):
        read_case("torch,colour=red", GenerateOptions)


def test_cases_know_their_limits_and_their_faults(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert [one.name for one in usable_engines(bundle)] == ["torch bfloat16", "torch float32"]
    asked = read_case("torch,dtype=bfloat16", GenerateOptions)
    case = generate_case(bundle, None, asked, {"num_inference_steps": 3}, prompt="a cat")
    assert set(case.notes["least"]) == {"guided step", "picture of 3 steps"}
    assert case.notes["dtype"] == "bfloat16"
    assert case.problem is None
    json.dumps([dict(case.settings), dict(case.notes)])
    bad = generate_case(bundle, None, asked, {"num_inference_steps": 0}, prompt="a cat")
    assert "num_inference_steps" in (bad.problem or "")
    refined = read_case("torch,micro_batch_size=2", PersonalizeOptions)
    least = personalize_case(bundle, None, refined, {"steps": 5}).notes["least"]
    (row,) = least["probe and 5 steps"]
    assert row["times"] == 5 * 16 / 2
    assert least["refinement step"][0]["times"] == 16 / 2


def test_precisions_are_those_that_sessions_take(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    for prefers, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch_backend, "prefers_bfloat16", lambda _, found=prefers: found)
        session = Session(tiny_bundle, engine="torch", device="cpu", progress=False)
        assert torch_dtype(bundle, {"device": "cpu"}) == expected
        assert str(session.torch_backend.dtype) == f"torch.{expected}"
    assert torch_dtype(bundle, {"dtype": "float16", "device": "cpu"}) == "float16"
    with pytest.raises(OptionError):
        torch_dtype(bundle, {"dtype": "float8"})
    assert room._ALWAYS_FLOAT32 == torch_backend._ALWAYS_FLOAT32


def test_one_step_is_measured_only_where_all_steps_are_alike(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)

    def problem(text: str, *, guided_step: bool) -> str | None:
        asked = read_case(text, GenerateOptions)
        return generate_case(
            bundle, None, asked, {}, prompt="a cat", guided_step=guided_step
        ).problem

    assert problem("torch,height=64", guided_step=True) is None
    assert "leave work out" in (problem("torch,feature_interval=2", guided_step=True) or "")
    assert problem("torch,feature_interval=2", guided_step=False) is None


def test_less_is_needed_where_less_is_held(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, options = Bundle.open(tiny_bundle), PersonalizeOptions()
    low, high = (
        refinement_need(bundle, options, "float32", memory=memory) for memory in ("low", "high")
    )
    assert low < high < refinement_need(bundle, options, "float32", everywhere=True)
    for name, size in (("unet", 4000), ("vae_decoder", 800), ("regressor", 10**9)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.onnx_data").open("wb") as file:
            file.truncate(size)
    fixed = room.engines_need(tmp_path, 0, ())
    assert room.engines_need(tmp_path, 7, ("unet", "vae_decoder")) - fixed == 6007


def test_larger_values_need_more_memory(tiny_bundle: Path) -> None:
    bundle, asked = Bundle.open(tiny_bundle), read_case("torch", GenerateOptions)
    needs = {
        (what, most): _scaling_need(bundle, asked, what, most)
        for what, most in [
            ("steps", 1), ("steps", 8), ("pictures", 1), ("pictures", 8), ("size", 32),
            ("size", 64), ("subjects", 1), ("files", 9),
        ]
    }  # fmt: skip
    assert needs["files", 9] == 0 < needs["subjects", 1]
    assert needs["steps", 1] == needs["steps", 8] == needs["pictures", 1] == needs["size", 32]
    assert needs["pictures", 8] > needs["pictures", 1]
    assert needs["size", 64] > needs["size", 32]


def test_peers_start_from_what_is_asked_for(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's name tells what is in it, so that no other settings' inputs are taken."""
    bundle, written = Bundle.open(tiny_bundle), []

    class Writer:
        def __init__(self, case: Any) -> None:
            written.append(case.settings)
            Path(case.settings["inputs"]).touch()

        def close(self) -> None:
            pass

    monkeypatch.setattr("benchmarks.generate.Worker", Writer)
    setup = Setup(source=str(tiny_bundle), output=tmp_path / "a.json", height=64)
    assert setup.drawing_options() == {"num_inference_steps": 20, "seed": 0, "height": 64}
    one, again = (write_inputs(setup, bundle, setup.drawing_options()) for _ in range(2))
    assert one == again
    assert len(written) == 1
    assert written[0]["options"]["height"] == 64
    step = replace(setup, guided_step=True).drawing_options()
    assert step["num_inference_steps"] == 2
    assert replace(setup, guided_step=True, steps=5).drawing_options()["num_inference_steps"] == 5
    with pytest.raises(OptionError, match="at least 2"):
        replace(setup, guided_step=True, steps=1).drawing_options()
    assert write_inputs(setup, bundle, step) != one
    monkeypatch.setattr("benchmarks.generate.code_digest", lambda: "other code")
    assert write_inputs(setup, bundle, setup.drawing_options()) != one


def test_peers_that_cannot_run_say_why(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    monkeypatch.setattr("benchmarks.generate.compute_capability", lambda: None)
    common = {"engines": None, "inputs": "x", "steps": 2, "bundle": str(tiny_bundle)}
    nowhere = Interpreters({}, None)

    def problem(name: str, where: Interpreters = nowhere) -> str | None:
        return peer_case(name, bundle, common, {"num_inference_steps": 2}, where).problem

    assert problem("diffusers-max-autotune") == "no GPU"
    assert problem("optimum-onnxruntime-cuda") == "no GPU"
    assert "build_engines.py" in (problem("openvino") or "")
    assert "--environments DIR" in (problem("diffusers-float32") or "")
    assert problem("diffusers-float32", Interpreters({"diffusers": "python"}, None)) is None
    (tmp_path / "file").write_text("")
    assert problem("diffusers-float32", Interpreters({}, tmp_path / "file")) is not None
    for peer in CATALOGUE.values():
        assert (PEERS / peer.script).is_file()
        assert (PEERS / peer.requirements).is_file()
