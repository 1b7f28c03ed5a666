"""Checkpoints: which stay, when they are on the disk, and what a refused write leaves."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hbsdk.bundle import Bundle
from hbsdk.errors import TrainingError
from hbsdk.regressor import PromptRegressor
from hbsdk.training.checkpoint import newest_checkpoint, refused_writes, write_checkpoint
from hbsdk.training.refusal import is_full, refusal_of
from hbsdk.training.run_folder import save_regressor

HOW: Mapping[str, object] = {"seconds": 1.0, "run": {}, "keep": 2}
STATE = {"weight": torch.zeros(8)}


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse to write larger files: errno EFBIG, as a full disk is ENOSPC."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def spoil(out: Path, step: int) -> None:
    state = out / "checkpoints" / f"step-{step:06d}" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])


def test_only_complete_checkpoints_count_as_kept(tmp_path: Path) -> None:
    """One that is damaged, and folders that never were complete, take no one's place."""
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, STATE, step=step, **HOW)
    assert names(tmp_path) == ["step-000002", "step-000003"]  # the control: all complete
    spoil(tmp_path, 3)
    (tmp_path / "checkpoints" / "step-000009").mkdir()
    write_checkpoint(tmp_path, STATE, step=4, **HOW)
    assert names(tmp_path) == ["step-000002", "step-000004"]
    spoil(tmp_path, 4)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2


def test_all_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and their folder, the name, the name's folder; and only then an older one goes."""
    write_checkpoint(tmp_path, STATE, step=1, **HOW)
    happened: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        happened.append(f"sync {Path(os.readlink(f'/proc/self/fd/{number}')).name}")
        sync(number)

    def replaced(before: Path, after: Path) -> None:
        happened.append(f"name {after.name}")
        replace(before, after)

    def removed(folder: Path, **_: object) -> None:
        if folder.exists():
            happened.append(f"remove {folder.name}")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr("shutil.rmtree", removed)
    write_checkpoint(tmp_path, STATE, step=2, **{**HOW, "keep": 1})
    assert happened == [
        "sync state.pt", "sync about.json", "sync .step-000002.tmp", "name step-000002",
        "sync checkpoints", "remove step-000001",
    ]  # fmt: skip


def test_the_remedy_is_what_can_be_done(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    closed = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(TrainingError) as caught, refused_writes("it", tmp_path):
        raise full
    assert "it could not be written: the disk is full" in str(caught.value)
    assert "Make room, then begin again: there is no checkpoint yet" in str(caught.value)
    write_checkpoint(tmp_path, STATE, step=7, **HOW)
    with pytest.raises(TrainingError) as caught, refused_writes("it", tmp_path):
        raise full
    assert "Make room, then go on with --resume from step-000007" in str(caught.value)
    with pytest.raises(TrainingError) as caught, refused_writes("it", tmp_path):
        raise closed
    assert "disk is full" not in str(caught.value)
    assert "can be written to, then go on with --resume" in str(caught.value)
    with pytest.raises(TrainingError) as caught, refused_writes("it", tmp_path):
        raise TrainingError("ours") from full  # says already what it is
    assert str(caught.value) == "ours."


def test_what_safetensors_could_not_write_is_told_as_the_system_told_it(tmp_path: Path) -> None:
    weights = {"weight": torch.zeros(99_999)}
    with files_of_at_most(100_000), pytest.raises(SafetensorError) as caught:
        save_file(weights, tmp_path / "large.safetensors")
    refused = refusal_of(caught.value)
    assert refused is not None
    assert (refused.errno, is_full(refused)) == (errno.EFBIG, False)
    full = refusal_of(SafetensorError(f"I/O error: No space left (os error {errno.ENOSPC})"))
    assert full is not None
    assert is_full(full)
    assert refusal_of(SafetensorError("Error while deserializing header")) is None  # the control


def test_a_regressor_that_cannot_be_written_leaves_the_former_one(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    regressor = Bundle.open(tiny_bundle).load_regressor()
    first = save_regressor(regressor, tmp_path)
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    with torch.no_grad():
        regressor.base_words.add_(1.0)
    with (
        files_of_at_most(20_000),
        pytest.raises(TrainingError, match=r"the regressor in .* could not be written.*too large"),
    ):
        save_regressor(regressor, tmp_path)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["regressor"]
    save_regressor(regressor, tmp_path)  # the control
    written = PromptRegressor.from_pretrained(first)
    torch.testing.assert_close(written.base_words, regressor.base_words, rtol=0, atol=0)


def test_a_regressor_that_cannot_get_its_name_leaves_the_former_one(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regressor = Bundle.open(tiny_bundle).load_regressor()
    first = save_regressor(regressor, tmp_path)
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if source.name.endswith(".new"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(TrainingError, match="the disk is full"):
        save_regressor(regressor, tmp_path)
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["regressor"]
