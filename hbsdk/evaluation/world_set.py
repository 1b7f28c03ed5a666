"""Evaluation subjects of the embedded world: characters that no training saw, with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from hbsdk.errors import EvaluationError
from hbsdk.evaluation.subjects import WORLDS, Domain, EvaluationSet, EvaluationSubject, Pixels
from hbsdk.mini import world
from hbsdk.mini.cache import draw_picture


@dataclass(frozen=True)
class Prompt:
    """A prompt with {} for the subject, and the context that a real picture of it has."""

    text: str
    context: world.Context


PROMPTS = (
    Prompt("a picture of {}", world.Context("plain blue", "cartoon", "none")),
    Prompt("a picture of {} in the snow", world.Context("snow", "cartoon", "none")),
    Prompt("a picture of {} on the beach", world.Context("beach", "cartoon", "none")),
    Prompt("a picture of {} wearing a crown in the forest",
           world.Context("forest", "cartoon", "crown")),
    Prompt("a picture of {} wearing a red hat in the city",
           world.Context("city", "cartoon", "red hat")),
    Prompt("a watercolor of {} in a meadow", world.Context("meadow", "watercolor", "none")),
    Prompt("a picture of {} with a red balloon at sunset",
           world.Context("sunset", "cartoon", "balloon")),
    Prompt("a picture of {} wearing headphones in space",
           world.Context("space", "cartoon", "headphones")),
)  # fmt: skip
REFERENCE = 0  # which of an identity's pictures is the photo
GALLERY = (1, 2)  # its real pictures that drawn ones are compared with
_VIEWS = 77  # of the real pictures in the prompts' contexts: another stream than the gallery's

# The validation seeds are training seeds that the regressor did not train on, and out-of-domain
# ones far behind those that are reported: settings are chosen on them, never on the others.
SEEDS: dict[Domain, range] = {
    "in": world.HELD_OUT_SEEDS,
    "out": world.OUT_OF_DOMAIN_SEEDS[:5000],
    "validation-in": world.TRAIN_SEEDS[11_936:12_000],
    "validation-out": world.OUT_OF_DOMAIN_SEEDS[5000:],
}


def world_set(domain: Domain, count: int, prompts: Sequence[Prompt] = PROMPTS) -> EvaluationSet:
    """Draw the subjects of a domain.

    Args:
        domain: "in": held-out identities made of values that training saw; "out": identities with
            values that it never saw; "validation-in" and "validation-out": others, to choose
            settings on.
        count: subjects, the domain's first ones.
        prompts: what they are drawn in.

    Returns:
        Subjects with (64, 64, 3) pictures; each one's `real` has random views of its own.

    Raises:
        EvaluationError: there is no such domain, or it has fewer subjects.
    """
    if domain not in get_args(Domain):
        raise EvaluationError(
            "the world's domain", expected=f"one of {', '.join(get_args(Domain))}", got=repr(domain)
        )
    seeds = SEEDS[domain]
    if not 1 <= count <= len(seeds):
        raise EvaluationError(
            f"subjects of the world's domain {domain!r}", expected=f"1 to {len(seeds)}",
            got=str(count),
        )  # fmt: skip
    subjects = tuple(_subject(seed, prompts) for seed in seeds[:count])
    (name,) = (name for name, its_domain in WORLDS.items() if its_domain == domain)
    return EvaluationSet(name=name, subjects=subjects)


def class_noun(identity: world.Identity) -> str:
    """Return the word for an identity's class; that of one never trained on is a word as well.

    Args:
        identity: a character.
    """
    return "person" if identity.kind == "human" else identity.kind


def _subject(seed: int, prompts: Sequence[Prompt]) -> EvaluationSubject:
    identity = world.identity(seed)
    return EvaluationSubject(
        name=f"character-{seed}",
        photo=draw_picture(seed, REFERENCE)[0],
        class_noun=class_noun(identity),
        prompts=tuple(prompt.text for prompt in prompts),
        gallery=tuple(draw_picture(seed, index)[0] for index in GALLERY),
        real=tuple(_real(identity, index, prompt) for index, prompt in enumerate(prompts)),
        attributes=world.attributes(identity),
    )


def _real(identity: world.Identity, index: int, prompt: Prompt) -> Pixels:
    view = world.view(np.random.default_rng([identity.seed, _VIEWS, index]))
    return world.render(identity, view, prompt.context)[0]
