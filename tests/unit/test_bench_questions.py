"""What is measured is the real thing: plain loop, counts, memory, many subjects, cases by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import benchmarks.refine as plain
from benchmarks.generate import CATALOGUE, Interpreters, peer_case
from hbsdk.bench.cases import generate_case, personalize_case, read_case, usable_engines
from hbsdk.bench.counting import Part, count_generation, count_refinement
from hbsdk.bench.questions import _compare_losses, largest_difference
from hbsdk.bench.room import fitting_micro_batch, parameters, refinement_need, without_room
from hbsdk.bench.scaling import Scaling, probe_many, references_of
from hbsdk.bench.stopwatch import Stopwatch
from hbsdk.bench.tasks import draw_photo
from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError
from hbsdk.options import GenerateOptions, PersonalizeOptions
from hbsdk.session import Session

TOLERANCE = 1e-5  # of losses, as a share: beyond rounding, below every change that is tried
OPTIONS = {"steps": 3, "timesteps_per_step": 4, "effective_step": 1e-2, "mask_loss_weight": 0.1}


def plain_losses(bundle: Path, **options: object) -> list[float]:
    settings = {"bundle": str(bundle), "engine": "torch", "options": {**OPTIONS, **options}}
    found: list[float] = plain.PlainLoop(settings).run()["facts"]["losses"]
    return found


def our_losses(bundle: Path, **options: object) -> list[float]:
    session = Session(bundle, engine="torch", progress=False)
    photo, mask = draw_photo(session.bundle.info.image_size_px)
    report = session.personalize(photo, mask, **{**OPTIONS, **options}).report
    assert report is not None
    return list(report.losses)


@pytest.mark.parametrize("mirror", [True, False])
def test_the_plain_loop_has_our_losses(tiny_bundle: Path, mirror: bool) -> None:
    expected = plain_losses(tiny_bundle, mirror=mirror)
    for size in (1, 2, 4):
        ours = our_losses(tiny_bundle, mirror=mirror, micro_batch_size=size)
        assert largest_difference(ours, expected) < TOLERANCE
    assert len(set(expected)) == 3


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"mirror": False}, {"mask_loss_weight": 0.0}, {"background_weight": 1.0},
     {"effective_step": 0.2}],
)  # fmt: skip
def test_the_plain_loop_tells_what_differs(tiny_bundle: Path, change: dict) -> None:
    expected = plain_losses(tiny_bundle)
    assert largest_difference(our_losses(tiny_bundle, **change), expected) > TOLERANCE


def test_losses_are_compared_with_a_control() -> None:
    entries = {
        "ours": {"facts": {"losses": [1.0, 2.0]}},
        "off": {"facts": {"losses": [1.0, 2.2]}},
        "plain": {"facts": {"losses": [1.0, 2.0]}},
    }
    report = SimpleNamespace(case=entries.__getitem__)
    _compare_losses(report, list(entries))
    assert entries["ours"]["facts"]["largest_loss_difference"] == 0.0
    assert entries["ours"]["facts"]["control_loss_difference"] == pytest.approx(1.0)
    assert plain.problems({"cases": {"ours": entries["ours"]}}) == []
    (said,) = plain.problems({"cases": {"off": entries["off"]}})
    assert "differ by 1.0e-01" in said
    same = {"losses": [1.0, 1.0], "largest_loss_difference": 0.0, "control_loss_difference": 0.0}
    (said,) = plain.problems({"cases": {"x": {"facts": same}}})
    assert "proves nothing" in said


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
    large = count_generation(bundle, side_px=64)
    assert large["decode"].operations > 3 * one["decode"].operations


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
    assert fitting_micro_batch(bundle, options, "float32", needs[1] - 1) is None
    assert fitting_micro_batch(bundle, options, "float32", needs[1]) == 1
    assert fitting_micro_batch(bundle, options, "float32", 10 * needs[16]) == 16
    room = (needs[4] + needs[8]) // 2
    assert "micro_batch_size=4 fits" in without_room(bundle, options, "float32", room)
    assert "bfloat16" in without_room(bundle, options, "float32", needs[1] - 1)
    assert "more memory" in without_room(bundle, options, "bfloat16", 1)


def test_parameters_are_read_off_headers(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((3, 4)), "b": np.zeros(5, np.float16)}, tmp_path / "x.safetensors")
    assert parameters(tmp_path) == parameters(tmp_path / "x.safetensors") == 17


def test_limits_are_products_or_weights() -> None:
    part = Part(operations=100, weight_bytes=40, peak_bytes=0)
    assert part.seconds({"float32": 10.0, "copy": 1.0}, "float32") == 40.0
    assert part.seconds({"float32": 1.0, "copy": 1.0}, "float32") == 100.0
    assert part.seconds({"float32": 1.0, "copy": 1.0}, "float16") is None


def test_many_photos_have_the_words_of_each(tiny_bundle: Path) -> None:
    session = Session(tiny_bundle, engine="torch", progress=False)
    words = probe_many(session, references_of(session, 5), chunk=2)
    size = session.bundle.info.image_size_px
    for index in range(5):
        photo, mask = draw_photo(size, index)
        expected = session.personalize(photo, mask, steps=0).words
        np.testing.assert_allclose(words[index], expected, atol=1e-5)
    assert np.abs(words[0] - words[1]).max() > 1e-4


def test_a_quantity_is_measured_at_each_value(tiny_bundle: Path) -> None:
    settings = {"bundle": str(tiny_bundle), "engine": "torch", "steps": 1}
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


def test_stages_add_up_to_the_whole(tiny_bundle: Path) -> None:
    session = Session(tiny_bundle, engine="torch", progress=False)
    session.generate("a photo", num_inference_steps=2)
    watch = Stopwatch(session)
    watch.start()
    session.generate("a photo", num_inference_steps=2)
    stages = watch.stages()
    assert list(stages) == ["encode_prompts", "denoise", "decode", "host"]
    assert all(seconds >= 0.0 for seconds in stages.values())
    assert watch.inside_s is not None
    assert 0.0 < watch.inside_s < sum(stages.values())
    photo, mask = draw_photo(32)
    watch.start()
    session.personalize(photo, mask, steps=1, timesteps_per_step=2)
    assert list(watch.stages()) == ["encode_reference", "refine", "host"]


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
    (row,) = personalize_case(bundle, None, refined, {"steps": 5}).notes["least"]["5 steps"]
    assert row["times"] == 5 * 16 / 2


def test_peers_that_cannot_run_say_why(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    monkeypatch.setattr("benchmarks.generate.compute_capability", lambda: None)
    common = {"engines": None, "inputs": "x", "steps": 2, "bundle": str(tiny_bundle)}
    nowhere = Interpreters({}, None)

    def problem(name: str, where: Interpreters = nowhere) -> str | None:
        return peer_case(name, bundle, common, tmp_path, where).problem

    assert problem("diffusers-max-autotune") == "no GPU"
    assert problem("optimum-onnxruntime-cuda") == "no GPU"
    assert "build_engines.py" in (problem("openvino") or "")
    assert "--environments DIR" in (problem("diffusers-float32") or "")
    assert problem("diffusers-float32", Interpreters({"diffusers": "python"}, None)) is None
    (tmp_path / "file").write_text("")
    assert problem("diffusers-float32", Interpreters({}, tmp_path / "file")) is not None
    for peer in CATALOGUE.values():
        assert (Path(plain.__file__).parent / "peers" / peer.script).is_file()
        assert (Path(plain.__file__).parent / "peers" / peer.requirements).is_file()
