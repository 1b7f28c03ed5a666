"""Drawing with engines needs no torch: what is imported, and what runs where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TORCH = ["torch", "transformers", "diffusers", "accelerate"]
MODULES = "session generate text tokenizer bundle image mask subject options schedule engine_spec"


def run_python(code: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def imported_of_torch(*modules: str) -> dict[str, list[str]]:
    """Which of torch's packages are there after each import, in one new process."""
    code = f"""
import importlib, json, sys
found = {{}}
for module in {list(modules)}:
    importlib.import_module(module)
    found[module] = [name for name in {TORCH} if name in sys.modules]
print(json.dumps(found))
"""
    found: dict[str, list[str]] = json.loads(run_python(code))
    return found


def test_importing_imports_neither_torch_nor_what_needs_it() -> None:
    modules = ["hbsdk", *(f"hbsdk.{name}" for name in MODULES.split())]
    assert imported_of_torch(*modules) == {module: [] for module in modules}


def test_the_check_of_imports_can_fail() -> None:
    found = imported_of_torch("hbsdk.text", "hbsdk.text_encoder")
    assert found == {"hbsdk.text": [], "hbsdk.text_encoder": ["torch"]}


def test_text_and_masks_work_where_there_is_no_torch(tmp_path: Path) -> None:
    """Also with InSPyReNet's package installed, which cannot be imported then."""
    (tmp_path / "transparent_background.py").write_text("import torch\nclass Remover: pass\n")
    code = f"""
import sys, warnings
for name in {TORCH}:
    sys.modules[name] = None  # importing it is an ImportError
import numpy as np
from hbsdk.bundle import Bundle
from hbsdk.generate import tokenize
from hbsdk.image import load_photo
from hbsdk.mask import find_mask
pixels = np.full((64, 64, 3), 255, np.uint8)
pixels[16:56, 20:44] = (200, 30, 30)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    mask = find_mask(load_photo(pixels))
tokens = tokenize(Bundle.open().load_tokenizer(), "a photo of S*", {{"s*": 5}})
print(mask.source, tokens.places, [str(one.message)[:25] for one in caught])
"""
    shown = run_python(code, PYTHONPATH=str(tmp_path))
    assert shown == "grabcut {'s*': ((4, 5, 6, 7, 8),)} ['GrabCut makes the mask in']"
