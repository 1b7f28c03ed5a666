"""DreamBooth (Ruiz et al. 2022): the UNet, or low-rank additions to it, learn a rare identifier.

Source of the settings: diffusers, examples/dreambooth (train_dreambooth.py,
train_dreambooth_lora.py, README.md). Neither script flips pictures.

Deviation: the scripts' prompts are "a photo of sks dog" and "a photo of dog"; here they have an
article, as in the paper ("a [identifier] [class noun]") and as in the prompts that are drawn.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from hbsdk.errors import MissingDependencyError
from hbsdk.evaluation.baselines.examples import (
    check_known,
    drawn_from,
    encode,
    square,
    squared_errors,
    to_tensor,
    token_ids,
    tokenize,
    trainable_copy,
)
from hbsdk.evaluation.baselines.few_shot import Baseline, Fit, Stopwatch
from hbsdk.evaluation.drawing import DrawingNetworks, with_noun
from hbsdk.evaluation.subjects import EvaluationSubject

if TYPE_CHECKING:
    from hbsdk.session import Session

_TARGETS = ("to_k", "to_q", "to_v", "to_out.0")  # Source: train_dreambooth_lora.py


@dataclass(frozen=True, kw_only=True)
class DreamBoothBaseline(Baseline):
    """What both forms share.

    Attributes:
        identifier: the rare word.
        class_pictures: how many pictures of the class the model draws for prior preservation, which
            counts as fitting; 0 is without it.
        class_weight: of the loss on them.
    """

    identifier: str = "sks"  # Source: README.md
    class_pictures: int = 0
    class_weight: float = 1.0  # Source: README.md, --prior_loss_weight

    @abstractmethod
    def trained(self, session: Session) -> tuple[DrawingNetworks, tuple[nn.Module, ...]]:
        """Return what draws, and those of its networks that are copies with trained parameters.

        Args:
            session: whose networks are copied.
        """

    def begin(self, session: Session, subject: EvaluationSubject, watch: Stopwatch) -> Fit:
        """Encode the photo once, and draw and encode the class's pictures.

        Args:
            session: whose networks are used; those that are trained are copied.
            subject: to personalize.
            watch: runs while the class is drawn and pictures are encoded.
        """
        networks, copies = self.trained(session)
        noun = f"a {self.identifier} {subject.class_noun}"
        texts = [f"a photo of {noun}"]
        if self.class_pictures:
            texts.append(with_noun("a photo of {}", subject.class_noun))
            drawn = self.class_pictures_of(session, texts[1], self.class_pictures, watch)
        with watch.running():
            check_known(session, self.identifier)
            check_known(session, subject.class_noun)
            photo = to_tensor(square(subject.photo, session.bundle.info.image_size_px))
            latents = [encode(session, photo)]
            if self.class_pictures:
                latents.append(encode(session, drawn))
            states = _states(networks, token_ids(session, [tokenize(session, t) for t in texts]))

        def loss(generator: torch.Generator) -> Tensor:
            shown = torch.cat([drawn_from(one, self.batch_size, generator) for one in latents])
            told = states().repeat_interleave(self.batch_size, dim=0)
            errors = squared_errors(session, networks.unet, shown, told, generator)
            of_subject, of_class = errors[: self.batch_size], errors[self.batch_size :]
            if not len(of_class):
                return of_subject.mean()
            return of_subject.mean() + self.class_weight * of_class.mean()

        parameters = [p for copy in copies for p in copy.parameters() if p.requires_grad]
        return Fit(loss, parameters, networks, noun, trained=copies)


def _states(networks: DrawingNetworks, ids: Tensor) -> Callable[[], Tensor]:
    """Return what encodes the texts: once for all if the text encoder is frozen."""
    encoder = networks.text_encoder
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        return lambda: encoder(ids).last_hidden_state
    with torch.no_grad():
        kept: Tensor = encoder(ids).last_hidden_state
    return lambda: kept


@dataclass(frozen=True, kw_only=True)
class DreamBooth(DreamBoothBaseline):
    """Trains the whole UNet, with prior preservation.

    Attributes:
        train_text_encoder: train the text encoder with it.
    """

    kind: ClassVar[str] = "dreambooth"

    learning_rate: float = 5e-6  # Source: README.md; 2e-6 there if the text encoder is trained
    budgets: tuple[int, ...] = (10, 30, 100, 200, 400, 800)  # Source of the last: README.md
    class_pictures: int = 200  # Source: README.md, --num_class_images
    train_text_encoder: bool = False  # Source: README.md

    def trained(self, session: Session) -> tuple[DrawingNetworks, tuple[nn.Module, ...]]:
        """Return networks with a copied UNet, and if it is trained a copied text encoder.

        Args:
            session: whose networks are copied.
        """
        own = DrawingNetworks.of(session)
        unet = trainable_copy(own.unet, trained=True)
        if not self.train_text_encoder:
            return replace(own, unet=unet), (unet,)
        text_encoder = trainable_copy(own.text_encoder, trained=True)
        return replace(own, unet=unet, text_encoder=text_encoder), (unet, text_encoder)


@dataclass(frozen=True, kw_only=True)
class DreamBoothLora(DreamBoothBaseline):
    """Trains low-rank additions to the UNet's attention, by peft, without prior preservation.

    Attributes:
        rank: of the additions.
    """

    kind: ClassVar[str] = "dreambooth-lora"

    learning_rate: float = 1e-4  # Source: README.md
    budgets: tuple[int, ...] = (10, 30, 100, 200, 500)  # Source of the last: README.md
    rank: int = 4  # Source: train_dreambooth_lora.py, --rank

    def trained(self, session: Session) -> tuple[DrawingNetworks, tuple[nn.Module, ...]]:
        """Return networks with adapters in a copied UNet.

        Args:
            session: whose UNet is copied.

        Raises:
            MissingDependencyError: peft is not installed.
        """
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise MissingDependencyError(
                "dreambooth-lora", expected="peft", got=str(error),
                remedy='Install it: pip install "hbsdk[research]"',
            ) from error  # fmt: skip
        own = DrawingNetworks.of(session)
        unet: Any = trainable_copy(own.unet, trained=False)
        # Source of alpha and of the start: train_dreambooth_lora.py
        config = LoraConfig(
            r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian",
            target_modules=list(_TARGETS),
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            unet.add_adapter(config)
        return replace(own, unet=unet), (unet,)
