"""What goes wrong ends with a status and a message that names it; nothing crashes."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hbsdk
from tests.cpp import library as lib
from tests.cpp.conftest import change_manifest
from tests.cpp.library import Bridge, BridgeError

CHECKOUT = Path(__file__).parents[2]


def refused(status: int, message: str, call, *arguments, **options) -> None:
    with pytest.raises(BridgeError, match=message) as caught:
        call(*arguments, **options)
    assert caught.value.status == status


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_abi_and_its_words(bridge: Bridge):
    assert bridge.c.hbsdk_abi_version() == 1
    words = [bridge.c.hbsdk_status_text(status).decode() for status in range(11)]
    assert words[0] == "ok"
    assert words[-1] == "unknown status"
    assert len(set(words)) == 11


def test_null_handles_and_pointers_are_refused(bridge: Bridge, context, tmp_path):
    nothing = np.zeros((20, 20, 3), np.uint8)
    refused(lib.INVALID_ARGUMENT, "context: .* got NULL", bridge.generate, None, "a cat")
    refused(lib.INVALID_ARGUMENT, "context: .* got NULL", bridge.probe, None, nothing,
            nothing[:, :, 0])  # fmt: skip
    refused(lib.INVALID_ARGUMENT, "subject: .* got NULL", bridge.save, None, tmp_path)
    refused(lib.INVALID_ARGUMENT, "subject: .* got NULL", bridge.generate, context, "S*", 0)
    refused(lib.INVALID_ARGUMENT, "prompt: .* got NULL", bridge.generate, context, None)
    c = bridge.c
    for status in (
        c.hbsdk_open(None, None), c.hbsdk_cancel(None), c.hbsdk_generate(context, None, None),
        c.hbsdk_subject_load(None, None, None), c.hbsdk_open_params_init(None, 64),
        c.hbsdk_probe(context, None, None, None, None),
    ):  # fmt: skip
        assert status == lib.INVALID_ARGUMENT
        assert "got NULL" in bridge.last_error()
    # As free() takes NULL.
    for status in (c.hbsdk_close(None), c.hbsdk_subject_free(None), c.hbsdk_image_free(None)):
        assert status == lib.OK


def test_freed_handles_are_refused_and_never_used_again(bridge: Bridge, mini_engines, subject_file):
    context, subject = bridge.open(mini_engines), bridge.load(subject_file)
    bridge.close(context)
    bridge.free(subject)
    freed = "one that was freed"
    refused(lib.INVALID_ARGUMENT, freed, bridge.close, context)
    refused(lib.INVALID_ARGUMENT, freed, bridge.free, subject)
    newer, later = bridge.open(mini_engines), bridge.load(subject_file)
    assert newer != context
    assert later != subject
    refused(lib.INVALID_ARGUMENT, freed, bridge.generate, context, "a cat")
    refused(lib.INVALID_ARGUMENT, freed, bridge.generate, newer, "S*", subject)
    refused(lib.INVALID_ARGUMENT, "no handle of it", bridge.generate, later, "a cat")
    refused(lib.INVALID_ARGUMENT, "no handle of it", bridge.free, newer)
    bridge.free(later)
    bridge.close(newer)


def test_pixels_that_are_not_ours_are_not_freed(bridge: Bridge):
    own = (ctypes.c_uint8 * 12)()
    image = lib.Image(ctypes.cast(own, ctypes.POINTER(ctypes.c_uint8)), 2, 2, 3)
    assert bridge.c.hbsdk_image_free(ctypes.byref(image)) == lib.INVALID_ARGUMENT
    assert "pixels" in bridge.last_error()
    assert image.width == 2


@pytest.mark.parametrize("change", [-1, 1, 8, 10**6])
def test_structures_of_another_size_are_refused(change, bridge: Bridge, context, mini_engines):
    params = bridge.open_params(mini_engines)
    params.struct_size += change
    opened = ctypes.c_void_p()
    status = bridge.c.hbsdk_open(ctypes.byref(params), ctypes.byref(opened))
    assert (status, opened.value) == (lib.MISMATCH, None)
    size = ctypes.sizeof(lib.OpenParams)
    assert (
        f"struct_size of open_params: expected {size}, got {size + change}" in bridge.last_error()
    )
    size = ctypes.sizeof(lib.GenerateParams)
    refused(lib.MISMATCH, "struct_size of generate_params", bridge.generate, context, "a cat",
            struct_size=size + change)  # fmt: skip
    stats = lib.Stats(ctypes.sizeof(lib.Stats) + change)
    refused(lib.MISMATCH, "struct_size of stats", bridge.generate, context, "a cat",
            stats=ctypes.pointer(stats))  # fmt: skip


def test_missing_files_are_named(bridge: Bridge, copied: Path, tmp_path: Path):
    refused(lib.NOT_FOUND, "nowhere", bridge.open, tmp_path / "nowhere")
    refused(lib.NOT_FOUND, "nowhere.safetensors", bridge.load, tmp_path / "nowhere.safetensors")
    (copied / "unet" / "denoise_step.onnx").unlink()
    refused(lib.NOT_FOUND, "denoise_step.onnx", bridge.open, copied)
    (copied / "manifest.json").unlink()
    refused(lib.NOT_FOUND, "manifest.json", bridge.open, copied)


def test_added_files_are_named(bridge: Bridge, copied: Path):
    (copied / "unet" / "extra.bin").write_bytes(b"")
    refused(lib.DAMAGED, "extra.bin", bridge.open, copied)


@pytest.mark.parametrize(
    ("file", "is_read_at_once"),
    [
        ("manifest.json", True), ("engines.json", True), ("bridge.json", True),
        ("prompt_tokenizer.json", True), ("unet/denoise_step.onnx", False),
        ("unet/model.onnx_data", False), ("text_encoder/config.json", False),
    ],
)  # fmt: skip
def test_changed_bytes_are_refused_before_they_are_used(
    file, is_read_at_once, bridge: Bridge, copied: Path
):
    change_byte(copied / file)
    if is_read_at_once:
        refused(lib.DAMAGED, Path(file).name, bridge.open, copied)
        return
    context = bridge.open(copied)
    refused(lib.DAMAGED, Path(file).name, bridge.generate, context, "a cat")
    bridge.close(context)
    refused(lib.DAMAGED, Path(file).name, bridge.open, copied, load_all=1)


def test_engines_of_another_bundle_or_runtime_are_refused(
    bridge: Bridge, copied: Path, tiny_bundle: Path, tmp_path: Path
):
    mini = Path(hbsdk.__file__).parent / "mini" / "weights"
    bridge.close(bridge.open(copied, bundle_folder=mini))
    refused(lib.MISMATCH, "bundle_hash", bridge.open, copied, bundle_folder=tiny_bundle)
    refused(lib.NOT_FOUND, "nothing", bridge.open, copied, bundle_folder=tmp_path / "nothing")
    change_manifest(copied, runtime_version="1.2.3")
    refused(lib.MISMATCH, r"runtime_version .* got 1\.2\.3", bridge.open, copied)


def test_folders_of_an_older_hbsdk_are_named_as_such(bridge: Bridge, copied: Path):
    (copied / "bridge.json").unlink()
    files = json.loads((copied / "manifest.json").read_text())["files"]
    del files["bridge.json"]
    change_manifest(copied, files=files)
    refused(lib.NOT_FOUND, "The engines are of an older hbsdk", bridge.open, copied)


def test_a_subject_of_another_width_is_refused(
    bridge: Bridge, context, python_subject, tmp_path: Path
):
    wide = replace(python_subject, words=np.tile(python_subject.words, 2))
    file = wide.save(tmp_path)
    refused(lib.MISMATCH, "expected words of width 128.* got width 256", bridge.load, file, context)
    subject = bridge.load(file)  # without a context any width is taken
    refused(lib.MISMATCH, "width 256", bridge.generate, context, "S*", subject)


@pytest.mark.parametrize("data", [b"", b"\x80\x04.", b"PK\x03\x04", b"x" * 100])
def test_damaged_subjects_are_refused(data, bridge: Bridge, tmp_path: Path):
    (tmp_path / "fox.safetensors").write_bytes(data)
    refused(lib.DAMAGED, "fox.safetensors", bridge.load, tmp_path / "fox.safetensors")


@pytest.mark.parametrize(
    ("prompt", "count", "message"),
    [
        ("", 0, "expected some text"), ("  ", 0, "expected some text"),
        ("S* at sea", 0, "no subject"), ("at sea", 1, "no placeholder of it"),
        ("<dog> at sea", 1, "dog"), ("so " * 80 + "S*", 1, "first 75 tokens"),
        (b"\xff", 0, "UTF-8"),
    ],
)  # fmt: skip
def test_bad_prompts_are_refused(prompt, count, message, bridge: Bridge, context, subject_file):
    subjects = [bridge.load(subject_file)] * count
    refused(lib.BAD_PROMPT, message, bridge.generate, context, prompt, *subjects)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_images": 0}, "num_images: expected a whole number from 1 to 64, got 0"),
        ({"num_images": 65}, "num_images"), ({"num_images": -(2**31)}, "num_images"),
        ({"num_images": 5}, "engine denoise_step"), ({"num_inference_steps": 51}, "1 to 50"),
        ({"num_inference_steps": 0}, "num_inference_steps"), ({"width": 68}, "multiple of 8"),
        ({"width": 72}, "engine denoise_step"), ({"height": -8}, "height"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": 101.0}, "guidance_scale"),
        ({"sampler": "none"}, "one of ddim, dpm"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(fields, message, bridge: Bridge, context):
    refused(lib.INVALID_ARGUMENT, message, bridge.generate, context, "a cat", **fields)


@pytest.mark.parametrize("threads", [-1, 5000])
def test_bad_ways_to_open_are_refused(threads, bridge: Bridge, mini_engines):
    refused(lib.INVALID_ARGUMENT, "threads", bridge.open, mini_engines, threads=threads)


def test_devices_that_are_not_here_are_refused(bridge: Bridge, mini_engines):
    refused(lib.INVALID_ARGUMENT, "expected cpu, cuda", bridge.open, mini_engines, device="gpu")
    refused(lib.INVALID_ARGUMENT, "device", bridge.open, mini_engines, device="cuda")
    refused(lib.INVALID_ARGUMENT, "use_tensorrt", bridge.open, mini_engines, use_tensorrt=1)


def test_a_callback_sees_every_step_and_can_stop_the_run(bridge: Bridge, context):
    seen = []
    goes_on = lib.PROGRESS(lambda step, steps, _: seen.append((step, steps)) or 0)
    bridge.generate(context, "a cat", num_inference_steps=4, on_step=goes_on)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    seen.clear()
    stops = lib.PROGRESS(lambda step, steps, _: seen.append(step) or step == 2)
    refused(lib.CANCELLED, "a request to stop after 2", bridge.generate, context, "a cat",
            num_inference_steps=4, on_step=stops)  # fmt: skip
    assert seen == [1, 2]


@pytest.mark.parametrize("ended_by", ["hbsdk_cancel", "hbsdk_close"])
def test_another_thread_can_stop_a_run(ended_by, bridge: Bridge, mini_engines):
    context = bridge.open(mini_engines)
    began, stopped, seen = threading.Event(), threading.Event(), []

    def on_step(step, steps, _):
        seen.append(step)
        began.set()
        assert stopped.wait(60)
        return 0

    def stop():
        assert began.wait(60)
        assert getattr(bridge.c, ended_by)(context) == lib.OK
        stopped.set()

    other = threading.Thread(target=stop)
    other.start()
    callback = lib.PROGRESS(on_step)
    refused(lib.CANCELLED, "seen after 1 of 20 steps", bridge.generate, context, "a cat",
            on_step=callback)  # fmt: skip
    other.join()
    assert seen == [1]
    if ended_by == "hbsdk_cancel":  # what begins later is not stopped
        bridge.generate(context, "a cat", num_inference_steps=1)
        bridge.close(context)
    else:
        refused(lib.INVALID_ARGUMENT, "freed", bridge.generate, context, "a cat")


@pytest.mark.parametrize("ended_by", ["hbsdk_cancel", "hbsdk_close"])
def test_a_request_to_stop_at_the_last_step_is_heeded(ended_by, bridge: Bridge, mini_engines):
    """What follows is loading and running the decoder: neither begins."""
    context = bridge.open(mini_engines)
    stop = lib.PROGRESS(lambda *_: getattr(bridge.c, ended_by)(context))
    refused(lib.CANCELLED, "seen after 1 of 1 steps", bridge.generate, context, "a cat",
            num_inference_steps=1, on_step=stop)  # fmt: skip
    bridge.close(context if ended_by == "hbsdk_cancel" else None)


@pytest.mark.parametrize("low_memory", [0, 1])
def test_low_memory_releases_what_a_stopped_run_had_loaded(
    low_memory, bridge: Bridge, copied: Path
):
    """A network that is still loaded is not read again, so that its damaged file goes unseen."""
    context = bridge.open(copied, low_memory=low_memory)
    stops = lib.PROGRESS(lambda *_: 1)
    refused(lib.CANCELLED, "stop after 1", bridge.generate, context, "a cat", on_step=stops)
    change_byte(copied / "unet" / "model.onnx_data")
    if low_memory:
        refused(lib.DAMAGED, "model.onnx_data was changed", bridge.generate, context, "a cat")
    else:
        bridge.generate(context, "a cat", num_inference_steps=1)
    bridge.close(context)


def test_files_are_written_under_a_subjects_name(bridge: Bridge, subject_file, tmp_path: Path):
    subject = bridge.load(subject_file)
    bridge.save(subject, tmp_path)  # into a folder, under its own name
    bridge.save(subject, tmp_path / "fox-2.safetensors")
    names = ["cat.safetensors", "fox-2.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in ("My Fox.safetensors", "fox.bin", "con.safetensors", "-fox.safetensors"):
        refused(lib.INVALID_ARGUMENT, "expected", bridge.save, subject, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_text_after_75_tokens_is_left_out(bridge: Bridge, context):
    options = {"num_inference_steps": 1, "seed": 4}
    long = "a picture of a cat " + "so " * 70
    want = bridge.generate(context, long, **options)
    np.testing.assert_array_equal(bridge.generate(context, long + "blue dog", **options), want)
    other = bridge.generate(context, "blue dog " + long, **options)
    assert not np.array_equal(other, want)


def test_time_is_accounted_for(bridge: Bridge, mini_engines):
    context = bridge.open(mini_engines)
    stats = lib.Stats(ctypes.sizeof(lib.Stats))
    bridge.generate(context, "a cat", num_inference_steps=2, stats=ctypes.pointer(stats))
    assert stats.loading_ms > 0
    assert stats.graphs_ms > 0
    assert stats.graphs_ms + stats.loading_ms <= stats.total_ms
    bridge.generate(context, "a cat", num_inference_steps=2, stats=ctypes.pointer(stats))
    assert stats.loading_ms == 0
    never = lib.PROGRESS(lambda *_: 1)
    refused(lib.CANCELLED, "stop after 1", bridge.generate, context, "a cat", on_step=never,
            stats=ctypes.pointer(stats))  # fmt: skip
    assert (stats.total_ms, stats.graphs_ms, stats.loading_ms) == (0, 0, 0)
    assert stats.struct_size == ctypes.sizeof(lib.Stats)
    bridge.close(context)


# A limit in a process of its own: what is left over what it holds already, in bytes.
_SHORT_OF_MEMORY = """
import re, resource, sys
from pathlib import Path
from tests.cpp.library import Bridge, BridgeError
bridge = Bridge(Path(sys.argv[1]))
if sys.argv[3] != "unlimited":
    held_kb = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    limit = held_kb * 1024 + int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    bridge.open(sys.argv[2], load_all=1, threads=1)
    print("opened")
except BridgeError as error:
    print(error.status, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of address space")
def test_running_out_of_memory_at_open_is_said(bridge_build: Path, mini_engines: Path):
    def opened(left: str) -> str:
        command = [
            sys.executable, "-c", _SHORT_OF_MEMORY, bridge_build / "libhbsdk.so", mini_engines,
            left,
        ]  # fmt: skip
        run = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, cwd=CHECKOUT,
            env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return run.stdout

    for left in (1 << 20, 8 << 20, 24 << 20):
        said = opened(str(left))
        assert said.startswith(f"{lib.OUT_OF_MEMORY} "), (left, said)
        assert "expected enough" in said
    assert opened("unlimited") == "opened\n"
