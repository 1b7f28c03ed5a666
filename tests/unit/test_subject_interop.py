"""A saved subject in other tools: diffusers for real, the others by their key rules.

The rules were read in the tools' sources and are written down here in our own words.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from hbsdk.subject import Subject

WIDTH = 16
WORDS = (np.random.default_rng(0).standard_normal((5, WIDTH)) * 0.02).astype(np.float32)
SD15_WORDS = (np.random.default_rng(1).standard_normal((5, 768)) * 0.02).astype(np.float32)
VOCABULARY = ["a", "photo", "of", "in", "the", "snow", "fox", "s", "*", "<", ">", "_", "1", "2"]


def tiny_tokenizer():
    """A CLIP tokenizer of whole words and single letters, with no merges but those for words."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = [
        "<|startoftext|>",
        "<|endoftext|>",
        *letters,
        *(f"{letter}</w>" for letter in letters),
    ]
    merges = []
    for word in (word for word in VOCABULARY if len(word) > 1):
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
            tokens.append(pieces[0])
    unique = dict.fromkeys(tokens)
    return CLIPTokenizer(
        vocab={token: place for place, token in enumerate(unique)},
        merges=list(dict.fromkeys(merges)),
        model_max_length=77,
    )


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    made = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def saved(tmp_path):
    return Subject(WORDS, "fox").save(tmp_path)


def token_ids(pipeline, prompt):
    """What the pipeline feeds its text encoder, without start, end and padding."""
    text = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
    return pipeline.tokenizer(text, add_special_tokens=False)["input_ids"]


def draw(pipeline, prompt):
    return pipeline(
        prompt,
        num_inference_steps=2,
        height=8,
        width=8,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]


def test_the_tokenizer_of_this_test_reads_words(pipeline):
    assert pipeline.tokenizer.tokenize("A photo of a fox") == [
        f"{word}</w>" for word in ("a", "photo", "of", "a", "fox")
    ]


def test_diffusers_loads_all_five_words(pipeline, saved):
    plain = token_ids(pipeline, "a photo of")
    pipeline.load_textual_inversion(str(saved), token="<fox>")
    ids = token_ids(pipeline, "a photo of <fox> in the snow")
    assert ids[:3] == plain
    assert len(ids) == 3 + 5 + 3
    table = pipeline.text_encoder.get_input_embeddings().weight
    np.testing.assert_array_equal(table[ids[3:8]].detach().numpy(), WORDS)


def test_diffusers_draws_with_them(pipeline, saved, tmp_path):
    pipeline.load_textual_inversion(str(saved), token="<fox>")
    other = Subject(WORDS[::-1] * 3, "other").save(tmp_path)
    pipeline.load_textual_inversion(str(other), token="<other>")
    fox = draw(pipeline, "a photo of <fox>")
    assert np.isfinite(fox).all()
    np.testing.assert_array_equal(fox, draw(pipeline, "a photo of <fox>"))
    assert np.abs(fox - draw(pipeline, "a photo of <other>")).max() > 1e-6


def test_diffusers_loses_words_under_a_name_with_capitals(pipeline, saved):
    """Why names are lower case: the table has five rows, and the prompt reaches one of them."""
    pipeline.load_textual_inversion(str(saved), token="S*")
    ids = token_ids(pipeline, "a photo of S*")
    table = pipeline.text_encoder.get_input_embeddings().weight.detach().numpy()
    reached = [word for word in WORDS if any(np.array_equal(table[place], word) for place in ids)]
    assert len(reached) < 5


def test_diffusers_refuses_another_width(pipeline, tmp_path):
    """Negative control: not every file of ours fits every pipeline."""
    path = Subject(WORDS[:, :8], "fox").save(tmp_path)
    with pytest.raises(ValueError, match="incorrect shape"):
        pipeline.load_textual_inversion(str(path), token="<fox>")


def a1111(tensors, *, width):
    """AUTOMATIC1111/stable-diffusion-webui, modules/textual_inversion/textual_inversion.py,
    create_embedding_from_data and load_from_file (Forge keeps them): unless the keys are those of
    an old .pt or of SDXL there must be exactly one tensor, whatever its key; one vector becomes a
    row, and another width than the model's is skipped."""
    if "string_to_param" in tensors or {"clip_g", "clip_l"} <= tensors.keys():
        raise LookupError("another kind of file")
    if len(tensors) != 1:
        raise LookupError("several terms")
    (words,) = tensors.values()
    words = np.atleast_2d(words).astype(np.float32)
    if words.shape[-1] != width:
        raise LookupError("skipped: made for another model")
    return words


def comfyui(tensors, *, width):
    """Comfy-Org/ComfyUI, comfy/sd1_clip.py, load_embed for SD 1 (embed_key "clip_l"): takes the
    key string_to_param, else clip_l, else bundle_emb.*, else simply the first tensor; each row is
    a token. The width is only found wrong later, when the tokens are put together."""
    if "string_to_param" in tensors or any(key.startswith("bundle_emb.") for key in tensors):
        raise LookupError("another kind of file")
    words = tensors.get("clip_l", next(iter(tensors.values())))
    if words.shape[-1] != width:
        raise LookupError("tokens of another width")
    return np.atleast_2d(words)


def invokeai(tensors, *, width):
    """invoke-ai/InvokeAI, invokeai/backend/model_manager/configs/textual_inversion.py (which model
    it is for) and invokeai/backend/textual_inversion.py, from_checkpoint (reading): the key
    emb_params is known, its last dimension is the width, and 768 means SD 1. Under an unknown key
    the *first* dimension is taken for the width, so that only a single vector would pass."""
    if "emb_params" in tensors:
        found = tensors["emb_params"].shape[-1]
        words = tensors["emb_params"]
    else:
        words = next(iter(tensors.values()))
        found = words.shape[0]
    if found != width or found not in (768, 1024, 1280):
        raise LookupError("unrecognized token dimension")
    return np.atleast_2d(words)


def stable_diffusion_cpp(tensors, *, width):
    """leejet/stable-diffusion.cpp, src/conditioning/conditioner.hpp, load_embedding, with
    src/model_io/safetensors_io.cpp: any key; a tensor counts if its innermost dimension is the
    text encoder's width, others are skipped, the last that fits wins; bytes (U8) are ignored and
    float64 is read as float32. The file's name, in lower case, is the word in the prompt."""
    fitting = [
        words for words in tensors.values() if words.dtype != np.uint8 and words.shape[-1] == width
    ]
    if not fitting:
        raise LookupError("no usable tensor")
    return np.atleast_2d(fitting[-1]).astype(np.float32)


RULES = [a1111, comfyui, invokeai, stable_diffusion_cpp]


@pytest.mark.parametrize("rule", RULES)
def test_every_tool_finds_the_words(tmp_path, rule):
    path = Subject(SD15_WORDS, "fox", {"class_word": "fox"}).save(tmp_path)
    np.testing.assert_array_equal(rule(load_file(path), width=768), SD15_WORDS)
    assert path.name == path.name.lower()


@pytest.mark.parametrize("rule", RULES)
def test_no_tool_takes_words_of_another_width(tmp_path, rule):
    path = Subject(SD15_WORDS[:, :512], "fox").save(tmp_path)
    with pytest.raises(LookupError):
        rule(load_file(path), width=768)


@pytest.mark.parametrize(
    ("rule", "tensors"),
    [
        (a1111, {"emb_params": SD15_WORDS, "step": np.zeros(1, np.float32)}),
        (a1111, {"string_to_param": SD15_WORDS}),
        (comfyui, {"clip_l": SD15_WORDS[:, :64], "emb_params": SD15_WORDS}),
        (comfyui, {"bundle_emb.fox.clip_l": SD15_WORDS}),
        (invokeai, {"fox": SD15_WORDS}),
        (invokeai, {"embedding": SD15_WORDS}),
        (stable_diffusion_cpp, {"emb_params": np.zeros((5, 768), np.uint8)}),
        (stable_diffusion_cpp, {"emb_params": SD15_WORDS.T.copy()}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else value.__name__,
)
def test_the_rules_refuse_other_files(tmp_path, rule, tensors):
    """Negative control: the layout matters, and for InvokeAI the very key."""
    save_file(tensors, tmp_path / "fox.safetensors")
    with pytest.raises(LookupError):
        rule(load_file(tmp_path / "fox.safetensors"), width=768)
