"""The harness's record: statistics, resuming, what is kept, and what it says of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hbsdk.bench.answer import finish, psnr_db, work_folder
from hbsdk.bench.arguments import failures
from hbsdk.bench.machine import describe
from hbsdk.bench.process import Case
from hbsdk.bench.report import Report, read_report, write_result
from hbsdk.bench.summary import linear_fit, percentile, summary
from hbsdk.bench.table import MACHINE, duration, markdown
from hbsdk.errors import OptionError

BUNDLE = {"name": "tiny", "hash": "0"}


def make_report(path: Path, **settings: object) -> Report:
    return Report(path, "generate", settings, BUNDLE)


@pytest.mark.parametrize("count", [1, 2, 5, 20, 101])
def test_statistics_are_numpys(count: int) -> None:
    samples = np.random.default_rng(count).gamma(2.0, 1.0, count).tolist()
    found = summary(samples)
    assert found["runs"] == count
    assert found["samples_s"] == samples
    assert found["median_s"] == pytest.approx(np.median(samples))
    assert found["mean_s"] == pytest.approx(np.mean(samples))
    for percent in (5, 50, 95):
        assert percentile(samples, percent) == pytest.approx(np.percentile(samples, percent))
    if count > 1:
        assert percentile(samples, 95) != pytest.approx(np.percentile(samples, 94), rel=1e-6)


def test_a_line_is_numpys() -> None:
    numbers = [5, 10, 20, 40]
    seconds = [1.0, 2.2, 3.9, 8.1]
    each, fixed = np.polyfit(numbers, seconds, 1)
    found = linear_fit(numbers, seconds)
    assert found["seconds_each"] == pytest.approx(each)
    assert found["seconds_fixed"] == pytest.approx(fixed)
    residuals = np.abs(np.array(seconds) - fixed - each * np.array(numbers))
    assert found["largest_residual"] == pytest.approx(residuals.max() / 8.1)
    assert linear_fit([1, 2, 4], [3.0, 5.0, 9.0])["largest_residual"] == pytest.approx(0.0)
    assert linear_fit([1, 2, 4], [3.0, 9.0, 5.0])["largest_residual"] > 0.1


def test_a_file_says_where_it_was_measured(tmp_path: Path) -> None:
    report = make_report(tmp_path / "deep" / "a.json", steps=4)
    report.write()
    data = json.loads((tmp_path / "deep" / "a.json").read_text())
    for key in ("question", "command", "date", "commit", "device", "settings", "bundle"):
        assert key in data
    assert data["machine"]["cores"] >= 1
    assert data["machine"]["cpu"]
    assert {"hbsdk", "numpy", "python"} <= set(data["versions"])
    assert data["settings"] == {"steps": 4}
    assert len((describe()["commit"] or "0" * 40).removesuffix("-dirty")) == 40


def test_a_second_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    first = make_report(path, steps=4)
    first.add("torch", {"samples": {"step": [1.0, 2.0]}, "stages": {"text": 0.5}})
    first.write()
    second = make_report(path, steps=4)
    assert second.turns("torch") == 1
    assert second.turns("other") == 0
    second.add("torch", {"samples": {"step": [6.0]}, "stages": {"text": 1.5}})
    second.write()
    entry = read_report(path)["cases"]["torch"]
    assert entry["turns"] == 2
    assert entry["measures"]["step"]["samples_s"] == [1.0, 2.0, 6.0]
    assert entry["measures"]["step"]["median_s"] == 2.0
    assert entry["stages"]["text"]["mean_s"] == 1.0


KEY = {"settings": "a", "code": "b"}


def measured(path: Path, key: dict, **facts: object) -> tuple[Report, str | None]:
    """A report after one run of a case with this key."""
    report = make_report(path)
    dropped = report.begin("torch", key)
    report.loaded("torch", {"threads": 1, "versions": {"torch": "1"}, **facts})
    report.add("torch", {"samples": {"step": [1.0]}, "shares": {"host_share": 0.5}})
    report.write()
    return report, dropped


def test_runs_of_one_kind_alone_are_in_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    assert measured(path, KEY)[1] is None
    report, dropped = measured(path, KEY)
    assert dropped is None
    assert report.turns("torch") == 2
    for other in ({**KEY, "settings": "c"}, {**KEY, "code": "c"}):
        before = report.turns("torch")
        report, dropped = measured(path, other)
        assert report.turns("torch") == 1
        (changed,) = (name for name in KEY if other[name] != KEY[name])
        assert dropped is not None
        assert dropped.startswith(f"torch: {before} earlier runs dropped")
        assert changed in dropped
        assert report.case("torch")["started_anew"] in dropped
        assert measured(path, other)[1] is None  # and is gone on with
        report, _ = measured(path, KEY)


def test_another_machine_starts_rows_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    measured(path, KEY)
    own = describe()
    for changed in ({"device": "another"}, {"machine": {**own["machine"], "cores": 99}}):
        monkeypatch.setattr("hbsdk.bench.report.describe", lambda new=changed: {**own, **new})
        report, dropped = measured(path, KEY)
        assert report.turns("torch") == 1
        assert dropped is not None
        assert ("device" if "device" in changed else "cores") in dropped


@pytest.mark.parametrize("other", [{"threads": 2}, {"versions": {"torch": "2"}}])
def test_a_process_of_another_kind_starts_its_row_anew(tmp_path: Path, other: dict) -> None:
    path = tmp_path / "a.json"
    measured(path, KEY)
    report, _ = measured(path, KEY, **other)
    assert report.turns("torch") == 1
    assert next(iter(other)) in report.case("torch")["started_anew"]
    assert measured(path, KEY, **other)[0].turns("torch") == 2


def test_a_row_without_a_key_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    report = make_report(path)
    report.add("torch", {"samples": {"step": [1.0]}})
    report.write()
    report, dropped = measured(path, KEY)
    assert dropped is not None
    assert report.turns("torch") == 1


def test_keys_tell_settings_and_code_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "task.py"
    script.write_text("1")
    case = Case("a", str(script), "Task", {"steps": 1})
    key = case.key()
    assert Case("other name", str(script), "Task", {"steps": 1}, notes={"x": 1}).key() == key
    one = case.drawing_into(tmp_path)
    assert one.key() == key
    others = [
        replace(case, settings={"steps": 2}), replace(case, task="Other"),
        replace(case, python="python"), replace(case, environment={"A": "1"}),
    ]  # fmt: skip
    for other in others:
        assert other.key()["settings"] != key["settings"]
        assert other.key()["code"] == key["code"]
        assert other.drawing_into(tmp_path).picture != one.picture
    (tmp_path / "beside.py").write_text("1")
    assert case.key()["code"] != key["code"]
    assert case.drawing_into(tmp_path).picture != one.picture
    (tmp_path / "beside.py").unlink()
    script.write_text("2")
    assert case.key()["code"] != key["code"]
    script.write_text("1")
    assert case.key() == key
    monkeypatch.setattr("hbsdk.bench.process.code_digest", lambda: "other code")
    assert case.key()["code"] != key["code"]


def test_shares_are_medians_of_all_runs(tmp_path: Path) -> None:
    report = make_report(tmp_path / "a.json")
    for share in (0.1, 0.9, 0.2):
        report.add("torch", {"samples": {"step": [1.0]}, "shares": {"host_share": share}})
    assert report.case("torch")["shares"]["host_share"]["median"] == 0.2
    assert "20.0% outside of networks" in markdown(report.data)


def test_a_row_of_another_commit_says_so(tmp_path: Path) -> None:
    report = make_report(tmp_path / "a.json")
    report.add("torch", {"samples": {"step": [1.0]}})
    assert "at commit" not in markdown(report.data)
    report.case("torch")["commit"] = "abc"
    assert "at commit abc" in markdown(report.data)


def test_what_cannot_run_here_is_no_failure(tmp_path: Path) -> None:
    report = make_report(tmp_path / "a.json")
    report.skip("gpu", "no GPU")
    assert "| gpu | cannot run here |" in markdown(report.data)
    assert failures(report.data) == []
    report.fail("bad", "broken")
    assert failures(report.data) == ["bad: broken"]
    report.add("gpu", {"samples": {"step": [1.0]}})
    assert "skipped" not in report.case("gpu")


def test_another_measurement_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    make_report(path, steps=4).write()
    before = path.read_bytes()
    with pytest.raises(OptionError, match="settings of"):
        make_report(path, steps=5)
    with pytest.raises(OptionError, match="bundle of"):
        Report(path, "generate", {"steps": 4}, {"name": "tiny", "hash": "1"})
    with pytest.raises(OptionError, match="question of"):
        Report(path, "scale", {"steps": 4}, BUNDLE)
    data = json.loads(before)
    data["machine"]["cpu"] = "another"
    path.write_text(json.dumps(data))
    with pytest.raises(OptionError, match="cpu of"):
        make_report(path, steps=4)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_file_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(OptionError, match="Write to another file"):
        make_report(path)
    assert path.read_text() == content


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="write elsewhere"):
        make_report(tmp_path / "file" / "a.json").write()
    (tmp_path / "b.json").mkdir()
    with pytest.raises(OptionError):
        write_result(tmp_path / "b.json", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "file"]


def test_a_failure_keeps_what_was_measured_and_a_success_ends_it(tmp_path: Path) -> None:
    report = make_report(tmp_path / "a.json")
    report.add("torch", {"samples": {"step": [1.0]}})
    report.fail("torch", "out of\nmemory")
    assert report.case("torch")["failed"] == "out of memory"
    assert report.case("torch")["measures"]["step"]["runs"] == 1
    assert "| torch | failed |" in markdown(report.data)
    report.add("torch", {"samples": {"step": [1.0]}})
    assert "failed" not in report.case("torch")


def test_limits_are_the_longer_of_products_and_weights(tmp_path: Path) -> None:
    least = {
        "step": [
            {"times": 2, "operations": 300, "bytes": 10, "dtype": "float32"},  # 2 * 3 s
            {"times": 1, "operations": 1, "bytes": 400, "dtype": "float32"},  # 8 s
        ]
    }
    case = Case("torch", "m", "T", notes={"least": least})
    report = make_report(tmp_path / "a.json")
    report.data["rates"] = {"float32": 100.0, "copy": 50.0}
    report.note("torch", least=least)
    report.add("torch", {"samples": {"step": [28.0]}})
    report.case(MACHINE)
    finish(report, [case])
    found = read_report(tmp_path / "a.json")["cases"]["torch"]["measures"]["step"]
    assert found["limit_s"] == pytest.approx(14.0)
    assert found["of_limit"] == pytest.approx(0.5)
    assert found["operations"] == 601
    table = (tmp_path / "a.md").read_text()
    assert "| torch | step | 28 s | 28 s | 1 | 14 s | 50% |" in table
    assert MACHINE not in table
    report.data["rates"] = {"float32": 100.0}
    report.add("torch", {"samples": {"step": [28.0]}})
    report.case("torch")["least"]["step"][0]["dtype"] = "float16"
    report.case("torch")["measures"] = {"step": summary([28.0])}
    finish(report, [case])
    assert "limit_s" not in report.case("torch")["measures"]["step"]


def drawn(tmp_path: Path, *pictures: np.ndarray | None) -> list[Case]:
    """Cases whose pictures are there, but for None."""
    cases = [
        Case(f"c{number}", "m", "T", {"number": number}).drawing_into(tmp_path)
        for number in range(len(pictures))
    ]
    for case, picture in zip(cases, pictures, strict=True):
        if picture is not None:
            np.save(case.picture, picture)
    return cases


def test_pictures_are_compared_with_the_first_and_a_mirrored_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.random((8, 8, 3)).astype(np.float32)
    cases = drawn(tmp_path, picture, picture + np.float32(0.01), rng.random((4, 4, 3)), None)
    report = make_report(tmp_path / "a.json")
    for case in cases[:3]:
        report.add(case.name, {"samples": {"step": [1.0]}})
    finish(report, cases)
    found = [report.case(case.name)["facts"].get("psnr_db") for case in cases]
    assert found == [None, pytest.approx(40.0, abs=0.1), None, None]
    assert "psnr_db" in report.case("c2")["facts"]
    (control,) = report.data["facts"].values()
    assert control < 15.0
    table = (tmp_path / "a.md").read_text()
    for name, said in (("c0", "reference"), ("c1", "40.0 dB to the ref"), ("c2", "another size")):
        (row,) = (line for line in table.splitlines() if line.startswith(f"| {name} "))
        assert said in row


def test_latents_are_compared_over_their_own_range(tmp_path: Path) -> None:
    latents = np.random.default_rng(0).normal(0.0, 10.0, (4, 16, 16)).astype(np.float32)
    near = latents + np.float32(0.01) * np.ptp(latents)
    report = make_report(tmp_path / "a.json")
    finish(report, drawn(tmp_path, latents, near))
    assert report.case("c1")["facts"]["psnr_db"] == pytest.approx(40.0, abs=0.1)
    (control,) = report.data["facts"].values()
    assert control < 20.0


def test_a_folder_for_pictures_is_made_only_beside_a_report(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"ends in \.json"):
        work_folder(tmp_path / "a.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="Write elsewhere"):
        work_folder(tmp_path / "file" / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert work_folder(tmp_path / "b" / "a.json").is_dir()


def test_psnr_by_hand() -> None:
    assert psnr_db(np.zeros((2, 2)), np.full((2, 2), 0.1)) == pytest.approx(20.0)
    assert psnr_db(np.zeros((2, 2)), np.full((2, 2), 0.1), 10.0) == pytest.approx(40.0)
    assert psnr_db(np.ones((2, 2)), np.ones((2, 2))) == 120.0
    assert psnr_db(np.ones((2, 2)), np.ones((2, 3))) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(123.4, "123 s"), (1234.5, "1234 s"), (0.01234, "12.3 ms"), (1.5e-5, "15 us")],
)
def test_durations_are_read_easily(seconds: float, text: str) -> None:
    assert duration(seconds) == text
