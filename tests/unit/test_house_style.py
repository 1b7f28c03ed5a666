"""The house rules that a machine can check; an outlier fails with its name and size."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hbsdk"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 80


def long_functions(source: str) -> list[tuple[str, int]]:
    """Name and length of each function above the limit."""
    functions = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    lengths = ((node.name, (node.end_lineno or 0) - node.lineno + 1) for node in functions)
    return [(name, length) for name, length in lengths if length > MOST_LINES_OF_A_FUNCTION]


def imported_packages(source: str) -> set[str]:
    """The top-level packages a source imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names


def test_there_is_something_to_check() -> None:
    assert {"image.py", "mask.py", "errors.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_can_be_read_in_one_go(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_LINES_OF_A_FILE
    assert long_functions(source) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    imported = imported_packages(path.read_text(encoding="utf-8"))
    assert not imported & {"export", "benchmarks", "tests"}


def test_no_file_is_called_utils() -> None:
    assert [path for path in FILES if path.stem in {"util", "utils", "helpers", "misc"}] == []


def test_the_checks_can_fail() -> None:
    long = "def long():\n" + "    pass\n" * MOST_LINES_OF_A_FUNCTION
    assert long_functions(long) == [("long", MOST_LINES_OF_A_FUNCTION + 1)]
    assert long_functions("def short():\n    pass\n") == []
    assert imported_packages("def f():\n    from export.parity import check\n") == {"export"}
    assert imported_packages("import benchmarks.speed as b, os") == {"benchmarks", "os"}
