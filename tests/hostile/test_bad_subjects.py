"""Subject files that are damaged, lie or are something else: each a clear error, none a crash."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save as to_safetensors

from hbsdk.errors import HbsdkError, SubjectError
from hbsdk.subject import Subject
from hbsdk.subject_file import MAX_FILE_BYTES

WORDS = (np.random.default_rng(0).standard_normal((5, 16)) * 0.02).astype(np.float32)
DATA = WORDS.tobytes()
ENTRY = {"dtype": "F32", "shape": [5, 16], "data_offsets": [0, len(DATA)]}


def file_bytes(header, data=DATA, length=None):
    """A safetensors file as the header (an object, or its very bytes) would have it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes):
    return {"emb_params": {**ENTRY, **changes}}


def torch_zip():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"string_to_param": 1}))
    return packed.getvalue()


def doubled(inner):
    return b'{"emb_params": ' + json.dumps(ENTRY).encode() + b", " + inner + b"}"


GOOD = file_bytes(entry())
GOOD_ENTRY = json.dumps(ENTRY).encode()
BAD = {
    "empty": (b"", "empty"),
    "one byte": (b"\x00", "safetensors"),
    "seven bytes": (GOOD[:7], "safetensors"),
    "only the length": (GOOD[:8], "safetensors"),
    "cut in the header": (GOOD[:40], "safetensors"),
    "cut in the tensor": (GOOD[:-1], "safetensors"),
    "without its tensor": (GOOD[: -len(DATA)], "safetensors"),
    "a rest after the tensor": (GOOD + b"x", "not fully covered"),
    "zeros": (b"\x00" * 100, "safetensors"),
    "header length 0": (file_bytes(b"", length=0), "safetensors"),
    "header beyond the file": (file_bytes(entry(), length=10_000), "safetensors"),
    "header of 2**60": (file_bytes(entry(), length=2**60), "header too large"),
    "header of 2**64 - 1": (file_bytes(entry(), length=2**64 - 1), "header too large"),
    "header of 200 MB": (file_bytes(entry(), length=200_000_000), "header too large"),
    "header a byte short": (file_bytes(entry(), length=len(json.dumps(entry())) - 1), "JSON"),
    "no JSON": (file_bytes(b"{not json"), "JSON"),
    "no UTF-8": (file_bytes(b'{"\xff": 1}'), "UTF-8"),
    "a list": (file_bytes(b"[]"), "JSON"),
    "nested too deep": (file_bytes(b'{"a":' + b"[" * 9000 + b"]" * 9000 + b"}"), "JSON"),
    "offsets beyond the file": (file_bytes(entry(data_offsets=[0, 2**62])), "safetensors"),
    "offsets backwards": (file_bytes(entry(data_offsets=[320, 0])), "safetensors"),
    "offsets with a hole": (file_bytes(entry(shape=[5, 14], data_offsets=[40, 320])), "offset"),
    "negative offsets": (file_bytes(entry(data_offsets=[-320, 0])), "JSON"),
    "overflowing shape": (file_bytes(entry(shape=[2**62, 2**62])), "overflow"),
    "nothing of a huge shape": (
        file_bytes(entry(shape=[0, 2**62], data_offsets=[0, 0]), b""),
        "numbers",
    ),
    "negative shape": (file_bytes(entry(shape=[-5, -16])), "JSON"),
    "shape of another size": (file_bytes(entry(shape=[5, 17])), "safetensors"),
    "unknown dtype": (file_bytes(entry(dtype="F31")), "unknown variant"),
    "tensor twice": (file_bytes(doubled(b'"emb_params": ' + GOOD_ENTRY)), "a key twice"),
    "metadata key twice": (
        file_bytes(doubled(b'"__metadata__": {"hbsdk.a": "1", "hbsdk.a": "2"}')),
        "a key twice",
    ),
    "metadata twice": (
        file_bytes(doubled(b'"__metadata__": {}, "__metadata__": {}')),
        "duplicate field",
    ),
    "numbers in the metadata": (file_bytes({**entry(), "__metadata__": {"a": 1}}), "JSON"),
    "half a megabyte of metadata": (
        file_bytes({**entry(), "__metadata__": {"hbsdk.a": "x" * 500_000}}),
        "metadata",
    ),
    "no tensor": (file_bytes({}, b""), "one tensor.*got none"),
    "two tensors": (to_safetensors({"a": WORDS, "b": WORDS}), "got 2: a, b"),
    "an SDXL embedding": (to_safetensors({"clip_g": WORDS, "clip_l": WORDS}), "SDXL"),
    "doubles": (to_safetensors({"emb_params": WORDS.astype(np.float64)}), "F64"),
    "whole numbers": (to_safetensors({"emb_params": WORDS.astype(np.int64)}), "I64"),
    "bytes": (to_safetensors({"emb_params": WORDS.astype(np.uint8)}), "U8"),
    "three dimensions": (to_safetensors({"emb_params": WORDS[None]}), "shape"),
    "a single number": (to_safetensors({"emb_params": np.array(1, np.float32)}), "shape"),
    "no words": (to_safetensors({"emb_params": WORDS[:0]}), "shape"),
    "words of no width": (to_safetensors({"emb_params": WORDS[:, :0]}), "shape"),
    "76 words": (to_safetensors({"emb_params": np.zeros((76, 4), np.float32)}), "1 to 75"),
    "a UNet's weight": (to_safetensors({"w": np.zeros((320, 320), np.float32)}), "1 to 75"),
    "NaN": (to_safetensors({"emb_params": WORDS * np.float32("nan")}), "finite"),
    "one infinity": (
        to_safetensors({"emb_params": np.where(WORDS[2, 2] < WORDS, np.float32("inf"), WORDS)}),
        "finite",
    ),
    "half-precision infinity": (
        to_safetensors({"emb_params": np.full((5, 16), np.inf, np.float16)}),
        "finite",
    ),
    "huge words": (to_safetensors({"emb_params": WORDS * 1000}), "root mean square"),
    "words of 1e30": (to_safetensors({"emb_params": WORDS * 0 + np.float32(1e30)}), "root mean"),
    "one huge word": (
        to_safetensors({"emb_params": WORDS * np.float32([[1], [1], [1], [1], [1e4]])}),
        "root mean square",
    ),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "a web page": (b"<!DOCTYPE html><html><body>401</body></html>", "web page"),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, "PNG"),
    "a GGUF": (b"GGUF\x03\x00\x00\x00" + b"\x00" * 50, "GGUF"),
    "text": (b"a photo of a fox", "safetensors"),
}


@pytest.mark.parametrize(("data", "complaint"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused_by_name(tmp_path, data, complaint):
    path = tmp_path / "fox.safetensors"
    path.write_bytes(data)
    with pytest.raises(SubjectError, match=complaint) as caught:
        Subject.load(path)
    message = str(caught.value)
    assert str(path) in message or "subject 'fox'" in message
    assert "expected" in message
    assert "got" in message
    assert "\n" not in message


def test_the_good_file_is_good(tmp_path):
    """Negative control: what the bad files are made from loads."""
    (tmp_path / "fox.safetensors").write_bytes(GOOD)
    np.testing.assert_array_equal(Subject.load(tmp_path / "fox.safetensors").words, WORDS)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_pickles_are_refused_and_never_opened(tmp_path, suffix, protocol):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-run"),)

    path = tmp_path / f"fox{suffix}"
    path.write_bytes(pickle.dumps({"string_to_param": Attack()}, protocol))
    with pytest.raises(SubjectError, match="can run any code"):
        Subject.load(path)
    assert not (tmp_path / "was-run").exists()


def test_zipped_pickles_are_refused(tmp_path):
    (tmp_path / "fox.pt").write_bytes(torch_zip())
    with pytest.raises(SubjectError, match=r"can run any code.*PyTorch"):
        Subject.load(tmp_path / "fox.pt")


def test_what_torch_saves_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    for zipped in (True, False):
        torch.save(
            {"emb_params": torch.zeros(5, 16)},
            tmp_path / "fox.pt",
            _use_new_zipfile_serialization=zipped,
        )
        with pytest.raises(SubjectError, match="can run any code"):
            Subject.load(tmp_path / "fox.pt")


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_header_length_that_looks_like_a_pickle_loads(tmp_path, length):
    """A header of 640 bytes is written 80 02 00 ..., as the second protocol's pickles begin."""
    text = json.dumps(entry()).encode().ljust(length)
    path = tmp_path / "fox.safetensors"
    path.write_bytes(file_bytes(text))
    assert path.read_bytes()[:2] == bytes([0x80, length >> 8])
    np.testing.assert_array_equal(Subject.load(path).words, WORDS)


def test_a_changed_byte_in_a_file_of_ours_is_noticed(tmp_path):
    path = Subject(WORDS, "fox").save(tmp_path)
    data = bytearray(path.read_bytes())
    data[-4] ^= 1  # the lowest bit of the last number
    path.write_bytes(bytes(data))
    with pytest.raises(SubjectError, match="hash_sha256"):
        Subject.load(path)


def test_random_damage_never_gets_past_as_another_error(tmp_path):
    path = Subject(WORDS, "fox", {"steps": "5"}).save(tmp_path)
    good = path.read_bytes()
    chance = np.random.default_rng(1)
    refused = 0
    for _ in range(400):
        data = bytearray(good[: chance.integers(1, len(good) + 1)])
        for place in chance.integers(0, len(data), 3):
            data[place] = chance.integers(256)
        path.write_bytes(bytes(data))
        try:
            Subject.load(path)
        except HbsdkError:
            refused += 1
    assert refused > 380  # the rest changed a letter of the metadata


@pytest.mark.parametrize("width", [15, 17, 768])
def test_another_width_is_refused(tmp_path, width):
    path = Subject(WORDS, "fox").save(tmp_path)
    Subject.load(path, width=16)
    with pytest.raises(SubjectError, match=f"width {width}, got 16"):
        Subject.load(path, width=width)


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "fox.safetensors"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(SubjectError, match=f"{MAX_FILE_BYTES + 1} bytes"):
        Subject.load(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(SubjectError, match="a folder"):
        Subject.load(tmp_path)
    with pytest.raises(SubjectError, match="No such file"):
        Subject.load(tmp_path / "fox.safetensors")
    with pytest.raises(SubjectError, match="null"):
        Subject.load("fox\0.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "fox.safetensors")
    with pytest.raises(SubjectError, match="no ordinary file"):
        Subject.load(tmp_path / "fox.safetensors")
