"""The tokenizer against transformers' own on thousands of texts, its files, and damaged ones."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from hbsdk.bundle import MINI
from hbsdk.errors import BundleError, PromptError
from hbsdk.mini.tokenizer import learn_tokenizer, save_tokenizer
from hbsdk.tokenizer import PromptTokenizer, load_tokenizer
from tests.tiny_bundle import CAPTIONS

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
ROWS = 60_000  # more than any vocabulary here has

SCRIPTS = (
    (0x20, 0x7E), (0x20, 0x7E), (0x61, 0x7A), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x52F),
    (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF),
    (0x1E00, 0x1FFF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF),
    (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x10000, 0x10FFFF), (0x0, 0xD7FF),
)  # fmt: skip
COMBINING = [chr(c) for c in range(0x300, 0x370)] + ["\u200d", "\ufe0f", "\u20e3", "\u0327"]
SPACES = (
    " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\x00", "\x1f", "\x85",
)  # fmt: skip
FAMILY, RAINBOW = "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308"
PIECES = (
    "a photo of a person", "WATERCOLOR", "it's", "don't", "they'RE", "we've", "I'm", "he'll", "'d",
    "''", "'tis", "rock'n'roll", "s*", "1234567890", "3.14", "½", "Ⅳ", "٣", "²", FAMILY, RAINBOW,
    "🦊\u2744\ufe0f", "👍🏽", "🇩🇪🇫🇷", "İstanbul", "ﬁﬂ", "ǅ", "ẞ", "Σίσυφος", "e\u0301", "\u00e9",
    "한국어", "각", "क्षि", "x" * 300, "snow" * 40, "!" * 90, "<", "|>", "<|", "<|endoftext", "</w>",
    "Ġ", "snow</w>", "beach,snow;fox", "__init__", "C:\\path", "http://a.b/c?d=e&f", "\ufffd",
    "\ufeff", "#version: 0.2", BOS, EOS, EOS, "<|STARTOFTEXT|>", "<|EndOfText|>", "<|endoftext|>'s",
    "<|pad|>", "!",
)  # fmt: skip


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Letters of many scripts, marks, spaces, words and special tokens, glued or apart."""
    rng = np.random.default_rng(seed)

    def piece() -> str:
        kind = rng.integers(8)
        if kind < 3:
            return PIECES[rng.integers(len(PIECES))]
        if kind == 3:
            return SPACES[rng.integers(len(SPACES))]
        low, high = SCRIPTS[rng.integers(len(SCRIPTS))]
        text = "".join(chr(c) for c in rng.integers(low, high + 1, rng.integers(1, 9)))
        if kind == 4:
            text = "".join(c + COMBINING[rng.integers(len(COMBINING))] for c in text)
        return unicodedata.normalize("NFD", text) if kind == 5 else text

    vocabulary = json.loads((MINI / "tokenizer" / "vocab.json").read_text("utf-8"))
    words = [token.removesuffix("</w>") for token in vocabulary if len(token) > 6]
    texts = ["", " ", "\n\t ", *PIECES, *words]
    while len(texts) < count:
        glue = ("", " ", ", ")[rng.integers(3)]
        texts.append(glue.join(piece() for _ in range(rng.integers(1, 9))))
    return texts


TEXTS = random_texts(4000)


def oracle_ids(folder: Path, texts: list[str] = TEXTS) -> list[list[int]]:
    oracle = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return oracle(texts, add_special_tokens=False)["input_ids"]


def load(folder: Path, rows: int = ROWS) -> PromptTokenizer:
    return load_tokenizer(folder, max_tokens=77, vocabulary_rows=rows)


def own_ids(folder: Path, texts: list[str] = TEXTS) -> list[list[int]]:
    return list(map(load(folder).encode, texts))


def added(content: str, **rules: bool) -> dict[str, object]:
    usual = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"content": content, **usual, **rules}


def write_as_sd15(folder: Path, pad: str = EOS) -> None:
    """Replace a folder's settings by what stands in the public SD 1.5 tokenizer folder."""
    (folder / "tokenizer.json").unlink(missing_ok=True)
    tokens = {"bos_token": added(BOS), "eos_token": added(EOS), "unk_token": added(EOS)}
    config = {
        "add_prefix_space": False,
        **{key: {"__type": "AddedToken", **token} for key, token in tokens.items()},
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14",
        "pad_token": pad,
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", {**tokens, "pad_token": pad})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


def change_json(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text("utf-8")) | changes)


def only_classic(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def only_whole(folder: Path) -> None:
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()


def merges_as_text(folder: Path) -> None:
    """tokenizer.json as older releases of the library wrote it."""
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    change_json(folder / "tokenizer.json", model=model)


def without_settings(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def with_listed_tokens(folder: Path) -> None:
    """Tokens that were added to a vocabulary, in the place of transformers 4."""
    size = len(json.loads((folder / "vocab.json").read_text("utf-8")))
    listed = {
        size: added("<|pad|>", special=True, normalized=False),
        size + 1: added("fox", special=False, single_word=True),
        size + 2: added("SNOW", special=False, lstrip=True, rstrip=True, normalized=False),
    }
    change_json(folder / "tokenizer_config.json", added_tokens_decoder=listed, pad_token="<|pad|>")


def with_legacy_tokens(folder: Path) -> None:
    """Tokens that were added to a vocabulary, in the place of transformers 3."""
    size = len(json.loads((folder / "vocab.json").read_text("utf-8")))
    only_classic(folder)
    write_json(folder / "added_tokens.json", {"<|pad|>": size + 1, "Person": size})
    change_json(folder / "tokenizer_config.json", additional_special_tokens=["Person", "it's"])


def with_other_tokens(folder: Path) -> None:
    only_classic(folder)
    change_json(
        folder / "tokenizer_config.json",
        cls_token="<|",
        mask_token={"__type": "AddedToken", **added("Σ", lstrip=True)},
        image_token="🦊",
        extra_special_tokens=["|>"],
        add_bos_token=True,
    )


def with_split_special_tokens(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", split_special_tokens=True)


def with_exclamation_pad(folder: Path) -> None:
    """As Stable Diffusion 2's."""
    write_as_sd15(folder, pad="!")


FILES = (
    lambda folder: None,
    only_classic,
    only_whole,
    merges_as_text,
    without_settings,
    write_as_sd15,
    with_exclamation_pad,
    with_listed_tokens,
    with_legacy_tokens,
    with_other_tokens,
    with_split_special_tokens,
)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    tiny = tmp_path_factory.mktemp("tiny")
    save_tokenizer(learn_tokenizer(CAPTIONS, size=600), tiny)
    return {"mini": MINI / "tokenizer", "tiny": tiny}


@pytest.fixture(params=["mini", "tiny"])
def folder(request, vocabularies, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vocabularies[request.param], tmp_path / "tokenizer"))


@pytest.fixture
def tiny(vocabularies, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vocabularies["tiny"], tmp_path / "tiny"))


@pytest.mark.parametrize("change", FILES, ids=lambda change: change.__name__.strip("<>"))
def test_the_ids_are_those_of_transformers(folder: Path, change) -> None:
    change(folder)
    oracle = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    expected, got = oracle_ids(folder), own_ids(folder)
    wrong = [text for text, a, b in zip(TEXTS, got, expected, strict=True) if a != b]
    assert wrong == []
    loaded = load(folder)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(loaded, name) == getattr(oracle, name)
    assert loaded.model_max_length == min(oracle.model_max_length, 77) == 77


def test_the_texts_can_tell_tokenizers_apart(folder: Path) -> None:
    """The control: merges in another order, or one fewer, are seen by the comparison above."""
    only_classic(folder)
    expected = oracle_ids(folder)
    version, *merges = (folder / "merges.txt").read_text("utf-8").splitlines()
    for changed in (merges[::-1], merges[1:], merges[:-1]):
        (folder / "merges.txt").write_text("\n".join([version, *changed, ""]), "utf-8")
        got = own_ids(folder)
        assert got != expected
        assert got == oracle_ids(folder)


def test_the_rules_of_special_tokens_count(tiny: Path) -> None:
    """The control: SD 1.5 finds its start token in any case, the mini bundle as written only."""
    texts = ["a <|StartOfText|> b", "a <|EndOfText|> b", f"a {EOS} b", f"a{BOS}b"]
    before = own_ids(tiny, texts)
    write_as_sd15(tiny)
    after = own_ids(tiny, texts)
    differs = [a != b for a, b in zip(before, after, strict=True)]
    assert differs == [True, False, False, False]
    assert load(tiny).bos_token_id in after[0]
    assert load(tiny).bos_token_id not in before[0]
    assert load(tiny).eos_token_id in after[2]


def test_the_texts_are_as_various_as_they_should_be() -> None:
    joined = "".join(TEXTS)
    categories = {unicodedata.category(c) for c in set(joined)}
    assert {c[0] for c in categories} == set("LMNPSZC")
    assert categories >= {"Lt", "Lm", "Lo", "Mn", "Mc", "Nd", "Nl", "No", "Cc", "Cf", "So"}
    assert len(set(TEXTS)) > 3500
    assert sum(EOS in text for text in TEXTS) > 100
    assert sum("\u200d" in text for text in TEXTS) > 100


def test_a_text_has_at_most_as_many_tokens_as_is_stated_and_as_the_encoder_takes(tiny: Path):
    assert load_tokenizer(tiny, max_tokens=20, vocabulary_rows=ROWS).model_max_length == 20
    assert load_tokenizer(tiny, max_tokens=200, vocabulary_rows=ROWS).model_max_length == 77
    change_json(tiny / "tokenizer_config.json", model_max_length=int(1e30))
    assert load_tokenizer(tiny, max_tokens=200, vocabulary_rows=ROWS).model_max_length == 200


def test_it_is_a_value_that_can_be_copied(tiny: Path) -> None:
    tokenizer = load(tiny)
    with pytest.raises(AttributeError):
        tokenizer.eos_token_id = 0
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode("a photo of a fox") == tokenizer.encode("a photo of a fox") != []


@pytest.mark.parametrize("text", ["\ud800", "a fox \udcff in the snow"])
def test_what_is_no_unicode_is_an_error(tiny: Path, text: str) -> None:
    with pytest.raises(PromptError, match=r"expected Unicode text, got .*\\ud"):
        load(tiny).encode(text)


def test_an_id_needs_a_row(tiny: Path) -> None:
    size = len(json.loads((tiny / "vocab.json").read_text("utf-8")))
    load(tiny, rows=size)
    with pytest.raises(BundleError, match=f"expected token ids below {size - 1}.*got {size - 1}"):
        load(tiny, rows=size - 1)
    with_other_tokens(tiny)  # adds tokens after the vocabulary
    with pytest.raises(BundleError, match=f"expected token ids below {size}"):
        load(tiny, rows=size)


def without_unknown(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", unk_token="<unk>")


def write(name: str, content: str):
    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / name).write_text(content, "utf-8")

    return change


def setting(**changes: object):
    return lambda folder: change_json(folder / "tokenizer_config.json", **changes)


def whole(**changes: object):
    return lambda folder: change_json(folder / "tokenizer.json", **changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: [path.unlink() for path in folder.iterdir()],
        lambda folder: [(folder / n).unlink() for n in ("tokenizer.json", "merges.txt")],
        lambda folder: [(folder / n).unlink() for n in ("tokenizer.json", "vocab.json")],
        write("vocab.json", "{"),
        write("vocab.json", "[]"),
        write("vocab.json", "{}"),
        write("vocab.json", '{"a": -1}'),
        write("vocab.json", '{"a": "b"}'),
        write("merges.txt", "#version: 0.2\nno such\n"),
        write("merges.txt", "#version: 0.2\none\n"),
        write("tokenizer_config.json", "{"),
        write("tokenizer_config.json", "[]"),
        write("special_tokens_map.json", "3"),
        write("added_tokens.json", '{"a": "b", "c": 1}'),
        without_unknown,
        setting(bos_token=None),
        setting(eos_token=5),
        setting(pad_token=""),
        setting(pad_token={"__type": "AddedToken"}),
        setting(model_max_length="long"),
        setting(model_max_length=2),
        setting(model_max_length=-1),
        setting(added_tokens_decoder=[1]),
        setting(added_tokens_decoder={"a": added("b")}),
        setting(extra_special_tokens=[3]),
        whole(model=None),
        whole(model={"type": "BPE"}),
        whole(model={"type": "BPE", "vocab": {"a": 0, EOS: 1}, "merges": ["a b c"]}),
        whole(model={"type": "Unigram", "vocab": [["a", 0.0], [EOS, 0.0]], "merges": []}),
        whole(added_tokens=[{"content": "a"}]),
        whole(added_tokens=3),
    ],
)
def test_damaged_files_are_an_error_that_names_the_folder(tiny: Path, damage) -> None:
    load(tiny)
    damage(tiny)
    with pytest.raises(BundleError, match=r"tokenizer in .*tiny.*Copy it again"):
        load(tiny)
