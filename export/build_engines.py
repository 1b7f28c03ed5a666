"""Builds checked engines from a bundle: `python export/build_engines.py`.

With no arguments: the embedded mini bundle, for this machine. Networks go from PyTorch to ONNX,
from there to TensorRT if the recipe says so, and each graph is compared with the untouched network
on the way (parity.py). The finished folder appears under engines/built/ at the end, or not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # run from a checkout, where `export` is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from export.bridge_files import BRIDGE, PROMPT_TOKENIZER, write_bridge_files
from export.build_folder import build_folder
from export.layout import networks_of, write_layout
from export.recipe import Recipe, default_recipe, read_recipe, recipe_names
from hbsdk.bundle import Bundle
from hbsdk.engine_folder import EngineFolder, default_root, open_engines
from hbsdk.errors import EngineError, HbsdkError
from hbsdk.manifest import (
    RECIPE,
    Manifest,
    Runtime,
    folder_name,
    machine_platform,
    write_manifest,
)
from hbsdk.network_sizes import network_sizes
from hbsdk.runtimes import compute_capability, runtime_version

if TYPE_CHECKING:
    from export.build_network import Row


@dataclass(frozen=True)
class Built:
    """An engine folder, and the table of its build; no rows if it was there already."""

    engines: EngineFolder
    rows: tuple[Row, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the table, and what it was measured on."""
        manifest = self.engines.manifest
        return {
            "recipe": manifest.recipe_name,
            "bundle": manifest.bundle_name,
            "runtime": f"{manifest.runtime} {manifest.runtime_version}",
            "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
            "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "created": manifest.created,
            "command": " ".join(["python", *sys.argv]),
            "seconds": manifest.seconds,
            "peak_memory_gb": _peak_memory_gb(),
            "picture": manifest.parity["picture"],
            "networks": [asdict(row) for row in self.rows],
        }


def build(bundle: Bundle, recipe: Recipe, root: Path, *, quiet: bool = False) -> Built:
    """Build engines, or return those that are there already and match.

    Args:
        bundle: whose networks.
        recipe: what to build of them.
        root: of engine folders, such as engines/built.
        quiet: print nothing.

    Raises:
        HbsdkError: the bundle, the recipe or the machine does not allow it, or parity fails. What
            was in `root` before is still there.
    """
    runtimes = {recipe.runtime: runtime_version(recipe.runtime)}
    target = root / folder_name(recipe.name, bundle.hash)
    runs_on = _target(recipe)
    capability = capability_of(runs_on.get("compute_capabilities", ()))
    found = _up_to_date(target, bundle, recipe, runtimes, capability)
    if found is not None:
        return Built(found)
    start = time.perf_counter()
    specs = recipe.specs(network_sizes(bundle))
    manifest = Manifest(
        bundle_name=bundle.info.name,
        bundle_hash=bundle.hash,
        recipe_name=recipe.name,
        recipe_hash=recipe.hash,
        runtime=recipe.runtime,
        runtime_version=runtimes[recipe.runtime],
        opset=recipe.opset,
        precision={network: recipe.precision[network] for network in networks_of(specs)},
        **runs_on,
    )
    # What is already built is recognised without PyTorch.
    from export.build_network import build_network
    from export.picture import whole_picture

    rows = []
    with build_folder(target, needed_bytes=_estimate_bytes(bundle)) as folder:
        write_layout(bundle, folder, specs)
        write_bridge_files(bundle, folder)
        (folder / RECIPE).write_bytes(recipe.to_toml().encode())
        with _Progress(networks_of(specs), quiet=quiet) as progress:
            for network in networks_of(specs):
                row = build_network(
                    network, bundle, recipe, specs, folder, progress.say, progress=not quiet
                )
                rows.append(row)
                progress.finish(row)
        parity = {name: dict(legs) for row in rows for name, legs in row.parity.items()}
        write_manifest(folder, replace(manifest, parity=parity), specs)
        engines = open_engines(folder, bundle, runtimes=runtimes, compute_capability=capability)
        picture = whole_picture(bundle, engines, recipe, quiet=quiet)
        manifest = replace(
            manifest, parity=parity | {"picture": picture}, image_psnr_db=picture["psnr_db"],
            seconds=time.perf_counter() - start,
        )  # fmt: skip
        write_manifest(folder, manifest, specs)
    engines = open_engines(target, bundle, runtimes=runtimes, compute_capability=capability)
    return Built(engines, tuple(rows))


def _target(recipe: Recipe) -> dict[str, Any]:
    """Return the manifest's fields on what engines run on.

    Raises:
        EngineError: the engines are for the GPU at hand, and there is none.
    """
    if recipe.onnxruntime is not None:
        return {"providers": recipe.onnxruntime.providers}
    wanted, own = recipe.capabilities, compute_capability()
    if "current" in wanted and own is None:
        raise EngineError(
            f"recipe {recipe.name}", got="none",
            expected="an NVIDIA GPU: it builds engines for the one at hand",
            remedy="Run it there, or take a recipe that names compute capabilities",
        )  # fmt: skip
    named = tuple(own if one == "current" else one for one in wanted)
    portable = recipe.runtime == "tensorrt_rtx"
    return {
        "compute_capabilities": named, "platform": None if portable else machine_platform()
    }  # fmt: skip


def capability_of(built_for: Sequence[str]) -> str | None:
    """Return this GPU's compute capability, or one that engines are built for if this is none.

    Args:
        built_for: compute capabilities; empty for ONNX Runtime.
    """
    own = compute_capability()
    return own if own in built_for or not built_for else built_for[0]


def _up_to_date(
    target: Path,
    bundle: Bundle,
    recipe: Recipe,
    runtimes: Mapping[Runtime, str],
    capability: str | None,
) -> EngineFolder | None:
    if not target.exists():
        return None
    try:
        found = open_engines(
            target, bundle, runtimes=runtimes, recipe_hash=recipe.hash,
            compute_capability=capability,
        )  # fmt: skip
        for part in (None, BRIDGE, PROMPT_TOKENIZER):  # older folders lack the last two
            found.verify(part)
    except EngineError:
        return None
    return found


def _estimate_bytes(bundle: Bundle) -> int:
    """Twice the bundle's weights: graphs, and engines or float32."""
    files = {
        file
        for path in bundle.components.values()
        for file in ([path] if path.is_file() else path.glob("*.safetensors"))
    }
    return 2 * sum(file.stat().st_size for file in files)


class _Progress:
    """The table, a line as each network is done, over a bar that says what is going on."""

    def __init__(self, networks: Sequence[str], *, quiet: bool) -> None:
        self._bar = tqdm(total=len(networks), unit="network", disable=quiet, leave=False)
        self._quiet = quiet

    def __enter__(self) -> _Progress:
        self._write(
            f"{'network':15}{'parameters':>15}{'size':>12}{'seconds':>10}{'max-abs':>11}"
            f"{'cosine':>12}"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _write(self, line: str) -> None:
        if not self._quiet:
            tqdm.write(line)

    def say(self, doing: str) -> None:
        """Show what begins now."""
        self._bar.set_description(doing)

    def finish(self, row: Row) -> None:
        """Write a network's line."""
        relative, cosine = row.worst()
        size = f"{row.size_bytes / 1e6:.1f} MB"
        self._write(
            f"{row.network:15}{row.parameters:>15,}{size:>12}{row.seconds:>10.1f}"
            f"{relative:>11.2e}{cosine:>12.8f}"
        )
        self._bar.update()


def _peak_memory_gb() -> float | None:
    """Return the most memory that this process has held; None on Windows, which does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 1e9


def main() -> int:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", help="folder, hub id; the embedded mini bundle by default")
    parser.add_argument(
        "--recipe", help=f"a file, or of {', '.join(recipe_names())}; default: for this machine"
    )
    parser.add_argument("--out", type=Path, default=None, help="default: engines/built")
    parser.add_argument("--report", type=Path, help="a JSON file for the table")
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args()
    try:
        recipe = (
            read_recipe(arguments.recipe)
            if arguments.recipe
            else default_recipe(compute_capability())
        )
        root = arguments.out or default_root()
        built = build(Bundle.open(arguments.bundle), recipe, root, quiet=arguments.quiet)
    except HbsdkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not arguments.quiet:
        print(_summary(built))
    if arguments.report and built.rows:
        arguments.report.write_text(json.dumps(built.to_json(), indent=2) + "\n", "utf-8")
    return 0


def _summary(built: Built) -> str:
    engines, manifest = built.engines, built.engines.manifest
    if not built.rows:
        return f"{engines.folder} is up to date."
    picture, peak_gb = manifest.parity["picture"], _peak_memory_gb()
    memory = "" if peak_gb is None else f", peak memory {peak_gb:.1f} GB"
    return (
        f"{picture['num_inference_steps']}-step picture: {picture['psnr_db']:.1f} dB against "
        f"PyTorch (its mirror image, as a control: {picture['mirrored_psnr_db']:.1f} dB)\n"
        f"{engines.folder}: {manifest.seconds:.0f} s{memory}"
    )


if __name__ == "__main__":
    sys.exit(main())
