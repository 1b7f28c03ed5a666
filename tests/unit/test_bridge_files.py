"""`export/bridge_files.py`: what the C++ bridge is told is what Python computes with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from export.bridge_files import STEPS, tokenizer_description, write_bridge_files
from hbsdk.bundle import Bundle
from hbsdk.schedule import make_schedule
from hbsdk.tokenizer import PromptTokenizer

COLUMNS = ("timesteps", "p", "q", "a", "b", "c")


@pytest.fixture(scope="module")
def mini() -> Bundle:
    return Bundle.open(None)


@pytest.fixture(scope="module")
def written(mini, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("bridge")
    write_bridge_files(mini, folder)
    return {path.name: json.loads(path.read_text("utf-8")) for path in folder.iterdir()}


def test_there_are_two_files_with_the_bundles_own_sizes(written, mini):
    assert sorted(written) == ["bridge.json", "prompt_tokenizer.json"]
    bridge, info = written["bridge.json"], mini.info
    for key in (
        "word_dim", "num_words", "image_size_px", "latent_channels", "vae_scale_factor",
        "guidance_scale", "background", "class_word",
    ):  # fmt: skip
        assert bridge[key] == getattr(info, key), key
    vae = json.loads((mini.components["vae"] / "config.json").read_text())
    assert (bridge["latent_scale"], bridge["latent_shift"]) == (vae["scaling_factor"], 0.0)
    assert (bridge["schema"], bridge["bundle"]) == (1, info.name)
    assert bridge["default_sampler"] == "dpm++2m"


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++2m"])
def test_tables_are_those_of_the_schedule_to_the_last_bit(sampler, written, mini):
    tables = written["bridge.json"]["schedules"][sampler]
    assert list(tables) == [str(count) for count in STEPS]
    config = mini.scheduler_config()
    for count in (1, 2, 20, 49, 100):
        table = make_schedule(config, sampler=sampler, num_inference_steps=count)
        read = tables[str(count)]
        assert set(read) == {"initial_noise_scale", *COLUMNS}
        assert read["initial_noise_scale"] == table.initial_noise_scale
        for key in COLUMNS:
            np.testing.assert_array_equal(np.array(read[key]), getattr(table, key))
            assert len(read[key]) == count
    # The control: another sampler's table is another.
    other = "euler" if sampler != "euler" else "ddim"
    assert written["bridge.json"]["schedules"][other]["20"] != tables["20"]


def test_the_tokenizer_reads_back_as_it_was(written, mini):
    described, own = written["prompt_tokenizer.json"], mini.load_tokenizer()
    read = Tokenizer.from_str(json.dumps(described["tokenizer"]))
    for text in ("a red cat", "Ünïcode  ☃ <|endoftext|> 12", "don't"):
        assert read.encode(text, add_special_tokens=False).ids == own.encode(text)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "model_max_length"):
        assert described[key] == getattr(own, key)


def test_special_tokens_that_are_not_looked_for_are_left_out(mini):
    own = mini.load_tokenizer()
    text = "a cat <|endoftext|>"
    plain = tokenizer_description(own)
    assert any(token["special"] for token in plain["tokenizer"]["added_tokens"])
    model = Tokenizer.from_str(own.model.to_str())
    model.encode_special_tokens = True
    split = PromptTokenizer(
        own.bos_token_id, own.eos_token_id, own.pad_token_id, own.model_max_length, model
    )
    read = Tokenizer.from_str(json.dumps(tokenizer_description(split)["tokenizer"]))
    assert read.encode(text, add_special_tokens=False).ids == split.encode(text)
    assert split.encode(text) != own.encode(text)  # the control
