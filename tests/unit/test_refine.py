"""Refinement: what it moves, what it leaves alone, what it reports, and Eq. 5 by hand."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import Attention

import hbsdk.refine
from hbsdk.features import ImageFeatures
from hbsdk.mini.tokenizer import learn_tokenizer
from hbsdk.objective import Denoiser, ObjectiveWeights, objective
from hbsdk.options import PersonalizeOptions
from hbsdk.refine import (
    EncodedReference,
    noised_reference,
    predict_words,
    reference_loss,
    refine,
    refined_weights,
)
from hbsdk.regressor import PromptRegressor
from hbsdk.text import tokenize_prompt
from tests.tiny_bundle import (
    CAPTIONS,
    WIDTH,
    prompt_tokenizer,
    tiny_regressor,
    tiny_text_encoder,
    tiny_unet,
)

# Large steps over few noise levels: a tiny random model moves, and fast.
OPTIONS = PersonalizeOptions(
    steps=2, refined="attention", effective_step=1e-2, word_step=0.2, timesteps_per_step=4
)
EVERYTHING = ("attention", "keys-values", "head", "words")


@dataclass(frozen=True)
class Setting:
    regressor: PromptRegressor
    denoiser: Denoiser
    reference: EncodedReference

    def refine(self, options: PersonalizeOptions = OPTIONS, **changes):
        return refine(self.regressor, self.denoiser, self.reference, replace(options, **changes))

    def networks(self) -> dict[str, torch.nn.Module]:
        return {
            "regressor": self.regressor,
            "unet": self.denoiser.unet,
            "text_encoder": self.denoiser.text_encoder,
        }


def make_setting() -> Setting:
    torch.manual_seed(0)
    tokenizer = learn_tokenizer(CAPTIONS, size=600)
    unet, text_encoder = tiny_unet().eval(), tiny_text_encoder(tokenizer).eval()
    regressor = tiny_regressor(unet, text_encoder, tokenizer).eval()
    tokens = tokenize_prompt(prompt_tokenizer(tokenizer), "a photo of S*", {"s*": 5})
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 1:6] = 1.0
    reference = EncodedReference(
        latents=torch.randn(1, 4, 8, 8),
        mask=mask,
        features=ImageFeatures(torch.randn(1, 17, WIDTH), torch.randn(1, 17, WIDTH)),
        ids=torch.from_numpy(tokens.ids)[None],
        positions=torch.tensor(tokens.places["s*"]),
        mirrored=torch.randn(1, 4, 8, 8),
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )  # fmt: skip
    return Setting(regressor, Denoiser(unet, text_encoder, scheduler), reference)


@pytest.fixture(scope="module")
def setting() -> Setting:
    setting = make_setting()
    for network in setting.networks().values():
        network.requires_grad_(False)
    return setting


@pytest.fixture(scope="module")
def refined(setting):
    return setting.refine()


def cross_attention_weights(regressor: PromptRegressor) -> set[str]:
    """Q, K and V of every cross-attention, found by class rather than by name."""
    return {
        f"{name}.{part}.weight"
        for name, module in regressor.named_modules()
        if isinstance(module, Attention) and module.is_cross_attention
        for part in ("to_q", "to_k", "to_v")
    }


def test_only_q_k_and_v_of_the_cross_attention_are_refined(setting):
    names = set(refined_weights(setting.regressor))
    assert names == cross_attention_weights(setting.regressor)
    assert len(names) == 3 * 2  # the first level's layer and the middle's
    assert not any("attn1" in name or "to_out" in name for name in names)


def test_keys_and_values_alone_and_the_head_alone(setting):
    attention = set(refined_weights(setting.regressor))
    keys_values = set(refined_weights(setting.regressor, "keys-values"))
    assert keys_values == {name for name in attention if "to_q" not in name}
    head = set(refined_weights(setting.regressor, "head"))
    assert head
    assert all(name.split(".")[0] in {"pool", "to_words"} for name in head)
    assert refined_weights(setting.regressor, "words") == {}


@pytest.mark.parametrize("refined", EVERYTHING)
@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_reach_dw_and_only_dw(frozen, refined):
    setting = make_setting()
    for network in setting.networks().values():
        network.requires_grad_(not frozen)
    before = {name: copy.deepcopy(n.state_dict()) for name, n in setting.networks().items()}
    words, report = setting.refine(refined=refined)
    assert report.word_change > 1e-3  # something was learned
    assert not words.requires_grad
    for name, network in setting.networks().items():
        state = network.state_dict()
        assert all(torch.equal(state[key], before[name][key]) for key in state), name
        assert [key for key, p in network.named_parameters() if p.grad is not None] == [], name
    for value in (setting.reference.latents, setting.reference.mask):
        assert value.grad is None


def test_the_words_are_of_the_right_kind(setting, refined):
    words, report = refined
    assert words.shape == (1, 5, WIDTH)
    assert words.dtype == torch.float32
    assert torch.isfinite(words).all()
    assert report.steps == len(report.losses) == 2
    assert report.seconds > 0.0
    assert set(report.as_dict()) >= {"loss_before", "loss_after", "word_change", "weight_change"}


@pytest.mark.parametrize("refined", ["attention", "words"])
def test_steps_lower_the_loss_on_noise_that_was_not_trained_on(setting, refined):
    _, report = setting.refine(refined=refined, mirror=False, steps=6, effective_step=2e-2)
    assert report.loss_after < report.loss_before - 1e-5
    assert (report.weight_change > 0.01) == (refined == "attention")


@pytest.mark.parametrize("refined", ["attention", "words"])
def test_climbing_would_raise_it(setting, monkeypatch, refined):
    rate = hbsdk.refine._rate
    monkeypatch.setattr("hbsdk.refine._rate", lambda *arguments: -rate(*arguments))
    monkeypatch.setattr(torch.optim.AdamW, "__init__", climbing_adamw)
    _, report = setting.refine(refined=refined, mirror=False, steps=6, effective_step=2e-2)
    assert report.loss_after > report.loss_before + 1e-5


def climbing_adamw(self, params, lr, **settings):
    """AdamW takes no negative rate, but it does maximize."""
    defaults = {"betas": (0.9, 0.999), "amsgrad": False, "maximize": True, "foreach": None,
                "capturable": False, "differentiable": False, "fused": None,
                "decoupled_weight_decay": True, **settings}  # fmt: skip
    torch.optim.Optimizer.__init__(self, params, {"lr": -lr, **defaults})


@pytest.mark.parametrize("refined", EVERYTHING)
def test_a_step_of_nothing_changes_nothing_and_the_report_says_so(setting, refined):
    probe = predict_words(setting.regressor, setting.reference)
    words, report = setting.refine(refined=refined, effective_step=0.0, word_step=0.0)
    assert torch.equal(words, probe)
    assert report.word_change == 0.0
    assert report.weight_change == 0.0
    assert report.loss_before == report.loss_after


def test_the_report_measures_the_words(setting, refined):
    words, report = refined
    probe = predict_words(setting.regressor, setting.reference)
    change = ((words - probe).norm() / probe.norm()).item()
    assert report.word_change == pytest.approx(change, rel=1e-5)
    assert change > 1e-3
    assert report.loss_before != report.loss_after


def test_the_paper_taken_literally_moves_far_less(setting):
    default = PersonalizeOptions(refined="attention", effective_step=5e-4)
    _, literal = setting.refine(default, mode="paper")
    _, moved = setting.refine(default, timesteps_per_step=4)
    assert literal.steps == moved.steps == 5
    assert 0.0 < literal.word_change < 1e-3 * moved.word_change
    assert 0.0 < literal.weight_change < 1e-3 * moved.weight_change
    # AdamW's first steps are at most the rate: 5 steps of 2e-5 on dW, times 1e-2.
    sizes = [w.numel() for w in refined_weights(setting.regressor).values()]
    norm = sum(w.square().sum() for w in refined_weights(setting.regressor).values()).sqrt()
    assert literal.weight_change <= 1.01 * 5 * 2e-5 * 1e-2 * sum(sizes) ** 0.5 / norm.item()


def test_the_papers_losses_are_plain(setting):
    """One noise level a step, Eq. 6 as printed, no weight: other options of these do not count."""
    literal = PersonalizeOptions(mode="paper", steps=1)
    same = {"mask_loss": "area", "background_weight": 0.0, "timesteps_per_step": 9, "mirror": True}
    same |= {"refined": "words"}
    words, report = setting.refine(literal)
    again, other = setting.refine(literal, **same)
    assert torch.equal(words, again)
    assert report.losses == other.losses
    _, seeded = setting.refine(literal, seed=1)
    assert seeded.losses != report.losses


def test_a_first_step_on_the_words_is_a_share_of_their_rms(setting):
    probe = predict_words(setting.regressor, setting.reference)
    words, _ = setting.refine(refined="words", steps=1, word_step=0.03)
    step = (words - probe).abs().max().item()
    assert step == pytest.approx(0.03 * probe.square().mean().sqrt().item(), rel=0.01)
    twice, _ = setting.refine(refined="words", steps=1, word_step=0.06)
    assert (twice - probe).abs().max().item() == pytest.approx(2 * step, rel=0.01)


@pytest.mark.parametrize("refined", ["attention", "words"])
def test_the_mirrored_photo_counts_only_if_asked_for(setting, refined):
    words, _ = setting.refine(refined=refined)
    without, _ = setting.refine(refined=refined, mirror=False)
    other = replace(setting.reference, mirrored=torch.randn(1, 4, 8, 8))
    changed = Setting(setting.regressor, setting.denoiser, other)
    assert not torch.equal(changed.refine(refined=refined)[0], words)
    assert torch.equal(changed.refine(refined=refined, mirror=False)[0], without)
    assert not torch.equal(words, without)


def test_the_mirrored_photos_mask_is_mirrored(setting):
    """A photo that is its own mirror image, under a mask that is not, shows the mask's place."""
    latents = setting.reference.latents
    symmetric = replace(
        setting.reference, latents=latents + latents.flip(-1), mirrored=latents + latents.flip(-1)
    )
    turned = replace(symmetric, mask=symmetric.mask.flip(-1))
    batch, other = (
        hbsdk.refine.noised_reference(setting.denoiser, one, 4, torch.Generator().manual_seed(0))
        for one in (symmetric, turned)
    )
    assert torch.equal(batch.mask[0::2], symmetric.mask.expand(2, -1, -1, -1))
    assert torch.equal(batch.mask[1::2], symmetric.mask.flip(-1).expand(2, -1, -1, -1))
    assert torch.equal(batch.mask[1::2], other.mask[0::2])
    assert not torch.equal(batch.mask[0], batch.mask[1])


def test_micro_batches_change_the_memory_and_not_the_words(setting):
    found = [setting.refine(timesteps_per_step=8, micro_batch_size=size) for size in (1, 3, 8)]
    probe = predict_words(setting.regressor, setting.reference)
    for words, report in found[1:]:
        assert (words - found[0][0]).abs().max() < 1e-6
        assert report.losses == pytest.approx(found[0][1].losses, rel=1e-5)
    assert (found[0][0] - probe).abs().max() > 1e-4


@pytest.mark.parametrize(("what", "regressor_runs"), [("head", 2), ("attention", 4), ("words", 1)])
def test_what_does_not_move_is_computed_once(setting, what, regressor_runs):
    """Two steps: the text once a step and check, the regions once beside the probe's own."""
    runs: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: runs.append(name))
        for name, module in (
            ("text", setting.denoiser.text_encoder), ("regions", setting.regressor.conv_in),
            ("unet", setting.denoiser.unet),
        )
    ]  # fmt: skip
    setting.refine(refined=what, steps=2, micro_batch_size=2)
    for handle in handles:
        handle.remove()
    assert runs.count("text") == 2 + 2  # a step, and before and after
    assert runs.count("regions") == regressor_runs
    assert runs.count("unet") == 2 * 4 // 2 + 2 * 16 // 2


def test_encoding_the_text_once_keeps_the_loss_and_its_gradient(setting):
    """Against the objective of a batch whose every row holds, and encodes, the words."""
    generator = torch.Generator().manual_seed(3)
    batch = noised_reference(setting.denoiser, setting.reference, 4, generator)
    words = predict_words(setting.regressor, setting.reference).detach().requires_grad_()
    loss = reference_loss(setting.denoiser, words, batch, replace(OPTIONS, micro_batch_size=3))
    weights = ObjectiveWeights(
        OPTIONS.mask_loss_weight, OPTIONS.mask_loss, OPTIONS.background_weight
    )
    plain = words.detach().requires_grad_()
    expected = objective(setting.denoiser, plain.expand(4, -1, -1), batch, weights).total
    expected.backward(inputs=[plain])
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    scale = plain.grad.abs().max().item()
    torch.testing.assert_close(words.grad, plain.grad, rtol=0, atol=1e-5 * scale)
    assert (words.grad - 1.001 * plain.grad).abs().max() > 1e-5 * scale


def test_a_seed_fixes_the_words(setting, refined):
    words, report = refined
    again, same = setting.refine()
    other, different = setting.refine(seed=1)
    assert torch.equal(words, again)
    assert report.losses == same.losses
    assert not torch.equal(words, other)
    assert report.losses != different.losses
    assert report.loss_before == different.loss_before  # the check's noise is its own


def test_the_global_random_state_is_left_alone(setting):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    setting.refine(steps=1)
    assert torch.equal(torch.rand(3), expected)


def test_w_plus_lambda_dw_by_hand(setting):
    torch.manual_seed(6)
    weights = refined_weights(setting.regressor)
    residuals = {name: torch.randn_like(w) for name, w in weights.items()}
    before = {name: w.clone() for name, w in weights.items()}
    words = predict_words(setting.regressor, setting.reference, residuals, 0.03)
    edited = copy.deepcopy(setting.regressor)
    with torch.no_grad():
        for name, weight in edited.named_parameters():
            if name in cross_attention_weights(edited):
                weight += 0.03 * residuals[name]
    reference = setting.reference
    expected = edited(reference.latents, reference.features)
    assert torch.allclose(words, expected, atol=1e-6)
    plain = predict_words(setting.regressor, reference)
    opposite = predict_words(setting.regressor, reference, residuals, -0.03)
    assert (words - plain).abs().max() > 1e-4
    assert (words - opposite).abs().max() > 1e-4
    assert all(torch.equal(w, before[n]) for n, w in refined_weights(setting.regressor).items())


def test_every_residual_learns(setting, monkeypatch):
    kept = []
    adamw = torch.optim.AdamW.__init__

    def keep(self, params, **settings):
        kept.extend(params)
        adamw(self, kept, **settings)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", keep)
    setting.refine(steps=1)
    assert len(kept) == len(cross_attention_weights(setting.regressor))
    for residual in kept:
        assert residual.dtype == torch.float32
        # A first step of AdamW is the rate, 1e-2 / lambda, for each element with a gradient.
        assert residual.detach().abs().max().item() == pytest.approx(1.0, rel=0.05)


def test_progress_is_told_after_each_step(setting):
    told = []
    options = replace(OPTIONS, steps=3, timesteps_per_step=1)
    refine(setting.regressor, setting.denoiser, setting.reference, options, told.append)
    assert told == [1, 2, 3]
