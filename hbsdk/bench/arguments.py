"""The arguments that the scripts in benchmarks/ have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hbsdk.bench.questions import Setup
from hbsdk.bench.report import Report
from hbsdk.bench.table import markdown
from hbsdk.errors import HbsdkError


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every question is asked with."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON; goes on with what is there")
    parser.add_argument("--bundle", help="a folder or hub id; the embedded mini by default")
    parser.add_argument(
        "--case", action="append", default=[],
        help="NAME=ENGINE,dtype=bfloat16,OPTION=VALUE; may repeat; default: what can run here",
    )  # fmt: skip
    parser.add_argument("--engines", type=Path, help="an engine folder, or a folder of them")
    parser.add_argument("--device", help="as torch names it")
    parser.add_argument("--repeats", type=int, default=5, help="runs that count, after one more")
    parser.add_argument(
        "--without-warm-up", action="store_true", help="a process's first run counts too"
    )
    parser.add_argument(
        "--runs-a-turn", type=int, default=1, metavar="N",
        help="runs of a case before the next one's turn; 1. More spare loading what is large",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, help="of drawing, or of refinement")
    parser.add_argument("--one-at-a-time", action="store_true", help="one process at a time")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def setup_of(arguments: argparse.Namespace) -> Setup:
    """Return what the arguments say.

    Raises:
        SystemExit: one is out of its range; argparse's way to say so.
    """
    for name in ("repeats", "runs_a_turn", "steps"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise SystemExit(f"error: --{name.replace('_', '-')}: expected at least 1")
    return Setup(
        source=arguments.bundle, output=arguments.out, cases=tuple(arguments.case),
        engines=arguments.engines, device=arguments.device, repeats=arguments.repeats,
        steps=arguments.steps, one_at_a_time=arguments.one_at_a_time,
        warm_up=not arguments.without_warm_up, runs_a_turn=arguments.runs_a_turn,
        progress=not arguments.quiet,
    )  # fmt: skip


def failures(data: Mapping[str, Any]) -> list[str]:
    """Say which cases could not be measured, and why."""
    cases = data["cases"].items()
    return [f"{name}: {case['failed']}" for name, case in cases if "failed" in case]


def run(
    ask: Callable[[], Report], check: Callable[[Mapping[str, Any]], list[str]] = failures
) -> int:
    """Ask, print the table, and what is wrong with the answer; return the exit code.

    Args:
        ask: the question.
        check: takes what the report holds, and says what is wrong.
    """
    try:
        report = ask()
    except HbsdkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: what was measured is kept; the same command goes on", file=sys.stderr)
        return 130
    print(markdown(report.data))
    wrong = check(report.data)
    for line in wrong:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if wrong else 0
