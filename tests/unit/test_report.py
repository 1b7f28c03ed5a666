"""The summary and the report of synthetic evaluations whose answers are known."""

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hbsdk.errors import EvaluationError
from hbsdk.evaluation.contact_sheets import contact_sheets
from hbsdk.evaluation.report import write_report
from hbsdk.evaluation.results import read_results
from hbsdk.evaluation.rows import FitRow, PictureRow
from hbsdk.evaluation.summary import summarise
from tests.evaluation_rows import (
    CLASS_WORD,
    EFFECTS,
    FULL,
    PROBE,
    PROMPTS,
    REAL,
    RUN,
    SUBJECTS,
    entry,
    rows,
    summary_of,
    verdict,
    write_folder,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("evaluation"), *rows(noise=0.01))


@pytest.fixture(scope="module")
def report(folder):
    """The terminal's table, the page and results.json of one report."""
    table = write_report(folder)
    return table, (folder / "report.html").read_text(), json.loads(
        (folder / "results.json").read_text()
    )  # fmt: skip


class TestSummary:
    def test_means_are_numpys_over_subjects(self, tmp_path):
        pictures, fits = rows(noise=0.05)
        summary = summarise(write_folder(tmp_path / "out", pictures, fits, draw=False))
        values = [row.dino_i for row in pictures if (row.method, row.steps) == FULL]
        found = entry(summary, FULL)
        assert found["dino_i"]["mean"] == pytest.approx(np.mean(values))
        by_subject = np.reshape(values, (len(SUBJECTS), -1)).mean(axis=1)
        width = 2 * 1.96 * by_subject.std() / np.sqrt(len(SUBJECTS))
        assert found["dino_i"]["high"] - found["dino_i"]["low"] == pytest.approx(width, rel=0.1)
        assert found["dino_i"]["count"] == len(SUBJECTS)
        of_pictures = 2 * 1.96 * np.std(values) / np.sqrt(len(values))
        assert abs(of_pictures / width - 1) > 0.2  # pictures as units would give another interval
        assert (found["subjects"], found["pictures"]) == (20, 120)

    def test_subjects_weigh_the_same_however_many_pictures_they_have(self, tmp_path):
        pictures, fits = rows({FULL: EFFECTS[FULL]}, subjects=["a", "b"])
        some = [row for row in pictures if row.subject == "a" or row.prompt + row.seed == 0]
        summary = summarise(write_folder(tmp_path / "out", some, fits, draw=False))
        means = [np.mean([r.dino_i for r in some if r.subject == name]) for name in ("a", "b")]
        assert entry(summary, FULL)["dino_i"]["mean"] == pytest.approx(np.mean(means))
        assert np.mean([r.dino_i for r in some]) != pytest.approx(np.mean(means), abs=1e-4)

    def test_factors_cost_and_failures(self, tmp_path):
        pictures, fits = rows()
        fits = [row for row in fits if row.method != "probe"] + [
            FitRow("probe", 0, subject, seconds, 0.5, number * 10**6,
                   "out of <memory>" if number == 19 else None)
            for number, (subject, seconds) in enumerate(
                zip(SUBJECTS, np.linspace(1.0, 20.0, 20), strict=True)
            )
        ]  # fmt: skip
        summary = summarise(write_folder(tmp_path / "out", pictures, fits, draw=False))
        found = entry(summary, PROBE)
        assert found["factors"]["ears"]["mean"] == pytest.approx(2 / 3)
        assert found["factors"]["fur"]["mean"] == pytest.approx(1 / 3)
        assert found["failed"] == 1
        assert found["seconds_median"] == pytest.approx(10.0)  # of 1..19: the failed 20 is not in
        assert found["seconds_p95"] == pytest.approx(np.percentile(np.arange(1, 20), 95))
        assert found["peak_bytes"] == 18 * 10**6
        assert summary["failures"] == [
            {"method": "probe", "steps": 0, "subject": SUBJECTS[-1], "error": "out of <memory>"}
        ]

    def test_ceiling_floors_and_curves(self, tmp_path):
        summary = summary_of(tmp_path / "out")
        assert summary["ceiling"]["dino_i"]["mean"] > entry(summary, FULL)["dino_i"]["mean"]
        other = summary["floors"]["another identity"]
        assert (other["of"], other["dino_i"]["mean"]) == ("real pictures", pytest.approx(0.2))
        floor = summary["floors"]["no personalization"]
        assert floor["dino_i"] == entry(summary, CLASS_WORD)["dino_i"]
        assert [p["seconds"] for p in summary["curves"]["dreambooth"]] == [4.0, 80.0]
        assert [p["steps"] for p in summary["curves"]["textual-inversion"]] == [10, 500]
        assert (summary["subjects"], summary["prompts"], summary["seeds"]) == (20, 3, 2)

    def test_comparisons_find_the_effects(self, tmp_path):
        summary = summary_of(tmp_path / "out")
        first, *others = summary["comparisons"]
        assert (first["first"]["method"], first["second"]["method"]) == ("hybridbooth", "probe")
        assert first["dino_i"]["difference"]["mean"] == pytest.approx(0.1)
        assert first["dino_i"]["higher"] == 20
        assert first["clip_t"]["relative"]["mean"] == pytest.approx(-0.001 / 0.2501, rel=0.01)
        compared = [(one["first"]["method"], one["first"]["steps"]) for one in others]
        assert compared == [key for key in EFFECTS if key not in (REAL, PROBE, FULL)]
        assert {one["second"]["method"] for one in others} == {"hybridbooth"}

    def test_pairs_can_be_chosen_and_must_be_there(self, tmp_path):
        out = write_folder(tmp_path / "out", *rows(), draw=False)
        (found,) = summarise(out, [(PROBE, CLASS_WORD)])["comparisons"]
        assert found["dino_i"]["difference"]["mean"] == pytest.approx(0.2)
        with pytest.raises(EvaluationError, match="hybridbooth after 7 steps"):
            summarise(out, [(("hybridbooth", 7), PROBE)])

    def test_comparisons_take_the_subjects_that_both_have(self, tmp_path):
        pictures, fits = rows(noise=0.1)
        lost = [r for r in pictures if r.method != "probe" or r.subject in SUBJECTS[:7]]
        summary = summarise(write_folder(tmp_path / "out", lost, fits, draw=False))
        assert summary["comparisons"][0]["dino_i"]["difference"]["count"] == 7

    def test_photos_have_no_attributes(self, tmp_path):
        pictures, fits = rows()
        plain = [
            PictureRow(**{**vars(r), "attributes": None, "attribute_values": None})
            for r in pictures
        ]
        summary = summarise(write_folder(tmp_path / "out", plain, fits, draw=False))
        assert entry(summary, FULL)["attributes"] is None
        assert not [one for one in summary["verdicts"] if "ttribute" in one["claim"]]

    def test_photos_are_no_ceiling_of_clip_t(self, tmp_path, report):
        pictures, fits = rows({REAL: EFFECTS[REAL], PROBE: EFFECTS[PROBE]}, subjects=["a", "b"])
        photos = [row for row in pictures if row.method == "probe" or row.prompt == 0]
        out = write_folder(tmp_path / "out", photos, fits)
        assert summarise(out)["ceiling"]["prompts"] == 1
        for row in photos:
            if row.method != "probe":
                Image.new("RGB", (16, 16)).save(out / row.file)
        write_report(out)
        assert "not of the prompts" in (out / "report.html").read_text()
        assert "not of the prompts" not in report[1]

    def test_the_snapshot_of_the_default_steps_stands_for_hybridbooth(self, tmp_path):
        effects = {
            **EFFECTS,
            ("hybridbooth", 0): EFFECTS[PROBE],
            ("hybridbooth", 40): EFFECTS[FULL],
        }
        del effects[PROBE]
        summary = summary_of(tmp_path / "out", effects)
        first = summary["comparisons"][0]
        assert first["first"] == {"method": "hybridbooth", "steps": 5}
        assert first["second"] == {"method": "hybridbooth", "steps": 0}
        assert verdict(summary, "DINO-I: rises")["holds"] is True


class Page(HTMLParser):
    """Which tags are open, what is referred to, and the text."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images, self.text = [], [], 0, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]
        self.images += tag == "img"
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


class TestReport:
    def test_the_page_is_well_formed_and_fetches_nothing(self, report):
        _, html, _ = report
        page = Page(html)
        assert page.open == []
        assert page.images > 20
        assert all(link.startswith("data:image/") for link in page.links)
        assert not re.search(r"https?://|url\(|@import", html)
        assert len(html) < 8_000_000

    def test_the_check_of_the_page_can_fail(self):
        with pytest.raises(AssertionError):
            Page("<div><p></div>")
        assert Page('<img src="http://x/y.png">').links == ["http://x/y.png"]

    def test_everything_is_said(self, report):
        _, html, _ = report
        page = Page(html)
        for text in ("abc123", "textual-inversion, 500 steps", "✓ holds", "character-0", "mini"):
            assert text in page.text
        captions = re.findall(r"<(?:caption|figcaption)>(.*?)</(?:caption|figcaption)>", html, re.S)
        measured = [one for one in captions if "Fits that failed" not in one]
        assert len(measured) == 5  # two tables, three plots
        for caption in measured:
            assert "test/clip-b32" in caption
            assert "test/dino-s16" in caption
            assert "test-judge" in caption

    def test_text_from_outside_is_text(self, report, tmp_path):
        _, html, _ = report
        assert "hbsdk evaluate --set &lt;world&gt;" in html
        pictures, fits = rows({PROBE: EFFECTS[PROBE]}, subjects=["a", "b"])
        evil = '<script>alert("1")</script>'
        fits[0] = FitRow("probe", 0, "a", 1.0, 0.0, 1, evil)
        run = {**RUN, "set": evil, "bundle": "$title", "prompts": [evil], "judge": evil}
        out = write_folder(tmp_path / "out", pictures, fits, run)
        write_report(out)
        page = (out / "report.html").read_text()
        assert "<script" not in page
        assert "bundle $title" in Page(page).text

    def test_results_json_has_run_and_summary(self, report, folder):
        _, _, results = report
        assert results["run"]["commit"] == "abc123"
        assert results["summary"] == json.loads(json.dumps(summarise(folder)))

    def test_the_table_for_the_terminal(self, report):
        table, _, results = report
        lines = table.splitlines()
        assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
        (row,) = [line for line in lines if line.startswith("| hybridbooth, 5 steps")]
        wanted = entry(results["summary"], FULL)["dino_i"]
        assert f"{wanted['mean']:.3f} [{wanted['low']:.3f}, {wanted['high']:.3f}]" in row
        assert "test/dino-s16" in table

    def test_plots_are_pictures(self, report, folder):
        names = sorted(path.name for path in (folder / "plots").iterdir())
        stems = ("ablations", "factors", "quality-against-seconds")
        assert names == sorted(f"{stem}.{kind}" for stem in stems for kind in ("png", "svg"))
        for stem in stems:
            pixels = np.asarray(Image.open(folder / "plots" / f"{stem}.png").convert("L"))
            assert pixels.std() > 5  # not blank

    def test_the_same_rows_give_the_same_page(self, report, folder):
        _, html, _ = report
        write_report(folder)
        assert (folder / "report.html").read_text() == html

    def test_nothing_else_is_left_behind(self, report, folder):
        wanted = {"run.json", "pictures.jsonl", "fits.jsonl", "pictures", "plots", "report.html",
                  "results.json"}  # fmt: skip
        assert {path.name for path in folder.iterdir()} == wanted

    def test_photos_are_shown_where_there_are_some(self, tmp_path):
        out = write_folder(tmp_path / "out", *rows({PROBE: EFFECTS[PROBE]}, subjects=["a", "b"]))
        write_report(out)
        assert 'alt="The photo"' not in (out / "report.html").read_text()
        (out / "photos").mkdir()
        Image.new("RGB", (32, 32), "red").save(out / "photos" / "a.png")
        write_report(out)
        assert (out / "report.html").read_text().count('alt="The photo"') == 1

    def test_strips_show_the_first_seed(self, tmp_path):
        out = write_folder(tmp_path / "out", *rows({PROBE: EFFECTS[PROBE]}, subjects=["a", "b"]))
        sheet = contact_sheets(out, read_results(out))[0]
        strip = np.asarray(Image.open(io.BytesIO(sheet.strips[0].jpeg)), np.float64)
        grid = np.asarray(Image.open(out / "pictures/probe/0/a.png"), np.float64)
        for prompt in range(len(PROMPTS)):
            shown = strip[40:56, prompt * 99 + 40 : prompt * 99 + 56].mean(axis=(0, 1))
            assert shown == pytest.approx(grid[8, prompt * 16 + 8], abs=3)
            assert not np.allclose(shown, grid[24, prompt * 16 + 8], atol=3)

    def test_noisy_pictures_are_shown(self, tmp_path):
        out = write_folder(tmp_path / "out", *rows({PROBE: EFFECTS[PROBE]}, subjects=["a"]))
        noise = np.random.default_rng(0).integers(0, 256, (2 * 96, 3 * 96, 3)).astype(np.uint8)
        Image.fromarray(noise).save(out / "pictures/probe/0/a.png")
        (sheet,) = contact_sheets(out, read_results(out))
        assert sheet.size_bytes > 30_000  # Pillow's encoder has a buffer that noise can overrun

    def test_large_pictures_are_shown_small_enough(self, tmp_path):
        out = write_folder(tmp_path / "out", *rows(subjects=["a", "b"]))
        results = read_results(out)
        whole = contact_sheets(out, results)
        most = sum(sheet.size_bytes for sheet in whole) // 2
        assert sum(sheet.size_bytes for sheet in contact_sheets(out, results, max_bytes=most)) > 0
        assert sum(one.size_bytes for one in contact_sheets(out, results, max_bytes=most)) <= most


class TestBadInput:
    @pytest.fixture
    def out(self, tmp_path):
        return write_folder(tmp_path / "out", *rows({PROBE: EFFECTS[PROBE]}, subjects=["a", "b"]))

    def refused(self, out, match):
        with pytest.raises(EvaluationError, match=match) as caught:
            write_report(out)
        assert caught.value.remedy
        assert not (out / "report.html").exists()
        assert not (out / "results.json").exists()

    @pytest.mark.parametrize("name", ["run.json", "pictures.jsonl", "fits.jsonl"])
    def test_missing_empty_and_binary_files(self, out, name):
        (out / name).unlink()
        self.refused(out, f"{name}.*No such file")
        (out / name).write_text("\n")
        self.refused(out, f"{name}.*an empty file")
        (out / name).write_bytes(b"\xff\xfe\x00")
        self.refused(out, f"{name}.*bytes that are no text")
        (out / name).unlink()
        (out / name).mkdir()
        self.refused(out, name)

    def test_no_folder(self, tmp_path):
        self.refused(tmp_path / "none", "run.json")

    @pytest.mark.parametrize(
        "line",
        ['{"method": "pro', "[]", "{}", '{"method": 3}', "NaN", "[" * 100_000],
    )
    def test_a_damaged_line_is_named(self, out, line):
        with (out / "pictures.jsonl").open("a") as file:
            file.write(line)
        self.refused(out, "pictures.jsonl line 13")

    @pytest.mark.parametrize(
        "change",
        [
            {"dino_i": "0.5"}, {"dino_i": None}, {"dino_i": True}, {"dino_i": 10**400},
            {"retrieved": 1}, {"steps": -1}, {"steps": 1.5}, {"attribute_values": {"ears": 2}},
            {"subject": None},
        ],
    )  # fmt: skip
    def test_values_of_another_kind(self, out, change):
        first, *rest = (out / "pictures.jsonl").read_text().splitlines()
        changed = json.dumps({**json.loads(first), **change})
        (out / "pictures.jsonl").write_text("\n".join([changed, *rest]))
        self.refused(out, f"line 1.*{next(iter(change))}")

    def test_a_row_twice(self, out):
        text = (out / "fits.jsonl").read_text()
        (out / "fits.jsonl").write_text(text + text.splitlines()[0])
        self.refused(out, "a second one")

    def test_fields_of_a_later_version_do_no_harm(self, out):
        lines = [json.loads(line) for line in (out / "fits.jsonl").read_text().splitlines()]
        text = "\n".join(json.dumps({**line, "later": [1]}) for line in lines)
        (out / "fits.jsonl").write_text(text)
        assert write_report(out)

    @pytest.mark.parametrize("metrics", [None, {}, {"clip": "a"}, ["a", "b"]])
    def test_a_run_that_does_not_say_what_measured(self, out, metrics):
        (out / "run.json").write_text(json.dumps({**RUN, "metrics": metrics}))
        self.refused(out, '"metrics" with the checkpoints')

    def test_pictures_that_are_missing_or_damaged(self, out):
        picture = out / "pictures/probe/0/a.png"
        whole = picture.read_bytes()
        picture.write_bytes(whole[:60])
        self.refused(out, "a.png")
        Image.new("RGB", (49, 32)).save(picture)
        self.refused(out, "49 x 32 px")
        picture.unlink()
        self.refused(out, "a.png")

    def test_pictures_outside_of_the_folder(self, out, tmp_path):
        Image.new("RGB", (48, 32)).save(tmp_path / "secret.png")
        text = (out / "pictures.jsonl").read_text()
        (out / "pictures.jsonl").write_text(text.replace("pictures/probe/0/a.png", "../secret.png"))
        self.refused(out, "outside")

    def test_a_folder_that_cannot_be_written_to(self, out):
        (out / "plots").write_text("in the way")
        self.refused(out, "a folder with room")
