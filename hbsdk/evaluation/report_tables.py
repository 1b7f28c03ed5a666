"""The tables of an evaluation's report, as HTML and, for the terminal, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from hbsdk.evaluation.claims import FULL, METRIC_NAMES, label, told_p
from hbsdk.evaluation.plots import standing_for
from hbsdk.evaluation.results import CEILING, NO_PERSONALIZATION
from hbsdk.evaluation.summary import COMPARED, METRICS

Summary = Mapping[str, Any]
_UP, _DOWN = "\u25b2", "\u25bc"


def methods_table(run: Mapping[str, Any], summary: Summary, checkpoints: str) -> str:
    """Return every snapshot's row between its ceiling and floors, as HTML.

    Args:
        run: what run.json says.
        summary: of `hbsdk.evaluation.summary.summarise`.
        checkpoints: a sentence that says what measured.
    """
    metrics = _shown_metrics(summary)
    names = [*(METRIC_NAMES[metric] for metric in metrics), "Seconds", "Peak memory", "Failed"]
    full = standing_for(summary, FULL)
    body = []
    if summary["ceiling"]:
        body.append(_edge_row(f"{CEILING} (ceiling)", summary["ceiling"], metrics))
    for row in summary["methods"]:
        is_floor = row["method"] == NO_PERSONALIZATION
        cells = [
            cell(_name(row), f"{row['subjects']} subjects", "text"),
            *(_metric_cell(row[metric]) for metric in metrics),
            *_cost_cells(row),
        ]
        kind = "ours" if row is full else "edge" if is_floor else ""
        body.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    other = summary["floors"]["another identity"]
    if other:
        body.append(_edge_row(f"another identity (floor; of {other['of']})", other, metrics))
    memory = run.get("peak_bytes")
    caption = (
        f"{checkpoints} Mean and 95 % bootstrap interval over subjects ({_resamples(summary)}); "
        "seconds to fit: median and 95th percentile"
        + (f"; peak memory: {memory}." if isinstance(memory, str) else ".")
        + _about_ceiling(summary)
        + _about_seconds(summary)
    )
    return table(["Method", *names], body, caption)


def _resamples(summary: Summary) -> str:
    return f"{summary['interval']['resamples']:,} resamples of subjects".replace(",", " ")


def _name(row: Mapping[str, Any]) -> str:
    name = label((row["method"], row["steps"]))
    return f"{name} (floor)" if row["method"] == NO_PERSONALIZATION else name


def _about_ceiling(summary: Summary) -> str:
    """Real photos are not of the prompts, so their CLIP-T is no ceiling."""
    ceiling = summary["ceiling"]
    if not ceiling or ceiling["prompts"] >= summary["prompts"]:
        return ""
    return " CLIP-T of the real pictures is of “a photo of” and the class noun, not of the prompts."


def _about_seconds(summary: Summary) -> str:
    made = summary.get("made", ())
    if len({device for device, _ in made if device is not None}) > 1:
        return " Fits are of several devices: not all of the seconds can be compared."
    return " Fits are of several commits." if len(made) > 1 else ""


def _edge_row(name: str, source: Mapping[str, Any], metrics: Sequence[str]) -> str:
    cells = [cell(name, "", "text"), *(_metric_cell(source.get(metric)) for metric in metrics)]
    return f'<tr class="edge">{"".join(cells)}<td></td><td></td><td></td></tr>'


def _metric_cell(value: Mapping[str, Any] | None) -> str:
    mean, _, ends = interval_text(value).partition(" ")
    return cell(mean, ends)


def _cost_cells(row: Mapping[str, Any]) -> list[str]:
    median, tail = row["seconds_median"], row["seconds_p95"]
    memory = row["peak_bytes"]
    return [
        cell("–") if median is None else cell(f"{median:.3g}", f"p95 {tail:.3g}"),
        cell("–" if not memory else f"{memory / 1e9:.2f} GB"),
        cell(str(row["failed"]), f"of {row['fits']}" if row["fits"] else ""),
    ]


def cell(text: str, below: str = "", kind: str = "") -> str:
    """Return a table's cell with a smaller line below; `kind` is its class in the style sheet.

    Args:
        text: of the cell.
        below: smaller, in a line of its own.
        kind: a class of the style sheet.
    """
    small = f"<small>{escape(below)}</small>" if below else ""
    return f'<td class="{kind}">{escape(text)}{small}</td>' if kind else (
        f"<td>{escape(text)}{small}</td>"
    )  # fmt: skip


def table(names: Sequence[str], body: Sequence[str], caption: str) -> str:
    """Return a table of column names (text), rows (HTML) and a caption (text).

    Args:
        names: of the columns.
        body: the rows, HTML.
        caption: above the table.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    return (
        f"<table>\n<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody>\n</table>"
    )


def interval_text(value: Mapping[str, Any] | None) -> str:
    """Return "0.712 [0.700, 0.724]"; a dash where nothing was measured.

    Args:
        value: an `Interval` as a mapping.
    """
    if value is None:
        return "–"
    ends = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['mean']:.3f}{ends}"


def _shown_metrics(summary: Summary) -> list[str]:
    rows = [*summary["methods"], summary["ceiling"] or {}]
    return [metric for metric in METRICS if any(row.get(metric) for row in rows)]


def comparisons_table(summary: Summary, checkpoints: str) -> str:
    """Return the paired comparisons, as HTML.

    Args:
        summary: of `hbsdk.evaluation.summary.summarise`.
        checkpoints: a sentence that says what measured.
    """
    if not summary["comparisons"]:
        return f'<p class="note">There is no method “{FULL}” to compare with.</p>'
    metrics = [one for one in COMPARED if any(row[one] for row in summary["comparisons"])]
    body = []
    for row in summary["comparisons"]:
        first, second = (
            label((one["method"], one["steps"])) for one in (row["first"], row["second"])
        )
        cells = [cell(first, f"minus {second}", "text")]
        body.append(f"<tr>{''.join([*cells, *(_change_cell(row[one]) for one in metrics)])}</tr>")
    caption = (
        f"{checkpoints} Mean paired difference over the subjects that both have, its 95 % "
        f"bootstrap interval ({_resamples(summary)}), its share of the second mean, Wilcoxon’s "
        f"signed-rank p, and how many subjects are higher. {_UP} and {_DOWN}: the interval "
        "excludes zero."
    )
    return table(["Difference", *(METRIC_NAMES[one] for one in metrics)], body, caption)


def _change_cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return cell("–")
    change, share = found["difference"], found["relative"]
    low, high = change["low"], change["high"]
    ends = "" if low is None else f"[{low:+.3f}, {high:+.3f}] "
    up, down = low is not None and low > 0.0, high is not None and high < 0.0
    told = "" if share is None else f"{share['mean']:+.1%}, "
    return cell(
        f"{_UP if up else _DOWN if down else ''} {change['mean']:+.3f}".strip().replace("-", "−"),
        f"{ends}{told}".replace("-", "−")
        + f"p {told_p(found['p_value'])}, {found['higher']}/{change['count']} higher",
        "up" if up else "down" if down else "",
    )


def markdown_table(summary: Summary, checkpoints: str) -> str:
    """Return every snapshot's row as a Markdown table, with what measured below it.

    Args:
        summary: of `hbsdk.evaluation.summary.summarise`.
        checkpoints: a sentence that says what measured.
    """
    metrics = _shown_metrics(summary)
    rows = [
        ["method", *(METRIC_NAMES[metric] for metric in metrics), "seconds", "failed"],
        ["---"] * (len(metrics) + 3),
    ]
    if summary["ceiling"]:
        rows.append([
            f"{CEILING} (ceiling)", *(interval_text(summary["ceiling"][one]) for one in metrics),
            "", "",
        ])  # fmt: skip
    for row in summary["methods"]:
        median = row["seconds_median"]
        rows.append([
            _name(row), *(interval_text(row[one]) for one in metrics),
            "–" if median is None else f"{median:.3g}", str(row["failed"]),
        ])  # fmt: skip
    other = summary["floors"]["another identity"]
    if other:
        floor = [interval_text(other.get(metric)) for metric in metrics]
        rows.append(["another identity (floor)", *floor, "", ""])
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    told = f"Means over subjects with 95 % bootstrap intervals. {checkpoints}"
    return "\n".join([*lines, "", told])
