"""The page of an evaluation's report: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from hbsdk.evaluation.claims import FULL, METRIC_NAMES, label
from hbsdk.evaluation.contact_sheets import Sheet, Strip
from hbsdk.evaluation.plots import standing_for
from hbsdk.evaluation.report_tables import (
    cell,
    comparisons_table,
    interval_text,
    methods_table,
    table,
)
from hbsdk.evaluation.results import CEILING

Summary = Mapping[str, Any]
_PLOT_CAPTIONS = {
    "quality-against-seconds": "Quality against the seconds that fitting one subject takes. Lines "
    "join the snapshots of one method as its budget grows.",
    "ablations": "The ablations of the paper's Table 1. The paired comparisons tell them apart "
    "more sharply than these intervals do, since subjects differ more than methods.",
    "factors": "Attribute accuracy by factor of identity.",
}
_TOLD = {True: ("holds", "✓ holds"), False: ("fails", "✗ does not hold"),
         None: ("undecided", "? undecided")}  # fmt: skip


def report_page(
    run: Mapping[str, Any],
    summary: Summary,
    plots: Mapping[str, bytes],
    sheets: Sequence[Sheet],
    checkpoints: str,
) -> str:
    """Return the page.

    Args:
        run: what run.json says.
        summary: what `hbsdk.evaluation.summary.summarise` returns.
        plots: file name -> bytes; the SVG ones are shown.
        sheets: the contact sheets.
        checkpoints: a sentence that says what measured, for the captions.
    """
    template = (files("hbsdk.evaluation") / "report.html.template").read_text("utf-8")
    lead = (
        f"{summary['subjects']} subjects × {summary['prompts']} prompts × {summary['seeds']} seeds"
        f" · bundle {run.get('bundle', 'unnamed')} · {run.get('date', 'no date')}"
    )
    return Template(template).substitute(
        title=escape(f"Evaluation on {run.get('set', 'a set')}"),
        lead=escape(lead),
        tiles="\n".join(_tiles(summary)),
        verdicts=_verdicts(summary),
        methods=methods_table(run, summary, checkpoints),
        plots="\n".join(_plots(plots, checkpoints)),
        comparisons=comparisons_table(summary, checkpoints),
        sheets=_sheets(run, sheets),
        failures=_failures_table(summary),
        run=_run(run),
        settings=_settings(run),
    )


def _tiles(summary: Summary) -> Iterator[str]:
    """The four figures one asks for first, between floor and ceiling."""
    full = standing_for(summary, FULL)
    if full is None:
        return
    edges = (summary["floors"]["no personalization"], summary["ceiling"])
    for metric in ("dino_i", "attributes", "clip_t"):
        if full[metric] is None:
            continue
        told = [
            f"{name} {source[metric]['mean']:.3f}"
            for name, source in zip(("floor", "ceiling"), edges, strict=True)
            if source and source[metric]
        ]
        yield _tile(METRIC_NAMES[metric], interval_text(full[metric]), " · ".join(told))
    if full["seconds_median"] is not None:
        yield _tile(
            "Seconds to fit one subject", f"{full['seconds_median']:.3g} s",
            label((full["method"], full["steps"])),
        )  # fmt: skip


def _tile(name: str, figure: str, told: str) -> str:
    value, _, ends = figure.partition(" [")
    ends = f"[{ends} · {told}" if ends and told else f"[{ends}" if ends else told
    return (
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(ends)}</span></div>"
    )


def _verdicts(summary: Summary) -> str:
    if not summary["verdicts"]:
        return '<p class="note">These rows decide none of the project\'s claims.</p>'
    note = (
        "A claim “above” holds if the 95 % interval of the paired difference lies above zero; “not "
        "below” if it lies above a loss of 2 %. Intervals are [in brackets]; p is that of "
        "Wilcoxon’s signed-rank test, two-sided, not corrected for the number of claims."
    )
    shown = [f'<p class="note">{note}</p>']
    for topic in dict.fromkeys(verdict["topic"] for verdict in summary["verdicts"]):
        items = [_verdict(one) for one in summary["verdicts"] if one["topic"] == topic]
        shown.append(f'<h3>{escape(topic)}</h3>\n<ul class="verdicts">{"".join(items)}</ul>')
    return "\n".join(shown)


def _verdict(verdict: Mapping[str, Any]) -> str:
    kind, told = _TOLD[verdict["holds"]]
    return (
        f'<li><span class="{kind}">{told}</span><div>{escape(verdict["claim"])}'
        f"<small>{escape(verdict['because'])}</small></div></li>\n"
    )


def _plots(plots: Mapping[str, bytes], checkpoints: str) -> Iterator[str]:
    for name, told in _PLOT_CAPTIONS.items():
        if f"{name}.svg" in plots:
            data = base64.b64encode(plots[f"{name}.svg"]).decode()
            yield (
                f'<figure class="plot"><img alt="{escape(told)}" '
                f'src="data:image/svg+xml;base64,{data}"><figcaption>{escape(told)} Means with '
                f"95 % bootstrap intervals over subjects. {escape(checkpoints)}</figcaption>"
                "</figure>"
            )


def _sheets(run: Mapping[str, Any], sheets: Sequence[Sheet]) -> str:
    if not sheets:
        return '<p class="note">No method drew a picture.</p>'
    prompts = run.get("prompts")
    items = [f"<li>{escape(str(one))}</li>" for one in prompts] if isinstance(prompts, list) else []
    note = (
        f"{len(sheets)} subjects, spread evenly over all in the order of their names, not by "
        "how they look. Each method’s strip is its first seed of every prompt, left to right."
    )
    shown = [f'<p class="note">{note}</p>', f'<ol class="prompts">{"".join(items)}</ol>']
    for number, sheet in enumerate(sheets):
        photo = (
            f'<div class="photo">{_image(sheet.photo, "The photo")}The photo</div>'
            if sheet.photo
            else "<div></div>"
        )
        strips = "".join(
            _strip(strip, first=place == 0) for place, strip in enumerate(sheet.strips)
        )
        shown.append(
            f"<details{' open' if number < 4 else ''}><summary>{escape(sheet.subject)}</summary>"
            f'<div class="sheet">{photo}<div>{strips}</div></div></details>'
        )
    return "\n".join(shown)


def _strip(strip: Strip, *, first: bool) -> str:
    name = label(strip.key)
    numbers = ""
    if first and strip.lines == 1:
        cells = "".join(f"<span>{number + 1}</span>" for number in range(strip.columns))
        numbers = (
            '<div class="strip"><span></span><div class="numbers" style="grid-template-columns:'
            f'repeat({strip.columns}, 1fr)">{cells}</div></div>'
        )
    kind = "strip ours" if strip.key[0] == FULL else "strip"
    told = f"{name} (ceiling)" if strip.key[0] == CEILING else name
    return (
        f'{numbers}<div class="{kind}"><span>{escape(told)}</span>{_image(strip.jpeg, name)}</div>'
    )


def _image(jpeg: bytes, told: str) -> str:
    data = base64.b64encode(jpeg).decode()
    return f'<img alt="{escape(told)}" src="data:image/jpeg;base64,{data}">'


def _failures_table(summary: Summary) -> str:
    if not summary["failures"]:
        return "<p>None: every method was fitted on every subject.</p>"
    body = [
        f"<tr>{cell(label((row['method'], row['steps'])))}{cell(row['subject'], '', 'text')}"
        f"{cell(row['error'], '', 'text')}</tr>"
        for row in summary["failures"]
    ]
    return table(["Method", "Subject", "Error"], body, "Fits that failed; they have no pictures.")


def _run(run: Mapping[str, Any]) -> str:
    apart = ("subjects", "class_nouns", "prompts", "methods")  # shown elsewhere, or too long
    body = [
        f'<tr><td>{escape(key.replace("_", " "))}</td><td class="text"><code>{escape(_told(value))}'
        "</code></td></tr>"
        for key, value in run.items()
        if key not in apart
    ]
    return f"<table>\n<tbody>\n{chr(10).join(body)}\n</tbody>\n</table>"


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(_told(one) for one in value)
    return "unknown" if value is None else str(value)


def _settings(run: Mapping[str, Any]) -> str:
    parts = []
    for name in ("methods", "subjects"):
        if run.get(name):
            told = run[name]
            is_list = isinstance(told, list)
            text = _told(told) if is_list else json.dumps(told, indent=1, ensure_ascii=False)
            parts.append(
                f"<details><summary>{name.capitalize()}</summary>"
                f'<div class="inside"><code>{escape(text)}</code></div></details>'
            )
    return "\n".join(parts)
