"""What is built: symbols, the installed package, the examples and the command line."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hbsdk import Subject
from tests.cpp.conftest import SOURCE, run_checked
from tests.cpp.library import Bridge

HEADER = SOURCE / "include" / "hbsdk.h"
_CONSUMER = """
cmake_minimum_required(VERSION 3.22)
project(app LANGUAGES C CXX)
find_package(hbsdk 0.1 REQUIRED)
add_executable(app {source})
target_link_libraries(app PRIVATE hbsdk::hbsdk)
set_target_properties(app PROPERTIES C_STANDARD 99 C_EXTENSIONS OFF CXX_STANDARD 17)
target_compile_options(app PRIVATE -Wall -Wextra -Wpedantic -Werror)
"""


def test_only_the_functions_of_the_header_are_exported(bridge_build: Path):
    listed = run_checked(["nm", "-D", "--defined-only", bridge_build / "libhbsdk.so"]).stdout
    exported = {line.split()[-1] for line in listed.splitlines()}
    declared = set(re.findall(r"HBSDK_API [^(]*?(hbsdk_\w+)\(", HEADER.read_text()))
    assert 12 <= len(declared) <= 16
    assert exported == declared


def test_the_c_example_stays_short():
    assert len((SOURCE / "examples" / "generate.c").read_text().splitlines()) < 80


@pytest.fixture(scope="module")
def installed(bridge_build: Path, tmp_path_factory) -> Path:
    prefix = tmp_path_factory.mktemp("prefix")
    run_checked(["cmake", "--install", bridge_build, "--prefix", prefix])
    return prefix


@pytest.mark.parametrize("example", ["generate.c", "generate.cpp"])
def test_an_app_finds_the_package_and_draws(
    example, installed: Path, bridge: Bridge, context, mini_engines, subject_file, tmp_path: Path
):
    (tmp_path / "CMakeLists.txt").write_text(_CONSUMER.format(source=SOURCE / "examples" / example))
    build = tmp_path / "build"
    run_checked(
        ["cmake", "-S", tmp_path, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={installed}"]
    )
    run_checked(["cmake", "--build", build])
    out = tmp_path / "out.ppm"
    run_checked([build / "app", mini_engines, subject_file, "a picture of S*", out])
    want = bridge.generate(context, "a picture of S*", bridge.load(subject_file), seed=7)
    drawn = np.asarray(Image.open(out)).astype(int)
    assert np.abs(drawn - want[0]).max() <= 1  # threads may add up in another order
    control = bridge.generate(context, "a picture of S*", bridge.load(subject_file), seed=8)
    assert np.abs(drawn - control[0]).max() > 20
    bad = subprocess.run(
        [build / "app", mini_engines, tmp_path / "no.safetensors", "S*", out],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert bad.returncode == 1
    assert "no.safetensors" in bad.stderr


@pytest.fixture(scope="module")
def cli(bridge_build: Path, mini_engines: Path):
    """Return a function that runs hbsdk-cli on mini's engines."""

    def run(verb: str, *arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [bridge_build / "hbsdk-cli", verb, "--engines", mini_engines, *arguments]
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False,
            env=os.environ | settings,
        )  # fmt: skip

    return run


def test_the_command_line_draws(cli, bridge: Bridge, context, subject_file, tmp_path: Path):
    drawing = ("--prompt", "a picture of S*", "--subject", subject_file, "--seed", 5, "--steps", 4)
    done = cli("generate", *drawing, "--count", 2, "--out", tmp_path / "cat.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / f"cat-{i}.png") for i in (0, 1)]
    assert "step 4 of 4" in done.stderr
    want = bridge.generate(
        context, "a picture of S*", bridge.load(subject_file), seed=5, num_inference_steps=4,
        num_images=2,
    )  # fmt: skip
    for i in range(2):
        drawn = np.asarray(Image.open(tmp_path / f"cat-{i}.png")).astype(int)
        assert np.abs(drawn - want[i]).max() <= 1
    assert np.abs(drawn - want[0]).max() > 20
    quiet = cli("generate", *drawing, "--quiet", "--stats", "--out", tmp_path / "one.png")
    assert quiet.stderr == ""
    assert '"graphs_ms": ' in quiet.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat-0.png", "cat-1.png", "one.png"]


def test_the_command_line_probes(cli, python_subject, cat_photo, cat_mask, tmp_path: Path):
    Image.fromarray(cat_photo).save(tmp_path / "photo.png")
    Image.fromarray(cat_mask).save(tmp_path / "mask.png")
    out = tmp_path / "cat.safetensors"
    pictures = ("--image", tmp_path / "photo.png", "--mask", tmp_path / "mask.png")
    done = cli("probe", *pictures, "--name", "cat", "--out", out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    words = Subject.load(out).words
    np.testing.assert_allclose(words, python_subject.words, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("verb", "arguments", "code", "message"),
    [
        ("paint", (), 2, "expected generate or probe"),
        ("generate", ("--prompt", "a cat"), 2, "--out is missing"),
        ("generate", ("--prompt", "a cat", "--out", "x.jpg"), 2, "ends with .png"),
        ("generate", ("--prompt", "a cat", "--out", "x.png", "--seed", "-1"), 2, "--seed"),
        ("generate", ("--prompt", "a cat", "--out", "x.png", "--colour", "1"), 2, "--colour"),
        ("generate", ("--prompt", "S*", "--out", "x.png"), 1, "no subject"),
        ("probe", ("--image", "/no.png", "--mask", "/no.png", "--out", "x.png"), 2, ".safetensors"),
        ("probe", ("--image", "/n.png", "--mask", "/n.png", "--out", "x.safetensors"), 1, "n.png"),
    ],
)  # fmt: skip
def test_the_command_line_says_what_is_wrong(verb, arguments, code, message, cli, tmp_path):
    done = cli(verb, *arguments)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("--seed", "7x", "a whole number from 0 to 18446744073709551615, got 7x"),
        ("--seed", "18446744073709551616", "got 18446744073709551616"),
        ("--seed", "", "--seed: expected a whole number"),
        ("--seed", " 7", "got  7"),
        ("--steps", "1e9", "--steps: expected a whole number"),
        ("--count", "3000000000", "from 0 to 2147483647, got 3000000000"),
        ("--guidance-scale", "7.5x", "--guidance-scale: expected a number, got 7.5x"),
        ("--guidance-scale", "much", "got much"),
        ("--guidance-scale", "nan", "got nan"),
        ("--guidance-scale", "1e99", "got 1e99"),
        ("--guidance-scale", "", "--guidance-scale: expected a number"),
    ],
)
def test_the_command_line_reads_whole_numbers_whole(name, value, message, cli, tmp_path: Path):
    out = tmp_path / "x.png"
    done = cli("generate", "--prompt", "a cat", "--out", out, name, value)
    assert done.returncode == 2
    assert message in done.stderr
    assert not out.exists()


def test_more_pictures_than_there_can_be_need_no_memory(cli, tmp_path: Path):
    done = cli("generate", "--prompt", "a cat", "--out", tmp_path / "x.png", "--count", 2000000000)
    assert done.returncode == 1
    assert "num_images: expected a whole number from 1 to 64, got 2000000000" in done.stderr


_OLD_LIBRARY = """
#include <stddef.h>
#include <stdint.h>
static const void* get_api(uint32_t version) { (void)version; return NULL; }
static const char* get_version(void) { return "1.5.0"; }
static const struct { const void* (*a)(uint32_t); const char* (*b)(void); } base = {
    get_api, get_version};
const void* OrtGetApiBase(void) { return &base; }
"""


def test_a_library_that_is_older_than_the_headers_is_told(cli, mini_engines, tmp_path: Path):
    old = tmp_path / "old.so"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(old)]
    subprocess.run(command, input=_OLD_LIBRARY, text=True, check=True)
    done = cli("generate", "--prompt", "a cat", "--out", tmp_path / "x.png", LD_PRELOAD=str(old))
    assert done.returncode == 1, done.stderr
    assert "or newer, as the headers that hbsdk was built with, got 1.5.0" in done.stderr
