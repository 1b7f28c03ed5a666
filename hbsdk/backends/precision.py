"""Which precision a bundle's large networks run in on this CPU, by what is fastest."""

from __future__ import annotations

from hbsdk.bundle import Bundle
from hbsdk.runtimes import cpu_has_bfloat16

_SMALL_UNET_BYTES = 200_000_000  # of files; below, what is around the products takes the time


def prefers_bfloat16(bundle: Bundle) -> bool:
    """Return whether the CPU multiplies bfloat16 and the bundle is large enough to gain by it.

    Then OpenVINO and torch in bfloat16 are faster than ONNX Runtime, whose CPU kernels are
    float32's (benchmarks/results/generate_sd15.json); on small bundles ONNX Runtime is the fastest
    (benchmarks/results/generate_mini.json).

    Raises:
        BundleError: the UNet's files are not there.
    """
    return cpu_has_bfloat16() and not _is_small(bundle)


def _is_small(bundle: Bundle) -> bool:
    path = bundle.components["unet"]
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) < _SMALL_UNET_BYTES
