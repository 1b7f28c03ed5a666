"""Prompts with subjects against a text encoder whose table got rows for them, and their limits."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch

from hbsdk.errors import PromptError
from hbsdk.mini.tokenizer import learn_tokenizer
from hbsdk.text import PromptTokens, placeholders, tokenize_prompt
from hbsdk.text_encoder import encode_prompts, encode_with_words, replaced_words
from tests.tiny_bundle import CAPTIONS, WIDTH, prompt_tokenizer, tiny_text_encoder

FOX = {"s*": 5}
PAIR = {"<fox>": 5, "<cat>": 3}


@pytest.fixture(scope="module")
def clip_tokenizer():
    """The oracle: transformers' tokenizer of the same vocabulary."""
    return learn_tokenizer(CAPTIONS, size=600)


@pytest.fixture(scope="module")
def tokenizer(clip_tokenizer):
    return prompt_tokenizer(clip_tokenizer)


@pytest.fixture(scope="module")
def text_encoder(clip_tokenizer):
    torch.manual_seed(0)
    return tiny_text_encoder(clip_tokenizer).requires_grad_(False).eval()


def words_of(lengths: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.5, (n, WIDTH)).astype(np.float32) for name, n in lengths.items()}


def with_rows(tokenizer, text_encoder, words: dict[str, np.ndarray]):
    """The oracle: tokenizer and text encoder that know each word as a token of their own."""
    tokenizer, text_encoder = copy.deepcopy(tokenizer), copy.deepcopy(text_encoder)
    first = len(tokenizer)
    names = [f"{name.strip('<>*')}zz{i}q" for name, rows in words.items() for i in range(len(rows))]
    assert tokenizer.add_tokens(names) == len(names)
    text_encoder.resize_token_embeddings(first + len(names), mean_resizing=False)
    with torch.no_grad():
        text_encoder.get_input_embeddings().weight[first:] = torch.from_numpy(
            np.concatenate(list(words.values()))
        )
    spelled = {
        name: " ".join(f"{name.strip('<>*')}zz{i}q" for i in range(len(rows)))
        for name, rows in words.items()
    }
    return tokenizer, text_encoder, spelled


def states_by_rows(tokenizer, text_encoder, prompt: str, words: dict[str, np.ndarray]):
    tokenizer, text_encoder, spelled = with_rows(tokenizer, text_encoder, words)
    for name, text in spelled.items():
        prompt = prompt.replace(name, f" {text} ")
    ids = tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids[0].numpy(), text_encoder(ids).last_hidden_state


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of s*",
        "s* on the beach",
        "s*",
        "a photo of s*'s cat",
        "a photo of s*, in the snow",
        "(s*) and [s*]: two",
        "a s* s* in the snow",
        "a dog-s*-cat",
    ],
)
def test_words_in_place_equal_rows_in_the_table(tokenizer, clip_tokenizer, text_encoder, prompt):
    words = words_of(FOX)
    tokens = tokenize_prompt(tokenizer, prompt, FOX)
    states = encode_prompts(text_encoder, [tokens], words)
    ids, expected = states_by_rows(clip_tokenizer, text_encoder, prompt, words)
    assert states.shape == (1, 77, WIDTH)
    assert torch.allclose(states, expected, atol=1e-6)
    # Everything but the words is what the oracle's tokenizer says, and the places are its words.
    where = [place for run in tokens.places["s*"] for place in run]
    assert sorted(where) == np.flatnonzero(ids >= len(clip_tokenizer)).tolist()
    assert np.delete(tokens.ids, where).tolist() == np.delete(ids, where).tolist()
    # Other words, the same words in another order, and no words are something else.
    for other in (np.roll(words["s*"], 1, axis=1), words["s*"][::-1].copy()):
        changed = encode_prompts(text_encoder, [tokens], {"s*": other})
        assert not torch.allclose(changed, expected, atol=1e-3)
    plain = text_encoder(torch.from_numpy(tokens.ids)[None]).last_hidden_state
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_several_subjects_share_a_prompt(tokenizer, clip_tokenizer, text_encoder):
    words = words_of(PAIR)
    prompt = "a photo of <fox> and <cat> in the snow with <fox>"
    tokens = tokenize_prompt(tokenizer, prompt, PAIR)
    assert [len(runs) for runs in tokens.places.values()] == [2, 1]
    states = encode_prompts(text_encoder, [tokens], words)
    _, expected = states_by_rows(clip_tokenizer, text_encoder, prompt, words)
    assert torch.allclose(states, expected, atol=1e-6)
    swapped = {"<fox>": words["<cat>"][[0, 1, 2, 0, 1]], "<cat>": words["<fox>"][:3]}
    wrong = encode_prompts(text_encoder, [tokens], swapped)
    assert not torch.allclose(wrong, expected, atol=1e-3)


def test_prompts_of_a_batch_do_not_mix(tokenizer, text_encoder):
    words = words_of(PAIR)
    prompts = ["<fox> in the snow", "no subject here", "the <cat> and the <fox>"]
    tokens = [tokenize_prompt(tokenizer, prompt, PAIR) for prompt in prompts]
    together = encode_prompts(text_encoder, tokens, words)
    for row, one in enumerate(tokens):
        assert torch.allclose(encode_prompts(text_encoder, [one], words)[0], together[row])
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_the_training_path_equals_the_generating_one(tokenizer, text_encoder):
    words = words_of(FOX)
    prompts = ["a photo of s*", "the cat and s* at night"]
    tokens = [tokenize_prompt(tokenizer, prompt, FOX) for prompt in prompts]
    expected = encode_prompts(text_encoder, tokens, words)
    ids = torch.from_numpy(np.stack([one.ids for one in tokens]))
    positions = torch.tensor([one.places["s*"][0] for one in tokens])
    assert not torch.equal(positions[0], positions[1])
    rows = torch.from_numpy(words["s*"]).expand(2, -1, -1)
    assert torch.allclose(encode_with_words(text_encoder, ids, positions, rows), expected)
    moved = encode_with_words(text_encoder, ids, positions.flip(0), rows)
    assert not torch.allclose(moved, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "same"), [("a S* there", "a s* there"), ("A <FoX> There", "a <fox> there")]
)
def test_case_does_not_matter(tokenizer, text, same):
    lengths = {**FOX, "<fox>": 5}
    left, right = (tokenize_prompt(tokenizer, prompt, lengths) for prompt in (text, same))
    assert left.ids.tolist() == right.ids.tolist()
    assert left.places == right.places
    assert placeholders(text) == placeholders(same) != []


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("S*", ["s*"]),
        ("S*'s hat, S*, (S*). S*!", ["s*"] * 4),
        ("<fox>, <my-cat.2>", ["<fox>", "<my-cat.2>"]),
        ("cats*x", []),
        ("5s*", []),
        ("stars *", []),
        ("\u017f* is no S", []),  # the long s, which is an S to a regex that ignores case
        ("1 < 2 > 0", []),
        ("<|endoftext|>", []),
        ("<>", []),
        ("a<b", []),
        ("", []),
    ],
)
def test_what_is_a_placeholder(tokenizer, prompt, found):
    assert placeholders(prompt) == found
    if not found:
        assert tokenize_prompt(tokenizer, prompt, FOX).places == {"s*": ()}


def test_a_placeholder_without_subject_is_an_error(tokenizer):
    with pytest.raises(PromptError, match=r"'s\*'.*no subject.*Pass the subject"):
        tokenize_prompt(tokenizer, "a photo of S*", {})
    with pytest.raises(PromptError, match=r"'<dog>'.*<fox>, <cat>"):
        tokenize_prompt(tokenizer, "a photo of <dog>", PAIR)


def long_prompt(before: int, after: int = 0) -> str:
    """S* between so many tokens; "person" is one token."""
    return " ".join(["person"] * before + ["S*"] + ["person"] * after)


def test_the_last_words_that_fit_are_kept(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens = tokenize_prompt(tokenizer, long_prompt(70), FOX)
    assert tokens.places["s*"] == ((71, 72, 73, 74, 75),)
    assert tokens.ids[76] == tokenizer.eos_token_id
    assert len(tokens.ids) == 77
    with pytest.warns(UserWarning, match="78 tokens"):
        cut = tokenize_prompt(tokenizer, long_prompt(70, 3), FOX)
    assert cut.places == tokens.places
    assert cut.ids.tolist() == tokens.ids.tolist()


@pytest.mark.parametrize("before", [71, 74, 75, 200])
def test_a_subjects_words_are_never_cut_silently(tokenizer, before):
    with pytest.raises(PromptError, match=r"first 75 tokens.*[Ss]horten the prompt"):
        tokenize_prompt(tokenizer, long_prompt(before), FOX)


def test_a_second_place_that_is_cut_is_an_error_too(tokenizer):
    with pytest.raises(PromptError, match="first 75 tokens"):
        tokenize_prompt(tokenizer, f"S* {long_prompt(70)}", FOX)


def test_other_text_is_cut_with_a_warning_as_transformers_cuts_it(tokenizer, clip_tokenizer):
    with pytest.warns(UserWarning, match="105 tokens.*reads 75"):
        tokens = tokenize_prompt(tokenizer, long_prompt(10, 90), FOX)
    assert tokens.places["s*"] == ((11, 12, 13, 14, 15),)
    prompt = "a watercolor of a cat, on the beach! " * 20
    with pytest.warns(UserWarning, match="reads 75"):
        tokens = tokenize_prompt(tokenizer, prompt, {})
    expected = clip_tokenizer(prompt, truncation=True, max_length=77).input_ids
    assert tokens.ids.tolist() == expected
    assert tokens.ids.tolist() != clip_tokenizer(prompt, truncation=False).input_ids


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "   ",
        "a photo of a cat",
        "Ein Fuchs im Schnee, größer!",
        "雪の中の狐",
        "лиса в снегу",
        "ثعلب في الثلج",
        "🦊❄️👩‍👩‍👧",
        "a\tb\nc",
        "<|endoftext|> a cat",
        "\u200b\u0000",
    ],
)
def test_plain_text_in_any_script_is_tokenized_as_transformers_does(
    tokenizer, clip_tokenizer, text_encoder, prompt
):
    tokens = tokenize_prompt(tokenizer, prompt, {})
    expected = clip_tokenizer(prompt, padding="max_length", truncation=True).input_ids
    assert tokens.ids.dtype == np.int64
    assert tokens.ids.tolist() == expected
    states = encode_prompts(text_encoder, [tokens], {})
    assert torch.isfinite(states).all()
    assert torch.equal(states, text_encoder(torch.tensor([expected])).last_hidden_state)


def test_the_gradient_reaches_the_words_and_no_other_row(tokenizer, text_encoder):
    tokens = tokenize_prompt(tokenizer, "a photo of s* in the snow", FOX)
    ids, positions = torch.from_numpy(tokens.ids)[None], torch.tensor(tokens.places["s*"])
    words = torch.from_numpy(words_of(FOX)["s*"])[None].requires_grad_()
    states = encode_with_words(text_encoder, ids, positions, words)
    direction = torch.randn_like(states)
    (gradient,) = torch.autograd.grad((states * direction).sum(), words)
    assert (gradient.norm(dim=2) > 0.0).all()
    # A finite difference agrees, and so it is this function's gradient.
    way = torch.randn_like(words)

    def value(step: float) -> float:
        with torch.no_grad():
            moved = encode_with_words(text_encoder, ids, positions, words + step * way)
        return (moved.double() * direction).sum().item()

    slope = (value(1e-2) - value(-1e-2)) / 2e-2
    assert (gradient * way).sum().item() == pytest.approx(slope, rel=0.02)
    # The causal encoder reads no word at places before the subject.
    early = encode_with_words(text_encoder, ids, positions, words)[:, : positions.min()]
    (none,) = torch.autograd.grad(early.sum(), words)
    assert none.abs().max() == 0.0


def test_the_hook_is_gone_afterwards_also_after_an_exception(tokenizer, text_encoder):
    ids = torch.from_numpy(tokenize_prompt(tokenizer, "a photo of s*", FOX).ids)[None]
    plain = text_encoder(ids).last_hidden_state
    word, inside = torch.randn(1, WIDTH), []

    def fail() -> None:
        with replaced_words(text_encoder, torch.tensor([0]), torch.tensor([4]), word):
            inside.append(text_encoder(ids).last_hidden_state)
            raise RuntimeError("by a test")

    with pytest.raises(RuntimeError, match="by a test"):
        fail()
    assert not torch.allclose(inside[0], plain, atol=1e-3)
    assert torch.equal(text_encoder(ids).last_hidden_state, plain)
    with pytest.raises(IndexError):
        encode_with_words(text_encoder, ids, torch.tensor([[99]]), word[None])
    assert torch.equal(text_encoder(ids).last_hidden_state, plain)


def test_words_take_the_encoders_precision(tokenizer, text_encoder):
    half = copy.deepcopy(text_encoder).to(torch.bfloat16)
    tokens = tokenize_prompt(tokenizer, "s* in the snow", FOX)
    states = encode_prompts(half, [tokens], words_of(FOX))
    expected = encode_prompts(text_encoder, [tokens], words_of(FOX))
    assert states.dtype == torch.bfloat16
    assert torch.allclose(states.float(), expected, atol=0.1)


def test_tokens_hold_one_text(tokenizer):
    tokens = tokenize_prompt(tokenizer, "s*", FOX)
    assert isinstance(tokens, PromptTokens)
    assert tokens.ids[0] == tokenizer.bos_token_id
    assert tokens.places == {"s*": ((1, 2, 3, 4, 5),)}
