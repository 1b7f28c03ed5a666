"""The training loop: it learns, resumes bit for bit, keeps what is good, and refuses the rest."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_map_only

from hbsdk.bundle import Bundle
from hbsdk.errors import OptionError, TrainingError
from hbsdk.objective import ObjectiveParts
from hbsdk.regressor import PromptRegressor
from hbsdk.training import checkpoint, run
from hbsdk.training.encode import FrozenNetworks
from hbsdk.training.loop import TrainingResult, train
from hbsdk.training.options import TrainOptions
from hbsdk.training.start import fresh_regressor
from hbsdk.training.stopping import TrainingStoppedError
from tests.pair_source import FixedSquaresSource, RecurringSquaresSource, SquaresSource

OPTIONS = TrainOptions(steps=6, batch_size=2, learning_rate=1e-3, log_steps=1, checkpoint_steps=2)
MUON = replace(OPTIONS, optimizer="muon", ema_decay=0.8, warmup_steps=3, decay_fraction=0.5)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def start(bundle: Bundle) -> PromptRegressor:
    return bundle.load_regressor()


@pytest.fixture
def trained(
    bundle: Bundle, start: PromptRegressor, tmp_path: Path
) -> Callable[..., TrainingResult]:
    """Train into a folder of the test's, from the tiny bundle's regressor."""

    def run_it(
        name: str, options: TrainOptions = OPTIONS, source: object = None, **how: object
    ) -> TrainingResult:
        settings = {"regressor": start, "progress": False} | how
        return train(bundle, source or SquaresSource(), tmp_path / name, options, **settings)

    return run_it


def losses(out: Path) -> list[float]:
    lines = (out / "losses.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def weights(result: TrainingResult) -> Mapping[str, torch.Tensor]:
    return PromptRegressor.from_pretrained(result.regressor).state_dict()


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


class Interrupt:
    """Sends this process a signal when it hears of a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self.step, self.number = step, number

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)

    def on_sample(self, step: int, regressor: PromptRegressor) -> None:
        raise AssertionError("no samples were asked for")


def test_the_defaults_are_the_papers() -> None:
    options = TrainOptions()
    assert (options.optimizer, options.learning_rate, options.batch_size) == ("adamw", 2e-5, 8)
    assert (options.mask_loss_weight, options.weight_decay) == (1e-3, 1e-2)
    assert (options.background_weight, options.ema_decay, options.warmup_steps) == (1.0, 0.0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("batch_size", 0), ("gradient_accumulation_steps", 1.5),
        ("learning_rate", float("nan")), ("optimizer", "sgd"), ("mixed_precision", "int8"),
        ("ema_decay", 1.0), ("keep_checkpoints", 0), ("seed", -1), ("max_gradient_norm", 0.0),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name):
        TrainOptions(**{name: value})


def test_a_precision_that_the_device_lacks_is_refused(trained) -> None:
    with pytest.raises(OptionError, match="mixed_precision"):
        trained("half", replace(OPTIONS, mixed_precision="fp16"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls_and_without_a_rate_it_does_not(trained, start, tmp_path, optimizer) -> None:
    options = replace(
        OPTIONS, steps=10, batch_size=4, optimizer=optimizer, learning_rate=1e-2, muon_rate=1e-2,
        mask_loss_weight=1.0, checkpoint_steps=100,
    )  # fmt: skip
    one = SquaresSource(colours=1)
    changed = weights(trained("learning", options, one))
    still = weights(trained("still", replace(options, optimizer="adamw", learning_rate=0.0), one))
    learning, standing = losses(tmp_path / "learning"), losses(tmp_path / "still")
    assert learning[0] == standing[0]  # the same pictures, noise and weights
    assert sum(learning[-4:]) < 0.995 * sum(standing[-4:])
    assert same(still, start.state_dict())
    assert not any(torch.equal(changed[name], w) for name, w in still.items() if w.ndim > 1)


@pytest.mark.parametrize(
    ("options", "number"),
    [(OPTIONS, signal.SIGTERM), (MUON, signal.SIGINT)],
    ids=["AdamW", "Muon and an average"],
)
def test_a_stopped_run_resumes_bit_for_bit(trained, tmp_path, options, number) -> None:
    whole = trained("whole", options)
    before = signal.getsignal(number)
    with pytest.raises(TrainingStoppedError, match=rf"{number.name} after 3 of 6 steps.*--resume"):
        trained("parts", options, observers=[Interrupt(2, number)])
    assert signal.getsignal(number) is before
    assert checkpoints(tmp_path / "parts") == ["step-000002", "step-000003"]
    with (tmp_path / "parts/losses.jsonl").open("a") as log:
        log.write('{"step": 4, "loss": 77.0}\n{"step": 5, "lo')  # of a run that was killed
    resumed = trained("parts", options, resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert same(weights(resumed), weights(whole))
    assert resumed.steps == whole.steps == 6
    assert resumed.seconds > 0


def test_another_seed_gives_other_losses(trained, tmp_path) -> None:
    for seed in (0, 1):
        trained(str(seed), replace(OPTIONS, steps=2, seed=seed))
    pairs = zip(losses(tmp_path / "0"), losses(tmp_path / "1"), strict=True)
    assert all(abs(one - other) > 1e-4 for one, other in pairs)


def test_accumulated_batches_equal_one_large_one(trained, tmp_path) -> None:
    options = replace(OPTIONS, steps=3, batch_size=8, checkpoint_steps=100)
    whole = weights(trained("whole", options))
    parts = weights(trained("parts", replace(options, batch_size=4, gradient_accumulation_steps=2)))
    half = weights(trained("half", replace(options, batch_size=4)))  # the control
    for one, other in zip(losses(tmp_path / "whole"), losses(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    # AdamW divides by a gradient's size, however small: weights agree less than gradients do.
    assert distance(whole, parts) < 0.02 * distance(whole, half)


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    return sum((one[name] - other[name]).square().sum() for name in one).sqrt().item()


def test_only_the_regressor_is_trained(trained, bundle, start, monkeypatch) -> None:
    loaded: list[FrozenNetworks] = []
    load = FrozenNetworks.load
    monkeypatch.setattr(
        FrozenNetworks, "load", lambda *how: loaded.append(load(*how)) or loaded[-1]
    )
    before = {name: w.clone() for name, w in start.state_dict().items()}
    result = trained("run", replace(OPTIONS, steps=2))
    (networks,) = loaded
    frozen = {
        "unet": networks.denoiser.unet, "text_encoder": networks.denoiser.text_encoder,
        "vae": networks.vae, "image_encoder": networks.image_encoder, "dino": networks.dino,
    }  # fmt: skip
    for name, network in frozen.items():
        untouched = getattr(bundle, f"load_{name}")().state_dict()
        assert same(network.state_dict(), untouched), name
        assert not any(p.requires_grad or p.grad is not None for p in network.parameters()), name
    assert same(start.state_dict(), before)
    assert not same(weights(result), before)  # the control


def test_the_average_of_the_weights_is_what_is_saved(trained) -> None:
    options = replace(OPTIONS, steps=2)
    first = weights(trained("first", replace(options, steps=1)))
    second = weights(trained("second", options))
    averaged = weights(trained("averaged", replace(options, ema_decay=0.75)))
    for name, weight in averaged.items():
        torch.testing.assert_close(weight, 0.75 * first[name] + 0.25 * second[name])
    assert not same(averaged, second)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts what the forward pass keeps for the backward one, while the context is open."""

    def __init__(self) -> None:
        self.count = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            self.count += tensor.nbytes
            return tensor

        super().__init__(keep, lambda tensor: tensor)


def test_less_memory_gives_the_same_losses(trained, tmp_path, monkeypatch) -> None:
    options = replace(OPTIONS, steps=2)
    less = replace(options, gradient_checkpointing=True)
    plain, checkpointed = SavedBytes(), SavedBytes()
    with plain:
        trained("plain", options)
    with checkpointed:
        trained("checkpointed", less)
    assert checkpointed.count < 0.8 * plain.count
    expected = pytest.approx(losses(tmp_path / "plain"), abs=1e-6)
    assert losses(tmp_path / "checkpointed") == expected
    # The control: a checkpoint that forgets the gradient of what it computes again.
    enable = PromptRegressor.enable_gradient_checkpointing

    def forgetful(function: Callable[..., object], *inputs: object) -> object:
        return tree_map_only(torch.Tensor, torch.Tensor.detach, function(*inputs))

    monkeypatch.setattr(
        PromptRegressor, "enable_gradient_checkpointing", lambda self: enable(self, forgetful)
    )
    trained("forgetful", less)
    first, second = losses(tmp_path / "forgetful")
    assert [first] == pytest.approx(losses(tmp_path / "plain")[:1], abs=1e-6)
    assert [first, second] != expected


def broken_objective(at: int, kind: str) -> Callable[..., ObjectiveParts]:
    """Eq. 7 whose call number `at` has a loss, or a gradient, that is no number."""
    objective, calls = run.objective, iter(range(1, 1000))

    def broken(denoiser, words, batch, weights) -> ObjectiveParts:
        parts = objective(denoiser, words, batch, weights)
        if next(calls) != at:
            return parts
        if kind == "loss":
            return replace(parts, total=parts.total * float("nan"))
        return replace(parts, total=parts.total + (words * 0.0).abs().sqrt().sum())

    return broken


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(
    trained, tmp_path, monkeypatch, kind
) -> None:
    options = replace(OPTIONS, checkpoint_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(run, "objective", broken_objective(4, kind))
        with pytest.raises(TrainingError, match=rf"stopped at step 4: .*{kind}.* nan.*step-000002"):
            trained("run", options)
    assert checkpoints(tmp_path / "run") == ["step-000002"]
    assert not (tmp_path / "run" / "regressor").exists()
    trained("run", options, resume=True)  # on mended data
    trained("whole", options)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_full_disk_leaves_the_former_checkpoint(trained, tmp_path, monkeypatch) -> None:
    write = checkpoint._write_state

    def full(state: Mapping[str, object], path: Path) -> None:
        if "step-000004" in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(state, path)

    monkeypatch.setattr(checkpoint, "_write_state", full)
    told = r"step 4 could not be written: the disk is full.*--resume from step-000002"
    with pytest.raises(TrainingError, match=told):
        trained("run")
    assert checkpoints(tmp_path / "run") == ["step-000002"]
    monkeypatch.undo()
    trained("run", resume=True)
    assert checkpoints(tmp_path / "run") == ["step-000004", "step-000006"]


def test_a_write_that_the_system_refuses_is_reported(tmp_path) -> None:
    """torch hides the system's error behind one of its own."""
    how = {"seconds": 1.0, "run": {}, "keep": 2}
    checkpoint.write_checkpoint(tmp_path, {"weight": torch.zeros(8)}, step=1, **how)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"step 2 could not be written.*too large"):
            checkpoint.write_checkpoint(tmp_path, {"weight": torch.zeros(99_999)}, step=2, **how)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    with pytest.raises(RuntimeError, match="a mistake"), checkpoint.refused_writes("it", tmp_path):
        raise RuntimeError("a mistake")


def test_half_written_checkpoints_are_ignored(trained, tmp_path) -> None:
    trained("run", replace(OPTIONS, steps=4, keep_checkpoints=3))
    within = tmp_path / "run" / "checkpoints"
    state = within / "step-000004" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    shutil.copytree(within / "step-000002", within / ".step-000009.tmp")
    (within / "step-000008").mkdir()
    found = checkpoint.newest_checkpoint(tmp_path / "run")
    assert found is not None
    assert found.folder.name == "step-000002"
    trained("run", replace(OPTIONS, steps=4), resume=True)
    trained("whole", replace(OPTIONS, steps=4))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_damaged_checkpoint_is_named(trained, tmp_path) -> None:
    trained("run", replace(OPTIONS, steps=2))
    state = tmp_path / "run" / "checkpoints" / "step-000002" / "state.pt"
    state.write_bytes(bytes(len(state.read_bytes())))
    with pytest.raises(TrainingError, match=r"step-000002 cannot be read.*Remove this folder"):
        trained("run", resume=True)


def changed(regressor: PromptRegressor, **config: object) -> PromptRegressor:
    """A regressor of the same architecture but for some of it, with random weights."""
    return PromptRegressor.from_config({**regressor.config, **config})


def test_only_the_same_run_is_resumed(trained, start, tmp_path) -> None:
    options = replace(OPTIONS, steps=2)
    trained("run", options)
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    others = {
        "data": {"source": SquaresSource(colours=3)},
        "global batch": {"options": replace(options, batch_size=3)},
        "seed": {"options": replace(options, seed=1)},
        "regressor's num_words": {"regressor": changed(start, num_words=2)},
        "regressor's encoders": {"regressor": changed(start, encoders="clip")},
    }
    for name, other in others.items():
        with pytest.raises(TrainingError, match=f"{name}.*: expected .*, got .*") as caught:
            trained("run", **{"options": options, "resume": True} | other)
        assert caught.value.expected != caught.value.got
    with pytest.raises(TrainingError, match=r"would be overwritten.*--resume"):
        trained("run", options)
    assert all(path.read_bytes() == data for path, data in kept.items())


def test_a_run_may_be_resumed_for_longer_or_at_another_rate(trained, tmp_path) -> None:
    trained("run", replace(OPTIONS, steps=2))
    trained("run", replace(OPTIONS, steps=4), resume=True)
    trained("whole", replace(OPTIONS, steps=4))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    with pytest.warns(UserWarning, match="learning_rate was 0.001 so far and is 0.0"):
        trained("run", replace(OPTIONS, steps=5, learning_rate=0.0), resume=True)
    last = (tmp_path / "run" / "losses.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["learning_rate"] == 0.0


class Watcher:
    """Writes down what an observer is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.samples: list[tuple[int, bool, float]] = []

    def on_step(self, step: int, figures: Mapping[str, float]) -> None:
        assert {"loss", "denoising", "mask", "learning_rate", "images_per_second"} <= set(figures)
        self.steps.append(step)

    def on_sample(self, step: int, regressor: PromptRegressor) -> None:
        mean = regressor.state_dict()["base_words"].double().mean().item()
        self.samples.append((step, regressor.training, mean))


def test_observers_hear_of_steps_and_see_the_averaged_regressor(trained) -> None:
    watcher = Watcher()
    options = replace(OPTIONS, steps=5, log_steps=3, sample_steps=5, ema_decay=0.9)
    result = trained("run", options, observers=[watcher])
    assert watcher.steps == [1, 3, 5]
    saved = weights(result)["base_words"].double().mean().item()
    assert watcher.samples == [(5, False, saved)]


def test_what_was_skipped_and_what_was_done_is_written_down(trained, tmp_path) -> None:
    skips = [("b.png", "not a\tpicture"), ("a.png", "truncated"), ("a.png", "truncated")]
    result = trained("run", replace(OPTIONS, steps=2), SquaresSource(skips=skips))
    assert result.skipped == 2
    table = (tmp_path / "run" / "skipped.tsv").read_text().splitlines()
    assert table == ["file\treason", "a.png\ttruncated", "b.png\tnot a picture"]
    account = json.loads((tmp_path / "run" / "training.json").read_text())
    assert (account["steps"], account["skipped"], account["source"]) == (2, 2, "squares")
    assert account["options"]["batch_size"] == 2
    assert account["versions"]["torch"] == torch.__version__
    assert not list((tmp_path / "run").glob(".*"))  # nothing temporary stays


class MixedUpSquaresSource(FixedSquaresSource):
    """Says of two pictures that they are one, so that one is taken for the other."""

    def keys(self, seed: int, step: int, indices: Sequence[int]) -> list[tuple[int, int]]:
        return [(shown // 2, drawn // 2) for shown, drawn in super().keys(seed, step, indices)]


def test_fixed_pictures_are_encoded_once(trained, tmp_path, monkeypatch) -> None:
    from hbsdk.training.encode import PairEncoder

    encoded: list[int] = []
    encode = PairEncoder._encode_features

    def counted(self: PairEncoder, pictures, masks):
        encoded.append(len(pictures))
        return encode(self, pictures, masks)

    monkeypatch.setattr(PairEncoder, "_encode_features", counted)
    kept = {"source": FixedSquaresSource(), "encoded": tmp_path / "encoded"}
    options = replace(OPTIONS, batch_size=3)
    whole = weights(trained("whole", options, **kept))
    assert len(encoded) < options.steps
    encoded.clear()
    trained("again", options, **kept)
    assert encoded == []
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    with pytest.raises(TrainingError, match="SIGTERM"):
        trained("parts", options, FixedSquaresSource(), observers=[Interrupt(2, signal.SIGTERM)])
    trained("parts", options, FixedSquaresSource(), resume=True)  # with other ones kept
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    # Losses of random networks hardly depend on the pictures; what is learnt from them does.
    unkept = weights(trained("unkept", options, RecurringSquaresSource()))  # each time, in float32
    mixed_up = weights(trained("mixed up", options, MixedUpSquaresSource()))  # the control
    assert distance(whole, unkept) < 0.02 * distance(mixed_up, unkept)


def test_a_regressor_of_another_bundle_is_refused(trained, start) -> None:
    with pytest.raises(TrainingError, match=r"dino_dim: expected 32.*got 48"):
        trained("run", regressor=changed(start, dino_dim=48))


def test_training_starts_near_the_class_word(bundle, start) -> None:
    """As the bundle's own regressor was made, but for the random weights of its pooling."""
    fresh = fresh_regressor(bundle)
    torch.testing.assert_close(fresh.base_words, start.base_words)
    assert same(fresh.mid_block.state_dict(), bundle.load_unet().mid_block.state_dict())
    assert same(fresh.state_dict(), fresh_regressor(bundle).state_dict())
    assert not same(fresh.state_dict(), fresh_regressor(bundle, seed=1).state_dict())
    assert fresh_regressor(bundle, num_words=2, encoders="clip").base_words.shape[0] == 2
