"""Subjects and their files: what goes in comes out, and a failed write changes nothing."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hbsdk.errors import SubjectError
from hbsdk.subject import Subject, check_name, name_from_file, subject_path

METADATA = {
    "bundle_hash": "ab" * 32,
    "steps": "5",
    "seed": "0",
    "class_word": "fox",
    "options": json.dumps({"steps": 5, "mode": "default", "learning_rate": 1e-4}),
}


def random_words(number=5, width=768, seed=0):
    values = np.random.default_rng(seed).standard_normal((number, width)) * 0.02
    return values.astype(np.float32)


def fox(**changes):
    return dataclasses.replace(Subject(random_words(), "fox", METADATA), **changes)


def header_of(path):
    data = Path(path).read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


@pytest.mark.parametrize(("number", "width"), [(1, 1), (5, 128), (5, 768), (75, 1024)])
def test_round_trip(tmp_path, number, width):
    words = random_words(number, width)
    path = Subject(words, "fox", METADATA).save(tmp_path)
    loaded = Subject.load(path, width=width)
    np.testing.assert_array_equal(loaded.words, words)
    assert loaded.words.dtype == np.float32
    assert loaded.name == "fox"
    assert loaded.report is None
    assert METADATA.items() <= loaded.metadata.items()
    again = Subject.load(loaded.save(tmp_path / "again.safetensors"))
    changed = {"modelspec.title", "modelspec.usage_hint"}
    assert {
        key for key in loaded.metadata if loaded.metadata[key] != again.metadata[key]
    } == changed


def test_a_subject_of_stable_diffusion_is_small(tmp_path):
    path = fox().save(tmp_path)
    assert 5 * 768 * 4 < path.stat().st_size < 17_000
    assert list(load_file(path)) == ["emb_params"]


def test_metadata_is_modelspec(tmp_path):
    path = fox().save(tmp_path / "red_fox.safetensors")
    header = header_of(path)["__metadata__"]
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert header["modelspec.implementation"] == "hbsdk"
    assert header["modelspec.title"] == "red_fox"
    assert "<red_fox>" in header["modelspec.usage_hint"]
    assert datetime.fromisoformat(header["modelspec.date"]).tzinfo is not None
    digest = hashlib.sha256(random_words().astype("<f4").tobytes()).hexdigest()
    assert header["modelspec.hash_sha256"] == f"0x{digest}"
    assert header["hbsdk.words"] == "5"
    for key, value in METADATA.items():
        assert header[f"hbsdk.{key}"] == value
    with safe_open(path, "np") as file:
        assert file.metadata() == header


def test_only_the_width_of_stable_diffusion_1_claims_to_be_it(tmp_path):
    path = Subject(random_words(width=128), "fox").save(tmp_path)
    architecture = header_of(path)["__metadata__"]["modelspec.architecture"]
    assert architecture == "hbsdk-clip-128/textual-inversion"


def test_given_modelspec_keys_win_but_for_those_that_follow_from_the_words(tmp_path):
    given = {"modelspec.author": "me", "modelspec.date": "2024-01-01", "modelspec.title": "no"}
    path = fox(metadata={**given, "modelspec.hash_sha256": "0x0"}).save(tmp_path)
    header = header_of(path)["__metadata__"]
    assert (header["modelspec.author"], header["modelspec.date"]) == ("me", "2024-01-01")
    assert header["modelspec.title"] == "fox"
    Subject.load(path)


def test_the_file_name_is_the_name(tmp_path):
    path = fox().save(tmp_path)
    assert path == tmp_path / "fox.safetensors"
    renamed = path.rename(tmp_path / "Reynard (2).safetensors")
    assert Subject.load(renamed).name == "reynard-2"


def test_names_are_made_lower_case_and_words_are_copied():
    words = random_words()
    subject = Subject(words, "Fox")
    words[0, 0] = 7
    assert subject.name == "fox"
    assert subject.words[0, 0] != 7
    assert Subject(words.astype(np.float64), "fox").words.dtype == np.float32


def test_subjects_can_be_sent_to_other_processes_and_renamed():
    subject = pickle.loads(pickle.dumps(fox()))  # our own, made here
    np.testing.assert_array_equal(subject.words, fox().words)
    assert dataclasses.replace(subject, name="vixen").name == "vixen"
    assert "metadata" not in repr(subject)


def test_capitals_in_a_file_name_are_refused_with_the_reason(tmp_path):
    with pytest.raises(SubjectError, match=r"diffusers would silently lose.*'fox'"):
        fox().save(tmp_path / "Fox.safetensors")
    with pytest.raises(SubjectError):
        fox().save(tmp_path / "fox.SafeTensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fox.pt", "fox.bin", "fox", "fox.png", "fox.v2"])
def test_other_endings_are_refused(tmp_path, name):
    with pytest.raises(SubjectError, match=r"\.safetensors"):
        fox().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_subject_path_writes_nothing(tmp_path):
    assert subject_path(tmp_path, "fox") == tmp_path / "fox.safetensors"
    file = tmp_path / "a.safetensors"
    assert subject_path(str(file), "fox") == file
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fox", "a", "fox-2", "fox_2", "fox.v2", "0", "_x", "console"])
def test_good_names(name):
    check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "s*", "<fox>", "my fox", "../fox", "a/b", "a\\b", ".fox", "-fox", "fox.", ".."),
        *("fox\n", "föx", "ſox", "FOX", "a" * 65, "con", "nul", "com1", "lpt9", "aux.v2"),
    ],
)
def test_bad_names_are_refused(name, tmp_path):
    with pytest.raises(SubjectError, match="subject name"):
        check_name(name)
    if name != "FOX":
        with pytest.raises(SubjectError, match="subject name"):
            Subject(random_words(), name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("fox.png", "fox"),
        ("My Fox (1).PNG", "my-fox-1"),
        ("/a/b/EasyNegative.safetensors", "easynegative"),
        ("Füchslein.jpg", "fuchslein"),
        ("狐.jpg", "subject"),
        ("con.safetensors", "subject"),
        ("x" * 200 + ".png", "x" * 64),
        ("a" * 63 + ".b.png", "a" * 63),
    ],
)
def test_name_from_file(file, name):
    assert name_from_file(file) == name
    check_name(name_from_file(file))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (np.zeros(768, np.float32), "shape"),
        (np.zeros((0, 768), np.float32), "shape"),
        (np.zeros((5, 0), np.float32), "shape"),
        (np.zeros((76, 8), np.float32), "shape"),
        (np.zeros((1, 5, 8), np.float32), "shape"),
        (np.zeros((5, 8), np.int64), "floats"),
        (np.zeros((5, 8), np.complex64), "floats"),
        (np.full((5, 8), np.nan), "finite"),
        (np.full((5, 8), 1e300), "finite"),
        (np.full((5, 8), 4.01), "root mean square"),
    ],
)
def test_words_that_cannot_be_are_refused(words, complaint):
    with pytest.raises(SubjectError, match=complaint):
        Subject(words, "fox")


def test_large_words_just_within_the_bound_pass():
    Subject(np.full((5, 8), 4.0), "fox")


def test_what_is_saved_can_be_loaded_or_is_refused(tmp_path):
    """Saving adds metadata of its own, and reading bounds them all together."""
    fits = Subject(random_words(), "fox", {"a": "x" * (255 * 2**10)})
    assert Subject.load(fits.save(tmp_path)).metadata["a"] == fits.metadata["a"]
    before = (tmp_path / "fox.safetensors").read_bytes()
    with pytest.raises(SubjectError, match="'fox', metadata: expected at most 262144 bytes"):
        Subject(random_words(), "fox", {"a": "x" * (256 * 2**10 - 1)}).save(tmp_path)
    assert (tmp_path / "fox.safetensors").read_bytes() == before


@pytest.mark.parametrize("metadata", [{"steps": 5}, {1: "a"}, {"a": "x" * 300_000}])
def test_metadata_is_a_moderate_amount_of_text(metadata):
    with pytest.raises(SubjectError, match="metadata"):
        Subject(random_words(), "fox", metadata)


def fail_with(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("function", ["os.fsync", "os.replace"])
def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch, function):
    path = fox().save(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(function, fail_with(errno.ENOSPC))
    with pytest.raises(SubjectError, match=r"No space left.*Nothing was changed"):
        Subject(random_words(seed=1), "fox").save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    Subject(random_words(seed=1), "fox").save(path)
    assert path.read_bytes() != before


def test_an_interrupted_write_leaves_no_rest(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fox().save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_is_really_full(tmp_path, monkeypatch):
    real_open = Path.open

    def open_full(self, mode="r", *rest, **named):
        return real_open(Path("/dev/full") if mode == "xb" else self, "wb")

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(SubjectError, match="No space left"):
        fox().save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(SubjectError, match=re.escape(str(tmp_path / "no" / "fox.safetensors"))):
        fox().save(tmp_path / "no" / "fox.safetensors")


def test_the_file_gets_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    path = fox().save(tmp_path)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("emb_params", random_words()),
        ("<fox>", random_words()),
        ("<fox>", random_words()[0]),
        ("*", random_words().astype(np.float16)),
        ("clip_l", random_words()),
    ],
)
def test_textual_inversions_of_other_tools_load(tmp_path, key, words):
    path = tmp_path / "Some_Style.safetensors"
    save_file({key: words}, path, {"ss_tool": "other", "modelspec.title": "A style"})
    subject = Subject.load(path)
    np.testing.assert_array_equal(subject.words, np.atleast_2d(words).astype(np.float32))
    assert subject.name == "some_style"
    assert subject.metadata == {"modelspec.title": "A style"}


def test_bfloat16_loads(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    words = torch.from_numpy(random_words()).bfloat16()
    save_torch({"emb_params": words}, tmp_path / "a.safetensors")
    loaded = Subject.load(tmp_path / "a.safetensors").words
    np.testing.assert_array_equal(loaded, words.float().numpy())


def test_importing_it_needs_no_torch():
    code = "import sys, hbsdk.subject, hbsdk.schedule; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
