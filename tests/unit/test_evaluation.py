"""The evaluation harness: sets, drawing, metrics, methods, and runs that resume."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, ViTModel

import hbsdk
from hbsdk.errors import OptionError
from hbsdk.evaluation import method_names, photo_set, world_set
from hbsdk.evaluation.drawing import DrawingNetworks, draw_prompts, fill, with_noun
from hbsdk.evaluation.encoders import BundleClip, BundleDino, HubClip, HubDino
from hbsdk.evaluation.fitting import fit_and_draw
from hbsdk.evaluation.methods import Snapshot
from hbsdk.evaluation.metrics import Galleries, Metrics, load_metrics
from hbsdk.evaluation.own_methods import (
    HybridBooth,
    NoPersonalization,
    WithoutProbe,
    untrained_regressor,
)
from hbsdk.evaluation.run import evaluate
from hbsdk.evaluation.store import Store
from hbsdk.evaluation.subjects import EvaluationSet, EvaluationSubject
from hbsdk.mini import world
from tests.tiny_bundle import write_tiny_bundle
from tests.tiny_metrics import (
    PROMPTS,
    SIDE,
    drawn_set,
    drawn_subject,
    write_tiny_clip,
    write_tiny_vit,
)

DREAMBOOTH = Path("/work/shared/data/dreambooth")


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> hbsdk.Session:
    return hbsdk.Session(tiny_bundle, engine="torch", progress=False)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return write_tiny_clip(folder / "clip"), write_tiny_vit(folder / "vit")


@pytest.fixture(scope="module")
def metrics(checkpoints: tuple[Path, Path]) -> Metrics:
    return Metrics(HubClip(str(checkpoints[0])), HubDino(str(checkpoints[1])))


# --- Drawing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "phrase", "expected"),
    [
        ("a picture of {}", "a cat", "a picture of a cat"),
        ("{} in the jungle", "a cat", "a cat in the jungle"),
        ("a red {}", "a cat", "a red cat"),
        ("a red {}", "an old cat", "a red old cat"),
        ("a cube shaped {}", "S*", "a cube shaped S*"),
        ("a watercolor of {} in a meadow", "S*", "a watercolor of S* in a meadow"),
        ("the snow on {} and on {}", "a cat", "the snow on a cat and on a cat"),
    ],
)
def test_a_noun_phrase_has_one_article(prompt: str, phrase: str, expected: str) -> None:
    assert fill(prompt, phrase) == expected


def test_vowels_take_an() -> None:
    assert with_noun("a picture of {}", "owl") == "a picture of an owl"


def test_drawing_is_generate_and_does_not_depend_on_the_batch(session: hbsdk.Session) -> None:
    texts = ["a photo of a cat", "a dog on the beach", "a photo of a cat"]
    drawn = draw_prompts(session, DrawingNetworks.of(session), texts, [7, 2001, 3])
    assert drawn.shape == (3, SIDE, SIDE, 3)
    assert drawn.dtype == np.uint8
    for picture, text, seed in zip(drawn, texts, [7, 2001, 3], strict=True):
        (alone,) = session.generate(text, seed=seed)
        assert np.abs(picture.astype(int) - np.asarray(alone)).max() <= 1
    assert np.abs(drawn[0].astype(int) - drawn[2]).max() > 1  # same text, other noise


def test_more_than_one_batch_is_the_same_pictures(session: hbsdk.Session) -> None:
    texts, seeds = ["a photo of a cat"] * 18, list(range(18))
    drawn = draw_prompts(session, DrawingNetworks.of(session), texts, seeds)
    last = draw_prompts(session, DrawingNetworks.of(session), texts[:1], [17])
    assert np.abs(drawn[17].astype(int) - last[0]).max() <= 1


def test_words_and_networks_of_a_method_draw_what_its_own_session_draws(
    session: hbsdk.Session, tmp_path: Path
) -> None:
    other = hbsdk.Session(
        write_tiny_bundle(tmp_path / "other", seed=1), engine="torch", progress=False
    )
    words = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    given = draw_prompts(
        session, DrawingNetworks.of(other), ["a photo of S*"], [5], {"s*": words}
    )  # fmt: skip
    (expected,) = other.generate("a photo of S*", hbsdk.Subject(words, "one"), seed=5)
    own = draw_prompts(session, DrawingNetworks.of(session), ["a photo of S*"], [5], {"s*": words})
    assert np.abs(given[0].astype(int) - np.asarray(expected)).max() <= 1
    assert np.abs(given[0].astype(int) - own[0]).max() > 1


# --- Sets ------------------------------------------------------------------------------------


def test_the_world_set_is_the_held_out_identities() -> None:
    found = world_set.world_set("in", 2)
    assert [one.name for one in found.subjects] == ["character-1000000", "character-1000001"]
    again = world_set.world_set("in", 1).subjects[0]
    first = found.subjects[0]
    assert np.array_equal(first.photo, again.photo)
    assert np.array_equal(np.stack(first.real or ()), np.stack(again.real or ()))
    assert not np.array_equal(first.photo, found.subjects[1].photo)
    assert first.attributes == world.attributes(world.identity(1_000_000))
    assert len(first.prompts) == len(first.real or ()) == 8
    assert len(first.gallery) == 2
    shown = [first.photo, *first.gallery, *(first.real or ())]
    assert len({picture.tobytes() for picture in shown}) == len(shown)


def test_no_domain_shares_a_seed_with_another_or_with_training() -> None:
    ranges = list(world_set.SEEDS.values())
    for index, one in enumerate(ranges):
        assert all(not set(one) & set(other) for other in ranges[index + 1 :])
    trained = set(world.TRAIN_SEEDS[:11_936])
    assert not any(trained & set(one) for one in ranges)


def test_nouns_are_words_of_a_text() -> None:
    nouns = {world_set.class_noun(world.identity(s)) for s in world.OUT_OF_DOMAIN_SEEDS[:60]}
    assert "fox" in nouns
    assert "person" in nouns
    assert "human" not in nouns


TABLE = """Classes

subject_name,class
mug,cup
rex,dog
absent,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in a chef outfit'.format(unique_token, class_token),
"a {0} {1} in the queen's hat".format(unique_token, class_token)
]
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for subject, size in {"mug": (40, 32), "rex": (32, 32)}.items():
        (folder / subject).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / subject / f"{number:02}.png")
    (folder / photo_set.TABLE).write_text(TABLE)
    return folder


def test_a_photo_set_reads_classes_prompts_and_photos(photos: Path) -> None:
    mug, rex = photo_set.photo_set(photos, photo=1).subjects
    assert (mug.name, mug.class_noun) == ("mug", "cup")
    assert mug.prompts == ("{} in the jungle", "a red {}")
    assert rex.prompts == ("{} in a chef outfit", "{} in the queen's hat")
    assert len(mug.gallery) == 3
    assert np.array_equal(mug.photo, np.asarray(Image.open(photos / "mug" / "01.png")))
    assert mug.real is None


def test_subjects_may_be_named_in_any_script(photos: Path) -> None:
    """File systems differ in the form in which they hand out accented letters."""
    for folder, name in (("mug", "\u72d0"), ("rex", "Cafe\u0301")):
        (photos / folder).rename(photos / name)
    table = TABLE.replace("mug,", "\u72d0,").replace("rex,", "Caf\u00e9,")
    (photos / photo_set.TABLE).write_text(table, "utf-8")
    found = photo_set.photo_set(photos).subjects
    assert {(one.name, one.class_noun) for one in found} == {
        ("\u72d0", "cup"), ("caf\u00e9", "dog")
    }  # fmt: skip


def test_live_classes_can_be_others(photos: Path) -> None:
    mug, rex = photo_set.photo_set(photos, live_classes=("cup",)).subjects
    assert mug.prompts[0] == "{} in a chef outfit"
    assert rex.prompts[0] == "{} in the jungle"


@pytest.mark.skipif(not DREAMBOOTH.exists(), reason="the DreamBooth data set is not here")
def test_the_public_table_is_read_whole() -> None:
    table = photo_set.read_table(DREAMBOOTH / photo_set.TABLE)
    assert len(table.classes) == 30
    assert table.classes["bear_plushie"] == "stuffed animal"
    assert len(table.objects) == len(table.live) == 25
    assert table.objects[:2] == ("{} in the jungle", "{} in the snow")
    assert table.live[-1] == table.objects[-1] == "a cube shaped {}"
    assert sum(noun in photo_set.LIVE_CLASSES for noun in table.classes.values()) == 9
    assert all(prompt.count("{}") == 1 for prompt in (*table.objects, *table.live))
    assert with_noun(table.objects[20], "stuffed animal") == "a red stuffed animal"


# --- Metrics ---------------------------------------------------------------------------------


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).item()


def test_clip_is_transformers_own(checkpoints: tuple[Path, Path], metrics: Metrics) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(checkpoints[0]).eval()
    tokenizer = CLIPTokenizer.from_pretrained(checkpoints[0])
    pixels = drawn_subject(0).photo
    mean, std = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    values = (torch.from_numpy(pixels).float() / 255.0 - mean) / std
    text = "a photo of a person in the snow"
    with torch.no_grad():
        output = model(
            pixel_values=values.permute(2, 0, 1)[None], **tokenizer(text, return_tensors="pt")
        )
    expected = (output.image_embeds @ output.text_embeds.T).item()
    short, image = metrics.clip.texts(["a dog", text])[1], metrics.clip.images([pixels])[0]
    assert (image @ short).item() == pytest.approx(expected, abs=1e-5)
    other = metrics.clip.texts(["a dog", text])[0]
    assert (image @ other).item() != pytest.approx(expected, abs=1e-3)


def test_photos_are_cut_and_resized_as_clip_and_dino_publish(
    checkpoints: tuple[Path, Path], metrics: Metrics
) -> None:
    from transformers import CLIPModel, ViTModel

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, 3), np.uint8)
    photo = np.asarray(Image.fromarray(small).resize((128, 96)))  # width, height
    square = Image.fromarray(photo).crop((16, 0, 112, 96))
    clip = CLIPModel.from_pretrained(checkpoints[0]).eval()
    vit = ViTModel.from_pretrained(checkpoints[1], add_pooling_layer=False).eval()
    clip_in = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC)) / 255.0
    dino_in = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC).crop((2, 2, 30, 30)))
    clip_in = (clip_in - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    dino_in = (dino_in / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]

    def batch(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).float().permute(2, 0, 1)[None]

    with torch.no_grad():
        pooled = clip.vision_model(batch(clip_in)).pooler_output
        expected_clip = clip.visual_projection(pooled)[0]
        expected_dino = vit(batch(dino_in)).last_hidden_state[0, 0]
    assert cosine(metrics.clip.images([photo])[0], expected_clip) == pytest.approx(1.0, abs=1e-5)
    assert cosine(metrics.dino.images([photo])[0], expected_dino) == pytest.approx(1.0, abs=1e-5)
    corner = photo[:, :96]
    assert cosine(metrics.dino.images([corner])[0], expected_dino) < 0.9999


def test_similarities_are_means_over_all_pairs(metrics: Metrics) -> None:
    subjects = [drawn_subject(i) for i in range(3)]
    pictures = [subjects[1].photo, subjects[0].photo]
    measured = Galleries(subjects, metrics).measure(pictures, 1, ["a cat", "a dog"])
    for number, picture in enumerate(pictures):
        for name, encoder in (("dino_i", metrics.dino), ("clip_i", metrics.clip)):
            (own,) = encoder.images([picture])
            means = [
                np.mean([(own @ encoder.images([real])[0]).item() for real in one.gallery])
                for one in subjects
            ]
            assert getattr(measured, name)[number] == pytest.approx(means[1], abs=1e-6)
            other = getattr(measured, f"{name}_other")[number]
            assert other == pytest.approx((means[0] + means[2]) / 2, abs=1e-6)
            assert getattr(measured, name)[number] != pytest.approx(means[0], abs=1e-6)


def test_a_left_out_photo_is_not_compared_with_itself(metrics: Metrics) -> None:
    subjects = [drawn_subject(i, pictures=3) for i in range(2)]
    measured = Galleries(subjects, metrics).measure_left_out(0, "a photo of a person")
    embedded = metrics.dino.images(subjects[0].gallery)
    pairs = (embedded @ embedded.T).numpy()
    expected = (pairs.sum(1) - np.diag(pairs)) / 2
    assert measured.dino_i == pytest.approx(expected, abs=1e-6)
    assert measured.dino_i != pytest.approx(pairs.mean(1), abs=1e-6)


@pytest.fixture(scope="module")
def mini() -> hbsdk.Session:
    return hbsdk.Session(engine="torch", progress=False)


def test_the_mini_bundle_measures_itself_and_a_shuffled_gallery_is_less_alike(
    mini: hbsdk.Session,
) -> None:
    metrics = load_metrics(mini)
    assert isinstance(metrics.clip, BundleClip)
    assert isinstance(metrics.dino, BundleDino)
    assert metrics.clip.name.startswith("hbsdk-mini CLIP@")
    subjects = world_set.world_set("in", 4, world_set.PROMPTS[:2]).subjects
    galleries = Galleries(subjects, metrics)
    turned = [
        dataclasses.replace(one, gallery=subjects[(i + 1) % 4].gallery)
        for i, one in enumerate(subjects)
    ]
    shuffled = Galleries(turned, metrics)
    own, other, texts = [], [], ["a picture of a cat", "a picture of a cat in the snow"]
    for index, subject in enumerate(subjects):
        assert subject.real is not None
        own.append(galleries.measure(subject.real, index, texts))
        other.append(shuffled.measure(subject.real, index, texts))
    assert np.mean([one.dino_i for one in own]) > np.mean([one.dino_i for one in other]) + 0.3
    assert np.mean([one.retrieved for one in own]) > 0.8
    assert np.mean([one.retrieved for one in other]) < 0.5


def test_the_mini_bundles_metrics_are_its_own_networks(mini: hbsdk.Session) -> None:
    """By `transformers` alone, from the files."""
    from safetensors.torch import load_file
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel, Dinov2Model

    folder = mini.bundle.folder
    assert folder is not None
    pixels = world_set.world_set("in", 1).subjects[0].photo
    clip_mean, clip_std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

    def batch(mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
        values = (pixels / 255.0 - np.array(mean)) / np.array(std)
        return torch.from_numpy(values).float().permute(2, 0, 1)[None]

    projections = load_file(folder / "clip_projections.safetensors")
    vision = CLIPVisionModel.from_pretrained(folder / "image_encoder", dtype=torch.float32)
    dino = Dinov2Model.from_pretrained(folder / "dino", dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokens = tokenizer("a picture of a cat", return_tensors="pt")
    with torch.no_grad():
        image = vision(batch(clip_mean, clip_std)).pooler_output
        image = image @ projections["visual_projection.weight"].float().T
        written = text(**tokens).pooler_output @ projections["text_projection.weight"].float().T
        seen = dino(batch([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])).last_hidden_state[:, 0]
    metrics = load_metrics(mini)
    similar = (metrics.clip.images([pixels]) @ metrics.clip.texts(["a picture of a cat"]).T).item()
    assert similar == pytest.approx(cosine(image, written), abs=1e-4)
    assert cosine(metrics.dino.images([pixels]), seen) == pytest.approx(1.0, abs=1e-4)


def test_a_checkpoints_name_tells_its_weights(tmp_path: Path, metrics: Metrics) -> None:
    other = HubDino(str(write_tiny_vit(tmp_path / "vit", seed=1)))
    assert other.name.startswith("vit@")
    assert other.name != metrics.dino.name


def test_a_checkpoint_in_several_files_is_named_by_their_content(tmp_path: Path) -> None:
    def sharded(name: str, seed: int) -> HubDino:
        whole = write_tiny_vit(tmp_path / f"whole-{name}", seed=seed)
        folder = tmp_path / name / "vit"
        ViTModel.from_pretrained(whole, add_pooling_layer=False).save_pretrained(
            folder, max_shard_size="8KB"
        )
        assert len(list(folder.glob("*.safetensors"))) > 1
        return HubDino(str(folder))

    first, again, other = sharded("a", 0), sharded("b", 0), sharded("c", 1)
    assert first.name.startswith("vit@")
    assert first.name == again.name != other.name
    pixels = [drawn_subject(0).photo]
    assert torch.equal(first.images(pixels), again.images(pixels))
    assert not torch.allclose(first.images(pixels), other.images(pixels))


def write_tiny_dinov2(folder: Path, side: int) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Dinov2Model(
            Dinov2Config(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2,
                image_size=side, patch_size=14, initializer_range=0.5,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def test_a_dinov2_is_measured_at_the_papers_224_px(tmp_path: Path) -> None:
    """By transformers alone: its published preprocessing, of a checkpoint made at 518 px."""
    from transformers import BitImageProcessorPil

    folder = write_tiny_dinov2(tmp_path / "dinov2", side=518)
    photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    network = Dinov2Model.from_pretrained(folder).eval()

    def token(side: int) -> torch.Tensor:
        processor = BitImageProcessorPil(
            size={"shortest_edge": round(side * 256 / 224)},
            crop_size={"height": side, "width": side},
            image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=3,
        )  # fmt: skip
        pixels = processor(Image.fromarray(photo), return_tensors="pt").pixel_values
        assert pixels.shape[-2:] == (side, side)
        with torch.no_grad():
            return network(pixels).last_hidden_state[0, 0]

    encoder = HubDino(str(folder))
    assert encoder.name.endswith(" at 224 px")
    (seen,) = encoder.images([photo])
    assert cosine(seen, token(224)) == pytest.approx(1.0, abs=1e-5)
    assert cosine(seen, token(518)) < 0.999


def test_a_smaller_dinov2_is_measured_at_its_own_size(tmp_path: Path) -> None:
    folder = write_tiny_dinov2(tmp_path / "dinov2", side=56)
    network = Dinov2Model.from_pretrained(folder)
    seen: list[torch.Size] = []
    encoder = HubDino(str(folder))
    encoder._network.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    encoder.images([drawn_subject(0).photo])
    assert seen == [torch.Size([1, 3, network.config.image_size, network.config.image_size])]
    assert " at " not in encoder.name


# --- Methods ---------------------------------------------------------------------------------


def pictures_of(method: object, session: hbsdk.Session, subject: EvaluationSubject) -> np.ndarray:
    """Of the last snapshot, prompt by prompt."""
    *_, last = (
        (one.steps, one.draw(subject.prompts, range(len(subject.prompts))))
        for one in method.fit(session, subject)
    )
    return last[1]


def test_hybridbooth_is_personalize(session: hbsdk.Session) -> None:
    subject = drawn_subject(0)
    method = HybridBooth("two", steps=2, timesteps_per_step=4)
    (snapshot,) = method.fit(session, subject)
    assert snapshot.steps == 2
    assert snapshot.seconds > 0.0
    drawn = snapshot.draw(["a photo of {}"], [3])
    made = session.personalize(subject.photo, steps=2, timesteps_per_step=4)
    (expected,) = session.generate("a photo of S*", made, seed=3)
    assert np.abs(drawn[0].astype(int) - np.asarray(expected)).max() <= 1
    (plain,) = NoPersonalization().fit(session, subject)
    (expected,) = session.generate("a photo of a person", seed=3)
    without = plain.draw(["a photo of {}"], [3])[0]
    assert np.abs(without.astype(int) - np.asarray(expected)).max() <= 1
    assert np.abs(drawn[0].astype(int) - without).max() > 1


def test_each_budget_is_a_snapshot(session: hbsdk.Session) -> None:
    method = HybridBooth("sweep", budgets=(3, 0, 1), timesteps_per_step=4)
    assert list(method.budgets) == [0, 1, 3]
    assert [one.steps for one in method.fit(session, drawn_subject(0))] == [0, 1, 3]


def test_another_regressor_is_used_and_the_sessions_own_is_left(
    session: hbsdk.Session, tmp_path: Path
) -> None:
    other = write_tiny_bundle(tmp_path / "other", seed=3)
    shutil.copytree(other / "regressor", tmp_path / "regressor")
    subject = drawn_subject(0)
    own = pictures_of(HybridBooth("probe", steps=0), session, subject)
    method = HybridBooth("other", regressor=tmp_path / "regressor", steps=0)
    drawn = pictures_of(method, session, subject)
    composed = hbsdk.Bundle.compose(base=session.bundle.folder, regressor=tmp_path / "regressor")
    bundle = hbsdk.Session(composed, engine="torch", progress=False)
    made = bundle.personalize(subject.photo, steps=0)
    (expected,) = bundle.generate(fill(PROMPTS[0], "S*"), made, seed=0)
    assert np.abs(drawn[0].astype(int) - np.asarray(expected)).max() <= 1
    assert np.abs(drawn.astype(int) - own).max() > 1
    again = pictures_of(HybridBooth("probe", steps=0), session, subject)
    assert np.array_equal(again, own)
    assert method.settings["regressor"] != HybridBooth(
        "own", regressor=session.bundle.folder, steps=0
    ).settings["regressor"]  # fmt: skip


def test_without_probe_starts_untrained_and_always_alike(session: hbsdk.Session) -> None:
    before = torch.random.get_rng_state()
    first, second = untrained_regressor(session), untrained_regressor(session)
    assert torch.equal(torch.random.get_rng_state(), before)
    trained = session.torch_backend.network("regressor")
    state, again = first.state_dict(), second.state_dict()
    assert state.keys() == trained.state_dict().keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(state["queries"], trained.state_dict()["queries"])
    unet = session.torch_backend.network("unet")
    assert torch.equal(first.conv_in.weight, unet.conv_in.weight)
    assert first.config.num_words == trained.config.num_words
    subject = drawn_subject(0)
    method = WithoutProbe("without-probe", steps=1, timesteps_per_step=4)
    drawn = pictures_of(method, session, subject)
    probe = pictures_of(HybridBooth("h", steps=1, timesteps_per_step=4), session, subject)
    assert not np.array_equal(drawn, probe)


def test_methods_are_named_as_in_a_command() -> None:
    methods = method_names.parse_methods(
        ["class-word", "hybridbooth:steps=5+20", "hybridbooth:effective_step=0.001,seed=3", "paper",
         "without-probe:steps=7", "textual-inversion"]
    )  # fmt: skip
    names = [one.name for one in methods]
    assert names == ["class-word", "hybridbooth", "hybridbooth-effective_step=0.001-seed=3",
                     "paper", "without-probe", "textual-inversion"]  # fmt: skip
    assert [list(one.budgets) for one in methods[:5]] == [[0], [5, 20], [5], [5], [7]]
    assert methods[2].settings["effective_step"] == 0.001
    assert methods[2].settings["seed"] == 3
    assert methods[3].settings["mode"] == "paper"
    assert [one.name for one in method_names.parse_methods([])] == list(method_names.DEFAULT)
    texts = [f"hybridbooth:mirror={value}" for value in (False, True)]
    mirrors = [one.settings["mirror"] for one in method_names.parse_methods(texts)]
    assert mirrors == [False, True]
    with pytest.raises(OptionError, match="mirror"):
        method_names.parse_method("hybridbooth:mirror=no")


def test_a_labelled_regressor_is_a_probe_and_a_method(session: hbsdk.Session) -> None:
    folder = session.bundle.folder
    probe, full = method_names.parse_methods([], [f"without-dino={folder}"])
    assert (probe.name, list(probe.budgets)) == ("without-dino-probe", [0])
    assert (full.name, list(full.budgets)) == ("without-dino", [5])


# --- Runs ------------------------------------------------------------------------------------


class Painter:
    """A method that paints the photo's mean colour, some of it more noisy; counts its work."""

    def __init__(self, name: str = "painter", budgets: tuple[int, ...] = (1, 4), shade: int = 0):
        self.name, self.budgets, self.shade = name, budgets, shade
        self.fitted: list[str] = []
        self.drawn = 0

    @property
    def settings(self) -> Mapping[str, int]:
        return {"shade": self.shade}

    def fit(self, session: hbsdk.Session, subject: EvaluationSubject) -> Iterator[Snapshot]:
        self.fitted.append(subject.name)
        for steps in self.budgets:
            yield Snapshot(steps, 0.5 * steps, self._draw(subject, steps))

    def _draw(self, subject: EvaluationSubject, steps: int):
        def draw(prompts: Sequence[str], seeds: Sequence[int], *_: object) -> np.ndarray:
            self.drawn += 1
            return np.stack([
                np.random.default_rng(seed).integers(0, 40, (SIDE, SIDE, 3)).astype(np.uint8)
                + np.uint8(subject.photo.mean() / 2 + steps + self.shade)
                for seed in seeds
            ])  # fmt: skip

        return draw


class CountingMetrics:
    """Metrics that count the pictures they see."""

    def __init__(self, metrics: Metrics) -> None:
        self.pictures = 0
        outer = self

        class Dino:
            name = "counted"

            def images(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
                outer.pictures += len(pictures)
                return metrics.dino.images(pictures)

        self.metrics = Metrics(metrics.clip, Dino())


class FakeJudge:
    """Reads the mean brightness as "colour"; right where it is even."""

    def __init__(self, name: str = "judge-1") -> None:
        self.name = name

    def accuracy(self, pixels, attributes):
        assert pixels.shape[1:] == (64, 64, 3)
        assert all("colour" in one for one in attributes)
        right = pixels.mean((1, 2, 3)).astype(int) % 2 == 0
        return right.astype(float), {"colour": right}


def rows_of(out: Path, name: str = "pictures") -> list[dict]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def run(
    session: hbsdk.Session, metrics: Metrics, out: Path, *methods: object,
    subjects: EvaluationSet | None = None, seeds: int = 2, **more: object,
) -> list[dict]:  # fmt: skip
    evaluate(session, subjects or drawn_set(), methods, seeds, out, metrics, progress=False, **more)
    return rows_of(out)


def test_a_run_writes_a_row_a_picture(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path
) -> None:
    method, out = Painter(), tmp_path / "out"
    rows = run(session, metrics, out, method, judge=FakeJudge(), command="hbsdk evaluate")
    drawn = [row for row in rows if row["method"] == "painter"]
    real = [row for row in rows if row["method"] == "real pictures"]
    places = {(r["steps"], r["subject"], r["prompt"], r["seed"]) for r in drawn}
    assert len(drawn) == len(places) == 2 * 2 * 3 * 2
    assert len(real) == 2 * 3
    subject = drawn_subject(1)
    galleries = Galleries(drawn_set().subjects, metrics)
    for row in drawn:
        if row["subject"] != "square-1" or row["steps"] != 4:
            continue
        noise = 1000 * row["prompt"] + row["seed"]
        expected = method._draw(subject, 4)([""], [noise])[0]
        grid = np.asarray(Image.open(out / row["file"]))
        top, left = SIDE * row["seed"], SIDE * row["prompt"]
        assert np.array_equal(grid[top : top + SIDE, left : left + SIDE], expected)
        measured = galleries.measure([expected], 1, [with_noun(PROMPTS[row["prompt"]], "person")])
        for name in ("dino_i", "dino_i_other", "clip_i", "clip_i_other", "clip_t"):
            assert row[name] == pytest.approx(getattr(measured, name)[0], abs=2e-6)
        assert row["attributes"] in (0.0, 1.0)
        assert row["attribute_values"] == {"colour": int(row["attributes"])}
    fits = rows_of(out, "fits")
    assert [(one["subject"], one["steps"], one["seconds"]) for one in fits] == [
        ("square-0", 1, 0.5), ("square-0", 4, 2.0), ("square-1", 1, 0.5), ("square-1", 4, 2.0),
    ]  # fmt: skip
    assert all(one["peak_bytes"] > 0 and one["failed"] is None for one in fits)
    about = json.loads((out / "run.json").read_text())
    assert about["command"] == "hbsdk evaluate"
    assert about["bundle_hash"] == session.bundle.hash
    assert about["metrics"] == metrics.names
    assert about["judge"] == "judge-1"
    assert about["methods"]["painter"] == {"shade": 0, "budgets": [1, 4]}
    assert about["prompts"] == list(PROMPTS)
    assert np.array_equal(np.asarray(Image.open(out / "photos" / "square-1.png")), subject.photo)


def test_rows_say_where_each_fit_was_made(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(method: str) -> set[tuple[str, str]]:
        fits = [one for one in rows_of(tmp_path, "fits") if one["method"] == method]
        return {(one["device"], one["commit"]) for one in fits}

    monkeypatch.setattr("hbsdk.evaluation.record.commit", lambda: "first")
    run(session, metrics, tmp_path, Painter())
    ((device, code),) = made("painter")
    assert code == "first"
    assert device == json.loads((tmp_path / "run.json").read_text())["device"]
    assert f"{torch.get_num_threads()} threads" in device
    keys = sorted(path.name for path in (tmp_path / "done").glob("*.json"))
    # Another commit goes on with what is done, and says so of what it does itself alone.
    monkeypatch.setattr("hbsdk.evaluation.record.commit", lambda: "second")
    method = Painter()
    run(session, metrics, tmp_path, method, Painter("b"))
    assert method.fitted == []
    assert (made("painter"), made("b")) == ({(device, "first")}, {(device, "second")})
    assert json.loads((tmp_path / "run.json").read_text())["commit"] == "second"
    assert set(keys) < {path.name for path in (tmp_path / "done").glob("*.json")}
    records = [json.loads(path.read_text()) for path in (tmp_path / "done").glob("*.json")]
    assert {one["made"]["commit"] for one in records} == {"first", "second"}


class Hungry(Painter):
    """Holds some memory while it fits, and some while it draws; lets go of both."""

    def __init__(self, name: str, fitting: int, drawing: int, budgets: tuple[int, ...] = (1,)):
        super().__init__(name, budgets)
        self.fitting, self.drawing = fitting, drawing

    def fit(self, session: hbsdk.Session, subject: EvaluationSubject) -> Iterator[Snapshot]:
        for number, steps in enumerate(self.budgets):
            eaten = np.ones(0 if number else self.fitting, np.uint8)
            eaten.sum()
            del eaten
            yield Snapshot(steps, 1.0, self._draw(subject, steps))

    def _draw(self, subject: EvaluationSubject, steps: int):
        inner = super()._draw(subject, steps)

        def draw(*given: object) -> np.ndarray:
            np.ones(self.drawing, np.uint8).sum()
            return inner(*given)

        return draw


def test_peak_memory_is_a_fits_own(session: hbsdk.Session) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not let a process begin its peak anew")
    many = 300 * 2**20

    def peaks(method: Hungry) -> list[int]:
        found = fit_and_draw(method, session, drawn_subject(0), PROMPTS[:1], [0])
        return [row.peak_bytes for row, _ in found]

    (little,) = peaks(Hungry("little", 0, 0))
    first, second = peaks(Hungry("much", many, 0, budgets=(1, 2)))
    (drawing,) = peaks(Hungry("drawing", 0, many))
    (after,) = peaks(Hungry("after", 0, 0))
    assert first - little > 0.9 * many
    assert second - little > 0.9 * many  # what the first step took was taken for the second too
    assert drawing - little < 0.5 * many  # what drawing took is no part of it
    assert after - little < 0.5 * many  # nor what another method took before


def test_a_second_run_does_nothing_and_a_changed_setting_does_its_own_again(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path
) -> None:
    counting = CountingMetrics(metrics)
    first = run(session, counting.metrics, tmp_path, Painter(), Painter("b"))
    assert counting.pictures > 0
    counting.pictures = 0
    methods = Painter(), Painter("b")
    assert run(session, counting.metrics, tmp_path, *methods) == first
    assert [one.fitted for one in methods] == [[], []]
    assert counting.pictures == 0
    methods = Painter(), Painter("b", shade=9)
    changed = run(session, counting.metrics, tmp_path, *methods)
    assert [one.fitted for one in methods] == [[], ["square-0", "square-1"]]
    assert [r for r in changed if r["method"] != "b"] == [r for r in first if r["method"] != "b"]
    assert [r for r in changed if r["method"] == "b"] != [r for r in first if r["method"] == "b"]
    # Back again: the pictures of the first setting were overwritten, so they are drawn anew.
    methods = Painter(), Painter("b")
    assert run(session, counting.metrics, tmp_path, *methods) == first
    assert [one.fitted for one in methods] == [[], ["square-0", "square-1"]]


def test_what_is_measured_with_is_measured_again_without_fitting(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path
) -> None:
    run(session, metrics, tmp_path, Painter(), judge=FakeJudge())
    counting, method = CountingMetrics(metrics), Painter()
    rows = run(session, counting.metrics, tmp_path, method, judge=FakeJudge("judge-2"))
    assert method.fitted == []
    assert counting.pictures == 2 * 2 + 2 * 2 * 6 + 2 * 3  # galleries, drawn, real
    assert len(rows) == 30
    # More subjects are more galleries: all is measured anew, but only the new one is fitted.
    rows = run(session, metrics, tmp_path, method, subjects=drawn_set(3))
    assert method.fitted == ["square-2"]
    assert len(rows) == 45


def test_a_run_killed_half_way_goes_on(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path
) -> None:
    class Killed(Painter):
        def fit(self, session, subject):
            if subject.name == "square-1":
                raise KeyboardInterrupt
            yield from super().fit(session, subject)

    with pytest.raises(KeyboardInterrupt):
        run(session, metrics, tmp_path / "killed", Killed())
    method = Painter()
    rows = run(session, metrics, tmp_path / "killed", method)
    assert method.fitted == ["square-1"]
    assert rows == run(session, metrics, tmp_path / "whole", Painter())


def test_parts_make_up_the_whole(session: hbsdk.Session, metrics: Metrics, tmp_path: Path) -> None:
    three = drawn_set(3)
    first, second = Painter(), Painter()
    early = run(session, metrics, tmp_path / "parts", first, subjects=three, part=(1, 2))
    assert {row["subject"] for row in early} == {"square-1"}
    rows = run(session, metrics, tmp_path / "parts", second, subjects=three, part=(0, 2))
    assert (first.fitted, second.fitted) == (["square-1"], ["square-0", "square-2"])
    assert rows == run(session, metrics, tmp_path / "whole", Painter(), subjects=three)


def test_a_failure_is_told_and_tried_again(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path
) -> None:
    class Failing(Painter):
        def fit(self, session, subject):
            for snapshot in super().fit(session, subject):
                yield snapshot
                if subject.name == "square-0":
                    raise RuntimeError("out of paint")

    rows = run(session, metrics, tmp_path, Failing(budgets=(1, 4, 9)), Painter("b"))
    fits = [one for one in rows_of(tmp_path, "fits") if one["method"] == "painter"]
    assert [one["failed"] for one in fits] == [
        None, "RuntimeError: out of paint", "RuntimeError: out of paint", None, None, None,
    ]  # fmt: skip
    assert [one["steps"] for one in fits] == [1, 4, 9, 1, 4, 9]
    assert sum(row["method"] == "painter" for row in rows) == 6 + 3 * 6
    assert sum(row["method"] == "b" for row in rows) == 24
    mended = Painter(budgets=(1, 4, 9))
    rows = run(session, metrics, tmp_path, mended, Painter("b"))
    assert mended.fitted == ["square-0"]
    assert not any(one["failed"] for one in rows_of(tmp_path, "fits"))


def test_pictures_that_were_changed_are_drawn_again(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path
) -> None:
    rows = run(session, metrics, tmp_path, Painter())
    file = tmp_path / "pictures" / "painter" / "4" / "square-1.png"
    pixels = np.asarray(Image.open(file)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(file)
    method = Painter()
    assert run(session, metrics, tmp_path, method) == rows
    assert method.fitted == ["square-1"]


def test_a_new_regressor_leaves_methods_of_the_base_model_alone(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path
) -> None:
    other = hbsdk.Bundle.compose(
        base=session.bundle.folder, regressor=write_tiny_bundle(tmp_path / "other", seed=3)
    )
    changed = hbsdk.Session(other, engine="torch", progress=False)
    run(session, metrics, tmp_path / "out", Painter(), Painter("base"))
    plain, base = Painter(), Painter("base")
    base.only_base_model = True
    run(session, metrics, tmp_path / "out", plain, base)
    assert (len(plain.fitted), len(base.fitted)) == (0, 2)
    run(changed, metrics, tmp_path / "out", plain, base)
    assert (len(plain.fitted), len(base.fitted)) == (2, 2)


def test_photos_are_compared_with_each_other(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path
) -> None:
    photos = drawn_set(2, real=False, pictures=3)
    rows = run(session, metrics, tmp_path, Painter(), subjects=photos, judge=FakeJudge())
    real = [row for row in rows if row["method"] == "real pictures"]
    assert [(row["prompt"], row["seed"]) for row in real] == [(0, 0), (0, 1), (0, 2)] * 2
    expected = Galleries(photos.subjects, metrics).measure_left_out(1, "a photo of a person")
    assert [row["dino_i"] for row in real[3:]] == pytest.approx(expected.dino_i, abs=1e-6)
    assert all(row["attributes"] is None for row in rows)
    single = drawn_set(2, real=False, pictures=1)
    rows = run(session, metrics, tmp_path / "single", Painter(), subjects=single)
    assert not any(row["method"] == "real pictures" for row in rows)


def test_the_same_noise_is_drawn_by_every_method(
    session: hbsdk.Session, metrics: Metrics, tmp_path: Path
) -> None:
    rows = run(session, metrics, tmp_path, HybridBooth("probe", steps=0), seeds=1)
    file = next(row["file"] for row in rows if row["method"] == "probe" and row["prompt"] == 0)
    subject = drawn_subject(0)
    made = session.personalize(subject.photo, steps=0)
    (expected,) = session.generate(fill(PROMPTS[2], "S*"), made, seed=2000)
    tile = np.asarray(Image.open(tmp_path / file))[:, 2 * SIDE :]
    assert np.abs(tile.astype(int) - np.asarray(expected)).max() <= 1


def test_grids_are_kept_without_loss(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 4, 3), np.uint8)
    store = Store(tmp_path)
    file = store.save_pictures("a method", 5, "s", pictures)
    assert file == "pictures/a-method/5/s.png"
    loaded = store.load_pictures(file, 2, 3)
    assert loaded is not None
    assert np.array_equal(loaded, pictures)
    assert not np.array_equal(store.load_pictures(file, 2, 1), pictures)
