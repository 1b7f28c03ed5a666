"""What generation needs of a runtime; latents stay inside of it for the whole loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from hbsdk.image import Reference
from hbsdk.text import PromptTokens

Floats = npt.NDArray[np.float32]
Memory = Literal["high", "low"]
Features = Literal["off", "keep", "reuse"]


@dataclass(frozen=True)
class StepCoefficients:
    """One row of a schedule's table: x0 = p x + q eps; x' = a x + b x0 + c x0_before."""

    timestep: float
    p: float
    q: float
    a: float
    b: float
    c: float


class Backend(Protocol):
    """A runtime with a bundle's networks; `Any` values are its own arrays, on its device."""

    @property
    def name(self) -> str:
        """As `Session(engine=...)` names it."""

    @property
    def device(self) -> Any:
        """Where it runs, such as "cpu" or "cuda:0"."""

    def load_all(self) -> None:
        """Load every network that probe and generation use."""

    def encode_references(self, references: Sequence[Reference], prompt: PromptTokens) -> Any:
        """Compute what of N photos the probe and refinement need; `prompt` holds one subject."""

    def probe(self, references: Any) -> Floats:
        """Return the regressor's words for encoded photos, (N, n, d) float32 (Eq. 4)."""

    def encode_prompts(
        self, prompts: Sequence[PromptTokens], words: Mapping[str, Floats], copies: int
    ) -> Any:
        """Return the text encoder's states: each prompt's, `copies` times in a row.

        Args:
            prompts: N tokenized prompts, each encoded once.
            words: placeholder -> (n, d).
            copies: at least 1.

        Returns:
            (N * copies, tokens, d).
        """

    def prompts_only(self, states: Any) -> Any:
        """Return the second half of guided states: those of the prompts, (N, tokens, d)."""

    def to_device(self, latents: Any) -> Any:
        """Move (N, C, h, w) latents to the device."""

    def denoise_step(
        self,
        latents: Any,
        before: Any | None,
        states: Any,
        guidance_scale: float,
        coefficients: StepCoefficients,
        features: Features = "off",
    ) -> tuple[Any, Any]:
        """Run the UNet, guidance and the sampler's rule once.

        Args:
            latents: (N, C, h, w).
            before: what the step before returned second; None at the first step.
            states: (N, tokens, d), or (2 N, tokens, d) with the negative prompts' states first,
                which turns classifier-free guidance on. It may go off from one step to the next.
            guidance_scale: its weight, taken in float32.
            coefficients: the step's row of the schedule.
            features: "keep" the UNet's deep features for the next step, or "reuse" those that the
                step before kept or reused itself, and run the fine part alone.

        Returns:
            The next latents, (N, C, h, w); and what the next step needs of this one: its x0, and
            deep features if there are any.

        Raises:
            EngineError: the engines were built without what `features` needs.
        """

    def shown(self, latents: Any) -> Any:
        """Return (N, C, h, w) latents as callbacks get them: a tensor in torch, else an array."""

    def to_host(self, latents: Any) -> Floats:
        """Return (N, C, h, w) float32 latents."""

    def decode(self, latents: Any) -> Floats:
        """Return (N, H, W, 3) float32 pictures in [0, 1]."""
