"""Named colours of the mini world: RGB in 0..255, far enough apart for a caption to name them."""

from __future__ import annotations

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "white": (246, 243, 238),
    "grey": (146, 150, 160),
    "black": (62, 60, 72),
    "brown": (140, 88, 54),
    "tan": (210, 170, 120),
    "peach": (252, 208, 172),
    "cream": (250, 234, 196),
    "orange": (240, 142, 44),
    "red": (216, 54, 52),
    "pink": (246, 142, 178),
    "purple": (140, 84, 190),
    "blue": (70, 124, 222),
    "teal": (40, 176, 172),
    "green": (92, 184, 76),
    "yellow": (248, 210, 66),
    "blond": (246, 214, 110),
    "amber": (234, 160, 30),
    "gold": (250, 200, 50),
}
OUTLINE: Colour = (44, 30, 38)
PUPIL: Colour = (22, 16, 24)
EYE_WHITE: Colour = (255, 254, 250)
MOUTH: Colour = (150, 40, 58)
TONGUE: Colour = (240, 116, 128)
BACKGROUNDS: dict[str, Colour] = {
    "pink": (250, 186, 204),
    "blue": (150, 190, 244),
    "yellow": (250, 226, 140),
    "green": (166, 218, 158),
    "white": (244, 244, 246),
    "purple": (200, 178, 236),
}


def mix(first: Colour, second: Colour, amount: float) -> Colour:
    """Return `first` moved towards `second` by `amount` (0..1)."""
    red, green, blue = (round(a + (b - a) * amount) for a, b in zip(first, second, strict=True))
    return red, green, blue


def luminance(colour: Colour) -> float:
    """Return the luminance of a colour, 0..255."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def distance(first: str, second: str) -> float:
    """Return the Euclidean RGB distance of two named colours, 0..442."""
    pairs = zip(COLOURS[first], COLOURS[second], strict=True)
    return float(sum((a - b) ** 2 for a, b in pairs) ** 0.5)


def neon(colour: Colour) -> Colour:
    """Return a bright, saturated light of the colour's hue; greys become pale cyan."""
    low, high = min(colour), max(colour)
    if high - low < 36:
        return (150, 240, 255)
    red, green, blue = (int(30 + 225 * (value - low) / (high - low)) for value in colour)
    return red, green, blue
