"""Where the time of a session's call goes: its stages, and what is spent inside of networks."""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hbsdk.session import Session

_STAGES = ("encode_references", "probe", "refine", "encode_prompts", "decode")


def synchronise() -> None:
    """Wait for the GPU, if torch or TensorRT's backend has used one.

    ONNX Runtime waits by itself at the end of each run.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    runtime = sys.modules.get("cuda.bindings.runtime")
    if runtime is not None:
        runtime.cudaDeviceSynchronize()


class Stopwatch:
    """Notes when a backend's stages begin and end, and adds up the time inside of networks.

    Attributes:
        spans: stage -> (start, end) of its last call since `start`.
        inside_s: seconds inside of networks since `start`; None on a GPU, where a call returns
            before the work is done, so that time outside cannot be told from the host.
    """

    def __init__(self, session: Session) -> None:
        """Watch a session's backends from now on."""
        self.spans: dict[str, tuple[float, float]] = {}
        self.inside_s: float | None = 0.0
        self._depth, self._entered = 0, 0.0
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        self._on_cpu = str(session.backend.device) == "cpu"
        self.start()
        backends = [session.backend]
        if session.backend.name == "torch":
            self._watch_torch(session.backend)
        elif session.backend.name == "onnxruntime":
            self._watch_onnxruntime(session.backend)
        elif session.backend.name == "openvino":
            self._watch_openvino(session.backend)
        if "torch_backend" in vars(session) and session.torch_backend is not session.backend:
            backends.append(session.torch_backend)
        for backend in backends:
            for name in _STAGES:
                if hasattr(backend, name):
                    setattr(backend, name, self._timed(name, getattr(backend, name)))

    def start(self) -> None:
        """Forget what was."""
        self.spans = {}
        self.inside_s = 0.0 if self._on_cpu else None
        self.started = time.perf_counter()

    def stages(self) -> dict[str, float]:
        """Return seconds from `start` to now, by stage in order; what is left is "host"."""
        ended = time.perf_counter()
        found = {name: end - start for name, (start, end) in self.spans.items()}
        if "decode" in self.spans:
            first = self.spans.get("encode_prompts", (self.started, self.started))[1]
            found = {
                **{name: found[name] for name in found if name != "decode"},
                "denoise": self.spans["decode"][0] - first,
                "decode": found["decode"],
            }
        return {**found, "host": max(0.0, ended - self.started - sum(found.values()))}

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            synchronise()
            started = time.perf_counter()
            try:
                return call(*arguments, **keywords)
            finally:
                synchronise()
                self.spans[name] = started, time.perf_counter()

        return timed

    def _enter(self, *_: Any) -> None:
        """A network begins, unless it is part of one that has begun already."""
        if self._depth == 0:
            self._entered = time.perf_counter()
        self._depth += 1

    def _leave(self, *_: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self.inside_s is not None:
            self.inside_s += time.perf_counter() - self._entered

    def _inside(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._enter()
            try:
                return call(*arguments, **keywords)
            finally:
                self._leave()

        return timed

    def _watch_torch(self, backend: Any) -> None:
        load = backend.network

        def watched_network(name: str) -> Any:
            network = load(name)
            if network not in self._watched:
                self._watched.add(network)
                for module in _entrances(network):
                    # Hooks, not another `forward`: deep_features.py runs copies of the UNet object,
                    # which share its hooks, but would go on calling the first one's `forward`.
                    module.register_forward_pre_hook(self._enter)
                    module.register_forward_hook(self._leave, always_call=True)
            return network

        backend.network = watched_network

    def _watch_onnxruntime(self, backend: Any) -> None:
        load = backend.load
        backend.load = lambda name: _Timed(load(name), self._inside)

    def _watch_openvino(self, backend: Any) -> None:
        load = backend.load
        backend.load = lambda name: _TimedGraph(load(name), self._inside)


def _entrances(network: Any) -> list[Any]:
    """Return a network and its parts: a VAE's are called without it, to encode and to decode."""
    from torch import nn

    parts = [network]
    for child in network.children():
        parts += list(child) if isinstance(child, nn.ModuleList) else [child]
    return parts


class _Timed:
    """An ONNX Runtime session whose runs are timed; it is not changed itself."""

    def __init__(self, session: Any, inside: Callable[[Any], Any]) -> None:
        self._session, self._inside = session, inside

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._session, name)
        return self._inside(found) if name in ("run", "run_with_iobinding") else found


class StepClock:
    """Notes how long each refinement step takes, apart from the loss before and after them."""

    def __init__(self, backend: Any) -> None:
        """Watch a torch backend's refinements from now on."""
        import hbsdk.refine as module

        self._starts: list[float] = []
        self._ends: list[float] = []
        loss, refine = module.reference_loss, backend.refine

        def timed_loss(*arguments: Any, **keywords: Any) -> Any:
            found = loss(*arguments, **keywords)
            if not self._starts:  # it was the loss before: the first step begins
                self._starts.append(_now())
            return found

        def timed_refine(reference: Any, options: Any, on_step: Any) -> Any:
            self._starts, self._ends = [], []

            def on_timed_step(step: int) -> None:
                self._ends.append(_now())
                on_step(step)
                self._starts.append(_now())

            return refine(reference, options, on_timed_step)

        vars(module)["reference_loss"] = timed_loss
        backend.refine = timed_refine

    def steps_s(self) -> list[float]:
        """Return the seconds of the last refinement's steps."""
        return [end - start for start, end in zip(self._starts, self._ends, strict=False)]


def _now() -> float:
    synchronise()
    return time.perf_counter()


class _TimedGraph:
    """An OpenVINO graph whose compiled forms are timed when they run, not while they compile."""

    def __init__(self, graph: Any, inside: Callable[[Callable[..., Any]], Any]) -> None:
        self._graph, self._inside = graph, inside

    def compiled(self, shapes: Any) -> Callable[..., Any]:
        """Return what runs the graph for inputs of these shapes."""
        timed: Callable[..., Any] = self._inside(self._graph.compiled(shapes))
        return timed
