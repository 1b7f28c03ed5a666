"""What was measured, as one JSON file: written whole after every measurement, and gone on with.

A case's row holds runs of one kind alone: same settings, same code, same machine, same versions. A
row of another kind is started anew; a file of another question or bundle is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hbsdk.bench.machine import describe, now
from hbsdk.bench.summary import share_summary, summary
from hbsdk.errors import OptionError
from hbsdk.whole_file import write_whole

_SCHEMA = 1
_KEPT = ("schema", "question", "settings", "bundle")  # what must be the same to go on with a file


class Report:
    """One question's answers so far.

    Attributes:
        data: what the file holds: where it was measured, and "cases" by name, in order.
    """

    def __init__(
        self, path: Path, question: str, settings: Mapping[str, Any], bundle: Mapping[str, Any]
    ) -> None:
        """Start a file, or go on with one that an earlier run left.

        Args:
            path: of the JSON.
            question: such as "generate".
            settings: all that changes what is measured, but for the cases.
            bundle: name and hash.

        Raises:
            OptionError: the file is of another measurement or another machine, or cannot be read.
        """
        self.path = path
        self.data: dict[str, Any] = {
            "schema": _SCHEMA, "question": question, **describe(), "settings": dict(settings),
            "bundle": dict(bundle), "rates": {}, "facts": {}, "cases": {},
        }  # fmt: skip
        self._place = {"device": self.data["device"], "cores": self.data["machine"]["cores"]}
        if path.exists():
            before = read_report(path)
            self._check_same(before)
            for key in ("rates", "facts", "cases"):
                self.data[key] = before.get(key, {})

    def _check_same(self, before: Mapping[str, Any]) -> None:
        pairs = [(key, self.data[key], before.get(key)) for key in _KEPT]
        machine = before.get("machine", {})
        pairs.append(("cpu", self.data["machine"]["cpu"], machine.get("cpu")))
        pairs.append(("gpus", self.data["machine"]["gpus"], machine.get("gpus")))
        for key, own, earlier in pairs:
            # As they read in the file: there, tuples are lists.
            if json.loads(json.dumps(own)) != earlier:
                raise OptionError(
                    f"{key} of {self.path}", expected=json.dumps(own)[:300],
                    got=json.dumps(earlier)[:300],
                    remedy="Write to another file, or remove this one",
                )  # fmt: skip

    def begin(self, name: str, key: Mapping[str, Any]) -> str | None:
        """Go on with a case's row, or start it anew where it is of something else.

        Args:
            name: of the case.
            key: what its runs depend on beside machine and report; see `Case.key`.

        Returns:
            What was dropped and why, for people; None if nothing was.
        """
        now_is, was = {**key, **self._place}, self.case(name).get("key", {})
        other = [part for part, value in now_is.items() if was.get(part) != value]
        said = self._start_anew(name, other) if other else None
        self.note(name, key=now_is)
        return said

    def loaded(self, name: str, facts: Mapping[str, Any]) -> str | None:
        """Note what a case's process says when it has loaded; as `begin`."""
        entry = self.case(name)
        other = [
            part for part in ("versions", "threads") if part in entry and entry[part] != facts[part]
        ]
        said = self._start_anew(name, other) if other else None
        self.note(name, key=entry.get("key"), **facts)
        return said

    def _start_anew(self, name: str, other: Sequence[str]) -> str | None:
        runs = self.turns(name)
        self.data["cases"][name] = {}  # in its old place
        if not runs:
            return None
        dropped = f"{runs} earlier runs dropped, as they are of other {', '.join(other)}"
        self.note(name, started_anew=dropped)
        return f"{name}: {dropped}"

    def turns(self, name: str) -> int:
        """Return how often a case was measured already."""
        return int(self.data["cases"].get(name, {}).get("turns", 0))

    def case(self, name: str) -> dict[str, Any]:
        """Return a case's entry, made if need be; it is in the file after `write`."""
        found: dict[str, Any] = self.data["cases"].setdefault(name, {})
        return found

    def note(self, name: str, **facts: Any) -> None:
        """Put facts into a case's entry."""
        self.case(name).update(facts)

    def add(self, name: str, answer: Mapping[str, Any]) -> None:
        """Add one run's answer to a case: samples and stages to the others, facts in place."""
        entry = self.case(name)
        for word in ("failed", "skipped"):
            entry.pop(word, None)
        entry.update(turns=self.turns(name) + 1, **self._taken())
        measures = entry.setdefault("measures", {})
        for what, seconds in answer.get("samples", {}).items():
            before = measures.get(what, {})
            measures[what] = before | summary([*before.get("samples_s", ()), *seconds])
        _add_stages(entry, answer.get("stages", {}))
        for what, share in answer.get("shares", {}).items():
            shares = entry.setdefault("shares", {})
            shares[what] = share_summary([*shares.get(what, {}).get("samples", ()), share])
        if answer.get("facts"):
            entry["facts"] = {**entry.get("facts", {}), **answer["facts"]}

    def saw(self, name: str, answer: Mapping[str, Any]) -> None:
        """Keep the most memory that any process of a case held, and first runs with loading."""
        entry = self.case(name)
        for key in ("peak_rss_bytes", "peak_device_bytes"):
            most = max(entry.get(key) or 0, answer.get(key) or 0)
            entry[key] = most or None
        if "first_s" in answer:
            seconds = [*entry.get("first", {}).get("samples_s", ()), answer["first_s"]]
            entry["first"] = summary(seconds)

    def fail(self, name: str, why: str) -> None:
        """Say why a case could not be measured; what was measured of it stays."""
        self.note(name, failed=" ".join(why.split()), **self._taken())

    def skip(self, name: str, why: str) -> None:
        """Say why a case that nobody asked for by name cannot be measured here."""
        self.note(name, skipped=" ".join(why.split()), **self._taken())

    def _taken(self) -> dict[str, Any]:
        """When a row's newest run was taken, of which commit, and by which command."""
        return {"date": now(), "commit": self.data["commit"], "command": self.data["command"]}

    def write(self) -> None:
        """Write the file whole or not at all.

        Raises:
            OptionError: there is no room, or the folder cannot be written to.
        """
        write_result(self.path, (json.dumps(self.data, indent=2) + "\n").encode())


def _add_stages(entry: dict[str, Any], stages: Mapping[str, float]) -> None:
    kept = entry.setdefault("stages", {}) if stages else {}
    for stage, seconds in stages.items():
        kept[stage] = summary([*kept.get(stage, {}).get("samples_s", ()), seconds])


def read_report(path: Path) -> dict[str, Any]:
    """Return what a file of `Report` holds.

    Raises:
        OptionError: it cannot be read, or is something else.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _not_ours(path, str(error)) from error
    if not isinstance(data, dict) or "cases" not in data:
        raise _not_ours(path, "another kind of file")
    return data


def _not_ours(path: Path, got: str) -> OptionError:
    return OptionError(
        str(path), expected="a file that `hbsdk bench` wrote, or none", got=got[:200],
        remedy="Write to another file, or remove this one",
    )  # fmt: skip


def write_result(path: Path, content: bytes) -> None:
    """Write a result whole or not at all.

    Raises:
        OptionError: there is no room, or the folder cannot be written to.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise OptionError(
            str(path), expected="a place with room that can be written to",
            got=error.strerror or str(error), remedy="Make room, or write elsewhere",
        ) from error  # fmt: skip
