"""The mini world: determinism, held-out values, masks, captions and sizes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from hbsdk.mini import world


def _held_out(identity: world.Identity) -> list[str]:
    return [name for name, values in world.HELD_OUT.items() if getattr(identity, name) in values]


def _drawn(seed: int) -> tuple[world.Identity, world.View, world.Context]:
    rng = np.random.default_rng(seed)
    return world.identity(seed), world.view(rng), world.context(rng)


def test_everything_is_deterministic_from_the_seed() -> None:
    first, second = _drawn(5), _drawn(5)
    assert first == second
    for one, other in zip(world.render(*first), world.render(*second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_seed_ranges_are_disjoint() -> None:
    ranges = (world.TRAIN_SEEDS, world.HELD_OUT_SEEDS, world.OUT_OF_DOMAIN_SEEDS)
    for before, after in pairwise(ranges):
        assert before.stop <= after.start


@pytest.mark.parametrize("seeds", [world.TRAIN_SEEDS, world.HELD_OUT_SEEDS])
def test_in_domain_seeds_have_no_held_out_value(seeds: range) -> None:
    assert not any(_held_out(world.identity(seed)) for seed in seeds[:1000])


def test_out_of_domain_seeds_have_a_held_out_value_and_reach_all() -> None:
    identities = [world.identity(seed) for seed in world.OUT_OF_DOMAIN_SEEDS[:1000]]
    assert all(_held_out(identity) for identity in identities)
    for name, values in world.HELD_OUT.items():
        assert set(values) <= {getattr(identity, name) for identity in identities}


def test_training_reaches_every_other_value() -> None:
    identities = [world.identity(seed) for seed in world.TRAIN_SEEDS[:3000]]
    for name, values in world.FACTORS.items():
        expected = set(values) - set(world.HELD_OUT.get(name, ()))
        assert {getattr(identity, name) for identity in identities} == expected


def test_attributes_index_the_factors() -> None:
    identity = world.identity(7)
    labels = world.attributes(identity)
    assert labels.keys() == world.FACTORS.keys()
    assert all(world.FACTORS[n][i] == getattr(identity, n) for n, i in labels.items())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (64, 96), (96, 64)])
def test_render_gives_picture_and_mask_of_the_size_asked(height: int, width: int) -> None:
    picture, mask = world.render(*_drawn(3), height=height, width=width)
    assert picture.shape == (height, width, 3)
    assert mask.shape == (height, width)
    assert picture.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}


def test_render_refuses_tiny_pictures() -> None:
    with pytest.raises(ValueError, match="at least 16 px"):
        world.render(*_drawn(3), height=8, width=64)


def test_masks_cover_a_fair_part_and_ignore_the_context() -> None:
    for seed in range(100):
        identity, view, context = _drawn(seed)
        _, mask = world.render(identity, view, context)
        assert 0.2 < mask.mean() < 0.75
        _, plain = world.render(identity, view, world.PLAIN)
        np.testing.assert_array_equal(mask, plain)


def test_the_scene_stays_outside_of_the_mask() -> None:
    identity = world.identity(11)
    pictures = [
        world.render(identity, world.NEUTRAL_VIEW, context)[0].astype(int)
        for context in world.PLAIN_CONTEXTS[:2]
    ]
    _, mask = world.render(identity, world.NEUTRAL_VIEW, world.PLAIN)
    changed = np.abs(pictures[0] - pictures[1]).max(axis=2) > 40
    assert changed[mask == 0].mean() > 0.9
    assert changed[mask == 1].mean() < 0.05


def test_every_scene_style_and_accessory_changes_the_picture() -> None:
    identity = world.identity(2)
    contexts = [
        *(world.Context(scene=scene) for scene in world.SCENES),
        *(replace(world.PLAIN, scene="beach", style=style) for style in world.STYLES[1:]),
        *(replace(world.PLAIN, accessory=accessory) for accessory in world.ACCESSORIES),
    ]
    pictures = {world.render(identity, world.NEUTRAL_VIEW, c)[0].tobytes() for c in contexts}
    assert len(pictures) == len(contexts)


def test_two_identities_differ_more_than_one_seen_twice() -> None:
    """Negative control: an identity's own picture does not differ, and views keep attributes."""
    for seed in range(20):
        first, second = world.identity(seed), world.identity(seed + 1)
        picture, _ = world.render(first, world.NEUTRAL_VIEW, world.PLAIN)
        again, _ = world.render(first, world.NEUTRAL_VIEW, world.PLAIN)
        other, _ = world.render(second, world.NEUTRAL_VIEW, world.PLAIN)
        assert np.array_equal(picture, again)
        assert np.abs(picture.astype(int) - other).mean() > 4.0
        assert world.attributes(first) == world.attributes(replace(first))
        assert world.attributes(first) != world.attributes(second)


def test_a_factor_changes_the_picture() -> None:
    identity = replace(world.identity(4), pattern="none", pattern_colour="none")
    striped = replace(identity, pattern="stripes", pattern_colour="blue")
    first, _ = world.render(identity, world.NEUTRAL_VIEW, world.PLAIN)
    second, _ = world.render(striped, world.NEUTRAL_VIEW, world.PLAIN)
    assert (np.abs(first.astype(int) - second).max(axis=2) > 30).mean() > 0.01


def test_plain_contexts_are_drawn_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)
    assert all(world.context(rng, plain=1.0) in world.PLAIN_CONTEXTS for _ in range(50))
    drawn = [world.context(rng, plain=0.0) for _ in range(500)]
    assert {context.scene for context in drawn} == set(world.SCENES)


def test_captions_are_short_lower_case_and_tell_the_class() -> None:
    for seed in range(500):
        identity, view, context = _drawn(seed)
        text = world.caption(np.random.default_rng(seed), identity, view, context)
        assert text == text.lower()
        assert len(text.split()) <= 60
        assert ("person" if identity.kind == "human" else identity.kind) in text.split(" with")[
            0
        ].replace(",", "").split()


def test_a_caption_without_detail_or_with_a_subject_tells_no_attribute() -> None:
    identity, view = (
        replace(world.identity(1), hair="curly", hair_colour="pink"),
        world.NEUTRAL_VIEW,
    )
    context = world.Context("snow", "watercolor", "crown")
    rng = np.random.default_rng(0)
    full = [world.caption(rng, identity, view, context, detail=1.0) for _ in range(20)]
    assert any("curly pink hair" in text for text in full)
    named = [world.caption(rng, identity, view, context, subject="S*") for _ in range(20)]
    bare = [world.caption(rng, identity, view, context, detail=0.0) for _ in range(20)]
    assert all("S*" in text and identity.kind not in text for text in named)
    assert not any(word in text for text in named + bare for word in ("hair", "eyes", "nose"))
