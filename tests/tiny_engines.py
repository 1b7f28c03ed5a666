"""Engines of the tiny bundle, exported and compared for real: half a minute, once a test run."""

from __future__ import annotations

from pathlib import Path

from export.build_engines import Built, build
from export.recipe import Recipe, read_recipe
from hbsdk.bundle import Bundle

MOST_PICTURES = 3
SIDES_PX = (32, 48)  # by 8
_RECIPE = """\
name = "tiny"
runtime = "onnxruntime"

[precision]
default = "float32"

[shapes]
pictures = { min = 1, opt = 1, max = 3 }
height_px = { min = 32, opt = 32, max = 48 }
width_px = { min = 32, opt = 32, max = 48 }

[onnxruntime]
providers = ["CPUExecutionProvider"]
"""


def write_tiny_recipe(folder: Path, **replaced: str) -> Path:
    """Write tiny.toml into a folder; `replaced` are words of it and what stands in their place."""
    text = _RECIPE
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def tiny_recipe(folder: Path, **replaced: str) -> Recipe:
    return read_recipe(write_tiny_recipe(folder, **replaced))


def build_tiny_engines(bundle: Path, folder: Path) -> Built:
    """Build into folder/engines, by the recipe folder/tiny.toml."""
    return build(Bundle.open(bundle), tiny_recipe(folder), folder / "engines", quiet=True)
