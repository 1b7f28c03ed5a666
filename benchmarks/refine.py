"""How much faster is refinement than the plain loop, with the same losses, and in what memory?

    python benchmarks/refine.py --out benchmarks/results/refine_mini.json
    python benchmarks/refine.py --bundle DIR --dtype bfloat16 --option timesteps_per_step=8 \
        --micro-batches 1 8 --steps 1 --repeats 1 --without-warm-up --one-at-a-time \
        --out benchmarks/results/refine_sd15.json

The plain loop is written out in plain_loop.py, on its own: one noise level at a time, gradients of
all weights everywhere, and the photo encoded anew for each. It draws the noise that hbsdk draws, so
that its losses have to be hbsdk's to 1e-3; as a control, the losses of other noise must not be: of
single noise levels, and of other steps.

hbsdk runs in micro-batches of 1, 2, 4 and 8, with all networks held from the start, as the plain
loop holds them, and with `memory="low"`, where loading them is part of the time. "refinement step"
compares like with like; "probe and N steps" is the whole, which for hbsdk also holds the loss
before and after on 16 further noise levels each, and the plain loop has no such thing. Every case
has processes of its own, whose peak memory is theirs alone. How long all will take is said first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hbsdk.bench.arguments import failures, parser_of, run, setup_of
from hbsdk.bench.cases import read_case, torch_dtype
from hbsdk.bench.counting import count_refinement
from hbsdk.bench.process import Case
from hbsdk.bench.questions import MICRO_BATCHES, Setup, ask_refine
from hbsdk.bench.report import Report
from hbsdk.bench.table import duration
from hbsdk.bundle import Bundle
from hbsdk.options import PersonalizeOptions
from hbsdk.room import refinement_need
from hbsdk.training.machine import product_rate

PLAIN = "plain loop"
PLAIN_LOOP = Path(__file__).resolve().with_name("plain_loop.py")
MOST_DIFFERENCE = 1e-3
MEMORIES = ("high", "low")
CHECKED_LEVELS = 32  # noise levels of the loss before and after
# For the estimate, of Stable Diffusion 1.5's size: the share of a large product's rate that a loss
# comes to; and a plain noise level's operations beside hbsdk's: weights have gradients, and the
# encoders run too, forward and backward.
USUAL_SHARE, PLAIN_TIMES = 0.3, 5.0


def plain_case(setup: Setup, dtype: str, options: Mapping[str, Any]) -> Case:
    """Return the plain loop as a case; it has not all of hbsdk's options."""
    bundle = Bundle.open(setup.source)
    chosen = {**options, "steps": steps_of(setup)}
    settled, problem = PersonalizeOptions(**chosen), None
    if settled.refined == "words" or settled.mode == "paper" or settled.mask_loss == "paper":
        problem = "it refines weights, in mode 'default', with mask_loss 'area', and nothing else"
    session = {"dtype": dtype, "device": setup.device}
    settings = {"bundle": setup.source, "engine": "torch", **session, "options": chosen}
    alone = replace(settled, micro_batch_size=1)
    kind = torch_dtype(bundle, session)
    return Case(
        PLAIN, str(PLAIN_LOOP), "PlainLoop", settings, problem=problem,
        need_bytes=refinement_need(bundle, alone, kind, everywhere=True), notes={"dtype": kind},
    )  # fmt: skip


def steps_of(setup: Setup) -> int:
    """Return how many steps are refined."""
    return PersonalizeOptions().steps if setup.steps is None else setup.steps


def estimate(
    setup: Setup, dtype: str, options: Mapping[str, Any], rows: int, *, with_plain: bool
) -> str:
    """Say about how long all will take, from the operations and this machine's rate.

    Args:
        setup: of the question.
        dtype: of torch.
        options: of the refinement.
        rows: of hbsdk.
        with_plain: measure the plain loop too.
    """
    bundle = Bundle.open(setup.source)
    chosen = PersonalizeOptions(**{**options, "steps": steps_of(setup), "micro_batch_size": 1})
    kind = torch_dtype(bundle, {"dtype": dtype, "device": setup.device})
    device = torch.device(setup.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rate = product_rate(device, getattr(torch, kind)) * USUAL_SHARE
    level_s = count_refinement(bundle, chosen, dtype=kind).operations / rate
    levels = chosen.steps * chosen.timesteps_per_step
    ours_s = level_s * (levels + CHECKED_LEVELS / 2)  # the loss before and after: forward alone
    plain_s = PLAIN_TIMES * level_s * levels if with_plain else 0.0
    runs = setup.repeats + (1 if setup.warm_up else 0)
    said = f"about {duration(ours_s)} a run of hbsdk"
    if with_plain:
        said += f" and {duration(plain_s)} of the plain loop"
    return f"{said}: {duration(runs * (rows * ours_s + plain_s))} in all, and loading"


def problems(data: Mapping[str, Any]) -> list[str]:
    """Say which losses are not the plain loop's, and which controls do not tell."""
    found = failures(data)
    for name, case in data["cases"].items():
        facts = case.get("facts", {})
        difference = facts.get("largest_loss_difference")
        if difference is None:
            continue
        if not difference <= MOST_DIFFERENCE:
            found.append(f"{name}: losses differ by {difference:.1e} from the plain loop's")
        if facts["control_loss_difference"] <= MOST_DIFFERENCE:
            found.append(f"{name}: the losses of other noise pass too; this proves nothing")
    return found


def main() -> int:
    """Measure, compare and write the JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--dtype", default="auto", help="of UNet, VAE and image encoders")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE; may repeat")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=MICRO_BATCHES)
    parser.add_argument("--memory", choices=MEMORIES, nargs="+", default=MEMORIES)
    parser.add_argument("--without-plain", action="store_true", help="measure hbsdk alone")
    arguments = parser.parse_args()
    setup, dtype = setup_of(arguments), arguments.dtype

    def ask() -> Report:
        options = read_case(",".join(["=torch", *arguments.option]), PersonalizeOptions).options
        with_plain = not arguments.without_plain
        rows = len(arguments.micro_batches) * len(arguments.memory)
        print(estimate(setup, dtype, options, rows, with_plain=with_plain), file=sys.stderr)
        return ask_refine(
            setup, dtype=dtype, options=options,
            plain=plain_case(setup, dtype, options) if with_plain else None,
            micro_batches=arguments.micro_batches, memories=arguments.memory,
        )  # fmt: skip

    return run(ask, problems)


if __name__ == "__main__":
    sys.exit(main())
