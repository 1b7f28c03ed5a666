"""The session on a tiny bundle: both verbs, their options, threads, memory, and diffusers' word."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from hbsdk.errors import BundleError, OptionError, PromptError, SubjectError
from hbsdk.generate import Canvas, initial_noise
from hbsdk.image import load_photo, make_reference
from hbsdk.options import GenerateOptions, PersonalizeOptions
from hbsdk.session import Session
from hbsdk.subject import Subject
from hbsdk.text import tokenize_prompt
from tests.tiny_bundle import IMAGE_SIZE, LATENT_SIZE, WIDTH, write_tiny_bundle

QUICK = {"num_inference_steps": 3}
CANVAS = Canvas(4, LATENT_SIZE, LATENT_SIZE)
LIGHT = PersonalizeOptions(steps=2, timesteps_per_step=2, effective_step=1e-2)


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Session:
    return Session(tiny_bundle, progress=False)


@pytest.fixture(scope="module")
def fox() -> Subject:
    """Words large enough to show in what random networks draw."""
    words = np.random.default_rng(1).normal(0.0, 0.5, (5, WIDTH)).astype(np.float32)
    return Subject(words=words, name="fox")


def draw(session: Session, prompt="a photo of S*", subject=None, **settings) -> np.ndarray:
    drawn = session.generate(prompt, subject, **{**QUICK, "output_type": "latent", **settings})
    return np.stack(drawn)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal but for the rounding of another batch size."""
    return left.shape == right.shape and bool(np.abs(left - right).max() < 1e-4)


def test_the_probe_alone_is_a_subject(session, photo, mask):
    subject = session.personalize(photo, mask, name="Fox", steps=0)
    assert subject.name == "fox"
    assert subject.words.shape == (5, WIDTH)
    assert subject.words.dtype == np.float32
    assert subject.report is None
    assert np.array_equal(subject.words, session.personalize(photo, mask, steps=0).words)
    other = session.personalize(photo[::-1].copy(), mask[::-1].copy(), steps=0)
    assert not np.allclose(subject.words, other.words, atol=1e-4)
    known = subject.metadata
    assert (known["bundle"], known["class_word"], known["mask"]) == ("tiny", "person", "user")
    assert known["bundle_hash"] == session.bundle.hash
    assert (known["steps"], known["seed"]) == ("0", "0")


def test_the_probe_is_the_regressors_word_on_what_the_encoders_see(session, photo, mask):
    backend = session.backend
    reference = make_reference(load_photo(photo), mask // 255, size=IMAGE_SIZE)
    tokens = tokenize_prompt(session.tokenizer, "a photo of S*", {"s*": 5})
    encoded = backend.encode_references([reference], tokens)
    pixels = torch.from_numpy(reference.pixels).permute(2, 0, 1)[None]
    vae, regressor = session.bundle.load_vae(), session.bundle.load_regressor()
    with torch.no_grad():
        mean = vae.encode(pixels).latent_dist.mean * 0.18215
        words = regressor(mean, encoded.features)[0].numpy()
    assert torch.allclose(encoded.latents, mean, atol=1e-5)
    assert encoded.mask.shape == (1, 1, LATENT_SIZE, LATENT_SIZE)
    assert encoded.mask.mean().item() == pytest.approx(reference.mask.mean(), abs=1e-6)
    assert encoded.positions.tolist() == [list(tokens.places["s*"][0])]
    subject = session.personalize(photo, mask, steps=0)
    assert np.allclose(subject.words, words, atol=1e-5)


def test_refinement_is_fixed_by_its_seed(session, photo, mask):
    probe = session.personalize(photo, mask, steps=0)
    first, again, other = (
        session.personalize(photo, mask, options=LIGHT, seed=seed) for seed in (3, 3, 4)
    )
    assert np.array_equal(first.words, again.words)
    assert not np.array_equal(first.words, other.words)
    assert not np.array_equal(first.words, probe.words)
    report = first.report
    assert report.steps == 2
    assert len(report.losses) == 2
    moved = np.linalg.norm(first.words - probe.words) / np.linalg.norm(probe.words)
    assert report.word_change == pytest.approx(moved, rel=1e-4)
    assert first.metadata["seed"] == "3"
    still = session.personalize(photo, mask, options=LIGHT, effective_step=0.0)
    assert np.array_equal(still.words, probe.words)
    assert still.report.word_change == 0.0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a photo", "S* in it once, got S* 0 times"),
        ("S* and S*", "got S* 2 times"),
        ("cats*x", "got S* 0 times"),
        ("", "got nothing"),
        ("<fox>", "placeholder '<fox>'"),
        ("person " * 74 + "S*", "within the first 75 tokens"),
    ],
)
def test_a_prompt_that_does_not_show_the_photos_subject_once(session, photo, mask, prompt, message):
    with pytest.raises(PromptError) as caught:
        session.personalize(photo, mask, prompt=prompt)
    assert message in str(caught.value)


def test_the_mask_is_shown_at_the_photos_size(session, photo, mask):
    shown = session.mask(photo, mask)
    assert shown.mode == "L"
    assert shown.size == (48, 40)
    assert np.array_equal(np.array(shown), mask)
    found = np.array(session.mask(photo)) > 0
    assert (found == (mask > 0)).mean() > 0.9


def test_output_types(session, fox):
    (pil,) = session.generate("S* here", fox, **QUICK)
    (array,) = session.generate("S* here", fox, output_type="np", **QUICK)
    (latent,) = session.generate("S* here", fox, output_type="latent", **QUICK)
    assert isinstance(pil, Image.Image)
    assert (pil.mode, pil.size) == ("RGB", (IMAGE_SIZE, IMAGE_SIZE))
    assert array.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert array.dtype == np.float32
    assert array.min() >= 0.0
    assert array.max() <= 1.0
    assert array.std() > 0.01
    assert np.abs(np.array(pil) - array * 255.0).max() <= 0.5001
    assert latent.shape == (4, LATENT_SIZE, LATENT_SIZE)
    vae = session.bundle.load_vae()
    with torch.no_grad():
        decoded = vae.decode(torch.from_numpy(latent)[None] / 0.18215).sample[0]
    expected = (decoded.permute(1, 2, 0).numpy() / 2.0 + 0.5).clip(0.0, 1.0)
    assert np.abs(array - expected).max() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(48, 24), (32, 64)])
def test_height_comes_before_width(session, height, width):
    (picture,) = session.generate("a cat", height=height, width=width, **QUICK)
    assert picture.size == (width, height)
    latents = draw(session, "a cat", height=height, width=width)
    assert latents.shape == (1, 4, height // 4, width // 4)


def test_several_pictures_and_several_prompts_come_in_order(session, fox):
    drawn = draw(session, ["S* here", "a cat and S*"], fox, num_images_per_prompt=2, seed=5)
    assert len(drawn) == 4
    expected = [
        draw(session, text, fox, seed=seed)[0] for text in ("S* here", "a cat and S*")
        for seed in (5, 6)
    ]  # fmt: skip
    assert same(drawn, np.stack(expected))
    assert not same(drawn, np.stack([expected[i] for i in (0, 2, 1, 3)]))
    assert session.generate([], fox, **QUICK) == []


def test_a_seed_fixes_the_picture(session):
    first, again, other = (draw(session, "a cat", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not same(first, other)
    noise = initial_noise(1, 1, CANVAS)
    assert np.array_equal(first, draw(session, "a cat", latents=noise))


def test_the_prompt_the_subject_and_the_guidance_count(session, fox):
    plain = draw(session, "a cat and S*", fox)
    changed = [
        draw(session, "a dog and S*", fox),
        draw(session, "a cat and S*", dataclasses.replace(fox, words=-fox.words)),
        draw(session, "a cat and S*", fox, guidance_scale=1.0),
        draw(session, "a cat and S*", fox, negative_prompt="snow"),
        draw(session, "a cat and S*", fox, sampler="euler"),
        draw(session, "a cat and S*", fox, num_inference_steps=4),
    ]
    for other in changed:
        assert not same(plain, other)
    assert np.array_equal(plain, draw(session, "a cat and <FOX>", fox))
    assert np.array_equal(plain, draw(session, "a cat and S*", [fox], guidance_scale=7.5))
    whole = GenerateOptions(num_inference_steps=3, output_type="latent")
    assert np.array_equal(plain[0], session.generate("a cat and S*", fox, options=whole)[0])


def test_without_guidance_a_negative_prompt_does_not_count(session):
    unguided = draw(session, "a cat", guidance_scale=1.0)
    assert np.array_equal(
        unguided, draw(session, "a cat", guidance_scale=0.5, negative_prompt="snow")
    )
    assert same(unguided, draw(session, "a cat", guidance_scale=1.0 + 1e-6))
    assert not same(unguided, draw(session, "a cat", guidance_scale=3.0))


def test_several_subjects_share_a_picture(session, fox):
    cat = Subject(words=fox.words[::-1].copy() * 1.5, name="cat")
    both = draw(session, "<fox> and <cat>", [fox, cat])
    assert not same(both, draw(session, "<cat> and <fox>", [fox, cat]))
    assert np.array_equal(both, draw(session, "<fox> and <cat>", (cat, fox)))


def test_a_generator_draws_diffusers_noise(session):
    shape = (2, 4, LATENT_SIZE, LATENT_SIZE)
    settings = {"num_images_per_prompt": 2}
    noise = randn_tensor(shape, generator=torch.Generator().manual_seed(3)).numpy()
    drawn = draw(session, "a cat", generator=torch.Generator().manual_seed(3), **settings)
    assert np.array_equal(drawn, draw(session, "a cat", latents=noise, **settings))
    assert not same(drawn, draw(session, "a cat", seed=3, **settings))
    pair = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    several = draw(session, "a cat", generator=pair, **settings)
    alone = draw(session, "a cat", generator=torch.Generator().manual_seed(4))
    assert same(several[1:], alone)


def test_latents_of_another_shape_are_refused(session):
    with pytest.raises(OptionError, match=r"shape \(1, 4, 8, 8\), got shape \(1, 4, 8, 9\)"):
        draw(session, "a cat", latents=np.zeros((1, 4, 8, 9), np.float32))


def test_the_callback_is_told_each_step(session):
    told = []

    def callback(caller, step, timestep, values):
        assert caller is session
        told.append((step, timestep, values["latents"].clone()))

    final = draw(session, "a cat", callback_on_step_end=callback, num_inference_steps=5)
    assert [step for step, _, _ in told] == [0, 1, 2, 3, 4]
    timesteps = [timestep for _, timestep, _ in told]
    assert timesteps == sorted(timesteps, reverse=True)
    assert len(set(timesteps)) == 5
    assert all(torch.isfinite(latents).all() for _, _, latents in told)
    assert np.array_equal(told[-1][2].numpy(), final)
    assert not same(told[0][2].numpy(), final)


def test_a_subject_saved_and_loaded_draws_the_same(session, photo, mask, tmp_path):
    subject = session.personalize(photo, mask, name="fox", options=LIGHT)
    loaded = Subject.load(subject.save(tmp_path / "fox.safetensors"))
    assert np.array_equal(
        draw(session, "a <fox> in the snow", subject), draw(session, "a <fox> in the snow", loaded)
    )


def test_threads_that_share_a_session_draw_what_one_draws(session, fox, photo, mask):
    cat = Subject(words=-fox.words, name="cat")

    def picture(number: int) -> np.ndarray:
        subject, text = (fox, "a photo of S*") if number % 2 else (cat, "the <cat> at night")
        return draw(session, text, subject, seed=number, num_inference_steps=2)

    def words(_: int) -> np.ndarray:
        return session.personalize(photo, mask, options=LIGHT, steps=1).words

    alone, refined_alone = [picture(number) for number in range(8)], words(0)
    with ThreadPoolExecutor(4) as drawing, ThreadPoolExecutor(1) as refining:
        refined = refining.map(words, range(2))
        together = list(drawing.map(picture, range(8)))
        assert all(np.array_equal(one, refined_alone) for one in refined)
    assert all(np.array_equal(*pair) for pair in zip(together, alone, strict=True))
    assert not same(alone[1], alone[3])


@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("dpm++2m", DPMSolverMultistepScheduler), ("ddim", DDIMScheduler)]
)
def test_diffusers_draws_the_same_picture(session, fox, tiny_bundle, tmp_path, sampler, scheduler):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_bundle, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.load_textual_inversion(fox.save(tmp_path / "fox.safetensors"), token="<fox>")
    noise = initial_noise(0, 1, CANVAS)
    settings = {"num_inference_steps": 8, "guidance_scale": 5.0, "negative_prompt": "a red hat"}

    def by_diffusers(prompt: str, output_type: str) -> np.ndarray:
        latents = torch.from_numpy(noise)
        return pipe(prompt, latents=latents, output_type=output_type, **settings).images

    prompt = "a photo of <fox>, in the snow"
    latents = by_diffusers(prompt, "latent").numpy()
    mine = draw(session, prompt, fox, latents=noise, sampler=sampler, **settings)
    assert np.abs(mine - latents).max() < 1e-3
    (picture,) = session.generate(prompt, fox, latents=noise, sampler=sampler, **settings)
    difference = np.abs(np.array(picture, int) - np.array(by_diffusers(prompt, "pil")[0], int))
    assert difference.max() <= 2
    plain = by_diffusers("a photo of a cat, in the snow", "latent").numpy()
    assert np.abs(mine - plain).max() > 0.01
    other = "ddim" if sampler == "dpm++2m" else "dpm++2m"
    unlike = draw(session, prompt, fox, latents=noise, sampler=other, **settings)
    assert np.abs(unlike - latents).max() > 0.01


@pytest.mark.parametrize("width", [WIDTH - 1, 768])
def test_a_subject_of_another_width_is_refused(session, width):
    stranger = Subject(words=np.full((5, width), 0.01, np.float32), name="stranger")
    with pytest.raises(SubjectError, match=rf"width {WIDTH}, as of bundle 'tiny', got width"):
        session.generate("S*", stranger, **QUICK)


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "message"),
    [
        ("a photo of S*", {}, PromptError, "no subject"),
        ("", {}, PromptError, "got nothing"),
        ("a cat", {"num_inference_steps": 0}, OptionError, "num_inference_steps"),
        ("a cat", {"num_inference_steps": 10_000}, OptionError, "num_inference_steps"),
        ("a cat", {"height": 30}, OptionError, "height: expected a multiple of 4"),
        ("a cat", {"width": 0}, OptionError, "width: expected a multiple of 4"),
        ("a cat", {"strength": 1.0}, OptionError, "option 'strength'.*GenerateOptions"),
        ("a cat", {"negative_prompt": "S*"}, PromptError, "no subject"),
    ],
)
def test_bad_input_is_told(session, prompt, settings, error, message):
    with pytest.raises(error, match=message):
        session.generate(prompt, **{**QUICK, **settings})


def test_a_subject_without_a_place_is_told(session, fox):
    with pytest.raises(PromptError, match=r"S\* or <fox> where the subject should be"):
        session.generate("a photo of a cat", fox, **QUICK)
    with pytest.raises(OptionError, match=r"option 'guidance'.*PersonalizeOptions"):
        session.personalize("nowhere.png", guidance=1.0)


def test_other_scripts_draw_a_finite_picture(session, fox):
    drawn = draw(session, "雪の中の S* 🦊", fox)
    assert np.isfinite(drawn).all()
    assert not same(drawn, draw(session, "S*", fox))


def test_a_bundle_without_a_regressor_draws_and_says_how_to_make_one(
    tmp_path, photo, mask, fox, session
):
    folder = write_tiny_bundle(tmp_path / "plain", regressor=False)
    plain = Session(folder, progress=False)
    assert np.array_equal(draw(plain, subject=fox), draw(session, subject=fox))
    plain.prewarm()
    with pytest.raises(BundleError, match=r"no regressor.*cannot personalize.*hbsdk train"):
        plain.personalize(photo, mask)


def test_low_memory_draws_the_same_and_holds_one_stage_at_a_time(
    tiny_bundle, session, photo, mask, fox
):
    low = Session(tiny_bundle, progress=False, memory="low")
    held, load = [], low.backend.network

    def network(name):
        loaded = load(name)
        held.append(set(low.backend._loaded))
        return loaded

    low.backend.network = network
    subject = low.personalize(photo, mask, options=LIGHT)
    assert low.backend._loaded == {}
    assert not any({"unet", "dino"} <= names or {"unet", "vae"} <= names for names in held)
    assert np.array_equal(subject.words, session.personalize(photo, mask, options=LIGHT).words)
    held.clear()
    (picture,) = low.generate("a photo of S*", fox, **QUICK)
    assert low.backend._loaded == {}
    assert {frozenset(names) for names in held} == {
        frozenset({name}) for name in ("text_encoder", "unet", "vae")
    }
    (expected,) = session.generate("a photo of S*", fox, **QUICK)
    assert np.array_equal(np.array(picture), np.array(expected))
    assert set(session.backend._loaded) > {"unet", "vae", "text_encoder"}


def test_prewarming_loads_everything(tiny_bundle):
    session = Session(tiny_bundle, progress=False)
    assert session.backend._loaded == {}
    session.prewarm()
    networks = {"text_encoder", "unet", "vae", "image_encoder", "dino", "regressor"}
    assert set(session.backend._loaded) == networks
    for network in session.backend._loaded.values():
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "xla"])
def test_a_device_that_is_not_there_is_told(tiny_bundle, device):
    with pytest.raises(OptionError, match="device: expected a device of this machine, got"):
        Session(tiny_bundle, device=device)


@pytest.mark.parametrize(
    "choice", [{"dtype": "int8"}, {"dtype": torch.float16}, {"memory": "tiny"}, {"memory": None}]
)
def test_a_choice_that_is_none_is_told(tiny_bundle, choice):
    ((name, value),) = choice.items()
    with pytest.raises(OptionError) as caught:
        Session(tiny_bundle, **choice)
    assert str(caught.value).startswith(f"{name}: expected one of ")
    assert repr(value) in str(caught.value)


def test_half_precision_draws_nearly_the_same(tiny_bundle, session):
    half = Session(tiny_bundle, progress=False, dtype="bfloat16")
    assert half.backend.dtype == torch.bfloat16
    full, rounded = draw(session, "a cat"), draw(half, "a cat")
    assert 0.0 < np.abs(full - rounded).max() < 0.5
    assert not np.allclose(full, draw(session, "a dog at night"), atol=1e-3)


def test_a_session_says_what_it_is(session):
    assert repr(session) == "Session('tiny', torch on cpu)"


def test_a_callback_may_replace_the_latents(session):
    def zeroed(_, step, time, kept):
        return {"latents": kept["latents"] * 0.0} if step == 1 else None

    plain = draw(session, "a cat", num_inference_steps=2)
    assert (
        np.abs(draw(session, "a cat", num_inference_steps=2, callback_on_step_end=zeroed)).max()
        == 0
    )
    assert np.abs(plain).max() > 0


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"latents": np.full((1, 4, 8, 8), np.nan, np.float32)}, OptionError, "finite"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, OptionError, "shape"),
        ({"generator": [torch.Generator(), torch.Generator()]}, OptionError, "each of 1"),
        ({"prompt": None}, PromptError, "text"),
        ({"prompt": ["a cat", 5]}, PromptError, "text"),
        ({"subject": "fox.safetensors"}, SubjectError, "Subject.load"),
        ({"subject": [5]}, SubjectError, "Subject.load"),
        ({"options": {"seed": 1}}, OptionError, "GenerateOptions"),
    ],
)
def test_what_is_of_the_wrong_kind_is_told(session, settings, error, words):
    arguments = {"prompt": "a cat", **settings}
    with pytest.raises(error, match=words):
        session.generate(**arguments)


@pytest.mark.parametrize("name", [5, "", "a b", "CON", "../x"])
def test_a_name_that_is_no_file_name_is_told_before_the_work(session, photo, mask, name):
    with pytest.raises(SubjectError):
        session.personalize(photo, mask, name=name)


def test_the_description_of_the_photo_may_use_the_name(session, photo, mask):
    by_name = session.personalize(photo, mask, name="fox", prompt="a photo of <fox>", steps=1)
    by_star = session.personalize(photo, mask, name="fox", prompt="a photo of S*", steps=1)
    assert np.array_equal(by_name.words, by_star.words)
