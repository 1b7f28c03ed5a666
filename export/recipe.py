"""What is to be built: recipes in engines/recipes/*.toml, read strictly."""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from export.recipe_table import Table
from hbsdk.engine_spec import NETWORKS, Axis, EngineSpec, Precision, engine_specs
from hbsdk.errors import EngineError
from hbsdk.manifest import Runtime
from hbsdk.network_sizes import NetworkSizes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parents[1] / "engines" / "recipes"
PROVIDERS = ("CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider")
DEFAULT_OPSET = 20
LEAST_IMAGE_PSNR_DB = 35.0
"""Of the whole parity image against PyTorch's, whatever the precision."""

_OPSETS = (18, 23)  # what torch.onnx.export(dynamo=True) writes and ONNX Runtime 1.22 reads
_MOST_PICTURES = 64
_MOST_PX = 4096
_MOST_STEPS = 1000
_MOST_BYTES = 64 << 10
# ComputeCapability of tensorrt_rtx; Hopper's 9.0 is not among them. TensorRT itself builds for the
# GPU that it runs on.
_CAPABILITIES: Mapping[str, tuple[str, ...]] = {
    "tensorrt_rtx": ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1", "current"),
    "tensorrt": ("current",),
}
_ALONE = ("7.5", "current")  # in an engine of their own


@dataclass(frozen=True)
class Thresholds:
    """How far an engine may be from PyTorch; recipes cannot change it.

    Attributes:
        relative_max_abs: largest difference over the largest value, at most; None is any.
        cosine: of the whole output, at least; None is any.
    """

    relative_max_abs: float | None
    cosine: float | None


THRESHOLDS: Mapping[Precision, Thresholds] = MappingProxyType(
    {"float32": Thresholds(1e-4, None), "float16": Thresholds(1e-2, 0.9995)}
)


@dataclass(frozen=True)
class OnnxRuntimeOptions:
    """[onnxruntime]: the execution providers, best first."""

    providers: tuple[str, ...]


@dataclass(frozen=True)
class TensorRTOptions:
    """[tensorrt].

    Attributes:
        compute_capabilities: GPUs that engines are built for, such as "8.9", or "current".
        workspace_mib: most memory of the GPU for one layer's scratch; None is the builder's own.
        builder_optimization_level: 0 builds fastest, 5 runs fastest; None is the builder's own.
        timing_cache: whether the builder's measurements are kept for the next build; never with
            tensorrt_rtx, which measures nothing when it builds.
    """

    compute_capabilities: tuple[str, ...]
    workspace_mib: int | None
    builder_optimization_level: int | None
    timing_cache: bool


@dataclass(frozen=True)
class ParityOptions:
    """[parity]: the whole image that is drawn for comparison."""

    image_height_px: int
    image_width_px: int
    num_inference_steps: int


@dataclass(frozen=True)
class Recipe:
    """What to build.

    Attributes:
        name: the file's, without ".toml"; engine folders begin with it.
        description: for people; no part of the hash.
        runtime: that engines are for.
        opset: of the ONNX graphs.
        precision: of each of `NETWORKS`.
        pictures: how many are drawn, or photos probed, at once.
        height_px: of pictures.
        width_px: of pictures.
        onnxruntime: of a recipe for onnxruntime, else None.
        tensorrt: of a recipe for tensorrt or tensorrt_rtx, else None.
        parity: the image that is compared.
        deep_features: whether the UNet's steps keep and reuse them, for `feature_interval`.
        source: where it was read, for messages.
    """

    name: str
    description: str = field(compare=False)
    runtime: Runtime
    opset: int
    precision: Mapping[str, Precision]
    pictures: Axis
    height_px: Axis
    width_px: Axis
    onnxruntime: OnnxRuntimeOptions | None
    tensorrt: TensorRTOptions | None
    parity: ParityOptions
    deep_features: bool
    source: Path = field(compare=False)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Compute capabilities that engines are built for; empty for ONNX Runtime."""
        return self.tensorrt.compute_capabilities if self.tensorrt else ()

    def specs(self, sizes: NetworkSizes) -> dict[str, EngineSpec]:
        """Describe every graph that it makes of a bundle.

        Raises:
            EngineError: pictures of the recipe's sizes are not possible with the bundle.
        """
        step = sizes.size_step_px
        sides = {
            f"[shapes] {name}.{key}": getattr(axis, key)
            for name, axis in (("height_px", self.height_px), ("width_px", self.width_px))
            for key in ("min", "opt", "max")
        }
        sides["[parity] image_height_px"] = self.parity.image_height_px
        sides["[parity] image_width_px"] = self.parity.image_width_px
        for key, side in sides.items():
            if side % step:
                raise EngineError(
                    f"{key} of {self.source}",
                    expected=f"a multiple of {step}, the bundle's VAE and UNet together",
                    got=str(side),
                    remedy=f"Write {max(step, round(side / step) * step)}",
                )
        return engine_specs(
            sizes,
            precision=self.precision,
            pictures=self.pictures,
            height=self.height_px,
            width=self.width_px,
            deep_features=self.deep_features,
        )

    def to_toml(self) -> str:
        """Return its canonical text: every default written out, no comments, no description.

        But for `deep_features`, which came later: recipes from before keep their hashes.

        An engine folder's recipe.toml is this text in UTF-8, so that its sha256 is `hash` and can
        be checked where no TOML can be read.
        """
        tables: dict[str, dict[str, Any]] = {
            "precision": {"default": "float32", **self.precision},
            "shapes": {
                key: {"min": axis.min, "opt": axis.opt, "max": axis.max}
                for key, axis in (
                    ("pictures", self.pictures),
                    ("height_px", self.height_px),
                    ("width_px", self.width_px),
                )
            },
            "parity": vars(self.parity),
        }
        for key, options in (("onnxruntime", self.onnxruntime), ("tensorrt", self.tensorrt)):
            if options is not None:
                tables[key] = {
                    name: value for name, value in vars(options).items() if value is not None
                }
        lines = [f"{key} = {_toml(getattr(self, key))}" for key in ("name", "runtime", "opset")]
        if self.deep_features:
            lines.append("deep_features = true")
        for key in sorted(tables):
            lines += ["", f"[{key}]"]
            lines += [f"{name} = {_toml(value)}" for name, value in sorted(tables[key].items())]
        return "\n".join(lines) + "\n"

    @property
    def hash(self) -> str:
        """The sha256 of `to_toml`: the same however the file is laid out."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with hbsdk."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def default_recipe(compute_capability: str | None = None) -> Recipe:
    """Return the recipe for the embedded mini bundle on this machine.

    Args:
        compute_capability: of its GPU, such as "8.9"; None without one.
    """
    if compute_capability is not None and find_spec("tensorrt_rtx"):
        recipe = read_recipe("mini-tensorrt-rtx")
        if compute_capability in recipe.capabilities:
            return recipe
    return read_recipe("mini-cpu")


def read_recipe(source: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        source: the name of one that comes with hbsdk, or the path of a .toml file.

    Raises:
        EngineError: there is none, or it is no TOML, has an unknown key, a wrong type, or shapes
            that are not possible; file and key are named.
    """
    path = Path(source)
    if isinstance(source, str) and path.suffix != ".toml" and len(path.parts) == 1:
        path = RECIPES / f"{source}.toml"
        if source not in recipe_names():
            near = difflib.get_close_matches(source, recipe_names(), n=1)
            raise EngineError(
                f"recipe {source}",
                expected=f"one of {', '.join(recipe_names())}, or the path of a .toml file",
                got="none of that name",
                remedy=f"Did you mean {near[0]}?" if near else None,
            )
    return _parse(_read(path), path)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise EngineError(
                f"recipe {path}", expected=f"at most {_MOST_BYTES} bytes", got="a larger file"
            )
        table: dict[str, Any] = tomllib.loads(data.decode())
    except FileNotFoundError:
        raise EngineError(
            f"recipe {path}",
            expected="a file",
            got="none there",
            remedy=f"Pass a recipe's path or one of the names {', '.join(recipe_names())}",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(
            f"recipe {path}",
            expected="a TOML file that can be read",
            got=str(error)[:200],
            remedy=f"See {RECIPES / 'mini-cpu.toml'} for how one is written",
        ) from error
    return table


def _parse(data: dict[str, Any], path: Path) -> Recipe:
    top = Table(data, path, "")
    runtime: Runtime = top.choice("runtime", ("onnxruntime", "tensorrt_rtx", "tensorrt"))
    section = "onnxruntime" if runtime == "onnxruntime" else "tensorrt"
    other = "tensorrt" if section == "onnxruntime" else "onnxruntime"
    top.refuse(other, f"no section [{other}]: runtime is {runtime}")
    shapes = top.table("shapes")
    height = shapes.axis("height_px", most=_MOST_PX)
    width = shapes.axis("width_px", most=_MOST_PX)
    recipe = Recipe(
        name=top.name("name"),
        description=top.text("description", ""),
        runtime=runtime,
        opset=top.count("opset", _OPSETS, DEFAULT_OPSET),
        precision=_precision(top.table("precision")),
        pictures=shapes.axis("pictures", most=_MOST_PICTURES),
        height_px=height,
        width_px=width,
        onnxruntime=_onnxruntime(top.table(section)) if section == "onnxruntime" else None,
        tensorrt=_tensorrt(top.table(section), runtime) if section == "tensorrt" else None,
        parity=_parity(top.table("parity", optional=True), height, width),
        deep_features=top.flag("deep_features", False),
        source=path,
    )
    shapes.done()
    top.done()
    return recipe


def _precision(table: Table) -> Mapping[str, Precision]:
    choices: tuple[Precision, ...] = ("float32", "float16")
    default = table.choice("default", choices)
    precision = {network: table.choice(network, choices, default) for network in NETWORKS}
    table.done()
    return MappingProxyType(precision)


def _onnxruntime(table: Table) -> OnnxRuntimeOptions:
    options = OnnxRuntimeOptions(table.choices("providers", PROVIDERS))
    table.done()
    return options


def _tensorrt(table: Table, runtime: Runtime) -> TensorRTOptions:
    key = "compute_capabilities"
    options = TensorRTOptions(
        compute_capabilities=table.choices(key, _CAPABILITIES[runtime]),
        workspace_mib=table.count("workspace_mib", (64, 1 << 20), None),
        builder_optimization_level=table.count("builder_optimization_level", (0, 5), None),
        timing_cache=table.flag("timing_cache", runtime == "tensorrt"),
    )
    if options.timing_cache and runtime == "tensorrt_rtx":
        raise table.error("timing_cache", "false: TensorRT for RTX times nothing", "true")
    for alone in _ALONE:
        if alone in options.compute_capabilities and len(options.compute_capabilities) > 1:
            raise table.error(key, f'"{alone}" alone', ", ".join(options.compute_capabilities))
    table.done()
    return options


def _parity(table: Table, height: Axis, width: Axis) -> ParityOptions:
    options = ParityOptions(
        image_height_px=table.count("image_height_px", (height.min, height.max), height.opt),
        image_width_px=table.count("image_width_px", (width.min, width.max), width.opt),
        num_inference_steps=table.count("num_inference_steps", (1, _MOST_STEPS), 20),
    )
    table.done()
    return options


def _toml(value: Any) -> str:
    """A value as TOML; texts are names from fixed lists, which JSON writes alike."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
