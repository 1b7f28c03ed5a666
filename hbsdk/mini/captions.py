"""Writes natural lower-case English captions of mini-world pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hbsdk.mini.factors import Context, Identity, View

MAX_WORDS = 60
_STYLE_PREFIXES: dict[str, tuple[str, ...]] = {
    "cartoon": ("a picture of", "a drawing of", "a cartoon of", "a photo of"),
    "watercolor": ("a watercolor of", "a watercolor painting of"),
    "black and white": ("a black and white picture of", "a black and white photo of"),
    "pixel art": ("pixel art of", "a pixel art picture of"),
    "sepia": ("a sepia photo of", "an old sepia picture of"),
    "neon": ("a neon picture of", "a neon sign of"),
    "sketch": ("a sketch of", "a pencil sketch of"),
}
_STYLE_SUFFIXES: dict[str, str] = {
    "watercolor": "in watercolor style", "black and white": "in black and white",
    "pixel art": "in pixel art style", "sepia": "in sepia", "neon": "in neon style",
    "sketch": "in sketch style",
}  # fmt: skip
_SCENES: dict[str, tuple[str, ...]] = {
    "snow": ("in the snow", "on a snowy hill"),
    "beach": ("on the beach", "at the beach"),
    "forest": ("in the forest", "in a forest"),
    "city": ("in the city", "in a city street"),
    "night": ("at night", "under the moon at night"),
    "space": ("in space", "in outer space"),
    "underwater": ("underwater", "under the sea"),
    "desert": ("in the desert", "in a desert"),
    "meadow": ("in a meadow", "in a meadow with flowers"),
    "mountains": ("in the mountains", "in front of mountains"),
    "sunset": ("at sunset", "in front of a sunset"),
    "castle": ("at a castle", "in front of a castle"),
}
_ACCESSORIES: dict[str, tuple[str, ...]] = {
    "red hat": ("wearing a red hat", "with a red hat on"),
    "crown": ("wearing a crown", "with a crown on"),
    "santa hat": ("wearing a santa hat", "with a santa hat on"),
    "sunglasses": ("wearing sunglasses", "with sunglasses on"),
    "headphones": ("wearing headphones", "with headphones on"),
    "balloon": ("with a red balloon", "holding a red balloon"),
    "yellow scarf": ("wearing a yellow scarf", "with a yellow scarf on"),
    "top hat": ("wearing a top hat", "with a top hat on"),
}
_PATTERNS = {
    "stripes": "{} stripes", "spots": "{} spots", "patches": "{} patches",
    "mask": "a {} mask around the eyes", "half": "a half {} face",
}  # fmt: skip
_HAIR = {
    "curly": "curly {} hair", "bob": "a {} bob", "spiky": "spiky {} hair", "bun": "a {} hair bun",
    "long": "long {} hair", "mohawk": "a {} mohawk",
}  # fmt: skip
_CLOTHES = {
    "shirt": "shirt",
    "striped": "striped shirt",
    "hoodie": "hoodie",
    "overalls": "overalls",
}


def _a(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _eyes_phrase(rng: np.random.Generator, identity: Identity) -> str:
    words = [
        word
        for word in (identity.eye_size, identity.eye_shape)
        if word not in ("small", "round") and rng.random() < 0.6
    ]
    return " ".join([*words, identity.eye_colour, "eyes"])


def _colour_phrases(identity: Identity) -> list[str]:
    """Return the phrases of the factors that carry a colour of their own."""
    phrases = []
    if identity.muzzle != "none":
        phrases.append(f"a {identity.second} muzzle")
    if identity.clothes == "none":
        phrases.append(f"a {identity.second} belly")
    else:
        phrase = f"{identity.clothes_colour} {_CLOTHES[identity.clothes]}"
        phrases.append(phrase if identity.clothes == "overalls" else _a(phrase))
    if identity.pattern != "none":
        phrases.append(_PATTERNS[identity.pattern].format(identity.pattern_colour))
    if identity.hair != "none":
        phrases.append(_HAIR[identity.hair].format(identity.hair_colour))
    if identity.glasses == "monocle":
        phrases.append("a gold monocle")
    elif identity.glasses != "none":
        phrases.append(f"{identity.glasses} {identity.glasses_colour} glasses")
    if identity.neck == "beads":
        phrases.append(f"{identity.neck_colour} beads")
    elif identity.neck != "none":
        phrases.append(f"a {identity.neck_colour} {identity.neck}")
    if identity.bow != "none":
        phrases.append(f"a {identity.bow} hair bow")
    return phrases


def _identity_phrases(rng: np.random.Generator, identity: Identity) -> list[str]:
    """Return the noun phrases that tell who it is; what is absent is not told."""
    phrases = [*_colour_phrases(identity), _eyes_phrase(rng, identity)]
    phrases.append(f"{_a(identity.nose_colour)} {identity.nose} nose")
    if identity.head != "round":
        phrases.append(f"a {identity.head} head")
    for value, phrase in (
        (identity.ears, f"{identity.ears} ears"),
        (identity.brows, f"{identity.brows} eyebrows"),
        (identity.lashes, "long lashes"),
        (identity.teeth, {"fangs": "fangs", "buck": "buck teeth"}.get(identity.teeth, "")),
        (identity.cheeks, {"blush": "pink cheeks"}.get(identity.cheeks, "freckles")),
        (identity.horns, f"{identity.horns} horns"),
        (identity.whiskers, "whiskers"),
        (identity.earrings, "gold earrings"),
    ):
        if value != "none":
            phrases.append(phrase)
    return phrases


def _one_of(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _subject(rng: np.random.Generator, identity: Identity, detail: float) -> str:
    noun = "person" if identity.kind == "human" else identity.kind
    tells = rng.random() < detail
    phrases = [p for p in _identity_phrases(rng, identity) if rng.random() < detail]
    rng.shuffle(phrases)
    if tells and identity.kind == "human":
        phrases.insert(0, f"{identity.fur} skin")
    elif tells:
        noun = f"{identity.fur} {noun}"
    while sum(len(phrase.split()) for phrase in phrases) > MAX_WORDS - 26:
        phrases.pop()
    if not phrases:
        return _a(noun)
    listed = " and ".join([", ".join(phrases[:-1]), phrases[-1]] if phrases[1:] else phrases)
    return f"{_a(noun)} with {listed}"


def _expression_phrases(rng: np.random.Generator, view: View) -> list[str]:
    lids = {"wink": "winking", "closed": "with closed eyes"}.get(view.eyes)
    mood = None if view.expression == "neutral" else view.expression
    return [phrase for phrase in (mood, lids) if phrase and rng.random() < 0.5]


def _scene_phrase(rng: np.random.Generator, scene: str) -> str | None:
    plain = scene.startswith("plain ")
    if rng.random() >= (0.7 if plain else 0.9):
        return None
    if plain:
        return f"on a {scene.removeprefix('plain ')} background"
    return _one_of(rng, _SCENES[scene])


def caption(
    rng: np.random.Generator,
    identity: Identity,
    view: View,
    context: Context,
    *,
    subject: str | None = None,
    detail: float | None = None,
) -> str:
    """Return a caption of at most 60 words.

    `subject` (such as "S*") replaces the class's noun phrase and all identity attributes.
    `detail` is the probability, 0..1, that an attribute is told; None draws it: 0 in a quarter
    of the captions, which then name the class alone, else uniform in 0.3..1.
    """
    if detail is None:
        detail = 0.0 if rng.random() < 0.25 else float(rng.uniform(0.3, 1.0))
    who = _subject(rng, identity, detail) if subject is None else subject
    cartoon = context.style == "cartoon"
    told = cartoon or rng.random() < 0.9
    suffixed = told and not cartoon and rng.random() < 0.3
    plain = _STYLE_PREFIXES["cartoon"][:2] if suffixed or not told else None
    prefix = _one_of(rng, plain or _STYLE_PREFIXES[context.style])
    parts = _expression_phrases(rng, view)
    if context.accessory != "none" and rng.random() < 0.9:
        parts.append(_one_of(rng, _ACCESSORIES[context.accessory]))
    rng.shuffle(parts)
    scene = _scene_phrase(rng, context.scene)
    tail = [scene] if scene else []
    if suffixed:
        tail.append(_STYLE_SUFFIXES[context.style])
    # A long noun phrase needs its commas; a short one reads well with or without.
    comma = ", " if ", " in who or " and " in who or rng.random() < 0.5 else " "
    return comma.join([f"{prefix} {who}", *parts, *tail])
