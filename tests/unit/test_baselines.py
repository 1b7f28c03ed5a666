"""Baselines: they learn, change only what they should, leave the session alone, and count time."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hbsdk
from hbsdk.errors import EvaluationError, HbsdkError, OptionError
from hbsdk.evaluation import drawing
from hbsdk.evaluation.baselines import BASELINES, baseline, baselines
from hbsdk.evaluation.baselines.custom_diffusion import Photo
from hbsdk.evaluation.baselines.examples import initial_words, square
from hbsdk.evaluation.baselines.few_shot import Baseline, Fit, Stopwatch
from hbsdk.evaluation.drawing import DrawingNetworks, draw_prompts
from hbsdk.evaluation.subjects import EvaluationSubject
from hbsdk.options import GenerateOptions

# Rates at which random networks of this size learn within a few steps.
RATES = {
    "textual-inversion": 1e-2, "dreambooth": 1e-3, "dreambooth-lora": 1e-2, "custom-diffusion": 2e-3
}  # fmt: skip
FEW = {"dreambooth": {"class_pictures": 2}, "custom-diffusion": {"class_pictures": 2}}


def make(name: str, **options: Any) -> Baseline:
    made = baseline(name, **{"learning_rate": RATES[name], **FEW.get(name, {}), **options})
    assert isinstance(made, Baseline)
    return made


@pytest.fixture(autouse=True)
def few_steps_of_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "OPTIONS", GenerateOptions(num_inference_steps=3))


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Iterator[hbsdk.Session]:
    return hbsdk.Session(tiny_bundle, engine="torch", device="cpu", progress=False)


@pytest.fixture(scope="module")
def subject(photo: np.ndarray) -> EvaluationSubject:
    prompts = ("a photo of {}", "a watercolor of {} in the snow")
    return EvaluationSubject("fox", photo, "cat", prompts, (photo,))


def hash_of(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    modes = [module.training for module in network.modules()]
    trained = [parameter.requires_grad for parameter in network.parameters()]
    digest.update(repr((modes, trained)).encode())
    return digest.hexdigest()


def session_hashes(session: hbsdk.Session) -> dict[str, str]:
    backend = session.torch_backend
    return {name: hash_of(backend.network(name)) for name in ("unet", "text_encoder", "vae")}


def begun(method: Baseline, session: hbsdk.Session, subject: EvaluationSubject) -> Fit:
    return method.begin(session, subject, Stopwatch(torch.device("cpu")))


def fixed_loss(fit: Fit) -> float:
    """The loss on eight batches whose noise, timesteps and texts are always the same."""
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        return float(np.mean([float(fit.loss(generator)) for _ in range(8)]))


def loss_before_and_after(
    method: Baseline, session: hbsdk.Session, subject: EvaluationSubject, steps: int
) -> tuple[float, float]:
    fit = begun(method, session, subject)
    before = fixed_loss(fit)
    for _ in itertools.islice(method.steps(fit), steps):
        pass
    return before, fixed_loss(fit)


@pytest.mark.parametrize("name", BASELINES)
def test_a_method_learns(name: str, session: hbsdk.Session, subject: EvaluationSubject) -> None:
    before, after = loss_before_and_after(make(name), session, subject, steps=20)
    assert after < before
    still = make(name, learning_rate=0.0)
    before, after = loss_before_and_after(still, session, subject, steps=3)
    assert after == before


def changed(network: torch.nn.Module, original: torch.nn.Module) -> set[str]:
    """Names of the copy's tensors that are not the original's, or are others."""
    kept = original.state_dict()
    return {
        name
        for name, value in network.state_dict().items()
        if name not in kept or not torch.equal(value, kept[name])
    }


@pytest.mark.parametrize("name", BASELINES)
def test_only_what_a_method_trains_changes_and_never_in_the_session(
    name: str, session: hbsdk.Session, subject: EvaluationSubject
) -> None:
    before = session_hashes(session)
    method = make(name)
    fit = begun(method, session, subject)
    start = [parameter.detach().clone() for parameter in fit.parameters]
    for _ in itertools.islice(method.steps(fit), 3):
        pass
    moved = [not torch.equal(a, b) for a, b in zip(start, fit.parameters, strict=True)]
    assert all(moved) if name != "dreambooth" else np.mean(moved) > 0.9
    original = DrawingNetworks.of(session)
    assert fit.networks.text_encoder is original.text_encoder
    assert fit.networks.vae is original.vae
    names = changed(fit.networks.unet, original.unet)
    if name == "textual-inversion":
        assert fit.networks.unet is original.unet
        assert [tuple(p.shape) for p in fit.parameters] == [(1, session.bundle.info.word_dim)]
    elif name == "dreambooth":
        assert len(names) > 0.9 * len(original.unet.state_dict())
    elif name == "dreambooth-lora":
        # peft moves a layer's own weight to "base_layer"; adapters alone may differ from it.
        kept, now = original.unet.state_dict(), fit.networks.unet.state_dict()
        base = [one for one in names if ".base_layer." in one]
        assert base
        for one in base:
            assert torch.equal(now[one], kept[one.replace(".base_layer", "")])
        adapters = names - set(base)
        assert all(".lora_A." in one or ".lora_B." in one for one in adapters)
        assert {one.split(".lora_")[0].rpartition("attn")[2][2:] for one in adapters} == {
            "to_q", "to_k", "to_v", "to_out.0"
        }  # fmt: skip
    else:
        assert names
        endings = ("to_k_custom_diffusion.weight", "to_v_custom_diffusion.weight")
        assert all("attn2" in one and one.endswith(endings) for one in names)
        assert fit.words is not None
        assert tuple(fit.words.shape) == (1, session.bundle.info.word_dim)
    assert session_hashes(session) == before


def test_the_hash_sees_a_changed_weight_and_mode(session: hbsdk.Session) -> None:
    unet = torch.nn.Sequential(torch.nn.Linear(2, 2))
    before = hash_of(unet)
    with torch.no_grad():
        unet[0].weight[0, 0] += 1e-3
    after = hash_of(unet)
    assert len({before, after, hash_of(unet.eval())}) == 3


@pytest.mark.parametrize("name", BASELINES)
def test_snapshots_come_at_the_budgets(
    name: str, session: hbsdk.Session, subject: EvaluationSubject
) -> None:
    before = session_hashes(session)
    drawn, steps, seconds = [], [], []
    randomness = torch.random.get_rng_state()
    for snapshot in make(name, budgets=(1, 2, 6)).fit(session, subject):
        steps.append(snapshot.steps)
        seconds.append(snapshot.seconds)
        drawn.append(snapshot.draw(subject.prompts, [5, 6]))
    assert steps == [1, 2, 6]
    assert 0.0 < seconds[0] < seconds[1] < seconds[2]
    assert [one.shape for one in drawn] == [(2, 32, 32, 3)] * 3
    assert all(one.dtype == np.uint8 for one in drawn)
    assert not np.array_equal(drawn[0], drawn[2])
    assert session_hashes(session) == before
    assert torch.equal(torch.random.get_rng_state(), randomness)
    # Neither earlier snapshots nor drawing them change where the steps lead.
    (again,) = draw_each(make(name, budgets=(6,)), session, subject)
    np.testing.assert_array_equal(again, drawn[2])
    (other,) = draw_each(make(name, budgets=(6,), seed=1), session, subject)
    assert not np.array_equal(other, drawn[2])


def draw_each(
    method: Baseline, session: hbsdk.Session, subject: EvaluationSubject
) -> Iterator[np.ndarray]:
    for snapshot in method.fit(session, subject):
        yield snapshot.draw(subject.prompts, [5, 6])


@pytest.mark.parametrize("name", BASELINES)
def test_before_any_learning_a_method_draws_its_prompt_with_the_bundle(
    name: str, session: hbsdk.Session, subject: EvaluationSubject
) -> None:
    """An oracle of the noun phrase: the same picture, drawn by the session's own networks."""
    method = make(name, learning_rate=0.0, budgets=(1,))
    (drawn,) = draw_each(method, session, subject)
    text = {
        "textual-inversion": "a photo of a cat", "dreambooth": "a photo of a sks cat",
        "dreambooth-lora": "a photo of a sks cat", "custom-diffusion": "a photo of a <new1> cat",
    }[name]  # fmt: skip
    words = {"<new1>": initial_words(session, "ktn", 1).detach().numpy()}
    given = words if "<new1>" in text else {}
    own = draw_prompts(session, DrawingNetworks.of(session), [text], [5], given)[0]
    np.testing.assert_allclose(drawn[0].astype(int), own.astype(int), atol=1)
    other = draw_prompts(session, DrawingNetworks.of(session), ["a photo"], [5])[0]
    assert np.abs(drawn[0].astype(int) - other).max() > 1


def test_a_snapshot_cannot_be_drawn_once_the_next_is_asked_for(
    session: hbsdk.Session, subject: EvaluationSubject
) -> None:
    snapshots = make("textual-inversion", budgets=(1, 2)).fit(session, subject)
    first = next(snapshots)
    next(snapshots)
    with pytest.raises(EvaluationError, match="before the next"):
        first.draw(subject.prompts, [1, 2])


def test_class_pictures_are_drawn_once_and_charged_to_every_fit(
    session: hbsdk.Session, subject: EvaluationSubject
) -> None:
    method = make("dreambooth", budgets=(1,), class_pictures=16)
    first, second = (next(iter(method.fit(session, subject))).seconds for _ in range(2))
    (kept,) = method._class_pictures.values()
    assert len(kept.pixels) == 16
    assert min(first, second) > kept.seconds > 0.0
    assert len(np.unique(kept.pixels.reshape(16, -1), axis=0)) == 16
    without = make("dreambooth", budgets=(1,), class_pictures=0)
    next(iter(without.fit(session, subject)))
    assert without._class_pictures == {}


def test_the_text_encoder_can_be_trained_too(
    session: hbsdk.Session, subject: EvaluationSubject
) -> None:
    before = session_hashes(session)
    method = make("dreambooth", train_text_encoder=True, class_pictures=0)
    fit = begun(method, session, subject)
    for _ in itertools.islice(method.steps(fit), 2):
        pass
    assert changed(fit.networks.text_encoder, DrawingNetworks.of(session).text_encoder)
    assert session_hashes(session) == before


def test_several_words_are_learned(session: hbsdk.Session, subject: EvaluationSubject) -> None:
    method = make("textual-inversion", num_vectors=5, budgets=(3,))
    fit = begun(method, session, subject)
    for _ in itertools.islice(method.steps(fit), 3):
        pass
    assert fit.words is not None
    assert len(fit.words) == 5
    assert len(torch.unique(fit.words.detach(), dim=0)) == 5
    assert next(iter(method.fit(session, subject))).draw(["{}"], [1]).shape == (1, 32, 32, 3)


def test_rates_are_scaled_as_the_scripts_scale_them() -> None:
    authors = dict(zip(BASELINES, baselines(), strict=True))
    rates = {name: method.rate for name, method in authors.items()}  # type: ignore[attr-defined]
    assert rates == {
        "textual-inversion": 2e-3, "dreambooth": 5e-6, "dreambooth-lora": 1e-4,
        "custom-diffusion": 4e-5,
    }  # fmt: skip


def test_a_photo_is_cut_to_its_centre() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    assert np.array_equal(np.array(square(wide, 20)), np.full((20, 20, 3), 200))
    assert not np.array_equal(np.array(square(wide[:, :50], 20)), np.full((20, 20, 3), 200))


def test_custom_diffusion_shrinks_and_enlarges_as_its_script() -> None:
    pixels = np.full((64, 64, 3), 255, np.uint8)
    photo = Photo(square(pixels, 64), 64, 4)
    generator = torch.Generator().manual_seed(0)
    taken = [photo.take(True, generator) for _ in range(200)]
    assert {one.said for one in taken} == {0, 1, 2, 3, 4}
    for one in taken:
        shown = (one.pixels[0, 0] > 0.99).float()  # white where the photo is, 0 around it
        per_cell = torch.nn.functional.avg_pool2d(shown[None], 4)
        assert one.seen.any()
        assert bool((per_cell[one.seen[0].bool()] == 1.0).all())
        share = float(shown.mean()) ** 0.5
        assert (one.said in (1, 2)) == (share < 0.6)
        if one.said in (3, 4):
            assert bool(one.seen.all())
            assert share == 1.0
    plain = photo.take(False, generator)
    assert plain.said == 0
    assert bool(plain.seen.all())


def test_names_and_settings_say_what_was_changed() -> None:
    plain, fast = baselines(["dreambooth", "dreambooth:learning_rate=1e-4,budgets=5+50"])
    assert plain.name == "dreambooth"
    assert fast.name == "dreambooth-learning_rate=0.0001-budgets=5+50"
    assert fast.settings["learning_rate"] == 1e-4
    assert list(fast.budgets) == [5, 50]
    assert plain.settings != fast.settings
    assert [method.name for method in baselines()] == list(BASELINES)
    augmented = baseline("custom-diffusion", augment="false")
    assert augmented.settings["augment"] is False


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("dreambot", EvaluationError),
        ("", EvaluationError),
        ("dreambooth:rank=4", OptionError),
        ("dreambooth:learning_rate=fast", OptionError),
        ("dreambooth:learning_rate=nan", OptionError),
        ("dreambooth:learning_rate=-1", OptionError),
        ("dreambooth:learning_rate", OptionError),
        ("dreambooth:class_pictures=1.5", OptionError),
        ("dreambooth:train_text_encoder=perhaps", OptionError),
        ("dreambooth:budgets=10+5", OptionError),
        ("dreambooth:budgets=0", OptionError),
        ("dreambooth:identifier=", OptionError),
        ("dreambooth:identifier=../x", OptionError),
        ("dreambooth:kind=x", OptionError),
        ("dreambooth-lora:rank=0", OptionError),
        ("textual-inversion:num_vectors=0", OptionError),
        ("custom-diffusion:batch_size=0", OptionError),
    ],
)
def test_bad_names_and_options_are_refused(text: str, error: type[HbsdkError]) -> None:
    with pytest.raises(error):
        baselines([text])


def test_a_method_twice_is_refused() -> None:
    with pytest.raises(EvaluationError, match="more than once"):
        baselines(["dreambooth", "dreambooth:seed=0"])


def test_values_of_other_types_are_refused() -> None:
    for options in ({"rank": 4.0}, {"rank": True}, {"budgets": [1]}, {"learning_rate": None}):
        with pytest.raises(OptionError):
            baseline("dreambooth-lora", **options)


@pytest.mark.parametrize("name", BASELINES)
def test_a_loss_that_is_no_number_ends_the_fit(
    name: str, tiny_bundle: Path, subject: EvaluationSubject
) -> None:
    """A weight that overflowed makes what the UNet says no number, and so the loss."""
    session = hbsdk.Session(tiny_bundle, engine="torch", device="cpu", progress=False)
    method = make(name, budgets=(1, 2), **({"class_pictures": 0} if name in FEW else {}))
    bias = session.torch_backend.network("unet").conv_out.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias[0] = torch.inf
    with pytest.raises(EvaluationError, match="finite loss at step 1") as caught:
        next(method.fit(session, subject))
    assert caught.value.remedy == "Lower its learning_rate"
    with torch.no_grad():
        bias.copy_(kept)
    assert [one.steps for one in method.fit(session, subject)] == [1, 2]


def test_an_unknown_class_noun_is_refused(
    session: hbsdk.Session, subject: EvaluationSubject
) -> None:
    nameless = EvaluationSubject("x", subject.photo, "<|endoftext|>", subject.prompts, ())
    for name in ("textual-inversion", "dreambooth-lora"):
        with pytest.raises(EvaluationError, match="tokenizer knows"):
            next(make(name).fit(session, nameless))
