"""The head's shape, which the face, the hair and the accessories are placed on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hbsdk.mini.factors import Identity
from hbsdk.mini.pen import superellipse

SIDES = (-1.0, 1.0)  # left and right on the picture
_SHAPES = {  # half width, half height, power
    "round": (0.272, 0.250, 2.15),
    "wide": (0.320, 0.225, 2.2),
    "tall": (0.240, 0.278, 2.3),
    "square": (0.262, 0.240, 4.2),
}


@dataclass(frozen=True)
class Head:
    """The head's superellipse in unit coordinates; (u, v) = (+-1, +-1) are its box's corners."""

    rx: float
    ry: float
    power: float
    x: float = 0.5
    y: float = 0.5

    def outline(self, grow: float = 0.0) -> NDArray[np.float64]:
        """Return the outline points, (48, 2), moved outwards by `grow`."""
        return superellipse(self.x, self.y, self.rx + grow, self.ry + grow, self.power, 48)

    def at(self, u: float, v: float) -> tuple[float, float]:
        """Return the point at (u, v)."""
        return self.x + u * self.rx, self.y + v * self.ry

    def edge(self, angle_deg: float, grow: float = 0.0) -> tuple[float, float]:
        """Return the outline point in a direction; 0 is right, 90 is down."""
        cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
        power = 2.0 / self.power
        x = self.x + (self.rx + grow) * np.sign(cos) * np.abs(cos) ** power
        return float(x), float(self.y + (self.ry + grow) * np.sign(sin) * np.abs(sin) ** power)


def head_of(identity: Identity) -> Head:
    """Return the head of an identity."""
    return Head(*_SHAPES[identity.head])
