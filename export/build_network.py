"""One network of an engine folder: its graphs and engines, each compared with it on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from export import parity, wrappers
from export.check_onnx import check_onnx
from export.parity import Arrays, Comparison, Runner
from export.recipe import Recipe
from export.to_onnx import export_network
from export.to_tensorrt import TensorRTSettings, build_engine
from hbsdk.backends.onnxruntime import open_session
from hbsdk.bundle import Bundle
from hbsdk.bundle_check import config_of, part_of
from hbsdk.engine_spec import RUNTIME_ENGINES, SHALLOW_STEP, EngineSpec, Precision
from hbsdk.manifest import ENGINE_SUFFIX
from hbsdk.runtimes import compute_capability

_TIMING_CACHE = Path.home() / ".cache" / "hbsdk" / "tensorrt.timing"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One network's line of the table.

    parity: by graph, then by leg, `Comparison.to_json`.
    """

    network: str
    parameters: int
    size_bytes: int
    seconds: float
    parity: Mapping[str, Mapping[str, Mapping[str, float]]]

    def worst(self) -> tuple[float, float]:
        """Return the last leg's largest max-abs over the output's scale, and least cosine."""
        last = [list(legs.values())[-1] for legs in self.parity.values()]
        largest = max(leg["relative_max_abs"] for leg in last)
        return largest, min(leg["cosine"] for leg in last)


@dataclass(frozen=True)
class _Legs:
    """The comparisons of one network's graphs, as they are made."""

    specs: Mapping[str, EngineSpec]
    feeds: Mapping[str, list[Arrays]]
    say: Say
    references: dict[str, list[Arrays]] = field(default_factory=dict)
    found: dict[str, dict[str, Comparison]] = field(default_factory=dict)

    def run(self, name: str, leg: str, run: Runner, precision: Precision) -> None:
        """Compare one graph on one leg with the network.

        Raises:
            EngineError: it is too far off.
        """
        self.say(f"{name}: {leg}")
        spec = self.specs[name]
        compared = parity.compare(spec, leg, run, self.feeds[name], self.references[name])
        parity.check(spec, leg, precision, compared)
        self.found.setdefault(name, {})[leg] = compared


def build_network(
    network: str,
    bundle: Bundle,
    recipe: Recipe,
    specs: Mapping[str, EngineSpec],
    folder: Path,
    say: Say = lambda _: None,
    *,
    progress: bool = False,
) -> Row:
    """Export one network, build its engines, and compare every graph with it on all legs.

    Args:
        network: of `engine_spec.NETWORKS`.
        bundle: that has it.
        recipe: what to make of it.
        specs: of all graphs.
        folder: the engine folder; the network's own is in it already.
        say: is told what begins.
        progress: show TensorRT's phases.

    Raises:
        EngineError: it cannot be exported or built, or is too far from the network.
    """
    start = time.perf_counter()
    own = {name: spec for name, spec in specs.items() if spec.network == network}
    precision = recipe.precision[network]
    text = config_of(bundle.components["text_encoder"], "text_encoder", bundle.configs)
    tokens = part_of(text, "text_config")["vocab_size"]
    feeds = {n: parity.cases(one, bundle.scheduler_config(), tokens) for n, one in own.items()}
    legs = _Legs(own, feeds, say)
    # In a function of its own: PyTorch's weights are gone before a runtime loads the engine's.
    parameters = _export(network, bundle, folder, legs, precision, recipe.opset)
    for name, spec in own.items():
        check_onnx(folder / spec.file, spec, opset=recipe.opset)
        legs.run(name, "onnxruntime", _onnxruntime(folder / spec.file, spec), precision)
    if recipe.tensorrt is not None:
        for name in own.keys() & {*RUNTIME_ENGINES, SHALLOW_STEP}:
            say(f"{name}: build of {recipe.runtime}")
            run = _tensorrt(folder, own[name], recipe, progress=progress)
            if run is not None:
                legs.run(name, recipe.runtime, run, precision)
    return Row(
        network=network,
        parameters=parameters,
        size_bytes=_size_bytes((folder / network).iterdir()),
        seconds=time.perf_counter() - start,
        parity={n: {k: c.to_json() for k, c in one.items()} for n, one in legs.found.items()},
    )


def _export(
    network: str, bundle: Bundle, folder: Path, legs: _Legs, precision: Precision, opset: int
) -> int:
    """Run the untouched network and its wrappers, and write the graphs; count the parameters."""
    legs.say(f"{network}: PyTorch")
    parts = wrappers.load_networks(network, bundle)
    for name, cases in legs.feeds.items():
        legs.references[name] = [parity.untouched(name, parts, case) for case in cases]
    engines = wrappers.wrap(
        network, parts, bundle.info.image_size_px, deep_features=SHALLOW_STEP in legs.specs
    )
    for name, engine in engines.items():
        legs.run(name, "wrapper", parity.wrapper_runner(engine, legs.specs[name]), "float32")
    if precision == "float16":
        for part in parts.values():
            part.half()
    legs.say(f"{network}: export")
    export_network(folder, engines, legs.specs, opset)
    return sum(weight.numel() for weight in engines[network].parameters())


def _onnxruntime(path: Path, spec: EngineSpec) -> Runner:
    """Return a function that runs a graph in ONNX Runtime on the CPU, which is everywhere."""
    session = open_session(path, spec, ["CPUExecutionProvider"])

    def run(feeds: Arrays) -> Arrays:
        outputs = session.run(None, feeds)
        return {tensor.name: out for tensor, out in zip(spec.outputs, outputs, strict=True)}

    return run


def _tensorrt(folder: Path, spec: EngineSpec, recipe: Recipe, *, progress: bool) -> Runner | None:
    """Build a TensorRT engine; return a function that runs it, if it is for this GPU."""
    source = folder / spec.file
    target = source.with_suffix(ENGINE_SUFFIX)
    precision = recipe.precision[spec.network]
    build_engine(source, spec, target, _settings(recipe), precision=precision, progress=progress)
    own = compute_capability()
    if own is None or not {own, "current"} & set(recipe.capabilities):
        return None
    from hbsdk.backends.cuda_device import CudaDevice
    from hbsdk.backends.tensorrt_engine import Engine, load_module

    command = f"python export/build_engines.py --recipe {recipe.name}"
    return Engine(load_module(recipe.runtime), CudaDevice(), target, spec, command).run


def _settings(recipe: Recipe) -> TensorRTSettings:
    assert recipe.tensorrt is not None
    assert recipe.runtime != "onnxruntime"
    options = recipe.tensorrt
    return TensorRTSettings(
        module=recipe.runtime,
        compute_capabilities=options.compute_capabilities,
        workspace_mib=options.workspace_mib,
        builder_optimization_level=options.builder_optimization_level,
        timing_cache=_TIMING_CACHE if options.timing_cache else None,
    )


def _size_bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
