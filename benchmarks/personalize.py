"""How long, and how much memory, does one photo take to become a subject?

    python benchmarks/personalize.py --out benchmarks/results/personalize_mini.json
    python benchmarks/personalize.py --bundle DIR --case "torch bfloat16=torch,dtype=bfloat16,\
memory=low,timesteps_per_step=8,micro_batch_size=1" --out benchmarks/results/personalize_sd15.json

The probe on every engine, and probe + 5 refinement steps in torch, by stage. A folder of SD 1.5's
size with random weights is made by `python benchmarks/sd15_bundle.py DIR`.
"""

from __future__ import annotations

import sys

from hbsdk.bench.arguments import parser_of, run, setup_of
from hbsdk.bench.questions import ask_personalize


def main() -> int:
    """Measure and write JSON, table and plot."""
    arguments = parser_of(__doc__).parse_args()
    return run(lambda: ask_personalize(setup_of(arguments)))


if __name__ == "__main__":
    sys.exit(main())
