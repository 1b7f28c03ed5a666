"""The host's arithmetic in C++ against numpy, Pillow and Python's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hbsdk.backends.engine_math import batches as python_batches
from hbsdk.backends.engine_math import guidance_matrix
from hbsdk.engine_spec import Axis, EngineSpec, TensorSpec
from hbsdk.generate import Canvas, initial_noise
from hbsdk.image import Photo, make_reference
from tests.cpp import library as lib


@pytest.fixture(scope="module")
def internals(bridge_build: Path):
    """Return a function that runs test-internals on bytes."""

    def run(*arguments: object, data: bytes = b"", fails: bool = False) -> bytes:
        command = [str(bridge_build / "test-internals"), *map(str, arguments)]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return run


@pytest.mark.parametrize("seed", [0, 1, 123456789, 2**32, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize("shape", [(16, 8, 8), (4, 64, 64), (1, 3, 3)])
def test_noise_is_pythons(seed, shape, internals):
    canvas = Canvas(*shape)
    want = initial_noise(seed, 3, canvas)
    size = int(np.prod(shape))
    got = np.frombuffer(internals("noise", seed, 3, size), np.float32).reshape(want.shape)
    # The uniforms are equal to the bit. numpy's own sine and cosine may round the 53rd bit of a
    # double otherwise than the C library's, which float32 shows once in half a billion values.
    np.testing.assert_array_max_ulp(got, want, maxulp=1)
    assert np.count_nonzero(got != want) <= 1
    other = np.frombuffer(internals("noise", seed ^ 1, 3, size), np.float32)
    assert np.count_nonzero(other.reshape(want.shape) != want) > 0.9 * 2 / 3 * want.size


@pytest.mark.parametrize(("side", "size"), [(90, 64), (37, 64), (64, 64), (301, 64), (100, 17)])
def test_resizing_is_pillows(side, size, internals):
    rng = np.random.default_rng(side)
    rgb = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
    want = np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.LANCZOS))
    got = np.frombuffer(internals("lanczos", side, size, data=rgb.tobytes()), np.uint8)
    np.testing.assert_array_equal(got.reshape(want.shape), want)
    mask = (rng.random((side, side)) < 0.3).astype(np.float32)
    want = np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.BOX))
    got = np.frombuffer(internals("box", side, size, data=mask.tobytes()), np.float32)
    np.testing.assert_array_equal(got.reshape(want.shape), want)
    if side != size:  # the control
        other = np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BICUBIC))
        lanczos = internals("lanczos", side, size, data=rgb.tobytes())
        assert other.tobytes() != lanczos


@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (64, 64)])
@pytest.mark.parametrize("channels", [3, 4])
def test_the_square_is_pythons(shape, channels, internals):
    rng = np.random.default_rng(1)
    photo = rng.integers(0, 256, (*shape, channels)).astype(np.uint8)
    for top, left in ((0, 0), (30, 5), (5, 30)):
        mask = np.zeros(shape, np.uint8)
        mask[top : top + 20, left : left + 16] = 1
        want = make_reference(Photo(photo[:, :, :3], None), mask, size=64)
        data = photo.tobytes() + (mask * np.uint8(128)).tobytes()
        floats = np.frombuffer(internals("reference", *shape, channels, 64, 8, data=data), "<f4")
        pixels, got_mask = floats[: 3 * 64 * 64], floats[3 * 64 * 64 :]
        np.testing.assert_array_equal(pixels.reshape(3, 64, 64), want.pixels.transpose(2, 0, 1))
        np.testing.assert_array_equal(got_mask.reshape(64, 64), want.mask)
        ones = internals("reference", *shape, channels, 64, 8,
                         data=photo.tobytes() + mask.tobytes())  # fmt: skip
        np.testing.assert_array_equal(np.frombuffer(ones, "<f4"), floats)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((40, 40)), "an empty mask"),
        (np.full((40, 40), 255), "a full mask"),
        (np.pad(np.full((2, 2), 255), 19), "at least 2 cells of 8 x 8 pixels covered"),
    ],
)
def test_masks_without_a_subject_are_refused(mask, message, internals):
    data = bytes(40 * 40 * 3) + mask.astype(np.uint8).tobytes()
    said = internals("reference", 40, 40, 3, 64, 8, data=data, fails=True).decode()
    assert said.startswith("1 the mask")
    assert message in said


def test_half_precision_is_numpys(internals):
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    floats = np.frombuffer(internals("float32", data=every.tobytes()), np.float32)
    np.testing.assert_array_equal(floats, every.astype(np.float32))
    rng = np.random.default_rng(0)
    values = np.concatenate([
        rng.standard_normal(5000), rng.standard_normal(5000) * 1e-6, [0.0, -0.0, 65504, 1e9],
        1 + np.arange(200) / 4096,  # ties between neighbours
    ]).astype(np.float32)  # fmt: skip
    got = np.frombuffer(internals("float16", data=values.tobytes()), np.float16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, values.astype(np.float16))


@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("guided", [True, False])
def test_the_guidance_matrix_is_pythons(pictures, guided, internals):
    want = guidance_matrix(pictures, 7.3, guided=guided)
    got = np.frombuffer(internals("guidance", pictures, 7.3, int(guided)), np.float32)
    np.testing.assert_array_equal(got.reshape(want.shape), want)


@pytest.mark.parametrize(("least", "most", "count"), [(1, 4, 1), (1, 4, 9), (2, 3, 7), (1, 1, 3)])
def test_batches_are_pythons(least, most, count, internals):
    spec = EngineSpec(
        "test", "vae_decoder", "x.onnx", (TensorSpec("sample", "float32", ("images",)),), (),
        {"images": Axis(least, least, most)},
    )  # fmt: skip
    want = [f"{part.start}-{part.stop}" for part in python_batches(spec, "images", count)]
    assert internals("batches", least, most, count).decode().split() == want


def test_a_batch_that_is_too_small_is_refused(internals):
    said = internals("batches", 4, 5, 6, fails=True).decode()
    assert said.startswith("1 images of engine test: expected at least 4 at once, got 3")


CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))


@pytest.mark.parametrize(
    ("wanted", "available", "device", "use_tensorrt", "found"),
    [
        (f"{CUDA} {CPU}", CPU, "", 0, "0"),
        (f"{CUDA} {CPU}", f"{CUDA} {CPU}", "", 0, f"{CUDA} 0"),
        (f"{CUDA} {CPU}", f"{CUDA} {CPU}", "cuda:2", 0, f"{CUDA} 2"),
        (f"{CUDA} {CPU}", f"{CUDA} {CPU}", "cpu", 0, "0"),
        (CPU, f"{CUDA} {CPU}", "", 0, "0"),
        (f"{TENSORRT} {CUDA}", f"{TENSORRT} {CUDA} {CPU}", "", 0, f"{CUDA} 0"),
        (f"{TENSORRT} {CUDA}", f"{TENSORRT} {CUDA} {CPU}", "", 1, f"{TENSORRT} {CUDA} 0"),
    ],
)
def test_providers_are_chosen(wanted, available, device, use_tensorrt, found, internals):
    got = internals("providers", wanted, available, device, use_tensorrt)
    assert got.decode() == found


@pytest.mark.parametrize(
    ("available", "device", "use_tensorrt", "message"),
    [
        (CPU, "cuda", 0, f"the ONNX Runtime that is linked has no provider for a GPU, only {CPU}"),
        (CPU, "", 1, f"expected an ONNX Runtime with {TENSORRT}"),
        (f"{TENSORRT} {CPU}", "cpu", 1, "use_tensorrt: expected 0 for the device cpu"),
        (f"{CUDA} {CPU}", "gpu", 0, "expected cpu, cuda, cuda:0"),
        (f"{CUDA} {CPU}", "cuda:x", 0, "expected cpu, cuda, cuda:0"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    available, device, use_tensorrt, message, internals
):
    wanted = f"{CUDA} {CPU}"
    said = internals("providers", wanted, available, device, use_tensorrt, fails=True)
    assert message in said.decode()


def test_a_recipe_for_the_cpu_says_so(internals):
    said = internals("providers", CPU, f"{CUDA} {CPU}", "cuda:1", 0, fails=True).decode()
    assert f"the engines' recipe does not name CUDAExecutionProvider, only {CPU}" in said


@pytest.mark.parametrize(
    ("device", "failure", "found"),
    [
        ("", lib.OK, "tried gpu tried gpu "),
        ("", lib.RUNTIME, "tried cpu cpu "),  # decided for all networks by the first
        ("", lib.OUT_OF_MEMORY, None),
        ("cuda", lib.RUNTIME, None),
    ],
)
def test_a_gpu_that_does_not_work_is_passed_over_unless_asked_for(
    device, failure, found, internals
):
    said = internals("fallback", device, failure, fails=found is None).decode()
    assert said == (found or f"{failure} the GPU.\n")


def test_a_run_within_a_run_is_told_and_not_stuck(internals):
    said = internals("turns").decode()
    assert said.startswith("drawing from within on_step: expected another context")
    assert said.endswith(" in turn")
    assert "at once" not in said


@pytest.mark.parametrize(
    ("size", "answer"),
    [(16, "16 1 77 5 2"), (24, "24 1 2 5 6")],  # the older app's last field is left alone
)
def test_structures_can_grow(size, answer, internals):
    assert internals("grown", size).decode() == answer


@pytest.mark.parametrize("size", [0, 15, 25])
def test_structures_that_never_were_are_refused(size, internals):
    said = internals("grown", size, fails=True).decode()
    assert f"struct_size of grown: expected 16 to 24, got {size}" in said


@pytest.mark.parametrize("factor", [8, 65536, 2**31 - 1])  # the square of 65536 is 0 in 32 bits
def test_coverage_is_counted_whatever_the_factor(factor, internals):
    assert b"at least 2 cells" in internals("coverage", 32, factor, fails=True)
    assert internals("coverage", 32, 1, fails=True).decode().startswith("1 the mask")
