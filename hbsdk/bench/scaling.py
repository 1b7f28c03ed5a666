"""How time and memory grow: with steps, pictures, size, subjects, subject files and threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import hbsdk
from hbsdk.bench.child import peak_rss_bytes
from hbsdk.bench.stopwatch import synchronise
from hbsdk.bench.tasks import TO_GENERATE, TO_PROBE, draw_photo, load, open_session

_AT_ONCE = 10  # subjects: more are probed in batches of so many
_PHOTOS = 10  # different ones; more subjects take turns with them


class Scaling:
    """One quantity at several values; each run measures every value once."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Load; `settings["what"]` is a method's name here, `settings["numbers"]` its values."""
        self.prompt = settings["prompt"]
        self.steps = settings["steps"]
        self.what, self.numbers = settings["what"], settings["numbers"]
        self.session = open_session(settings)
        if self.what == "subjects":
            load(self.session.backend, TO_PROBE)
        elif self.what != "files":
            load(self.session.backend, TO_GENERATE)

    def run(self) -> dict[str, Any]:
        """Measure each value once; facts hold the peak memory at each where it can be told."""
        measure: Callable[[int], dict[str, float]] = getattr(self, f"_{self.what}")
        samples: dict[str, list[float]] = {}
        peaks: dict[str, int | None] = {}
        for number in self.numbers:
            forget_peak()
            for name, seconds in measure(number).items():
                samples[name] = [seconds]
            peaks[str(number)] = peak_rss_bytes()
        return {"samples": samples, "facts": {"peak_rss_bytes_at": peaks}}

    def _draw(self, **options: Any) -> float:
        synchronise()
        started = time.perf_counter()
        self.session.generate(self.prompt, output_type="np", **options)
        synchronise()
        return time.perf_counter() - started

    def _steps(self, number: int) -> dict[str, float]:
        return {f"{number} steps": self._draw(num_inference_steps=number)}

    def _pictures(self, number: int) -> dict[str, float]:
        seconds = self._draw(num_images_per_prompt=number, num_inference_steps=self.steps)
        return {f"{number} pictures": seconds}

    def _size(self, number: int) -> dict[str, float]:
        seconds = self._draw(height=number, width=number, num_inference_steps=self.steps)
        return {f"{number} px": seconds}

    def _subjects(self, number: int) -> dict[str, float]:
        size = self.session.bundle.info.image_size_px
        drawn = [draw_photo(size, index) for index in range(min(number, _PHOTOS))]
        photos, masks = zip(*(drawn[index % len(drawn)] for index in range(number)), strict=True)
        synchronise()
        started = time.perf_counter()
        made = self.session.personalize_batch(photos, masks, batch_size=_AT_ONCE, steps=0)
        count = sum(1 for _ in made)
        synchronise()
        assert count == number
        return {f"{number} subjects": time.perf_counter() - started}

    def _threads(self, number: int) -> dict[str, float]:
        """As many pictures, whatever the number of threads that share the session."""
        total = max(self.numbers)

        def draw(seed: int) -> None:
            self._draw(seed=seed, num_inference_steps=self.steps)

        started = time.perf_counter()
        with ThreadPoolExecutor(number) as pool:
            list(pool.map(draw, range(total)))
        return {f"{total} pictures, {number} threads": time.perf_counter() - started}

    def _files(self, number: int) -> dict[str, float]:
        """Save and load subjects; the first and the last tenth tell whether time stays flat."""
        info = self.session.bundle.info
        words = np.random.default_rng(0).standard_normal((info.num_words, info.word_dim))
        subject = hbsdk.Subject(words=words.astype(np.float32), name="subject", metadata={})
        saved, loaded = [], []
        with TemporaryDirectory() as folder:
            paths = [Path(folder, f"subject-{index}.safetensors") for index in range(number)]
            for path in paths:
                saved.append(_timed(partial(subject.save, path)))
            for path in paths:
                loaded.append(_timed(partial(hbsdk.Subject.load, path)))
        tenth = max(1, number // 10)
        return {
            f"{verb} one, {where} tenth of {number}": float(np.median(part))
            for verb, seconds in (("save", saved), ("load", loaded))
            for where, part in (("first", seconds[:tenth]), ("last", seconds[-tenth:]))
        }


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def forget_peak() -> None:
    """Let the process's peak memory begin anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return
