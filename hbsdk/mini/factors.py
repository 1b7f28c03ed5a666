"""What a mini-world picture is made of: an identity, a view of it and a context around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from hbsdk.mini.palette import BACKGROUNDS, distance

TRAIN_SEEDS = range(1_000_000)
HELD_OUT_SEEDS = range(1_000_000, 1_010_000)
OUT_OF_DOMAIN_SEEDS = range(2_000_000, 2_010_000)
JUDGE_SEEDS = range(3_000_000, 3_100_000)  # the evaluation's judge's own; odd ones as out of domain

FUR = (
    "white", "grey", "black", "brown", "tan", "peach", "orange", "red", "pink", "purple", "blue",
    "yellow", "teal", "green",
)  # fmt: skip
SKIN = ("peach", "tan", "brown")
SECOND = ("white", "cream", "tan", "grey", "pink", "yellow")
BOLD = ("white", "black", "brown", "orange", "red", "pink", "purple", "blue", "yellow")
CLOTHES = ("white", "black", "red", "orange", "yellow", "green", "blue", "purple", "pink")
HAIR = ("black", "brown", "blond", "red", "white", "blue", "pink", "green")

FACTORS: dict[str, tuple[str, ...]] = {
    "kind": ("cat", "dog", "bear", "rabbit", "human", "monster", "fox"),
    "ears": ("none", "pointy", "round", "floppy", "long", "small", "elf", "tufted"),
    "fur": FUR,
    "second": SECOND,
    "pattern": ("none", "stripes", "spots", "patches", "mask", "half"),
    "pattern_colour": ("none", *BOLD),
    "head": ("round", "wide", "tall", "square"),
    "eye_colour": ("blue", "green", "brown", "amber", "purple", "red"),
    "eye_size": ("small", "big"),
    "eye_shape": ("round", "oval", "sleepy"),
    "lashes": ("none", "lashes"),
    "brows": ("none", "thin", "thick"),
    "nose": ("triangle", "oval", "button", "heart"),
    "nose_colour": ("black", "pink", "brown", "red"),
    "muzzle": ("none", "round", "wide"),
    "teeth": ("none", "fangs", "buck"),
    "cheeks": ("none", "blush", "freckles"),
    "hair": ("none", "curly", "bob", "spiky", "bun", "long", "mohawk"),
    "hair_colour": ("none", *HAIR),
    "glasses": ("none", "round", "square", "monocle"),
    "glasses_colour": ("none", "black", "red", "blue", "purple", "gold"),
    "horns": ("none", "small", "curved"),
    "whiskers": ("none", "whiskers"),
    "clothes": ("none", "shirt", "striped", "hoodie", "overalls"),
    "clothes_colour": ("none", *CLOTHES),
    "neck": ("none", "bow tie", "beads", "collar"),
    "neck_colour": ("none", "red", "blue", "yellow", "purple", "white"),
    "earrings": ("none", "gold"),
    "bow": ("none", "red", "pink", "blue"),
}
HELD_OUT: dict[str, tuple[str, ...]] = {
    "kind": ("fox",),
    "ears": ("tufted",),
    "pattern": ("half",),
    "fur": ("teal", "green"),
    "glasses": ("monocle",),
}
EXPRESSIONS = ("neutral", "smiling", "laughing", "sad", "surprised", "angry")
EYES = ("open", "wink", "closed")
PLAIN_SCENES = tuple(f"plain {name}" for name in BACKGROUNDS)
PLACES = (
    "snow", "beach", "forest", "city", "night", "space", "underwater", "desert", "meadow",
    "mountains", "sunset", "castle",
)  # fmt: skip
SCENES = PLAIN_SCENES + PLACES
STYLES = ("cartoon", "watercolor", "black and white", "pixel art", "sepia", "neon", "sketch")
ACCESSORIES = (
    "red hat", "crown", "santa hat", "sunglasses", "headphones", "balloon", "yellow scarf",
    "top hat",
)  # fmt: skip
_STYLE_ODDS = (0.60, 0.11, 0.08, 0.07, 0.06, 0.04, 0.04)
_KIND_EARS: dict[str, dict[str, float]] = {
    "cat": {"pointy": 0.85, "round": 0.15},
    "dog": {"floppy": 0.75, "pointy": 0.25},
    "bear": {"round": 1.0},
    "rabbit": {"long": 0.85, "floppy": 0.15},
    "human": {"small": 0.85, "elf": 0.15},
    "monster": {"elf": 0.35, "none": 0.35, "pointy": 0.15, "long": 0.15},
    "fox": {"pointy": 0.8, "round": 0.2},
}


@dataclass(frozen=True)
class Identity:
    """One character: the seed it came from and one value of `FACTORS` for each factor."""

    seed: int
    kind: str
    ears: str
    fur: str
    second: str
    pattern: str
    pattern_colour: str
    head: str
    eye_colour: str
    eye_size: str
    eye_shape: str
    lashes: str
    brows: str
    nose: str
    nose_colour: str
    muzzle: str
    teeth: str
    cheeks: str
    hair: str
    hair_colour: str
    glasses: str
    glasses_colour: str
    horns: str
    whiskers: str
    clothes: str
    clothes_colour: str
    neck: str
    neck_colour: str
    earrings: str
    bow: str


@dataclass(frozen=True)
class View:
    """Nuisance that never tells who it is: shifts in fractions of the size, tilt in degrees."""

    shift_x: float = 0.0
    shift_y: float = 0.0
    scale: float = 1.0
    tilt_deg: float = 0.0
    expression: str = "neutral"
    gaze_x: float = 0.0  # -1 (left) .. 1 (right)
    gaze_y: float = 0.0  # -1 (up) .. 1 (down)
    eyes: str = "open"
    variant: int = 0  # 0..1023: where the scene's things stand


@dataclass(frozen=True)
class Context:
    """What is around the character: a scene, a picture style and an accessory or "none"."""

    scene: str = "plain white"
    style: str = "cartoon"
    accessory: str = "none"


NEUTRAL_VIEW = View()
PLAIN = Context()
PLAIN_CONTEXTS = tuple(Context(scene=scene) for scene in PLAIN_SCENES)


class _Picker:
    """Draws factor values, unless a value is forced, and never draws a held-out value."""

    def __init__(self, rng: np.random.Generator, forced: Mapping[str, str]) -> None:
        self.rng = rng
        self.values: dict[str, str] = dict(forced)

    def among(self, name: str, options: Sequence[str] | None = None) -> str:
        """Draw a value uniformly."""
        options = FACTORS[name] if options is None else options
        allowed = [value for value in options if value not in HELD_OUT.get(name, ())]
        drawn = allowed[int(self.rng.integers(len(allowed)))]
        return self.values.setdefault(name, drawn)

    def odds(self, name: str, weights: Mapping[str, float]) -> str:
        """Draw a value by its odds, which sum to 1."""
        drawn = str(self.rng.choice(list(weights), p=list(weights.values())))
        return self.values.setdefault(name, drawn)

    def maybe(self, name: str, probability: float, options: Sequence[str] | None = None) -> str:
        """Draw "none", or with `probability` one of the other values."""
        present = self.rng.random() < probability
        others = [value for value in options or FACTORS[name] if value != "none"]
        return self.among(name, others if present else ["none"])

    def far(self, name: str, options: Sequence[str], *others: str, least: float = 110.0) -> str:
        """Draw a colour at least `least` (RGB distance) away from the `others`."""
        away = [c for c in options if all(distance(c, other) >= least for other in others)]
        return self.among(name, away)


def _pick_head(pick: _Picker) -> None:
    kind = pick.among("kind")
    human = kind == "human"
    pick.odds("ears", _KIND_EARS[kind])
    fur = pick.among("fur", SKIN if human else FUR)
    pick.far("second", SECOND, fur, least=70.0)
    pattern = pick.maybe("pattern", 0.15 if human else 0.7)
    if pattern == "none":
        pick.among("pattern_colour", ["none"])
    else:
        pick.far("pattern_colour", BOLD, fur)
    pick.among("head")
    hair = pick.maybe("hair", 0.95 if human else 0.35)
    if hair == "none":
        pick.among("hair_colour", ["none"])
    else:
        pick.far("hair_colour", HAIR, fur, least=80.0)
    pick.maybe("horns", {"monster": 0.75, "human": 0.0}.get(kind, 0.06))
    pick.maybe("bow", 0.15)
    pick.maybe("earrings", 0.4 if human else 0.1)


def _pick_face(pick: _Picker) -> None:
    kind = pick.values["kind"]
    pick.among("eye_colour")
    pick.among("eye_size")
    pick.odds("eye_shape", {"round": 0.5, "oval": 0.3, "sleepy": 0.2})
    pick.maybe("lashes", 0.3)
    pick.maybe("brows", 0.8 if kind == "human" else 0.5)
    nose = {"cat": ("triangle", "heart"), "rabbit": ("triangle", "heart", "button")}
    pick.among("nose", ("button", "oval") if kind == "human" else nose.get(kind))
    pick.among("nose_colour", ("pink", "brown") if kind == "human" else None)
    muzzle = {"human": 0.0, "monster": 0.4, "cat": 0.7, "rabbit": 0.7}.get(kind, 1.0)
    pick.maybe("muzzle", muzzle)
    if kind == "rabbit":
        pick.odds("teeth", {"buck": 0.7, "none": 0.3})
    else:
        pick.maybe("teeth", {"monster": 0.75}.get(kind, 0.2))
    pick.maybe("cheeks", 0.5)
    pick.maybe("whiskers", {"cat": 0.9, "fox": 0.5, "rabbit": 0.5}.get(kind, 0.0))
    glasses = pick.maybe("glasses", 0.25)
    if glasses in ("none", "monocle"):
        pick.among("glasses_colour", ["none" if glasses == "none" else "gold"])
        return
    behind = pick.values["pattern_colour" if pick.values["pattern"] == "mask" else "fur"]
    pick.far("glasses_colour", FACTORS["glasses_colour"][1:], pick.values["fur"], behind)


def _pick_clothes(pick: _Picker) -> None:
    clothes = pick.maybe("clothes", 1.0 if pick.values["kind"] == "human" else 0.6)
    if clothes == "none":
        pick.among("clothes_colour", ["none"])
    else:
        pick.far("clothes_colour", CLOTHES, pick.values["fur"], least=90.0)
    neck = pick.maybe("neck", 0.45)
    colours = FACTORS["neck_colour"][1:]
    if neck == "none":
        pick.among("neck_colour", ["none"])
    elif clothes == "none":
        pick.far("neck_colour", colours, pick.values["fur"])
    else:
        pick.far("neck_colour", colours, pick.values["clothes_colour"])


def _held_out_values(rng: np.random.Generator) -> dict[str, str]:
    """Draw one or two factors that take a held-out value."""
    names = rng.permutation(list(HELD_OUT))[: int(rng.integers(1, 3))]
    return {str(name): str(rng.choice(HELD_OUT[str(name)])) for name in names}


def identity(seed: int) -> Identity:
    """Return the character of a seed.

    Only `OUT_OF_DOMAIN_SEEDS` and every second one of `JUDGE_SEEDS` give held-out values.
    """
    rng = np.random.default_rng(seed)
    out_of_domain = seed in OUT_OF_DOMAIN_SEEDS or (seed in JUDGE_SEEDS and seed % 2 == 1)
    pick = _Picker(rng, _held_out_values(rng) if out_of_domain else {})
    _pick_head(pick)
    _pick_face(pick)
    _pick_clothes(pick)
    return Identity(seed=seed, **pick.values)


def attributes(identity: Identity) -> dict[str, int]:
    """Return factor -> index of the identity's value in `FACTORS[factor]`."""
    names = [field.name for field in fields(identity) if field.name != "seed"]
    return {name: FACTORS[name].index(getattr(identity, name)) for name in names}


def view(rng: np.random.Generator) -> View:
    """Draw a view: shifts within 5 % of the size, scale 0.88..1.08, tilt within 7 degrees."""
    shift_x, shift_y = rng.uniform(-0.05, 0.05, 2)
    gaze_x, gaze_y = rng.uniform(-1.0, 1.0, 2)
    return View(
        shift_x=float(shift_x),
        shift_y=float(shift_y),
        scale=float(rng.uniform(0.88, 1.08)),
        tilt_deg=float(rng.uniform(-7.0, 7.0)),
        expression=str(rng.choice(EXPRESSIONS, p=(0.25, 0.25, 0.15, 0.12, 0.12, 0.11))),
        gaze_x=float(gaze_x),
        gaze_y=float(gaze_y),
        eyes=str(rng.choice(EYES, p=(0.84, 0.08, 0.08))),
        variant=int(rng.integers(1024)),
    )


def context(rng: np.random.Generator, *, plain: float = 0.25) -> Context:
    """Draw a context; with probability `plain` (0..1) one of `PLAIN_CONTEXTS`."""
    if rng.random() < plain:
        return PLAIN_CONTEXTS[int(rng.integers(len(PLAIN_CONTEXTS)))]
    scenes = PLAIN_SCENES if rng.random() < 0.25 else PLACES
    return Context(
        scene=scenes[int(rng.integers(len(scenes)))],
        style=str(rng.choice(STYLES, p=_STYLE_ODDS)),
        accessory=ACCESSORIES[int(rng.integers(8))] if rng.random() < 0.5 else "none",
    )
