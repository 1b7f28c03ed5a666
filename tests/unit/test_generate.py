"""The noise against Philox written out, the naming of subjects, and the loop over a toy runtime."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hbsdk.backends.torch import TorchBackend
from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError, PromptError
from hbsdk.generate import (
    Canvas,
    denoise,
    initial_noise,
    name_subjects,
    starting_noise,
    text_states,
    tokenize,
)
from hbsdk.mini.tokenizer import learn_tokenizer
from hbsdk.options import GenerateOptions
from hbsdk.schedule import make_schedule, step
from hbsdk.subject import Subject
from tests.tiny_bundle import CAPTIONS, prompt_tokenizer

CANVAS = Canvas(channels=4, height=8, width=8)
WORD = 2**64 - 1


def philox_block(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10: four 64-bit words. Source: Salmon et al. 2011, section 4.3."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left = 0xD2E7470EE14C6C93 * c[0]
        right = 0xCA5A826395121157 * c[2]
        c = [
            (right >> 64) ^ c[1] ^ k[0],
            right & WORD,
            (left >> 64) ^ c[3] ^ k[1],
            left & WORD,
        ]
        k = [(k[0] + 0x9E3779B97F4A7C15) & WORD, (k[1] + 0xBB67AE8584CAA73B) & WORD]
    return c


def noise_by_hand(seed: int, count: int) -> list[float]:
    """The first normals of a seed: the generator that every runtime has to reproduce.

    The counter starts at 1 (numpy counts before it draws); the key is (seed, 0). Each word gives
    a uniform of its upper 53 bits; two uniforms u, v give the normals r cos(t), r sin(t), with
    r = sqrt(-2 log(1 - u)) and t = 2 pi v.
    """
    normals: list[float] = []
    counter = 1
    while len(normals) < count:
        words = philox_block([counter, 0, 0, 0], [seed & WORD, 0])
        uniform = [(word >> 11) * 2.0**-53 for word in words]
        for u, v in (uniform[:2], uniform[2:]):
            radius = math.sqrt(-2.0 * math.log1p(-u))
            angle = 2.0 * math.pi * v
            normals += [radius * math.cos(angle), radius * math.sin(angle)]
        counter += 1
    return normals[:count]


def test_philox_by_hand_gives_the_published_answers():
    # Random123's kat_vectors, philox4x64 10 rounds.
    assert philox_block([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip
    assert philox_block([WORD] * 4, [WORD] * 2) == [
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 42, 2**63 + 5, 2**64 - 1])
def test_the_noise_is_philox_and_box_muller_by_hand(seed):
    noise = initial_noise(seed, 1, CANVAS).reshape(-1)
    expected = np.array(noise_by_hand(seed, noise.size), np.float32)
    assert np.abs(noise - expected).max() < 1e-6
    other = np.array(noise_by_hand(seed - 1, noise.size), np.float32)
    assert np.abs(noise - other).max() > 1.0


def test_the_first_values_are_pinned():
    expected = [
        0.0080887, 0.1521921, -0.4468098, -0.1914038, -0.2038985, 1.1637272, 2.4110205, -0.2116218,
    ]  # fmt: skip
    assert initial_noise(0, 1, CANVAS).reshape(-1)[:8].tolist() == pytest.approx(expected, abs=1e-6)


def test_picture_i_of_a_seed_is_picture_0_of_seed_plus_i():
    noise = initial_noise(7, 3, CANVAS)
    assert noise.shape == (3, 4, 8, 8)
    assert noise.dtype == np.float32
    for i in range(3):
        assert np.array_equal(noise[i], initial_noise(7 + i, 1, CANVAS)[0])
    assert not np.array_equal(noise[0], noise[1])
    assert np.array_equal(initial_noise(2**64 - 1, 2, CANVAS)[1], initial_noise(0, 1, CANVAS)[0])


@pytest.mark.parametrize(("height", "width"), [(7, 9), (8, 8), (1, 1)])
def test_an_odd_number_of_values_is_the_beginning_of_more(height, width):
    noise = initial_noise(3, 1, Canvas(1, height, width)).reshape(-1)
    more = initial_noise(3, 1, Canvas(1, 16, 16)).reshape(-1)
    assert np.array_equal(noise, more[: height * width])


def test_the_noise_is_normal():
    noise = initial_noise(0, 25, Canvas(4, 32, 32)).astype(np.float64).reshape(-1)
    assert noise.size > 1e5
    error = 1.0 / math.sqrt(noise.size)
    assert abs(noise.mean()) < 4.0 * error
    assert abs(noise.var() - 1.0) < 4.0 * math.sqrt(2.0) * error
    assert abs(np.mean(noise**3)) < 4.0 * math.sqrt(15.0) * error
    assert abs(np.mean(noise**4) - 3.0) < 4.0 * math.sqrt(96.0) * error
    assert abs(np.mean(noise[::2] * noise[1::2])) < 6.0 * error  # a pair's halves do not depend
    assert np.isfinite(noise).all()


def subject(name: str, words: int = 5, value: float = 0.1) -> Subject:
    return Subject(words=np.full((words, 8), value, np.float32), name=name, metadata={})


def test_one_subject_answers_to_both_of_its_names():
    fox = subject("fox")
    for prompt in ("S* in the snow", "a <fox>", "A <FOX> and S*"):
        assert name_subjects(prompt, [fox]) == {"<fox>": fox, "s*": fox}


def test_several_subjects_answer_to_their_own():
    fox, cat = subject("fox"), subject("cat")
    assert name_subjects("<fox> and <cat>", [fox, cat]) == {"<fox>": fox, "<cat>": cat}
    assert name_subjects("a picture", []) == {}


@pytest.mark.parametrize(
    ("prompt", "names", "message"),
    [
        ("a photo", ["fox"], r"expected S\* or <fox>.*no placeholder"),
        ("a photo of fox", ["fox"], "no placeholder"),
        ("a photo of cats*x", ["fox"], "no placeholder"),
        ("<cat>", ["fox"], r"S\* or <fox>"),
        ("S* and <fox>", ["fox", "cat"], r"expected one of <fox>, <cat>, got S\* with 2 subjects"),
        ("<fox>", ["fox", "cat"], r"S\* or <cat>|<cat> where"),
        ("<fox> <fox>", ["fox", "fox"], "different names, got fox, fox"),
    ],
)
def test_prompts_and_subjects_that_do_not_go_together(prompt, names, message):
    with pytest.raises(PromptError, match=message):
        name_subjects(prompt, [subject(name) for name in names])


@pytest.fixture(scope="module")
def tokenizer():
    return prompt_tokenizer(learn_tokenizer(CAPTIONS, size=600))


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_an_empty_prompt_says_what_to_write(tokenizer, prompt):
    with pytest.raises(PromptError, match=r"some text, got nothing\. Describe it"):
        tokenize(tokenizer, prompt, {})


def test_each_subject_has_room_for_its_own_number_of_words(tokenizer):
    tokens = tokenize(tokenizer, "<fox> <cat>", {"<fox>": 2, "<cat>": 7})
    assert tokens.places == {"<fox>": ((1, 2),), "<cat>": (tuple(range(3, 10)),)}


class ToyRuntime:
    """A runtime whose "UNet" is linear, and which keeps what it was asked."""

    name = "toy"

    def __init__(self) -> None:
        self.prompts: list = []
        self.rows: list = []

    def encode_prompts(self, prompts, words, copies):
        self.prompts, self.words, self.copies = list(prompts), dict(words), copies
        return "states"

    def to_device(self, latents):
        self.start = latents
        return latents

    @staticmethod
    def model(latents, timestep):
        return 0.3 * latents + np.float32(timestep / 1000.0)

    def denoise_step(self, latents, previous_x0, states, guidance_scale, coefficients, features):
        assert features == "off"
        k = coefficients
        self.rows.append((states, guidance_scale, previous_x0))
        x0 = k.p * latents + k.q * self.model(latents, k.timestep)
        last = 0.0 if previous_x0 is None else k.c * previous_x0
        return k.a * latents + k.b * x0 + last, x0


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++2m"])
def test_the_loop_is_the_schedule_step_by_step(sampler):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    schedule = make_schedule(config, sampler=sampler, num_inference_steps=6)
    noise, runtime, seen = initial_noise(0, 2, CANVAS), ToyRuntime(), []

    def on_step(i, latents):
        seen.append((i, latents))
        return latents

    drawn = denoise(runtime, noise, "states", schedule, 3.0, on_step)
    expected, before = noise * np.float32(schedule.initial_noise_scale), None
    assert np.array_equal(runtime.start, expected)
    for i in range(6):
        output = ToyRuntime.model(expected, float(schedule.timesteps[i]))
        expected, before = step(schedule, i, expected, output, before)
        assert np.allclose(seen[i][1], expected, atol=1e-5)
    assert np.allclose(drawn, expected, atol=1e-5)
    assert [i for i, _ in seen] == list(range(6))
    assert {row[:2] for row in ((s, g) for s, g, _ in runtime.rows)} == {("states", 3.0)}
    assert [row[2] is None for row in runtime.rows] == [True] + [False] * 5
    assert not np.allclose(seen[4][1], expected, atol=1e-3)


@pytest.mark.parametrize("guided", [True, False])
def test_negative_prompts_come_first_and_only_with_guidance(tokenizer, guided):
    runtime, fox = ToyRuntime(), subject("fox")
    options = GenerateOptions(num_images_per_prompt=2, negative_prompt="a dog")
    states = text_states(runtime, tokenizer, "a cat and S*", [fox], options, guided=guided)
    assert states == "states"
    prompt = tokenize(tokenizer, "a cat and S*", {"s*": 5, "<fox>": 5}).ids.tolist()
    negative = tokenize(tokenizer, "a dog", {}).ids.tolist()
    # Each text is given once, however many pictures are drawn of it.
    expected = [negative] * guided + [prompt]
    assert [one.ids.tolist() for one in runtime.prompts] == expected
    assert runtime.copies == 2
    assert np.array_equal(runtime.words["s*"], fox.words)


def test_a_subject_may_stand_in_the_negative_prompt(tokenizer):
    runtime, fox, cat = ToyRuntime(), subject("fox"), subject("cat")
    options = GenerateOptions(negative_prompt="<cat>")
    text_states(runtime, tokenizer, "<fox> <cat>", [fox, cat], options, guided=True)
    assert runtime.prompts[0].places["<cat>"] == ((1, 2, 3, 4, 5),)
    with pytest.raises(PromptError, match="'<cat>'"):
        text_states(runtime, tokenizer, "<fox>", [fox], options, guided=True)


def test_torch_encodes_each_text_once_and_copies_its_states(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    backend, tokenizer = TorchBackend(bundle, device="cpu"), bundle.load_tokenizer()
    words = {"<fox>": np.random.default_rng(0).normal(0, 0.5, (5, 32)).astype(np.float32)}
    prompts = [tokenize(tokenizer, text, {"<fox>": 5}) for text in ("a dog", "a <fox> at night")]
    seen = []
    encoder = backend.network("text_encoder")
    encoder.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    states = backend.encode_prompts(prompts, words, copies=3)
    assert seen == [2]
    one_by_one = backend.encode_prompts([p for p in prompts for _ in range(3)], words, copies=1)
    assert seen == [2, 6]
    assert states.shape == (6, 77, 32)
    torch.testing.assert_close(states, one_by_one)
    mixed = backend.encode_prompts(prompts * 3, words, copies=1)
    assert not torch.allclose(states, mixed, atol=1e-3)


@pytest.mark.parametrize(
    ("generator", "got"),
    [
        (np.random.default_rng(0), r"got Generator\(PCG64"),
        ([torch.Generator(), 3], "got 3"),
        ("seed", "one for each of 2"),
    ],
)
def test_a_generator_that_is_not_torchs_is_an_error(generator, got):
    options = GenerateOptions(num_images_per_prompt=2)
    with pytest.raises(OptionError, match=got):
        starting_noise(CANVAS, options, generator=generator)
    drawn = starting_noise(CANVAS, options, generator=torch.Generator().manual_seed(1))
    assert drawn.shape == (2, 4, 8, 8)
