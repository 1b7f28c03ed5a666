"""Custom Diffusion (Kumari et al. 2022): keys and values of cross-attention learn, and a word.

Source of the settings: diffusers, examples/custom_diffusion (train_custom_diffusion.py, README.md).
The attention processors are diffusers' own.

Deviation: the authors' 200 pictures of the class are real ones that a search finds; here the model
draws them, the paper's own variant ("w/ Gen"), as no picture but the photo is given.

Deviation: the loss is a quarter of the script's. There the squared errors of a picture are summed
over the latents' four channels and over its places, and divided by the number of places; the mean
of the class's errors is added. Here both are means, over channels too, and `class_weight` is 1/4 to
keep the script's ratio of the two. AdamW's steps hardly depend on a loss's scale, but the norm at
which gradients are clipped is reached by four times larger ones only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0
from PIL import Image
from torch import Tensor, nn

from hbsdk.evaluation.baselines.examples import (
    PLACEHOLDER,
    drawn_from,
    encode,
    initial_words,
    square,
    squared_errors,
    text_states,
    to_tensor,
    token_ids,
    tokenize,
    trainable_copy,
    word_positions,
)
from hbsdk.evaluation.baselines.few_shot import Baseline, Fit, Stopwatch
from hbsdk.evaluation.drawing import DrawingNetworks, with_noun
from hbsdk.evaluation.subjects import EvaluationSubject
from hbsdk.text_encoder import encode_with_words

if TYPE_CHECKING:
    from hbsdk.session import Session

# What the script says before the prompt of a picture that is shrunk, or enlarged.
_SAID = ("", "a far away ", "very small ", "zoomed in ", "close up ")
_SHRUNK, _ENLARGED = (1, 2), (3, 4)


@dataclass(frozen=True, kw_only=True)
class CustomDiffusion(Baseline):
    """Trains to_k and to_v of the UNet's cross-attention and the word before the class noun.

    Attributes:
        initializer: the rare text that the word starts as.
        class_pictures: how many pictures of the class the model draws for prior preservation, which
            counts as fitting; 0 is without it.
        class_weight: of the loss on them.
        augment: shrink or enlarge the photo at random, with words for it in the prompt, as the
            script does unless told --noaug.
    """

    kind: ClassVar[str] = "custom-diffusion"

    learning_rate: float = 1e-5  # Source: README.md; with --scale_lr, see `rate`
    budgets: tuple[int, ...] = (10, 30, 100, 250, 500)  # Source: README.md, 250; 500 for two
    batch_size: int = 2  # Source: README.md
    initializer: str = "ktn"  # Source: --initializer_token
    class_pictures: int = 200  # Source: README.md, --num_class_images
    class_weight: float = 0.25  # Source: README.md, --prior_loss_weight=1, of a loss 4 times this
    augment: bool = True  # Source: README.md, its first example

    @property
    def rate(self) -> float:
        """The learning rate, scaled by the batch, class pictures included. Source: --scale_lr."""
        return self.learning_rate * self.batch_size * (2 if self.class_pictures else 1)

    def begin(self, session: Session, subject: EvaluationSubject, watch: Stopwatch) -> Fit:
        """Draw the class's pictures, start the word, and copy the UNet.

        Args:
            session: whose networks are used; the UNet is copied.
            subject: to personalize.
            watch: runs while the class is drawn and the photo is prepared.
        """
        own = DrawingNetworks.of(session)
        unet: Any = trainable_copy(own.unet, trained=False)
        class_prompt = with_noun("photo of {}", subject.class_noun)
        if self.class_pictures:
            drawn = self.class_pictures_of(session, class_prompt, self.class_pictures, watch)
        with watch.running():
            parameters = train_cross_attention(unet)
            words = initial_words(session, self.initializer, 1)
            noun = f"a {PLACEHOLDER} {subject.class_noun}"
            tokens = [tokenize(session, f"{said}photo of {noun}", words) for said in _SAID]
            ids, positions = token_ids(session, tokens), word_positions(session, tokens)
            class_states = text_states(session, class_prompt)
            photo = Photo.of(subject, session)

        def loss(generator: torch.Generator) -> Tensor:
            taken = [photo.take(self.augment, generator) for _ in range(self.batch_size)]
            pixels = torch.cat([one.pixels for one in taken])
            told = torch.tensor([one.said for one in taken], device=ids.device)
            states = encode_with_words(
                own.text_encoder, ids[told], positions[told], words.expand(self.batch_size, -1, -1)
            )
            if self.class_pictures:
                others = flipped(drawn_from(drawn, self.batch_size, generator), generator)
                pixels = torch.cat([pixels, others])
                states = torch.cat([states, class_states.expand_as(states)])
            latents = encode(session, pixels)
            errors = squared_errors(session, unet, latents, states, generator)
            seen = torch.cat([one.seen for one in taken]).to(errors.device)
            of_subject = (errors[: self.batch_size] * seen).mean(1).sum((1, 2)) / seen.sum(
                (1, 2, 3)
            )
            if not self.class_pictures:
                return of_subject.mean()
            return of_subject.mean() + self.class_weight * errors[self.batch_size :].mean()

        return Fit(loss, [words, *parameters], replace(own, unet=unet), noun, words, (unet,))


def train_cross_attention(unet: Any) -> list[nn.Parameter]:
    """Give a frozen UNet keys and values of its own in cross-attention; return them.

    Args:
        unet: a diffusers UNet2DConditionModel; its cross-attention's processors are replaced.
    """
    processors: dict[str, Any] = {}
    parameters: list[nn.Parameter] = []
    for name, kept in unet.attn_processors.items():
        processors[name] = kept
        if not name.endswith("attn2.processor"):
            continue
        layer = unet.get_submodule(name.removesuffix(".processor"))
        with torch.random.fork_rng():  # its random start is replaced
            processor = CustomDiffusionAttnProcessor2_0(
                train_kv=True, train_q_out=False, hidden_size=layer.to_k.out_features,
                cross_attention_dim=layer.to_k.in_features,
            )  # fmt: skip
        processor.to_k_custom_diffusion.load_state_dict(layer.to_k.state_dict())
        processor.to_v_custom_diffusion.load_state_dict(layer.to_v.state_dict())
        processors[name] = processor.to(layer.to_k.weight.device)
        parameters += processor.parameters()
    unet.set_attn_processor(processors)
    return parameters


@dataclass(frozen=True)
class Taken:
    """A training picture: (1, 3, H, W) pixels, (1, 1, h, w) where it is, and what is said of it."""

    pixels: Tensor
    seen: Tensor
    said: int


@dataclass(frozen=True)
class Photo:
    """The photo, `picture` of `size` px, and the pixels of a latent's side."""

    picture: Image.Image
    size: int
    factor: int

    @classmethod
    def of(cls, subject: EvaluationSubject, session: Session) -> Photo:
        """Cut the photo to the bundle's size.

        Args:
            subject: whose photo it is.
            session: its bundle says the sizes.
        """
        info = session.bundle.info
        return cls(square(subject.photo, info.image_size_px), info.image_size_px,
                   info.vae_scale_factor)  # fmt: skip

    def take(self, augment: bool, generator: torch.Generator) -> Taken:
        """Return the photo, perhaps flipped, and by `augment` shrunk or enlarged.

        Deviation: where shrinking leaves no whole latent of the photo, as happens with latents of
        8x8 alone, it is shrunk anew.

        Args:
            augment: whether to shrink or enlarge.
            generator: of all that is drawn at random.
        """
        pixels = flipped(to_tensor(self.picture), generator)
        while augment:
            taken = self._resized(pixels, self._side(generator), generator)
            if taken.seen.any():
                return taken
        cells = self.size // self.factor
        return Taken(pixels, torch.ones(1, 1, cells, cells), 0)

    def _side(self, generator: torch.Generator) -> int:
        """Draw the photo's new side. Source: CustomDiffusionDataset.__getitem__."""
        if torch.rand((), generator=generator) < 0.66:
            return _whole(self.size // 3, self.size + 1, generator)
        return _whole(int(1.2 * self.size), int(1.4 * self.size), generator)

    def _resized(self, pixels: Tensor, side: int, generator: torch.Generator) -> Taken:
        """Source: CustomDiffusionDataset.preprocess, and its words for a size."""
        top, left = (_whole(0, abs(self.size - side) + 1, generator) for _ in range(2))
        picture = nn.functional.interpolate(
            pixels, (side, side), mode="bilinear", antialias=True, align_corners=False
        )
        cells, factor = self.size // self.factor, self.factor
        seen = torch.zeros(1, 1, cells, cells)
        if side > self.size:
            picture = picture[..., top : top + self.size, left : left + self.size]
            seen[:] = 1.0
        else:
            canvas = torch.zeros_like(pixels)
            canvas[..., top : top + side, left : left + side] = picture
            picture = canvas
            rows = slice(top // factor + 1, (top + side) // factor - 1)
            columns = slice(left // factor + 1, (left + side) // factor - 1)
            seen[..., rows, columns] = 1.0
        said = _SHRUNK if side < 0.6 * self.size else _ENLARGED if side > self.size else (0,)
        return Taken(picture, seen, said[_whole(0, len(said), generator)])


def flipped(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each of (N, 3, H, W) pictures or not, at even odds. Source: README.md, --hflip.

    Args:
        pixels: the pictures.
        generator: draws one number a picture.
    """
    mirrored = torch.rand(len(pixels), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, pixels.flip(-1), pixels)


def _whole(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high, (), generator=generator))
