"""The README's example, run as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from hbsdk.mini import world
from hbsdk.mini.cache import draw_picture

README = Path(__file__).parents[2] / "README.md"


def example() -> str:
    """Return the README's first Python block."""
    (block, *_) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    return str(block)


def test_the_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw_picture(world.HELD_OUT_SEEDS[0], 0)[0]).save("fox.png")
    scope: dict[str, object] = {}
    exec(compile(example(), str(README), "exec"), scope)
    images = scope["images"]
    assert isinstance(images, list)
    assert len(images) == 4
    assert all(image.size == (64, 64) for image in images)
    assert (tmp_path / "fox.safetensors").exists()
