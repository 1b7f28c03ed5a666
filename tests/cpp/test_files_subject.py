"""Subject files: what the bridge accepts, refuses and writes, against Python's own."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save as to_safetensors

from hbsdk.errors import SubjectError
from hbsdk.subject import Subject
from hbsdk.subject_file import MAX_FILE_BYTES, decode_subject, encode_subject
from tests.cpp.files_check import FilesCheck, damaged, is_error, status_of
from tests.cpp.library import DAMAGED, INVALID_ARGUMENT, NOT_FOUND, RUNTIME
from tests.hostile.test_bad_subjects import (
    BAD,
    DATA,
    ENTRY,
    GOOD,
    WORDS,
    entry,
    file_bytes,
    torch_zip,
)

METADATA = {
    "steps": "5", "hbsdk.note": "é 狐 \U0001f98a", "modelspec.author": "me", "quote": '"\\\n\t',
}  # fmt: skip
OWN = encode_subject(np.ascontiguousarray(WORDS), "fox", METADATA)


def python_reads(data: bytes) -> Any:
    """What Python makes of a file's bytes: its subject, or None where it refuses them."""
    try:
        words, metadata = decode_subject(data, "the file")
        return Subject(words, "fox", metadata)
    except SubjectError:
        return None


def check_same(answer: Any, expected: Subject | None) -> None:
    if expected is None:
        assert status_of(answer) == DAMAGED, answer
        assert "the file" in answer["error"]
        assert "expected" in answer["error"]
        assert "\n" not in answer["error"]
        return
    assert not is_error(answer), answer
    assert (answer["count"], answer["width"]) == expected.words.shape
    little_endian = expected.words.astype("<f4").tobytes()
    assert answer["words"] == hashlib.sha256(little_endian).hexdigest()
    assert answer["metadata"] == dict(expected.metadata)


def ask(check: FilesCheck, files: list[bytes]) -> list[Any]:
    return check.ask("subject-bytes", files)


def halves(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16)


EVERY_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE_HALF = EVERY_HALF[np.isfinite(EVERY_HALF) & (np.abs(EVERY_HALF.astype(np.float32)) <= 3)]
ENTRY_TEXT = json.dumps(ENTRY).encode()
GOOD_FILES = {
    "plain": GOOD,
    "own": OWN,
    "half": to_safetensors({"w": halves(WORDS)}),
    "every half": to_safetensors({"w": FINITE_HALF[: len(FINITE_HALF) // 2 * 2].reshape(2, -1)}),
    "one row": to_safetensors({"any name at all": WORDS[0]}),
    "bfloat16": file_bytes(
        {"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}, b"\x00\x3c\x80\xbf" * 3
    ),
    "75 words": to_safetensors({"w": np.full((75, 4), 0.5, np.float32)}),
    "root mean square of 4": to_safetensors({"w": np.full((2, 4), 4, np.float32)}),
    "minus zero": to_safetensors({"w": np.full((2, 4), -0.0, np.float32)}),
    "smallest": to_safetensors({"w": np.full((1, 1), 1e-45, np.float32)}),
    "metadata null": file_bytes({**entry(), "__metadata__": None}),
    "metadata empty": file_bytes({**entry(), "__metadata__": {}}),
    "unknown key in the tensor": file_bytes(entry(more=[1, {"a": None}])),
    "space after the header": file_bytes(json.dumps(entry()).encode() + b"   \n"),
    "escapes": file_bytes(b'{"emb_p\\u0061rams\\ud83e\\udd8a": ' + ENTRY_TEXT + b"}"),
    "another's hash": file_bytes(
        {**entry(), "__metadata__": {"modelspec.hash_sha256": "0x0", "modelspec.title": "x"}}
    ),
    "most metadata": file_bytes({**entry(), "__metadata__": {"hbsdk.a": "x" * (256 * 1024 - 1)}}),
    "metadata of others": file_bytes({**entry(), "__metadata__": {"sshs": "y" * 300_000}}),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_good_files_are_read_as_in_python(files_check, name: str) -> None:
    expected = python_reads(GOOD_FILES[name])
    assert expected is not None
    check_same(ask(files_check, [GOOD_FILES[name]])[0], expected)


MORE_BAD = {
    "wrong hash": OWN[:-1] + bytes([OWN[-1] ^ 1]),
    "metadata a byte too long": file_bytes(
        {**entry(), "__metadata__": {"hbsdk.ab": "x" * (256 * 1024 - 1)}}
    ),
    "offsets of three": file_bytes(entry(data_offsets=[0, 160, 320])),
    "offsets of one": file_bytes(entry(data_offsets=[320])),
    "offsets are numbers with a point": file_bytes(entry(data_offsets=[0.0, 320.0])),
    "shape of texts": file_bytes(entry(shape=["5", "16"])),
    "shape no list": file_bytes(entry(shape=80)),
    "no dtype": file_bytes({"a": {"shape": [5, 16], "data_offsets": [0, 320]}}),
    "dtype a number": file_bytes(entry(dtype=32)),
    "shape of 2**64": file_bytes(entry(shape=[2**64, 1])),
    "offsets of 2**64": file_bytes(entry(data_offsets=[0, 2**64])),
    "product of 2**64": file_bytes(entry(shape=[2**32, 2**32])),
    "bytes of 2**64": file_bytes(entry(shape=[2**31, 2**31])),
    "overlapping": file_bytes({"a": ENTRY, "b": {**ENTRY, "data_offsets": [160, 480]}}, DATA * 2),
    "the same bytes twice": file_bytes({"a": ENTRY, "b": ENTRY}),
    "a hole": file_bytes(
        {"a": ENTRY, "b": {**ENTRY, "data_offsets": [400, 720]}}, DATA + b"0" * 80 + DATA
    ),
    "begins late": file_bytes(entry(data_offsets=[8, 328]), b"0" * 8 + DATA),
    "byte order mark": file_bytes(b"\xef\xbb\xbf" + json.dumps(entry()).encode()),
    "half a surrogate pair": file_bytes(b'{"\\ud800": ' + ENTRY_TEXT + b"}"),
    "a number too large": file_bytes(b'{"a": ' + ENTRY_TEXT[:-1] + b', "x": 1e999}}'),
    "NaN in the header": file_bytes(b'{"a": ' + ENTRY_TEXT[:-1] + b', "x": NaN}}'),
    "a comma too many": file_bytes(json.dumps(entry()).encode()[:-1] + b",}"),
    "a comment": file_bytes(b"{/**/" + json.dumps(entry()).encode()[1:]),
    "a second object": file_bytes(json.dumps(entry()).encode() + b"{}"),
    "a null character": file_bytes(json.dumps(entry()).encode() + b"\0"),
    "a key twice in an unknown part": file_bytes(
        b'{"a": ' + ENTRY_TEXT[:-1] + b', "x": {"k": 1, "k": 2}}}'
    ),
    "zip": torch_zip(),
    **{f"pickle {n}": pickle.dumps({"string_to_param": 1}, n) for n in range(2, 6)},
    "bfloat16 infinity": file_bytes(
        {"w": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [0, 4]}}, b"\x80\x7f\x00\x00"
    ),
    "just above a root mean square of 4": to_safetensors({"w": np.full((2, 4), 4.001, np.float32)}),
}
ALL_BAD = {**{name: data for name, (data, _) in BAD.items() if data}, **MORE_BAD}


@pytest.mark.parametrize("name", ALL_BAD)
def test_bad_files_are_refused_as_in_python(files_check, name: str) -> None:
    assert python_reads(ALL_BAD[name]) is None
    check_same(ask(files_check, [ALL_BAD[name]])[0], None)


@pytest.mark.parametrize(
    "name",
    ["pickle 2", "zip", "a Git LFS pointer", "a web page", "a PNG", "a GGUF", "two tensors",
     "doubles", "three dimensions", "76 words", "NaN", "one infinity", "huge words",
     "one huge word", "wrong hash", "half a megabyte of metadata", "no tensor",
     "an SDXL embedding"],
)  # fmt: skip
def test_the_messages_are_pythons(files_check, name: str) -> None:
    def read() -> None:
        words, metadata = decode_subject(ALL_BAD[name], "the file")
        Subject(words, "subject", metadata)

    with pytest.raises(SubjectError) as caught:
        read()
    message = ask(files_check, [ALL_BAD[name]])[0]["error"]
    assert message == str(caught.value).replace("subject 'subject'", "the file")


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0], [0, 2**64 - 1], [2**63, 2**63, 0]])
def test_nothing_of_a_huge_shape_is_refused(files_check, shape: list[int]) -> None:
    """No words, though their number of bytes, 0, is right."""
    file = file_bytes(entry(shape=shape, data_offsets=[0, 0]), b"")
    answer = ask(files_check, [file])[0]
    assert status_of(answer) == DAMAGED
    assert "expected" in answer["error"]


def test_files_cut_anywhere_are_refused(files_check) -> None:
    cut = [OWN[:size] for size in range(len(OWN))]
    for answer in ask(files_check, cut):
        assert status_of(answer) == DAMAGED
    check_same(ask(files_check, [OWN])[0], python_reads(OWN))


def test_damaged_files_are_judged_as_in_python(files_check) -> None:
    files = [file for good in (GOOD, OWN, GOOD_FILES["half"]) for file in damaged(good, 700)]
    good = 0
    for file, answer in zip(files, ask(files_check, files), strict=True):
        expected = python_reads(file)
        check_same(answer, expected)
        good += expected is not None
    assert 20 < good < len(files) - 1_000


def test_headers_that_lie_about_their_length(files_check) -> None:
    text = json.dumps(entry()).encode()
    lengths = [*range(len(text) + 12), 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 9, 2**64 - 1]
    files = [file_bytes(text, length=length) for length in lengths]
    for file, answer in zip(files, ask(files_check, files), strict=True):
        check_same(answer, python_reads(file))


def test_files_on_the_disk(files_check, tmp_path: Path) -> None:
    path = tmp_path / "My Füchsin (1).safetensors"
    path.write_bytes(OWN)
    answer = files_check.one("subject", str(path))
    assert answer["name"] == Subject.load(path).name == "my-fuchsin-1"
    assert answer["metadata"]["note"] == METADATA["hbsdk.note"]
    large = tmp_path / "large.safetensors"
    with large.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    os.mkfifo(tmp_path / "pipe.safetensors")
    for place, status, text in (
        (large, DAMAGED, f"expected at most {MAX_FILE_BYTES} bytes"),
        (empty, DAMAGED, "an empty file"),
        (tmp_path, NOT_FOUND, "a folder"), (tmp_path / "no", NOT_FOUND, "No such file"),
        (tmp_path / "pipe.safetensors", NOT_FOUND, "no ordinary file"),
        (f"{path}\0x", INVALID_ARGUMENT, "null"),
    ):  # fmt: skip
        answer = files_check.one("subject", str(place))
        assert (status_of(answer), text in answer["error"]) == (status, True), answer


def rewrite(check: FilesCheck, source: Path, to: Path, **more: Any) -> Any:
    return check.one("rewrite", {"from": str(source), "to": str(to), **more})


@pytest.mark.parametrize("name", [name for name in GOOD_FILES if name != "most metadata"])
def test_what_the_bridge_writes_python_reads(files_check, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source.safetensors"
    source.write_bytes(GOOD_FILES[name])
    before = Subject.load(source)
    written = Path(rewrite(files_check, source, tmp_path, name="fox"))
    assert written == tmp_path / "fox.safetensors"
    after = Subject.load(written)
    np.testing.assert_array_equal(after.words.view(np.uint32), before.words.view(np.uint32))
    python = Subject(before.words, "fox", before.metadata).save(tmp_path / "python.safetensors")
    with safe_open(written, "np") as ours, safe_open(python, "np") as theirs:
        assert list(ours.keys()) == list(theirs.keys()) == ["emb_params"]
        got, expected = dict(ours.metadata()), dict(theirs.metadata())
    for metadata, title in ((got, "fox"), (expected, "python")):
        assert metadata["modelspec.title"] == title
        assert title in metadata.pop("modelspec.usage_hint")
        metadata.pop("modelspec.title")
    if "modelspec.date" not in before.metadata:
        stamp = got.pop("modelspec.date")
        assert (len(stamp), stamp[-6:]) == (25, "+00:00")
        assert stamp[:10] <= expected.pop("modelspec.date")[:10]
    assert got == expected
    assert not list(tmp_path.glob(".*"))


def test_the_tensor_of_a_written_file_is_aligned(files_check, tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    source.write_bytes(OWN)
    for length in range(8):
        written = Path(rewrite(files_check, source, tmp_path, metadata={"pad": "x" * length}))
        assert int.from_bytes(written.read_bytes()[:8], "little") % 8 == 0


@pytest.mark.parametrize(
    ("to", "more", "status", "text"),
    [
        ("fox.bin", {}, INVALID_ARGUMENT, "ends with .safetensors"),
        ("Fox.safetensors", {}, INVALID_ARGUMENT, "lower case"),
        ("con.safetensors", {}, INVALID_ARGUMENT, "device"),
        ("fox", {}, INVALID_ARGUMENT, "no ending"),
        ("no/fox.safetensors", {}, RUNTIME, "No such file"),
        ("", {"name": "../fox"}, INVALID_ARGUMENT, "not led by"),
        ("", {"metadata": {"a": "x" * 300_000}}, INVALID_ARGUMENT, "at most 262144 bytes"),
        ("", {"metadata": {"a": "x" * 262_000}}, INVALID_ARGUMENT, "hbsdk writes beside"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    files_check, tmp_path: Path, to: str, more: dict[str, Any], status: int, text: str
) -> None:
    (tmp_path / "source.safetensors").write_bytes(GOOD)
    folder = tmp_path / "folder"
    folder.mkdir()
    answer = rewrite(files_check, tmp_path / "source.safetensors", folder / to, **more)
    assert status_of(answer) == status, answer
    assert text in answer["error"]
    assert list(folder.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(files_check, tmp_path: Path) -> None:
    (tmp_path / "source.safetensors").write_bytes(OWN)
    (tmp_path / "fox.safetensors").mkdir()  # cannot be replaced by a file
    (tmp_path / "fox.safetensors" / "kept").touch()
    nested = tmp_path / "fox.safetensors"
    answer = rewrite(files_check, tmp_path / "source.safetensors", tmp_path, name="fox")
    assert status_of(answer) == RUNTIME
    assert [path.name for path in nested.iterdir()] == ["kept"]
    assert not list(tmp_path.glob(".*"))
