"""Cases take turns in processes; a failing one keeps the others; what was measured is kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import hbsdk.bench.turns as turns
from hbsdk.bench.process import Case, CaseError, Worker
from hbsdk.bench.report import Report, read_report
from hbsdk.bench.turns import take_turns

TASKS = str(Path(__file__).parents[1] / "bench_task.py")


def counting(tmp_path: Path, name: str, fail: str | None = None, **changes: object) -> Case:
    settings = {"name": name, "log": str(tmp_path / "log"), "fail": fail}
    return Case(name, TASKS, "Counting", settings, **changes)


def log_of(tmp_path: Path) -> list[str]:
    path = tmp_path / "log"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def measure(tmp_path: Path, cases: list[Case], repeats: int = 2, **more: object) -> dict:
    report = Report(tmp_path / "a.json", "test", {}, {"name": "tiny", "hash": "0"})
    take_turns(cases, report, repeats=repeats, progress=False, **more)
    return read_report(tmp_path / "a.json")["cases"]


def test_cases_take_turns_and_first_runs_only_warm_up(tmp_path: Path) -> None:
    found = measure(tmp_path, [counting(tmp_path, "a"), counting(tmp_path, "b")])
    assert log_of(tmp_path) == ["a 1", "a 2", "b 1", "b 2", "b 3", "a 3"]
    for name in ("a", "b"):
        assert found[name]["measures"]["count"]["samples_s"] == [2.0, 3.0]
        assert found[name]["turns"] == 2
        assert found[name]["first"]["runs"] == 1
        assert found[name]["first"]["median_s"] > 0.0
        assert found[name]["versions"] == {"counting": "1"}
        assert found[name]["threads"] >= 1
    if sys.platform == "linux":
        assert found["a"]["peak_rss_bytes"] > 1_000_000


@pytest.mark.parametrize(
    ("fail", "why", "runs"),
    [
        ("load", "ValueError: cannot load", 0),
        ("run", "cannot run | twice", 1),
        ("end", "code 3", 0),
    ],
)
def test_a_failing_case_keeps_the_others(tmp_path: Path, fail: str, why: str, runs: int) -> None:
    cases = [counting(tmp_path, "bad", fail), counting(tmp_path, "good")]
    found = measure(tmp_path, cases)
    assert why in found["bad"]["failed"]
    assert found["bad"].get("measures", {}).get("count", {}).get("runs", 0) == runs
    assert found["good"]["measures"]["count"]["runs"] == 2
    assert "failed" not in found["good"]


def test_what_cannot_be_started_is_told(tmp_path: Path) -> None:
    cases = [
        counting(tmp_path, "no interpreter", python=str(tmp_path / "python")),
        counting(tmp_path, "no GPU", problem="no GPU"),
        Case("no module", str(tmp_path / "none.py"), "Task"),
    ]
    found = measure(tmp_path, cases)
    assert "cannot be started" in found["no interpreter"]["failed"]
    assert found["no GPU"]["failed"] == "no GPU"
    assert "none.py" in found["no module"]["failed"]
    assert log_of(tmp_path) == []


def test_a_stopped_run_is_gone_on_with(tmp_path: Path) -> None:
    cases = [counting(tmp_path, "a"), counting(tmp_path, "b")]

    def stop(case: Case, answer: dict) -> None:
        if len(log_of(tmp_path)) == 4:  # b's first measured run is not yet kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, cases, on_answer=stop)
    kept = read_report(tmp_path / "a.json")["cases"]
    assert kept["a"]["turns"] == 1
    assert "turns" not in kept.get("b", {})
    (tmp_path / "log").unlink()
    found = measure(tmp_path, cases)
    assert found["a"]["turns"] == found["b"]["turns"] == 2
    assert sorted(log_of(tmp_path)) == ["a 1", "a 2", "b 1", "b 2", "b 3"]
    (tmp_path / "log").unlink()
    assert measure(tmp_path, cases) == found
    assert log_of(tmp_path) == []


def test_runs_with_other_settings_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(tmp_path, [counting(tmp_path, "a"), counting(tmp_path, "b")])
    (tmp_path / "log").unlink()
    other = counting(tmp_path, "a", environment={"OTHER": "1"})
    found = measure(tmp_path, [other, counting(tmp_path, "b")])
    assert log_of(tmp_path) == ["a 1", "a 2", "a 3"]
    assert found["a"]["turns"] == found["b"]["turns"] == 2
    assert "a: 2 earlier runs dropped" in capsys.readouterr().err
    assert "other settings" in found["a"]["started_anew"]
    assert "started_anew" not in found["b"]


def test_a_first_run_counts_where_there_is_no_warm_up(tmp_path: Path) -> None:
    found = measure(tmp_path, [counting(tmp_path, "a")], warm_up=False)["a"]
    assert found["measures"]["count"]["samples_s"] == [1.0, 2.0]
    assert found["first"]["runs"] == 1


def test_several_runs_a_turn(tmp_path: Path) -> None:
    cases = [counting(tmp_path, "a"), counting(tmp_path, "b")]
    found = measure(tmp_path, cases, repeats=3, runs_a_turn=2, one_at_a_time=True)
    # Each first run warms up; the second round goes backwards.
    assert log_of(tmp_path) == ["a 1", "a 2", "a 3", "b 1", "b 2", "b 3", "b 4", "a 1", "a 2"]
    assert found["a"]["turns"] == found["b"]["turns"] == 3
    assert found["a"]["measures"]["count"]["samples_s"] == [2.0, 3.0, 2.0]


def test_a_case_runs_again_only_if_another_one_does(tmp_path: Path) -> None:
    both = [counting(tmp_path, "a"), counting(tmp_path, "b")]
    measure(tmp_path, both[:1])
    (tmp_path / "log").unlink()
    assert measure(tmp_path, both[:1], again=["a"])["a"]["turns"] == 2
    assert log_of(tmp_path) == []
    found = measure(tmp_path, both, again=["a"])
    assert (found["a"]["turns"], found["b"]["turns"]) == (3, 2)
    assert "a 2" in log_of(tmp_path)


def test_a_peer_that_nobody_named_and_cannot_run_is_skipped(tmp_path: Path) -> None:
    found = measure(tmp_path, [
        counting(tmp_path, "unnamed", problem="no GPU", optional=True),
        counting(tmp_path, "named", problem="no GPU"),
        counting(tmp_path, "broken", "load", optional=True),
    ])  # fmt: skip
    assert found["unnamed"]["skipped"] == "no GPU"
    assert "failed" not in found["unnamed"]
    assert found["named"]["failed"] == "no GPU"
    assert "cannot load" in found["broken"]["failed"]
    assert log_of(tmp_path) == []


def test_a_failed_case_is_tried_again(tmp_path: Path) -> None:
    assert "failed" in measure(tmp_path, [counting(tmp_path, "a", "load")])["a"]
    found = measure(tmp_path, [counting(tmp_path, "a")])["a"]
    assert "failed" not in found
    assert found["turns"] == 2


def test_more_memory_than_there_is_is_refused_before_anything_starts(tmp_path: Path) -> None:
    remedy = {"remedy": "micro_batch_size=2 fits"}
    large = counting(tmp_path, "large", need_bytes=10**15, notes=remedy)
    found = measure(tmp_path, [large])
    assert found["large"]["failed"].startswith("it needs 1000000.0 GB of memory and ")
    assert found["large"]["failed"].endswith("micro_batch_size=2 fits.")
    assert log_of(tmp_path) == []


def test_the_longest_idle_process_ends_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gigabyte = 10**9
    cases = [counting(tmp_path, name, need_bytes=4 * gigabyte) for name in ("a", "b", "c")]
    workers = turns.Workers()

    def free_bytes() -> int:  # a machine of 10 GB, of which each process takes 4
        return 10 * gigabyte - 4 * gigabyte * len(workers._alive)

    monkeypatch.setattr(turns, "memory_bytes", free_bytes)
    started: list[str] = []
    for name in (0, 1, 0, 2):
        workers.take(cases[name], lambda worker: started.append("one"))
    assert list(workers._alive) == ["a", "c"]
    assert len(started) == 3
    workers.end()
    assert not workers._alive


def test_one_at_a_time_keeps_one_process(tmp_path: Path) -> None:
    cases = [counting(tmp_path, "a"), counting(tmp_path, "b")]
    found = measure(tmp_path, cases, one_at_a_time=True)
    assert found["a"]["measures"]["count"]["samples_s"] == [2.0, 2.0]
    assert found["a"]["first"]["runs"] == 2


def test_a_process_ends_with_its_worker(tmp_path: Path) -> None:
    worker = Worker(counting(tmp_path, "a"))
    assert worker.run()["facts"] == {"last": 1}
    worker.close()
    with pytest.raises((CaseError, ValueError)):
        worker.run()
