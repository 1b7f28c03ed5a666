"""How do time and memory grow with steps, pictures, size, subjects, subject files and threads?

    python benchmarks/scale.py --out benchmarks/results/scale_mini.json
    python benchmarks/scale.py --numbers steps=5,10,20 --numbers files=1000 --out FILE

The first case's engine draws and probes, ten photos at once. Of 1,000 files the
first and the last hundred are compared.
"""

from __future__ import annotations

import argparse
import sys

from hbsdk.bench.arguments import parser_of, run, setup_of
from hbsdk.bench.questions import ask_scale


def numbers_of(text: str) -> tuple[str, tuple[int, ...]]:
    """Read "WHAT=1,2,4"."""
    what, _, values = text.partition("=")
    if what not in ("steps", "pictures", "size", "subjects", "files", "threads"):
        raise argparse.ArgumentTypeError(f"{what!r} is nothing that scales here")
    try:
        return what, tuple(int(value) for value in values.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected WHAT=1,2,4, got {text!r}") from error


def main() -> int:
    """Measure and write JSON and table."""
    parser = parser_of(__doc__)
    parser.add_argument("--numbers", action="append", type=numbers_of, help="WHAT=1,2,4; repeats")
    arguments = parser.parse_args()
    numbers = dict(arguments.numbers) if arguments.numbers else None
    return run(lambda: ask_scale(setup_of(arguments), numbers))


if __name__ == "__main__":
    sys.exit(main())
