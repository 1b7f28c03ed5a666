"""A report as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_HEAD = ("case", "what", "median", "p95", "runs", "limit", "of limit", "peak memory", "more")
MACHINE = "this machine"  # the case that measures rates; it has no row


def markdown(data: Mapping[str, Any]) -> str:
    """Return what a `Report` holds: where it was measured, and a row for each thing measured.

    "limit" is the least time at the rates that were measured beside it: operations of products
    over the rate of a large product, or weights over the rate of a copy, whichever is longer.
    """
    versions = [f"{name} {number}" for name, number in data["versions"].items()]
    rates = [f"{name} {_rate(name, value)}" for name, value in data.get("rates", {}).items()]
    lines = [
        f"# {data['question']}, {data['bundle']['name']}",
        "",
        f"{data['date']}, {data['device']}, {data['machine']['cores']} cores;",
        f"commit {data['commit']}; {', '.join(versions)}. `{data['command']}`",
        "",
        *_rows(list(_cells(data))),
    ]
    if rates:
        lines += ["", f"Rates measured beside it: {', '.join(rates)}."]
    for name, fact in data.get("facts", {}).items():
        lines += ["", f"{name}: {fact}"]
    return "\n".join(lines) + "\n"


def _rows(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    used = [any(row[column] for row in rows) for column in range(len(_HEAD))]
    for row in (_HEAD, ["---"] * len(_HEAD), *rows):
        yield f"| {' | '.join(cell for cell, shown in zip(row, used, strict=True) if shown)} |"


def _cells(data: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, case in data["cases"].items():
        if name == MACHINE:
            continue
        peak = case.get("peak_device_bytes") or case.get("peak_rss_bytes")
        memory = f"{peak / 1e9:.2f} GB" if peak else ""
        for word, said in (("failed", "failed"), ("skipped", "cannot run here")):
            if word in case:
                yield [name, said, "", "", "", "", "", memory, case[word].replace("|", "/")]
        for number, (what, one) in enumerate(case.get("measures", {}).items()):
            share = one.get("of_limit")
            yield [
                name, what, duration(one["median_s"]), duration(one["p95_s"]), str(one["runs"]),
                duration(one["limit_s"]) if one.get("limit_s") else "",
                f"{share:.0%}" if share else "", memory,
                _more(name, case, data["commit"]) if number == 0 else "",
            ]  # fmt: skip
        if "first" in case:
            first = case["first"]
            yield [
                name, "first, with starting and loading", duration(first["median_s"]),
                duration(first["p95_s"]), str(first["runs"]), "", "", memory, "",
            ]  # fmt: skip


def _more(name: str, case: Mapping[str, Any], commit: str | None) -> str:
    facts, shares = case.get("facts", {}), case.get("shares", {})
    said = []
    if facts.get("reference") == name:
        said.append("reference")
    elif "psnr_db" in facts:
        decibels = facts["psnr_db"]
        said.append("another size" if decibels is None else f"{decibels:.1f} dB to the reference")
    if "host_share" in shares:
        said.append(f"{shares['host_share']['median']:.1%} outside of networks")
    for key in ("largest_loss_difference", "word_change"):
        if facts.get(key) is not None:
            said.append(f"{key.replace('_', ' ')} {facts[key]:.1e}")
    if case.get("commit", commit) != commit:
        said.append(f"at commit {case['commit']}")
    return ", ".join(said)


def duration(seconds: float) -> str:
    """Return a time with three digits and a unit."""
    if seconds >= 1.0:
        return f"{seconds:.3g} s" if seconds < 1000.0 else f"{seconds:.0f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _rate(name: str, value: float) -> str:
    return f"{value / 1e9:.3g} GB/s" if name == "copy" else f"{value / 1e9:.4g} GFLOP/s"
