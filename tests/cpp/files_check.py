"""Asks files-check, the test program over the bridge's readers of files and text."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.cpp.library import OK


@dataclass(frozen=True)
class FilesCheck:
    """The program, asked line by line."""

    program: Path
    settings: dict[str, str] = field(default_factory=dict)  # of its environment, besides ours

    def ask(self, command: str, lines: list[Any], folder: Path | None = None) -> list[Any]:
        """Return the answer to each line: bytes and texts are sent as such, the rest as JSON."""
        arguments = [str(self.program), command, *([str(folder)] if folder else [])]
        sent = "".join(f"{self._line(line)}\n" for line in lines)
        run = subprocess.run(
            arguments, input=sent.encode("ascii"), capture_output=True, check=False, timeout=120,
            env=os.environ | self.settings,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr.decode()
        answers = [json.loads(line) for line in run.stdout.decode().split("\n")[:-1]]
        assert len(answers) == len(lines)
        return answers

    def one(self, command: str, line: Any, folder: Path | None = None) -> Any:
        return self.ask(command, [line], folder)[0]

    @staticmethod
    def _line(line: Any) -> str:
        if isinstance(line, str):
            return line.encode().hex()
        return line.hex() if isinstance(line, bytes) else json.dumps(line)


def is_error(answer: Any) -> bool:
    return isinstance(answer, dict) and "error" in answer


def status_of(answer: Any) -> int:
    return answer["status"] if is_error(answer) else OK


def write_prompt_tokenizer(folder: Path, tokenizer: Any) -> Path:
    """Write what an engine folder holds of a tokenizer; return the folder."""
    from export.bridge_files import PROMPT_TOKENIZER, tokenizer_description

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(tokenizer_description(tokenizer), ensure_ascii=False)
    (folder / PROMPT_TOKENIZER).write_text(text, "utf-8")
    return folder


def damaged(data: bytes, count: int, seed: int = 0) -> list[bytes]:
    """Return copies that are cut short, changed, doubled in part, or all of it at random."""
    rng = np.random.default_rng(seed)
    copies = []
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(0, len(copy) + 1))
            kind = rng.integers(4)
            if kind == 0:
                copy[place : place + int(rng.integers(1, 5))] = rng.bytes(int(rng.integers(0, 5)))
            elif kind == 1 and place < len(copy):
                copy[place] ^= 1 << int(rng.integers(8))
            elif kind == 2:
                copy[place:place] = copy[place : place + int(rng.integers(1, 40))]
            elif rng.integers(4) == 0:
                del copy[place:]
        copies.append(bytes(copy))
    return copies
