"""Textual Inversion (Gal et al. 2022): new words are learned, every network stays as it is.

Source of the settings: diffusers, examples/textual_inversion (textual_inversion.py, README.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from hbsdk.evaluation.baselines.examples import (
    PLACEHOLDER,
    drawn_from,
    encode,
    initial_words,
    square,
    squared_errors,
    to_tensor,
    token_ids,
    tokenize,
    word_positions,
)
from hbsdk.evaluation.baselines.few_shot import Baseline, Fit, Stopwatch
from hbsdk.evaluation.drawing import DrawingNetworks
from hbsdk.evaluation.subjects import EvaluationSubject
from hbsdk.text_encoder import encode_with_words

if TYPE_CHECKING:
    from hbsdk.session import Session

# Source: textual_inversion.py, imagenet_templates_small
TEMPLATES = (
    "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}",
    "a photo of a clean {}", "a photo of a dirty {}", "a dark photo of the {}", "a photo of my {}",
    "a photo of the cool {}", "a close-up photo of a {}", "a bright photo of the {}",
    "a cropped photo of a {}", "a photo of the {}", "a good photo of the {}", "a photo of one {}",
    "a close-up photo of the {}", "a rendition of the {}", "a photo of the clean {}",
    "a rendition of a {}", "a photo of a nice {}", "a good photo of a {}",
    "a photo of the nice {}", "a photo of the small {}", "a photo of the weird {}",
    "a photo of the large {}", "a photo of a cool {}", "a photo of a small {}",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TextualInversion(Baseline):
    """Learns the embeddings of a word that starts as the class noun.

    The batch is the script's one picture with four passes accumulated, in one pass: the gradient is
    the same. Half of the pictures are flipped, and each has a template of its own.

    Attributes:
        num_vectors: token embeddings that are learned; hbsdk's subjects have five.
    """

    kind: ClassVar[str] = "textual-inversion"
    largest_gradient: ClassVar[float] = float("inf")  # the script does not clip

    learning_rate: float = 5e-4  # Source: README.md; with --scale_lr, see `rate`
    budgets: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)  # Source of the last: README.md
    batch_size: int = 4  # Source: README.md, 1 picture x 4 accumulated
    num_vectors: int = 1  # Source: --num_vectors, and the paper

    @property
    def rate(self) -> float:
        """The learning rate, scaled by the batch. Source: --scale_lr."""
        return self.learning_rate * self.batch_size

    def begin(self, session: Session, subject: EvaluationSubject, watch: Stopwatch) -> Fit:
        """Encode the photo and its mirror image once, and start the words.

        Args:
            session: whose networks are used.
            subject: to personalize.
            watch: runs while the photo is prepared.
        """
        networks = DrawingNetworks.of(session)
        with watch.running():
            words = initial_words(session, subject.class_noun, self.num_vectors)
            tokens = [tokenize(session, text.format(PLACEHOLDER), words) for text in TEMPLATES]
            ids, positions = token_ids(session, tokens), word_positions(session, tokens)
            pixels = to_tensor(square(subject.photo, session.bundle.info.image_size_px))
            latents = encode(session, torch.cat([pixels, pixels.flip(-1)]))

        def loss(generator: torch.Generator) -> Tensor:
            shown = drawn_from(latents, self.batch_size, generator)
            told = torch.randint(len(ids), (self.batch_size,), generator=generator).to(ids.device)
            states = encode_with_words(
                networks.text_encoder, ids[told], positions[told],
                words.expand(self.batch_size, -1, -1),
            )  # fmt: skip
            return squared_errors(session, networks.unet, shown, states, generator).mean()

        return Fit(loss, [words], networks, f"a {PLACEHOLDER}", words)
