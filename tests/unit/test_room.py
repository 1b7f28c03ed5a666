"""Whether there is memory: counted need against what is free, before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hbsdk import room
from hbsdk.backends.torch import TorchBackend
from hbsdk.bench.counting import count_generation, count_refinement
from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError
from hbsdk.generate import Canvas
from hbsdk.options import PersonalizeOptions
from hbsdk.room import available_bytes, check_room_to_draw, fit_refinement, weights_bytes
from hbsdk.session import Session

OPTIONS = PersonalizeOptions(timesteps_per_step=8, micro_batch_size=8)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def backend(bundle: Bundle) -> TorchBackend:
    return TorchBackend(bundle, device="cpu", dtype="float32")


def peak(bundle: Bundle, size: int) -> int:
    options = replace(OPTIONS, micro_batch_size=size)
    return count_refinement(bundle, options, dtype="float32").peak_bytes


def leave(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(room, "available_bytes", lambda _: number)


def test_micro_batches_shrink_to_what_is_free(bundle, backend, monkeypatch) -> None:
    weights = weights_bytes(bundle, "float32")
    sizes = {}
    for size in (1, 2, 4, 8):
        leave(monkeypatch, weights + (peak(bundle, size) * 21) // 20)
        sizes[size] = fit_refinement(backend, OPTIONS).micro_batch_size
    assert sizes == {1: 1, 2: 2, 4: 4, 8: 8}
    leave(monkeypatch, 10**12)
    assert fit_refinement(backend, OPTIONS) == OPTIONS


def test_weights_that_are_there_need_no_room(bundle, backend, monkeypatch) -> None:
    leave(monkeypatch, (peak(bundle, 8) * 21) // 20)
    assert fit_refinement(backend, OPTIONS).micro_batch_size < 8
    backend.load_all()
    assert fit_refinement(backend, OPTIONS) == OPTIONS


def test_low_memory_needs_room_for_fewer_weights(bundle, monkeypatch) -> None:
    encoders = weights_bytes(bundle, "float32", ("vae", "image_encoder", "dino"))
    just = peak(bundle, 1) + 7 * (peak(bundle, 2) - peak(bundle, 1))
    leave(monkeypatch, weights_bytes(bundle, "float32") - encoders + just)
    low = TorchBackend(bundle, device="cpu", dtype="float32", memory="low")
    assert fit_refinement(low, OPTIONS).micro_batch_size == 8
    high = TorchBackend(bundle, device="cpu", dtype="float32")
    assert fit_refinement(high, OPTIONS).micro_batch_size < 8
    leave(monkeypatch, 0)
    with pytest.raises(OptionError, match=r"Session\(memory='low'\) keeps one stage's networks"):
        fit_refinement(high, OPTIONS)
    with pytest.raises(OptionError, match="dtype='bfloat16' needs half") as told:
        fit_refinement(low, OPTIONS)
    assert "memory='low'" not in str(told.value)


def test_a_session_refuses_before_it_refines_and_says_what_helps(
    tiny_bundle, photo, mask, monkeypatch
) -> None:
    session = Session(tiny_bundle, progress=False)
    session.prewarm()
    refined = []
    monkeypatch.setattr("hbsdk.backends.torch.refine", lambda *_: refined.append(1))
    leave(monkeypatch, 1000)
    with pytest.raises(OptionError, match=r"memory to refine, .* GB free on cpu .*, got 0.0 GB\."):
        session.personalize(photo, mask)
    assert not refined


def test_the_result_does_not_depend_on_what_is_free(
    tiny_bundle, bundle, photo, mask, monkeypatch
) -> None:
    session = Session(tiny_bundle, progress=False)
    session.prewarm()
    options = replace(OPTIONS, steps=2, effective_step=1e-2)
    ample = session.personalize(photo, mask, options=options)
    leave(monkeypatch, (peak(bundle, 2) * 21) // 20)
    scarce = session.personalize(photo, mask, options=options)
    assert scarce.words == pytest.approx(ample.words, abs=1e-5)
    assert scarce.metadata == ample.metadata
    other = session.personalize(photo, mask, options=replace(options, effective_step=2e-2))
    assert other.words != pytest.approx(ample.words, abs=1e-4)


def test_too_large_a_picture_is_refused_before_it_is_drawn(tiny_bundle, monkeypatch) -> None:
    session = Session(tiny_bundle, progress=False)
    session.prewarm()
    need = max(
        part.peak_bytes
        for part in count_generation(
            session.bundle, pictures=4, height_px=64, width_px=128, dtype="float32"
        ).values()
    )
    asked = {"height": 64, "width": 128, "num_images_per_prompt": 4, "num_inference_steps": 1}
    leave(monkeypatch, need)
    assert len(session.generate("a cat", **asked)) == 4
    leave(monkeypatch, need - 1)
    with pytest.raises(
        OptionError, match=r"to draw 4 of 128 x 64 px at once: .*Draw fewer at once"
    ):
        session.generate("a cat", **asked)


@pytest.mark.parametrize("which", ["tiny", "mini"])
def test_the_rough_bound_is_above_the_count(which, bundle) -> None:
    """What it lets pass uncounted fits indeed."""
    bundle = bundle if which == "tiny" else Bundle.open()
    info = bundle.info
    cells = (info.image_size_px // info.vae_scale_factor) ** 2
    for size in (1, 8):
        rough = room._rough(bundle, "float32", room._WHILE_REFINING, size * cells)
        assert peak(bundle, size) < rough
    for pictures in (1, 4):
        parts = count_generation(bundle, pictures=pictures, dtype="float32")
        rows = 2 * pictures * cells
        step = room._rough(bundle, "float32", room._WHILE_DENOISING, rows)
        pixels = info.image_size_px**2
        decode = room._rough(bundle, "float32", room._WHILE_DECODING, pixels)
        assert parts["guided_step"].peak_bytes < step
        assert parts["decode"].peak_bytes < decode


def test_what_cannot_be_told_is_not_refused(bundle, backend, monkeypatch) -> None:
    leave(monkeypatch, None)
    assert fit_refinement(backend, OPTIONS) == OPTIONS
    check_room_to_draw(backend, Canvas(4, 512, 512), 64)


def test_free_memory_is_the_containers_where_that_is_less(tmp_path, monkeypatch) -> None:
    machine = available_bytes(CPU)
    assert machine is not None
    assert machine > 10_000_000
    monkeypatch.setattr(room, "_CGROUP", str(tmp_path))
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(CPU) > 10_000_000
    (tmp_path / "memory.max").write_text("5000000\n")
    assert available_bytes(CPU) == 2_000_000
