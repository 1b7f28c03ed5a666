"""One table of a recipe's TOML, each of whose keys is read once and as what it must be."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, overload

from hbsdk.bundle_info import shown
from hbsdk.engine_spec import Axis
from hbsdk.errors import EngineError
from hbsdk.manifest_rules import is_recipe_name

_Text = TypeVar("_Text", bound=str)
_MISSING = object()


class Table:
    """Reads keys of a table; `done` refuses those that nobody asked for.

    Attributes:
        path: of the recipe.
        place: the table's key, "" for the file itself.
    """

    def __init__(self, data: dict[str, Any], path: Path, place: str) -> None:
        self.path = path
        self.place = place
        self._data = data
        self._known: list[str] = []

    def error(self, key: str, expected: str, got: Any, remedy: str | None = None) -> EngineError:
        """Return an error that names file and key."""
        place = f"[{self.place}] {key}" if self.place else key
        return EngineError(
            f"{place} in recipe {self.path}",
            expected=expected,
            got=shown(got),
            remedy=remedy or "Change it in the recipe",
        )

    def done(self) -> None:
        """Refuse unknown keys, with the known one that is meant.

        Raises:
            EngineError: there is one.
        """
        for key in self._data:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1)
                raise self.error(
                    key,
                    f"one of {', '.join(self._known)}",
                    f"the unknown key {key}",
                    f"Did you mean {near[0]}?" if near else "Remove it",
                )

    def refuse(self, key: str, expected: str) -> None:
        """Refuse a key that has no meaning in this recipe.

        Raises:
            EngineError: it is there.
        """
        if key in self._data:
            raise self.error(key, expected, "one", "Remove it, or change the runtime")

    def table(self, key: str, *, optional: bool = False) -> Table:
        """Return a table in this one; empty where it may be and is left out."""
        value = self._take(key, {} if optional else _MISSING, "a table")
        if not isinstance(value, dict):
            raise self.error(key, "a table", value)
        return Table(value, self.path, f"{self.place}.{key}" if self.place else key)

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        value = self._take(key, default, "a text")
        if not isinstance(value, str):
            raise self.error(key, "a text", value)
        return value

    def name(self, key: str) -> str:
        """Return the recipe's name, which is also its file's."""
        value = self._take(key, _MISSING, "the recipe's name")
        if not (isinstance(value, str) and is_recipe_name(value)):
            raise self.error(key, "lower-case letters, digits, '.', '_' and '-'", value)
        # A copy under another name would else replace the engines of the recipe it was made from.
        if value != self.path.stem and self.path.name != "recipe.toml":
            raise self.error(key, f"{self.path.stem}, the file's name", value)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._take(key, default, "true or false")
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    @overload
    def count(self, key: str, limits: tuple[int, int], default: int) -> int: ...
    @overload
    def count(self, key: str, limits: tuple[int, int], default: None) -> int | None: ...
    def count(self, key: str, limits: tuple[int, int], default: int | None) -> int | None:
        """Return a whole number within limits, or the default."""
        low, high = limits
        expected = f"a whole number from {low} to {high}" if low < high else str(low)
        value = self._take(key, default, expected)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, expected, value)
        return value

    def choice(self, key: str, choices: tuple[_Text, ...], default: _Text | None = None) -> _Text:
        """Return one of some texts."""
        expected = " or ".join(f'"{one}"' for one in choices)
        value = self._take(key, _MISSING if default is None else default, expected)
        return self._chosen(key, value, choices, expected)

    def choices(self, key: str, choices: tuple[_Text, ...]) -> tuple[_Text, ...]:
        """Return a list of some of the texts, in its order, without doubles."""
        expected = f"a list of some of {', '.join(choices)}, each once"
        values = self._take(key, _MISSING, expected)
        if not isinstance(values, list) or not values:
            raise self.error(key, expected, values)
        chosen = tuple(self._chosen(key, value, choices, expected) for value in values)
        if len(set(chosen)) < len(chosen):
            raise self.error(key, expected, values)
        return chosen

    def axis(self, key: str, *, most: int) -> Axis:
        """Return a range, given as { min, opt, max } or as one number that is all three."""
        expected = f"{{ min, opt, max }} or one whole number, from 1 to {most}"
        value = self._take(key, _MISSING, expected)
        if type(value) is int:
            value = {"min": value, "opt": value, "max": value}
        if not isinstance(value, dict):
            raise self.error(key, expected, value)
        table = Table(value, self.path, f"{self.place}.{key}")
        ends = []
        for end in ("min", "opt", "max"):
            if end not in value:
                raise table.error(end, f"a whole number from 1 to {most}", "none")
            ends.append(table.count(end, (1, most), 1))
        table.done()
        low, usual, high = ends
        if not low <= usual <= high:
            raise self.error(key, "min <= opt <= max", f"{low}, {usual}, {high}")
        return Axis(low, usual, high)

    def _chosen(self, key: str, value: Any, choices: tuple[_Text, ...], expected: str) -> _Text:
        for choice in choices:
            if value == choice:
                return choice
        near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
        raise self.error(key, expected, value, f"Did you mean {near[0]}?" if near else None)

    def _take(self, key: str, default: Any, expected: str) -> Any:
        self._known.append(key)
        value = self._data.get(key, default)
        if value is _MISSING:
            near = difflib.get_close_matches(key, self._data, n=1)
            remedy = f"You wrote {near[0]}: did you mean {key}?" if near else f"Add {key}"
            raise self.error(key, expected, "none", remedy)
        return value
