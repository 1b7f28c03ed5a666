"""benchmarks/bridge.py: both sides take turns, and a picture that is another one is told."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import benchmarks.bridge as bridge


def test_sides_take_turns_and_the_first_round_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    stats = json.dumps({"total_ms": 10.0, "loading_ms": 2.0, "graphs_ms": 6.0})

    def run(command: list[str]) -> tuple[str, float, float]:
        side, out = command
        ran.append(side)
        Image.fromarray(pixels).save(out)
        return f"drawn\n{stats}", float(len(ran)), 5.0

    monkeypatch.setattr(bridge, "run", run)
    monkeypatch.setattr(
        bridge, "commands",
        lambda _, folder: {side: [side, f"{folder}/{side}.png"] for side in ("cpp", "python")},
    )  # fmt: skip
    found = bridge.measure(Namespace(repeats=3, quiet=True))
    assert ran == ["cpp", "python", "python", "cpp"] * 2
    assert found["runs"]["start_to_picture_s"] == {
        "cpp": [4.0, 5.0, 8.0],
        "python": [3.0, 6.0, 7.0],
    }
    assert found["start_to_picture_s"]["cpp"]["median"] == 5.0
    assert found["cpp_host_share_of_drawing"]["median"] == 0.25
    assert found["psnr_db"] == 120.0
    assert found["psnr_db_mirrored_as_control"] < 15.0


def test_another_picture_is_told(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 200
    Image.fromarray(pixels).save(tmp_path / "python.png")
    Image.fromarray(pixels[:, ::-1]).save(tmp_path / "cpp.png")
    found = bridge.compare(tmp_path)
    by_hand = 20.0 * np.log10(255 / 200)
    assert found["psnr_db"] == found["psnr_db_mirrored_as_control"]
    assert found["psnr_db"] == pytest.approx(by_hand, abs=0.06)
