"""Verdicts on synthetic evaluations whose answers are known."""

from dataclasses import replace

import pytest

from hbsdk.evaluation.report_tables import methods_table
from hbsdk.evaluation.summary import summarise
from tests.evaluation_rows import (
    EFFECTS,
    FULL,
    PROBE,
    RUN,
    rows,
    summary_of,
    verdict,
    write_folder,
)


def test_what_the_effects_decide(tmp_path):
    summary = summary_of(tmp_path / "out", noise=0.005)
    assert verdict(summary, "DINO-I: rises significantly")["holds"] is True
    assert verdict(summary, "Attribute accuracy: rises significantly")["holds"] is True
    assert verdict(summary, "DINO-I: with refinement not below")["holds"] is True
    assert verdict(summary, "CLIP-T: 5 steps take")["holds"] is True
    assert verdict(summary, "DINO-I: full above without DINO")["holds"] is True
    for method in ("class-word", "textual-inversion", "dreambooth"):
        assert verdict(summary, f"DINO-I: ahead of {method} at")["holds"] is True
    numbers = verdict(summary, "DINO-I: rises")["numbers"]
    assert numbers["comparison"]["difference"]["mean"] == pytest.approx(0.1, abs=0.003)
    assert numbers["first"] == ["hybridbooth", 5]


def test_the_reverse_is_refuted(tmp_path):
    worse = {**EFFECTS, FULL: (-0.1, -0.1, -0.05, 1.0)}
    summary = summary_of(tmp_path / "out", worse, noise=0.005)
    assert verdict(summary, "DINO-I: rises significantly")["holds"] is False
    assert verdict(summary, "DINO-I: with refinement not below")["holds"] is False
    assert verdict(summary, "DINO-I: full above without DINO")["holds"] is False
    assert verdict(summary, "CLIP-T: 5 steps take")["holds"] is False
    assert verdict(summary, "DINO-I: ahead of textual-inversion")["holds"] is True


def test_equal_methods_are_not_called_different(tmp_path):
    equal = {**EFFECTS, FULL: EFFECTS[PROBE], ("without-dino", 5): EFFECTS[PROBE]}
    summary = summary_of(tmp_path / "out", equal, noise=0.05)
    assert verdict(summary, "DINO-I: rises significantly")["holds"] is False
    assert verdict(summary, "DINO-I: full above without DINO")["holds"] is None
    assert verdict(summary, "CLIP-T: 5 steps take")["holds"] is True


def test_a_sure_fall_within_two_percent_is_within_two_percent(tmp_path):
    summary = summary_of(tmp_path / "out", {**EFFECTS, FULL: (0.1, 0.05, -0.004, 1.0)})
    found = verdict(summary, "CLIP-T: 5 steps take")
    assert found["numbers"]["comparison"]["difference"]["high"] < 0.0
    assert found["holds"] is True
    summary = summary_of(tmp_path / "more", {**EFFECTS, FULL: (0.1, 0.05, -0.006, 1.0)})
    assert verdict(summary, "CLIP-T: 5 steps take")["holds"] is False


def test_equal_time_takes_the_best_snapshot_that_is_no_slower(tmp_path):
    effects = {**EFFECTS, ("textual-inversion", 5): (-0.12, -0.2, 0.0, 0.5)}
    summary = summary_of(tmp_path / "out", effects)
    found = verdict(summary, "DINO-I: ahead of textual-inversion")
    assert found["numbers"]["second"] == ["textual-inversion", 5]
    assert found["numbers"]["seconds"] == {"first": 1.0, "second": 0.5}
    slow = verdict(summary, "DINO-I: ahead of dreambooth")
    assert slow["numbers"]["second"] == ["dreambooth", 20]
    assert "quickest" in slow["because"]


def test_losing_to_what_got_more_time_decides_nothing(tmp_path):
    effects = {**EFFECTS, ("dreambooth", 20): (0.2, 0.2, 0.0, 4.0)}
    summary = summary_of(tmp_path / "out", effects)
    assert verdict(summary, "DINO-I: ahead of dreambooth")["holds"] is None
    effects = {**EFFECTS, ("dreambooth", 20): (0.2, 0.2, 0.0, 0.4)}
    summary = summary_of(tmp_path / "quick", effects)
    assert verdict(summary, "DINO-I: ahead of dreambooth")["holds"] is False


@pytest.mark.parametrize(("seconds", "holds"), [(80.0, True), (30.0, False)])
def test_the_largest_budget_swept_counts_quality_and_time(tmp_path, seconds, holds):
    effects = {**EFFECTS, ("dreambooth", 400): (0.1, 0.05, 0.0, seconds)}
    summary = summary_of(tmp_path / "out", effects)
    found = verdict(summary, "DINO-I: not below the best baseline at the largest budget")
    assert found["numbers"]["second"] == ["dreambooth", 400]
    assert found["numbers"]["seconds"]["second"] == seconds
    assert found["holds"] is holds


def test_a_better_baseline_is_said_to_be_better(tmp_path):
    effects = {**EFFECTS, ("dreambooth", 400): (0.2, 0.2, 0.0, 80.0)}
    summary = summary_of(tmp_path / "out", effects)
    for told in ("at the largest budget swept", "at any budget swept"):
        found = verdict(summary, f"DINO-I: not below the best baseline {told}")
        assert found["holds"] is False


@pytest.mark.parametrize(("theirs", "holds"), [(-0.1, True), (0.1, False)])
def test_the_probe_alone_is_compared_too(tmp_path, theirs, holds):
    effects = {
        **EFFECTS, FULL: (0.1, 0.05, -0.001, 10.0), ("dreambooth", 400): (theirs, 0.0, 0.0, 80.0),
        ("textual-inversion", 500): (theirs, 0.0, 0.0, 50.0),
    }  # fmt: skip
    summary = summary_of(tmp_path / "out", effects)
    assert verdict(summary, f"DINO-I: probe {LARGEST}")["holds"] is holds
    assert verdict(summary, f"DINO-I: {LARGEST}")["holds"] is False  # it takes too long here


def test_the_size_of_the_protocol(tmp_path):
    assert verdict(summary_of(tmp_path / "out"), "at least 64 subjects")["holds"] is False


def test_claims_about_methods_that_did_not_run_are_not_made(tmp_path):
    summary = summary_of(tmp_path / "out", {PROBE: EFFECTS[PROBE]})
    assert [one["claim"][:12] for one in summary["verdicts"]] == ["Every method"]
    assert summary["comparisons"] == []


def test_one_subject_decides_nothing(tmp_path):
    summary = summary_of(tmp_path / "out", subjects=["alone"])
    assert {one["holds"] for one in summary["verdicts"][1:]} <= {None, False}
    assert verdict(summary, "DINO-I: rises")["holds"] is None


LARGEST = "not below the best baseline at the largest budget swept"


def test_the_best_baseline_is_another_one_for_another_metric(tmp_path):
    effects = {**EFFECTS, ("textual-inversion", 500): (0.05, 0.2, 0.0, 50.0)}
    summary = summary_of(tmp_path / "out", effects)
    of_dino = verdict(summary, f"DINO-I: {LARGEST}")
    of_attributes = verdict(summary, f"Attribute accuracy: {LARGEST}")
    assert of_dino["numbers"]["second"] == ["dreambooth", 400]
    assert of_attributes["numbers"]["second"] == ["textual-inversion", 500]
    assert (of_dino["holds"], of_attributes["holds"]) == (True, False)


def test_the_best_snapshot_of_all_may_be_no_last_one(tmp_path):
    effects = {**EFFECTS, ("dreambooth", 20): (0.3, 0.3, 0.0, 60.0)}
    summary = summary_of(tmp_path / "out", effects)
    assert verdict(summary, f"DINO-I: {LARGEST}")["numbers"]["second"] == ["dreambooth", 400]
    found = verdict(summary, "DINO-I: not below the best baseline at any budget swept")
    assert found["numbers"]["second"] == ["dreambooth", 20]


def test_what_was_compared_is_said_to_the_learning_rate_and_the_second(tmp_path):
    run = {**RUN, "methods": {"dreambooth": {"learning_rate": 0.004}}}
    found = verdict(summary_of(tmp_path / "out", run=run), f"DINO-I: {LARGEST}")
    told = "1 s against 80 s of dreambooth, 400 steps at learning rate 0.004: 1/80 of its time"
    assert told in found["because"]
    assert found["numbers"]["learning_rate"] == 0.004
    silent = verdict(summary_of(tmp_path / "silent"), f"DINO-I: {LARGEST}")
    assert "400 steps: 1/80 of its time" in silent["because"]
    assert silent["numbers"]["learning_rate"] is None


@pytest.mark.parametrize(
    ("clip_t", "told", "holds"),
    [(-0.05, "follows prompts less", True), (0.05, "follows prompts as well", False)],
)
def test_whether_the_best_baseline_follows_prompts_stands_beside_it(tmp_path, clip_t, told, holds):
    effects = {**EFFECTS, ("dreambooth", 400): (0.1, 0.05, clip_t, 80.0)}
    summary = summary_of(tmp_path / "out", effects)
    for metric in ("DINO-I", "Attribute accuracy"):
        because = verdict(summary, f"{metric}: {LARGEST}")["because"]
        assert f"that baseline {told} (CLIP-T" in because
        beside = verdict(summary, f"CLIP-T: not below that of the baseline best in {metric} at the")
        assert beside["holds"] is holds
        assert beside["numbers"]["second"] == ["dreambooth", 400]
        assert beside["numbers"]["metric"] == "clip_t"


TIMED = (f"DINO-I: {LARGEST}", "DINO-I: ahead of dreambooth at equal wall time")


def made_on(tmp_path, places):
    """The summary of fits that were made at places: method -> (device, commit)."""
    pictures, fits = rows()
    placed = [
        replace(row, device=device, commit=code) for row in fits for device, code in [places(row)]
    ]
    return summarise(write_folder(tmp_path / "out", pictures, placed, draw=False))


@pytest.mark.parametrize("other", [("GPU", "abc"), ("CPU, 1 threads", "abc"), ("GPU", None)])
def test_times_of_other_devices_are_not_compared(tmp_path, other):
    summary = made_on(tmp_path, lambda row: other if row.method == "dreambooth" else ("CPU", "abc"))
    for claim in TIMED:
        found = verdict(summary, claim)
        assert found["holds"] is None
        assert (
            "not comparable: hybridbooth, 5 steps was fitted on CPU in commit abc"
            in (found["because"])
        )
        assert " s against " not in found["because"]
        assert "of its time" not in found["because"]
        assert "seconds" not in found["numbers"]
        assert found["numbers"]["made"]["second"] == [list(other)]
    # Quality and other baselines are compared as ever.
    assert verdict(summary, "CLIP-T: not below that of the baseline best in DINO-I at the")
    assert verdict(summary, "DINO-I: ahead of textual-inversion")["holds"] is True


@pytest.mark.parametrize("place", [("CPU", "abc"), ("CPU", None), (None, None)])
def test_times_of_one_place_are_compared(tmp_path, place):
    summary = made_on(tmp_path, lambda row: place)
    assert [verdict(summary, claim)["holds"] for claim in TIMED] == [True, True]
    assert summary["made"] == [list(place)]
    assert "not all of the seconds" not in methods_table(RUN, summary, "")


def test_one_fit_on_another_device_among_many_is_enough(tmp_path):
    odd = ("hybridbooth", "character-3")
    summary = made_on(
        tmp_path, lambda row: ("GPU" if (row.method, row.subject) == odd else "CPU", "abc")
    )
    assert [verdict(summary, claim)["holds"] for claim in TIMED] == [None, None]
    assert summary["made"] == [["CPU", "abc"], ["GPU", "abc"]]
    assert "not all of the seconds can be compared" in methods_table(RUN, summary, "")


@pytest.mark.parametrize("earlier", [("CPU", "old"), (None, None)])
def test_fits_of_earlier_commits_are_told_and_compared(tmp_path, earlier):
    summary = made_on(
        tmp_path, lambda row: ("CPU", "new") if row.method == "hybridbooth" else earlier
    )
    assert [verdict(summary, claim)["holds"] for claim in TIMED] == [True, True]
    assert list(earlier) in summary["made"]
    assert "Fits are of several commits." in methods_table(RUN, summary, "")
