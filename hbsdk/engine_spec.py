"""What goes into and comes out of each engine: the only source of names, dtypes, axes and shapes.

Export, build, the runtimes and the C++ bridge (through a JSON copy in each engine folder) read
this and nothing else. A dimension is a number, an axis's name, or a multiple of one: "8 * height"
(with spaces: optimum evaluates the names of dimensions in graphs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from hbsdk.errors import EngineError
from hbsdk.network_sizes import NetworkSizes

Precision = Literal["float32", "float16"]
ElementType = Literal["float32", "float16", "int64"]
Dim = int | str

# The networks of an engine folder, by the precision that a recipe gives each; in building order.
NETWORKS = ("image_features", "regressor", "text_encoder", "unet", "vae_encoder", "vae_decoder")
# What hbsdk itself runs; the graphs beside these make the folder optimum's layout.
RUNTIME_ENGINES = (
    "image_features", "regressor", "token_embedding", "text_encoder_embeds", "denoise_step",
    "vae_encoder", "vae_decoder",
)  # fmt: skip
SHALLOW_STEP = "denoise_step_shallow"  # beside them, where a recipe asks for deep features
TO_PERSONALIZE = ("image_features", "regressor", "vae_encoder")


@dataclass(frozen=True)
class Axis:
    """A dynamic dimension: its least, usual and greatest value, all multiples of `multiple`."""

    min: int
    opt: int
    max: int
    multiple: int = 1

    @property
    def is_fixed(self) -> bool:
        """Whether only one value is possible; the dimension is then a number in the graph."""
        return self.min == self.max

    def holds(self, value: int) -> bool:
        """Whether an engine runs with this value."""
        return self.min <= value <= self.max and value % self.multiple == 0


@dataclass(frozen=True)
class TensorSpec:
    """One input or output."""

    name: str
    dtype: ElementType
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class EngineSpec:
    """One graph.

    Attributes:
        name: of the engine.
        network: whose weights it holds; graphs of one network are in one folder and share them.
        file: of the ONNX graph, relative to the engine folder.
        inputs: in the graph's order.
        outputs: in the graph's order.
        axes: the dynamic dimensions that the shapes name.
    """

    name: str
    network: str
    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: Mapping[str, Axis]

    def shape(self, tensor: TensorSpec, values: Mapping[str, int]) -> tuple[int, ...]:
        """Return a tensor's shape where the axes have these values."""
        return tuple(_size(dim, self.axes, values) for dim in tensor.shape)

    def check(self, values: Mapping[str, int]) -> None:
        """Refuse values of axes that the engine was not built for.

        Raises:
            EngineError: one is outside of its axis.
        """
        for name, value in values.items():
            axis = self.axes[name]
            if not axis.holds(value):
                step = f", a multiple of {axis.multiple}" if axis.multiple > 1 else ""
                raise EngineError(
                    f"{name} of engine {self.name}",
                    expected=f"{axis.min}..{axis.max}{step}",
                    got=str(value),
                    remedy="Build engines with a recipe that allows it, or use engine='torch'",
                )

    def axes_of(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Return the axes' values that inputs of these shapes imply.

        Args:
            shapes: by the name of an input; all or some of them.

        Raises:
            EngineError: a shape has another rank or another fixed size, two disagree, or a value
                is outside of its axis.
        """
        values: dict[str, int] = {}
        for tensor in self.inputs:
            if tensor.name not in shapes:
                continue
            got = tuple(shapes[tensor.name])
            if len(got) == len(tensor.shape):
                for dim, size in zip(tensor.shape, got, strict=True):
                    if isinstance(dim, str) and "*" not in dim:
                        values.setdefault(dim, size)
            if got != self.shape(tensor, values):
                raise EngineError(
                    f"shape of {tensor.name} of engine {self.name}",
                    expected=" x ".join(map(str, tensor.shape)),
                    got=" x ".join(map(str, got)),
                    remedy="Build engines with a recipe that allows it, or use engine='torch'",
                )
        self.check(values)
        return values

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON objects, lists, texts and numbers."""
        return {
            "name": self.name,
            "network": self.network,
            "file": self.file,
            "inputs": [asdict(tensor) | {"shape": list(tensor.shape)} for tensor in self.inputs],
            "outputs": [asdict(tensor) | {"shape": list(tensor.shape)} for tensor in self.outputs],
            "axes": {name: asdict(axis) for name, axis in self.axes.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineSpec:
        """Return the engine that `to_json` described; the manifest vouches for the text."""
        tensors = {
            key: tuple(
                TensorSpec(one["name"], one["dtype"], tuple(one["shape"])) for one in data[key]
            )
            for key in ("inputs", "outputs")
        }
        axes = {name: Axis(**axis) for name, axis in data["axes"].items()}
        return cls(
            name=data["name"], network=data["network"], file=data["file"],
            axes=MappingProxyType(axes), **tensors,
        )  # fmt: skip


def engine_specs(
    sizes: NetworkSizes,
    *,
    precision: Mapping[str, Precision],
    pictures: Axis,
    height: Axis,
    width: Axis,
    deep_features: bool = False,
) -> dict[str, EngineSpec]:
    """Describe every graph of an engine folder.

    Args:
        sizes: of the bundle.
        precision: of each of `NETWORKS`.
        pictures: how many are drawn, or photos probed, at once.
        height: of pictures, in pixels.
        width: of pictures, in pixels.
        deep_features: whether the UNet's steps keep and reuse them (`hbsdk.deep_features`).

    Raises:
        EngineError: sides are no multiples of `sizes.size_step_px`.
    """
    for name, side in (("height", height), ("width", width)):
        if any(value % sizes.size_step_px for value in (side.min, side.opt, side.max)):
            raise EngineError(
                f"{name} of the pictures in px",
                expected=f"multiples of {sizes.size_step_px}, of VAE and UNet together",
                got=f"{side.min}, {side.opt}, {side.max}",
                remedy="Change the recipe's shapes",
            )
    latent = {
        "height": _cells(height, sizes.vae_scale_factor, sizes.unet_scale_factor),
        "width": _cells(width, sizes.vae_scale_factor, sizes.unet_scale_factor),
    }
    # With classifier-free guidance every picture takes two rows of the UNet's batch.
    rows = {"rows": Axis(pictures.min, 2 * pictures.opt, 2 * pictures.max)}
    texts = {"texts": Axis(1, 2, max(2, 2 * pictures.max))}
    photos = {"photos": pictures}
    image = {"images": pictures}
    build = _Builder(sizes, precision, rows | latent, texts, photos, image | latent)
    every = [
        *(build.personalizing() if sizes.personalizes else ()),
        *build.text(),
        *build.unet(deep_features),
        build.vae_decoder(),
    ]
    return {spec.name: _with_numbers(spec) for spec in every}


@dataclass(frozen=True)
class _Builder:
    """The graphs, each network's in one method."""

    sizes: NetworkSizes
    precision: Mapping[str, Precision]
    rows: dict[str, Axis]
    texts: dict[str, Axis]
    photos: dict[str, Axis]
    images: dict[str, Axis]

    def personalizing(self) -> tuple[EngineSpec, ...]:
        s, side = self.sizes, self.sizes.image_size_px
        cells = side // s.vae_scale_factor
        vae, merge = self.precision["vae_encoder"], self.precision["regressor"]
        features = self.precision["image_features"]
        pixels = TensorSpec("pixels", "float32", ("photos", 3, side, side))
        mask = TensorSpec("mask", "float32", ("photos", 1, side, side))
        clip = TensorSpec("clip", features, ("photos", s.image_tokens, s.clip_dim))
        dino = TensorSpec("dino", features, ("photos", s.image_tokens, s.dino_dim))
        latents = TensorSpec("latents", "float32", ("photos", s.latent_channels, cells, cells))
        parameters = ("photos", 2 * s.latent_channels, cells, cells)
        return (
            EngineSpec(
                "image_features", "image_features", "image_features/model.onnx",
                (pixels, mask) if s.masked else (pixels,), (clip, dino), self.photos,
            ),
            EngineSpec(
                "regressor", "regressor", "regressor/model.onnx",
                (latents, replace(clip, dtype=merge), replace(dino, dtype=merge)),
                (TensorSpec("words", "float32", ("photos", s.num_words, s.word_dim)),),
                self.photos,
            ),
            EngineSpec(
                "vae_encoder", "vae_encoder", "vae_encoder/model.onnx",
                (TensorSpec("sample", vae, ("photos", 3, side, side)),),
                (TensorSpec("latent_parameters", vae, parameters),), self.photos,
            ),
        )  # fmt: skip

    def text(self) -> tuple[EngineSpec, ...]:
        s, dtype = self.sizes, self.precision["text_encoder"]
        ids = TensorSpec("input_ids", "int64", ("texts", s.text_tokens))
        embedded = TensorSpec("inputs_embeds", dtype, ("texts", s.text_tokens, s.word_dim))
        states = TensorSpec("last_hidden_state", dtype, ("texts", s.text_tokens, s.context_dim))
        folder = "text_encoder"
        return (
            EngineSpec(folder, folder, f"{folder}/model.onnx", (ids,), (states,), self.texts),
            EngineSpec(
                "token_embedding", folder, f"{folder}/token_embedding.onnx",
                (ids,), (embedded,), self.texts,
            ),
            EngineSpec(
                "text_encoder_embeds", folder, f"{folder}/model_embeds.onnx",
                (embedded,), (states,), self.texts,
            ),
        )  # fmt: skip

    def unet(self, deep_features: bool) -> tuple[EngineSpec, ...]:
        s, dtype = self.sizes, self.precision["unet"]
        shape: tuple[Dim, ...] = ("rows", s.latent_channels, "height", "width")
        states = TensorSpec("encoder_hidden_states", dtype, ("rows", s.text_tokens, s.context_dim))
        time = TensorSpec("timestep", "float32", ())
        x0 = TensorSpec("previous_x0", "float32", shape)
        deep = TensorSpec("deep_features", dtype, ("rows", s.deep_width, "height", "width"))
        # The sampler's arithmetic and guidance stay float32 whatever the UNet is.
        step = EngineSpec(
            "denoise_step", "unet", "unet/denoise_step.onnx",
            (
                TensorSpec("sample", "float32", shape), time, states, x0,
                TensorSpec("guidance", "float32", ("rows", "rows")),
                TensorSpec("coefficients", "float32", (5,)),
            ),
            (TensorSpec("next_sample", "float32", shape), replace(x0, name="x0")), self.rows,
        )  # fmt: skip
        unet = EngineSpec(
            "unet", "unet", "unet/model.onnx",
            (TensorSpec("sample", dtype, shape), time, states),
            (TensorSpec("out_sample", dtype, shape),), self.rows,
        )  # fmt: skip
        if not deep_features:
            return unet, step
        shallow = replace(
            step, name=SHALLOW_STEP, file=f"unet/{SHALLOW_STEP}.onnx", inputs=(*step.inputs, deep)
        )
        return unet, replace(step, outputs=(*step.outputs, deep)), shallow

    def vae_decoder(self) -> EngineSpec:
        s, dtype = self.sizes, self.precision["vae_decoder"]
        factor = s.vae_scale_factor
        latent = ("images", s.latent_channels, "height", "width")
        picture = ("images", 3, f"{factor} * height", f"{factor} * width")
        return EngineSpec(
            "vae_decoder", "vae_decoder", "vae_decoder/model.onnx",
            (TensorSpec("latent_sample", dtype, latent),),
            (TensorSpec("sample", dtype, picture),), self.images,
        )  # fmt: skip


def _cells(side: Axis, factor: int, multiple: int) -> Axis:
    return Axis(side.min // factor, side.opt // factor, side.max // factor, multiple)


def _size(dim: Dim, axes: Mapping[str, Axis], values: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    factor, _, name = dim.rpartition(" * ")
    return int(factor or 1) * (values[name] if name in values else axes[name].opt)


def _with_numbers(spec: EngineSpec) -> EngineSpec:
    """Write fixed axes into the shapes and forget them, and the axes that no shape names."""
    fixed = {name: axis.opt for name, axis in spec.axes.items() if axis.is_fixed}

    def resolved(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(
            replace(
                tensor,
                shape=tuple(
                    _size(dim, spec.axes, fixed)
                    if isinstance(dim, str) and dim.rpartition(" * ")[2] in fixed
                    else dim
                    for dim in tensor.shape
                ),
            )
            for tensor in tensors
        )

    axes = {name: axis for name, axis in spec.axes.items() if name not in fixed}
    return replace(
        spec,
        inputs=resolved(spec.inputs),
        outputs=resolved(spec.outputs),
        axes=MappingProxyType(axes),
    )
