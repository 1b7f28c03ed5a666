"""Evaluation subjects of a DreamBooth-style folder: photos, classes and prompts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hbsdk.errors import EvaluationError, ImageError
from hbsdk.evaluation.store import file_name
from hbsdk.evaluation.subjects import EvaluationSet, EvaluationSubject, Pixels
from hbsdk.image import load_photo
from hbsdk.subject import name_from_file

TABLE = "prompts_and_classes.txt"
LIVE_CLASSES = ("cat", "dog")  # the data set's living subjects; all others take the object prompts
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_CLASS = re.compile(r"^([^\s,]+)\s*,\s*(\S.*?)\s*$")
_PROMPT = re.compile(r"""(['"])(.*?)\1\.format\(\s*unique_token\s*,\s*class_token\s*\)""")
_LAYOUT = "https://github.com/google/dreambooth, dataset/prompts_and_classes.txt, shows how"


@dataclass(frozen=True)
class PromptTable:
    """What `prompts_and_classes.txt` says; prompts have {} for the subject.

    classes: subject -> class noun. objects: prompts of things. live: prompts of living subjects.
    """

    classes: Mapping[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]

    def prompts_of(self, class_noun: str, live_classes: Sequence[str]) -> tuple[str, ...]:
        """Return the prompts that a class takes.

        Args:
            class_noun: the subject's.
            live_classes: that take the prompts of living subjects.
        """
        return self.live if class_noun in live_classes else self.objects


def photo_set(
    folder: Path,
    *,
    photo: int = 0,
    count: int | None = None,
    live_classes: Sequence[str] = LIVE_CLASSES,
) -> EvaluationSet:
    """Read `<subject>/*.jpg` and `prompts_and_classes.txt`.

    As in DreamBooth's protocol, drawn pictures are compared with all photos of the subject; only
    one of them is shown to the methods.

    Args:
        folder: of the data set. Subjects of its table that are not there are passed over.
        photo: which of a subject's photos, by the order of their names, the methods see.
        count: the first subjects only; None is all.
        live_classes: classes that take the prompts for live subjects.

    Returns:
        Subjects with photos of any size, without `real` and without `attributes`.

    Raises:
        EvaluationError: the folder, the table, a subject's class or one of its photos is missing,
            damaged or cannot be read.
    """
    table = read_table(folder / TABLE)
    folders = [path for path in _listed(folder) if path.is_dir() and path.name[0] != "."]
    if not folders:
        raise EvaluationError(
            str(folder), expected="a folder of photos for each subject", got="none",
            remedy=f"Put photos into {folder}/<subject>/; {_LAYOUT}",
        )  # fmt: skip
    if count is not None and not 1 <= count <= len(folders):
        raise EvaluationError(
            f"subjects of {folder}", expected=f"1 to {len(folders)}", got=str(count)
        )
    return EvaluationSet(
        name=folder.resolve().name,
        subjects=tuple(_subject(one, table, photo, live_classes) for one in folders[:count]),
    )


def read_table(path: Path) -> PromptTable:
    """Read the classes and both lists of prompts.

    Args:
        path: of the table.

    Raises:
        EvaluationError: the file is missing, or lacks a part.
    """
    try:
        text = unicodedata.normalize("NFC", path.read_text("utf-8"))  # as folders are compared
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            str(path), expected="the table of a DreamBooth-style folder",
            got=getattr(error, "strerror", None) or "bytes that are no text", remedy=_LAYOUT,
        ) from error  # fmt: skip
    classes_part, _, prompts_part = text.partition("\nPrompts")
    objects_part, _, live_part = prompts_part.partition("Live Subject Prompts")
    matches = (_CLASS.match(line) for line in classes_part.splitlines())
    classes = {match.group(1): match.group(2) for match in matches if match}
    classes.pop("subject_name", None)
    table = PromptTable(classes, _prompts(objects_part), _prompts(live_part))
    for what, found in (
        ("lines of subject_name,class", table.classes),
        ("Object Prompts", table.objects),
        ("Live Subject Prompts", table.live),
    ):
        if not found:
            raise EvaluationError(str(path), expected=what, got="none", remedy=_LAYOUT)
    if len(table.objects) != len(table.live):
        raise EvaluationError(
            str(path), expected="as many object prompts as live subject prompts",
            got=f"{len(table.objects)} and {len(table.live)}", remedy="Leave some out",
        )  # fmt: skip
    return table


def _prompts(text: str) -> tuple[str, ...]:
    """The prompts of a list; {} stands for the noun phrase, with its article where it begins so."""
    raw = [match.group(2) for match in _PROMPT.finditer(text)]
    return tuple(re.sub(r"^an? \{0\} \{1\}|\{0\} \{1\}", "{}", one) for one in raw)


def _subject(
    folder: Path, table: PromptTable, photo: int, live_classes: Sequence[str]
) -> EvaluationSubject:
    name = unicodedata.normalize("NFC", folder.name)
    if name not in table.classes:
        raise EvaluationError(
            f"class of subject {folder.name!r}", expected=f"a line {folder.name},CLASS in {TABLE}",
            got="none", remedy="Add the line, or move the folder away",
        )  # fmt: skip
    files = [path for path in _listed(folder) if path.suffix.lower() in _SUFFIXES]
    if not 0 <= photo < len(files):
        raise EvaluationError(
            f"photos of subject {folder.name!r} in {folder}",
            expected=f"at least {max(photo, 0) + 1} of {', '.join(sorted(_SUFFIXES))}",
            got=str(len(files)), remedy="Add photos, or take another photo= than the one asked for",
        )  # fmt: skip
    gallery = tuple(_pixels(file) for file in files)
    noun = table.classes[name]
    return EvaluationSubject(
        # Subjects' own names are ASCII: of other scripts nothing would be left.
        name=name_from_file(folder) if name.isascii() else file_name(name.lower()),
        photo=gallery[photo],
        class_noun=noun,
        prompts=table.prompts_of(noun, live_classes),
        gallery=gallery,
    )


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise EvaluationError(
            str(folder), expected="a folder that can be read", got=error.strerror or str(error),
            remedy="Let this user read it, or pass another",
        ) from error  # fmt: skip


def _pixels(file: Path) -> Pixels:
    try:
        return load_photo(file).rgb
    except ImageError as error:
        raise EvaluationError(
            error.what, expected=error.expected, got=error.got,
            remedy=f"Mend or remove {file}",
        ) from error  # fmt: skip
