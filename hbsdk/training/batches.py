"""The shares of each step's global batch that one process reads, read ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from hbsdk.training.encode import FixedPictures, Keys
from hbsdk.training.options import TrainOptions
from hbsdk.training.pairs import Pair, PairSource

_AHEAD = 2  # batches read while one is trained on


@dataclass(frozen=True)
class Batch:
    """What a process trains on at once: some pairs of a step's global batch.

    step: 0 is the first. indices: the pairs' numbers in the global batch. keys: what their pictures
    are known by, if the source says that they stay the same.
    """

    step: int
    indices: Sequence[int]
    pairs: list[Pair]
    keys: Keys | None


def read_batches(
    source: PairSource, options: TrainOptions, first_step: int, process: int, processes: int
) -> Generator[Batch, None, None]:
    """Yield the batches of one process: `gradient_accumulation_steps` of them a step.

    Args:
        source: asked in one other thread, while earlier batches are trained on.
        options: steps, sizes and seed.
        first_step: where to begin.
        process: this one's number.
        processes: how many there are.
    """

    def read(step: int, part: int) -> Batch:
        start = (part * processes + process) * options.batch_size
        indices = range(start, start + options.batch_size)
        pairs = source.pairs(options.seed, step, indices)
        keys: Keys | None = None
        if isinstance(source, FixedPictures):
            keys = source.keys(options.seed, step, indices)
        return Batch(step, indices, pairs, keys)

    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="pairs")
    try:
        for step in range(first_step, options.steps):
            for part in range(options.gradient_accumulation_steps):
                waiting.append(pool.submit(read, step, part))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
