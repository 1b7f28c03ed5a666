"""The baselines' losses against those written out here, from the bundle's files alone.

The oracle knows diffusers' and transformers' networks and numpy; of hbsdk it takes the order in
which a loss draws its random numbers, the templates, and the class's pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

import hbsdk
from hbsdk.evaluation import drawing
from hbsdk.evaluation.baselines import baseline
from hbsdk.evaluation.baselines.custom_diffusion import _SAID, CustomDiffusion, Photo
from hbsdk.evaluation.baselines.few_shot import Baseline, Fit, Stopwatch
from hbsdk.evaluation.baselines.textual_inversion import TEMPLATES
from hbsdk.evaluation.subjects import EvaluationSubject
from hbsdk.options import GenerateOptions

SEED = 7
LATENTS = (4, 8, 8)
WORD = "<new1>"


@pytest.fixture(autouse=True)
def few_steps_of_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "OPTIONS", GenerateOptions(num_inference_steps=3))


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Iterator[hbsdk.Session]:
    return hbsdk.Session(tiny_bundle, engine="torch", device="cpu", progress=False)


@pytest.fixture(scope="module")
def subject(photo: np.ndarray) -> EvaluationSubject:
    return EvaluationSubject("fox", photo, "cat", ("a photo of {}",), (photo,))


class Oracle:
    """Stable Diffusion's parts from their files; a training step's errors in numpy."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
        self.vae = AutoencoderKL.from_pretrained(folder / "vae").eval()

    def learn_word(self, word: torch.Tensor) -> None:
        """Add a token as textual_inversion.py does."""
        self.tokenizer.add_tokens(WORD)
        self.text_encoder.resize_token_embeddings(len(self.tokenizer))
        row = self.tokenizer.convert_tokens_to_ids(WORD)
        with torch.no_grad():
            self.text_encoder.get_input_embeddings().weight[row] = word

    @torch.no_grad()
    def states(self, texts: list[str]) -> torch.Tensor:
        ids = self.tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
        return self.text_encoder(ids.input_ids).last_hidden_state

    @torch.no_grad()
    def latents(self, pixels: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) in -1..1 -> (N, 4, 8, 8)."""
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()
        encoded = self.vae.encode(batch).latent_dist.mode() * self.vae.config.scaling_factor
        return encoded.double().numpy()

    @torch.no_grad()
    def errors(self, latents: np.ndarray, texts: list[str], draw: torch.Generator) -> np.ndarray:
        """(N, 4, 8, 8) squared errors of the noise that the UNet sees."""
        noise = torch.randn(latents.shape, generator=draw).double().numpy()
        timesteps = torch.randint(1000, (len(latents),), generator=draw)
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        kept = np.cumprod(1.0 - betas)[timesteps.numpy()][:, None, None, None]
        noisy = np.sqrt(kept) * latents + np.sqrt(1.0 - kept) * noise
        seen = self.unet(torch.from_numpy(noisy).float(), timesteps, self.states(texts)).sample
        return (seen.double().numpy() - noise) ** 2


@pytest.fixture
def oracle(tiny_bundle: Path) -> Oracle:
    return Oracle(tiny_bundle)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def picked(count: int, size: int, draw: torch.Generator) -> list[int]:
    return torch.randint(count, (size,), generator=draw).tolist()


def centre(photo: np.ndarray) -> np.ndarray:
    """(1, 32, 32, 3) in -1..1 of a (40, 48, 3) photo."""
    square = Image.fromarray(photo).crop((4, 0, 44, 40)).resize((32, 32), Image.Resampling.BICUBIC)
    return np.asarray(square)[None] / 127.5 - 1.0


def shaken(fit: Fit) -> Fit:
    """A fit as if it had learned, so that nothing of it is what the bundle has."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in fit.parameters:
            one += 0.05 * torch.randn(one.shape, generator=noise)
    return fit


def begun(method: Baseline, session: hbsdk.Session, subject: EvaluationSubject) -> Fit:
    return shaken(method.begin(session, subject, Stopwatch(torch.device("cpu"))))


def make(name: str, **options: Any) -> Baseline:
    made = baseline(name, **options)
    assert isinstance(made, Baseline)
    return made


@torch.no_grad()
def loss_of(fit: Fit) -> float:
    for network in fit.trained:
        network.eval()
    return float(fit.loss(generator()))


def class_pictures(method: Baseline) -> np.ndarray:
    """(N, 32, 32, 3) in -1..1: what the model drew of the class."""
    (kept,) = method._class_pictures.values()
    return kept.pixels / 127.5 - 1.0


def same(value: float) -> Any:
    return pytest.approx(value, rel=2e-5)


def test_textual_inversions_loss(
    session: hbsdk.Session, subject: EvaluationSubject, oracle: Oracle
) -> None:
    fit = begun(make("textual-inversion"), session, subject)
    assert fit.words is not None
    oracle.learn_word(fit.words[0].detach())
    photo = centre(subject.photo)
    both = oracle.latents(np.concatenate([photo, photo[:, :, ::-1]]))

    def expected(templates: Callable[[int], str]) -> float:
        draw = generator()
        shown, told = picked(2, 4, draw), picked(len(TEMPLATES), 4, draw)
        texts = [templates(one).format(WORD) for one in told]
        return float(oracle.errors(both[shown], texts, draw).mean())

    assert loss_of(fit) == same(expected(lambda number: TEMPLATES[number]))
    assert loss_of(fit) != same(expected(lambda number: TEMPLATES[number - 1]))


def in_plain_unet(oracle: Oracle, weights: dict[str, torch.Tensor]) -> None:
    kept = oracle.unet.state_dict()
    assert weights
    assert weights.keys() <= kept.keys()
    assert not any(torch.equal(kept[name], one) for name, one in weights.items())
    oracle.unet.load_state_dict({**kept, **weights})


def dreambooths(
    oracle: Oracle, photo: np.ndarray, others: np.ndarray, weight: float, word: str = "sks"
) -> float:
    """Prior preservation: mean of two of the photo, and of two of the class by its weight."""
    draw = generator()
    latents = [oracle.latents(centre(photo))[picked(1, 2, draw)]]
    texts = [f"a photo of a {word} cat"] * 2
    if len(others):
        latents.append(oracle.latents(others)[picked(len(others), 2, draw)])
        texts += ["a photo of a cat"] * 2
    errors = oracle.errors(np.concatenate(latents), texts, draw)
    return float(errors[:2].mean() + (weight * errors[2:].mean() if len(others) else 0.0))


def test_dreambooths_loss_with_the_prior(
    session: hbsdk.Session, subject: EvaluationSubject, oracle: Oracle
) -> None:
    method = make("dreambooth", class_pictures=3, class_weight=0.7, batch_size=2)
    fit = begun(method, session, subject)
    trained = fit.networks.unet.state_dict()
    in_plain_unet(oracle, {name: trained[name] for name, _ in oracle.unet.named_parameters()})
    others = class_pictures(method)
    assert loss_of(fit) == same(dreambooths(oracle, subject.photo, others, 0.7))
    assert loss_of(fit) != same(dreambooths(oracle, subject.photo, others, 1.0))
    assert loss_of(fit) != same(dreambooths(oracle, subject.photo, others[::-1], 0.7))
    assert loss_of(fit) != same(dreambooths(oracle, subject.photo, others, 0.7, "cat"))


@pytest.mark.parametrize("pictures", [0, 3])
def test_dreambooth_loras_loss(
    session: hbsdk.Session, subject: EvaluationSubject, oracle: Oracle, pictures: int
) -> None:
    method = make("dreambooth-lora", batch_size=2, class_pictures=pictures)
    fit = begun(method, session, subject)
    trained, merged = fit.networks.unet.state_dict(), {}
    for name, base in trained.items():
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            down, up = (trained[f"{layer}.lora_{side}.default.weight"] for side in "AB")
            merged[f"{layer}.weight"] = base + up @ down  # alpha is the rank
    others = class_pictures(method) if pictures else np.zeros((0, 32, 32, 3))
    untrained = dreambooths(oracle, subject.photo, others, 1.0)
    in_plain_unet(oracle, merged)
    assert loss_of(fit) == same(dreambooths(oracle, subject.photo, others, 1.0))
    assert loss_of(fit) != same(untrained)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("pictures", [0, 3])
def test_custom_diffusions_loss_is_a_quarter_of_its_scripts(
    session: hbsdk.Session, subject: EvaluationSubject, oracle: Oracle,
    augment: bool, pictures: int,
) -> None:  # fmt: skip
    method = make("custom-diffusion", augment=augment, class_pictures=pictures)
    assert isinstance(method, CustomDiffusion)
    fit = begun(method, session, subject)
    assert fit.words is not None
    oracle.learn_word(fit.words[0].detach())
    in_plain_unet(oracle, {
        name.replace(f"processor.to_{one}_custom_diffusion", f"to_{one}"): weight
        for name, weight in fit.networks.unet.state_dict().items()
        for one in "kv" if f"to_{one}_custom_diffusion" in name
    })  # fmt: skip
    draw = generator()
    taken = [Photo.of(subject, session).take(augment, draw) for _ in range(2)]
    pixels = np.concatenate([one.pixels.numpy() for one in taken]).transpose(0, 2, 3, 1)
    texts = [f"{_SAID[one.said]}photo of a {WORD} cat" for one in taken]
    seen = np.concatenate([one.seen.numpy() for one in taken])
    if pictures:
        chosen = class_pictures(method)[picked(pictures, 2, draw)]
        mirrored = (torch.rand(2, 1, 1, 1, generator=draw) < 0.5).numpy()
        pixels = np.concatenate([pixels, np.where(mirrored, chosen[:, :, ::-1], chosen)])
        texts += ["photo of a cat"] * 2
    errors = oracle.errors(oracle.latents(pixels), texts, draw)
    # Source: train_custom_diffusion.py, the loss with masks and prior preservation.
    of_each = [(errors[i] * seen[i]).sum() / seen[i].sum() for i in range(2)]
    prior = errors[2:].mean() if pictures else 0.0
    scripts = np.mean(of_each) + prior
    assert loss_of(fit) == same(scripts / LATENTS[0])
    assert loss_of(fit) != same(scripts)
    assert bool((seen < 1.0).any()) is augment
    if augment:  # what lies around the shrunk photo counts for nothing
        everywhere = errors[:2].sum((1, 2, 3)).mean() / seen[0].size
        assert loss_of(fit) != same((everywhere + prior) / LATENTS[0])
    if pictures:
        assert loss_of(fit) != same(np.mean(of_each) / LATENTS[0] + prior)
