"""Where the time of a session's call goes: its stages, and what is spent inside of networks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hbsdk.session import Session

_STAGES = ("encode_reference", "probe", "refine", "encode_prompts", "decode")


def synchronise() -> None:
    """Wait for the GPU, if torch has used one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


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
        self._depth = 0
        self._on_cpu = str(session.backend.device) == "cpu"
        self.start()
        backends = [session.backend]
        if session.backend.name == "torch":
            self._watch_torch(session.backend)
        elif session.backend.name == "onnxruntime":
            self._watch_onnxruntime()
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

    def _inside(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Add a call's time, unless it is part of a call that is timed already."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._depth += 1
            started = time.perf_counter()
            try:
                return call(*arguments, **keywords)
            finally:
                self._depth -= 1
                if self._depth == 0 and self.inside_s is not None:
                    self.inside_s += time.perf_counter() - started

        return timed

    def _watch_torch(self, backend: Any) -> None:
        from hbsdk.backends import torch as module

        for name in ("whole_pass", "shallow_pass"):  # the UNet's blocks, without its forward
            setattr(module, name, self._inside(getattr(module, name)))
        load, watched = backend.network, set()

        def watched_network(name: str) -> Any:
            network = load(name)
            if id(network) not in watched:
                watched.add(id(network))
                for method in ("forward", "encode", "decode"):  # a VAE is not called as such
                    if hasattr(network, method):
                        setattr(network, method, self._inside(getattr(network, method)))
            return network

        backend.network = watched_network

    def _watch_onnxruntime(self) -> None:
        import onnxruntime

        for method in ("run", "run_with_iobinding"):
            kind = onnxruntime.InferenceSession
            setattr(kind, method, self._inside(getattr(kind, method)))
