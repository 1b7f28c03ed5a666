"""ONNX to TensorRT engines, through `tensorrt_rtx` (needs no GPU to build) or `tensorrt`.

One code for TensorRT for RTX and for TensorRT 10 and 11. Where they differ:
- Precision is the graph's own in all of them (strong typing). TensorRT 10 must be told so by a flag
  at the network's creation; TensorRT 11 and RTX always do it, and keep the flag without effect.
- RTX builds for compute capabilities by name and without a GPU; TensorRT for the GPU at hand.
- RTX measures no kernels while it builds: its timing cache is a deprecated stub.
- RTX alone can promise at build time that an engine can be recorded in a CUDA graph.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from export.check_tensorrt import check_interface, check_precision
from hbsdk.backends.tensorrt_engine import last_errors, load_module, logger
from hbsdk.engine_spec import EngineSpec, Precision
from hbsdk.errors import EngineError
from hbsdk.whole_file import write_whole

_MIB = 2**20
_POLL_S = 0.2  # how often the elapsed time is drawn, and Ctrl-C seen


@dataclass(frozen=True)
class TensorRTSettings:
    """How engines are built.

    Attributes:
        module: "tensorrt_rtx" or "tensorrt".
        compute_capabilities: of the GPUs to build for, such as "8.9", or "current" for the one at
            hand; empty is the module's own choice (RTX: 8.0 and later; else the one at hand).
        workspace_mib: the most scratch memory a layer may take, in MiB; None is all there is.
        builder_optimization_level: 0 (builds fast) to 5 (runs fast); None is the module's own, 3.
        timing_cache: file of measured kernels that builds share; only `tensorrt` measures.
    """

    module: Literal["tensorrt_rtx", "tensorrt"]
    compute_capabilities: tuple[str, ...] = ()
    workspace_mib: int | None = None
    builder_optimization_level: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True)
class BuildFigures:
    """What a build took and gave.

    Attributes:
        seconds: from the ONNX file to the engine file.
        engine_bytes: of the engine file.
        layers: of the network, before TensorRT fused them.
        runtime_version: of the module that built it, and that alone loads it.
    """

    seconds: float
    engine_bytes: int
    layers: int
    runtime_version: str


def build_engine(
    onnx_path: Path,
    spec: EngineSpec,
    target: Path,
    settings: TensorRTSettings,
    *,
    precision: Precision,
    progress: bool = True,
) -> BuildFigures:
    """Build one engine; `target` is written whole or not at all.

    Args:
        onnx_path: the graph; its weights may lie beside it.
        spec: what the graph takes and gives.
        target: the engine file.
        settings: how.
        precision: that the recipe gives the network.
        progress: show the phase and the elapsed time.

    Raises:
        EngineError: TensorRT cannot parse the graph or build it (with its own messages), or the
            graph is not what `spec` and `precision` say.
        MissingDependencyError: the module is not installed.
        KeyboardInterrupt: the build was stopped; nothing is left of it.
    """
    started = time.perf_counter()
    trt = load_module(settings.module)
    last_errors(trt)
    builder = trt.Builder(logger(trt))
    network = builder.create_network(_creation_flags(trt))
    # The parser and its network stay together: the network uses the parser's copy of the weights.
    parser = trt.OnnxParser(network, logger(trt))
    _parse(trt, parser, onnx_path, spec)
    check_interface(network, spec)
    check_precision(trt, network, spec, precision)
    config = _configure(trt, builder, spec, settings)
    if settings.timing_cache is not None and settings.module == "tensorrt":
        read_timing_cache(config, settings.timing_cache)
    data = _build(trt, builder, network, config, spec, progress=progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, data)
    if settings.timing_cache is not None and settings.module == "tensorrt":
        write_timing_cache(config, settings.timing_cache)
    return BuildFigures(
        time.perf_counter() - started, data.nbytes, network.num_layers, trt.__version__
    )


def read_timing_cache(config: Any, path: Path) -> None:
    """Give a builder's configuration the measurements of earlier builds; a bad file is ignored."""
    data = path.read_bytes() if path.is_file() else b""
    timing_cache = config.create_timing_cache(data) or config.create_timing_cache(b"")
    # False: measurements of another GPU or version are dropped rather than believed.
    config.set_timing_cache(timing_cache, False)


def write_timing_cache(config: Any, path: Path) -> None:
    """Keep a build's measurements for the next; the file is replaced whole."""
    timing_cache = config.get_timing_cache()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, timing_cache.serialize())


def _creation_flags(trt: Any) -> int:
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    if hasattr(flags, "STRONGLY_TYPED"):
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0  # every network is strongly typed


def _parse(trt: Any, parser: Any, onnx_path: Path, spec: EngineSpec) -> None:
    """Read the graph from its file, so that external weights are found beside it."""
    if parser.parse_from_file(str(onnx_path)):
        return
    problems = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"{error.node_operator()} node {error.node_name()!r}: " if error.node() >= 0 else ""
        problems.append(f"{node}{error.desc()} ({error.code().name})")
    raise EngineError(
        f"graph {onnx_path} of engine {spec.name}",
        expected=f"one that {trt.__name__} {trt.__version__} parses",
        got="; ".join(problems) or last_errors(trt),
        remedy="If it is an operator that TensorRT lacks, use a recipe for ONNX Runtime",
    )


def _configure(trt: Any, builder: Any, spec: EngineSpec, settings: TensorRTSettings) -> Any:
    config = builder.create_builder_config()
    # On by default: it rounds float32 factors to ten bits, and guidance is to be float32.
    config.clear_flag(trt.BuilderFlag.TF32)
    if spec.name == "denoise_step" and hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # or it could not be captured
    if settings.workspace_mib is not None:
        limit = settings.workspace_mib * _MIB
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
    if settings.builder_optimization_level is not None:
        config.builder_optimization_level = settings.builder_optimization_level
    _set_compute_capabilities(trt, config, settings.compute_capabilities)
    if spec.axes:
        profile = builder.create_optimization_profile()
        _fill_profile(profile, spec)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(
                f"shapes of engine {spec.name}", expected="minimum <= usual <= maximum",
                got=last_errors(trt), remedy="Change the recipe's shapes",
            )  # fmt: skip
    return config


def _set_compute_capabilities(trt: Any, config: Any, wanted: tuple[str, ...]) -> None:
    """Tell which GPUs to build for.

    Raises:
        EngineError: the module cannot build for one of them.
    """
    if not hasattr(config, "num_compute_capabilities"):
        if set(wanted) - {"current"}:
            raise EngineError(
                f"compute capabilities for {trt.__name__} {trt.__version__}",
                expected='"current": it builds for the GPU at hand', got=", ".join(wanted),
                remedy="Build on the machine that runs them, or use tensorrt_rtx",
            )  # fmt: skip
        return
    if not wanted:
        return
    config.num_compute_capabilities = len(wanted)
    for index, text in enumerate(wanted):
        name = "CURRENT" if text == "current" else f"SM{text.replace('.', '')}"
        capability = trt.ComputeCapability.__members__.get(name)
        if capability is None or not config.set_compute_capability(capability, index):
            known = (one[2:] for one in trt.ComputeCapability.__members__ if one.startswith("SM"))
            raise EngineError(
                f"compute capability for {trt.__name__} {trt.__version__}",
                expected=", ".join([*(f"{one[:-1]}.{one[-1]}" for one in known), "current"]),
                got=text, remedy="Change the recipe's compute_capabilities",
            )  # fmt: skip


def _fill_profile(profile: Any, spec: EngineSpec) -> None:
    """Give every input whose size varies its least, usual and greatest shape."""
    least, usual, most = (
        {name: getattr(axis, end) for name, axis in spec.axes.items()}
        for end in ("min", "opt", "max")
    )
    for tensor in spec.inputs:
        if any(isinstance(dim, str) for dim in tensor.shape):
            shapes = (spec.shape(tensor, values) for values in (least, usual, most))
            profile.set_shape(tensor.name, *shapes)


def _build(
    trt: Any, builder: Any, network: Any, config: Any, spec: EngineSpec, *, progress: bool
) -> Any:
    """Return the serialized engine.

    TensorRT builds in a thread of its own: the main one would be stuck inside of it, see no Ctrl-C
    and draw no time.
    """
    with tqdm(
        desc=spec.name, bar_format="{desc} [{elapsed}]", disable=not progress, leave=False
    ) as bar:
        monitor = _new_monitor(trt)
        config.progress_monitor = monitor
        with ThreadPoolExecutor(1, thread_name_prefix="tensorrt") as pool:
            future = pool.submit(builder.build_serialized_network, network, config)
            try:
                data = _wait(future, lambda: _draw(bar, spec.name, monitor.phase))
            except BaseException:
                monitor.cancelled.set()  # the pool waits until TensorRT has seen it
                raise
    if data is None:
        raise EngineError(
            f"engine {spec.name}", expected=f"{trt.__name__} {trt.__version__} to build it",
            got=last_errors(trt), remedy="Run `hbsdk doctor`; a smaller shape may fit in memory",
        )  # fmt: skip
    return data


def _wait(future: Future[Any], draw: Callable[[], None]) -> Any:
    while True:
        draw()
        try:
            return future.result(timeout=_POLL_S)
        except NotYet:
            continue


def _draw(bar: Any, name: str, phase: str) -> None:
    bar.set_description_str(f"{name}: {phase}" if phase else name, refresh=False)
    bar.refresh()


def _new_monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Knows the innermost phase, and stops the build when told; called from any thread."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = threading.Event()
            self.phases: list[str] = []

        @property
        def phase(self) -> str:
            phases = list(self.phases)
            return phases[-1] if phases else ""

        def phase_start(self, phase: str, _parent: str | None, _steps: int) -> None:
            self.phases.append(phase)

        def phase_finish(self, phase: str) -> None:
            if phase in self.phases:
                self.phases.remove(phase)

        def step_complete(self, _phase: str, _step: int) -> bool:
            return not self.cancelled.is_set()

    return Monitor()
