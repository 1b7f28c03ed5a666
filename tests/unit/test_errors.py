"""Errors say what failed, what was expected, what came and what to do, in one line."""

import pickle

import pytest

from hbsdk import errors
from hbsdk.errors import HbsdkError, ImageError, MissingDependencyError, OptionError

CHILDREN = {
    "ImageError": ValueError,
    "MaskError": ValueError,
    "PromptError": ValueError,
    "SubjectError": ValueError,
    "OptionError": ValueError,
    "MissingDependencyError": ImportError,
    "EngineError": RuntimeError,
    "TrainingError": RuntimeError,
    "EvaluationError": RuntimeError,
    "BundleError": HbsdkError,
}


def test_message_has_all_four_parts_in_one_line() -> None:
    error = OptionError(
        "steps", expected="1 to 1000", got="10000", remedy="Take 20:\n  it is the default"
    )
    assert str(error) == "steps: expected 1 to 1000, got 10000. Take 20: it is the default."
    assert (error.what, error.expected, error.got) == ("steps", "1 to 1000", "10000")
    assert error.remedy == "Take 20:\n  it is the default"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "the file."),
        ({"got": "nothing"}, "the file: got nothing."),
        ({"expected": "text"}, "the file: expected text."),
        ({"remedy": "Is it there?"}, "the file. Is it there?"),
    ],
)
def test_parts_that_are_not_given_leave_no_trace(fields: dict[str, str], message: str) -> None:
    assert str(HbsdkError("the file", **fields)) == message


@pytest.mark.parametrize(("name", "also"), CHILDREN.items())
def test_children_are_what_python_users_catch(name: str, also: type[Exception]) -> None:
    error_class = getattr(errors, name)
    with pytest.raises(also, match=r"^what: got this\. Do that\.$"):
        raise error_class("what", got="this", remedy="Do that")
    assert issubclass(error_class, HbsdkError)


def test_every_child_is_listed_here() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == {*CHILDREN, "HbsdkError"}


@pytest.mark.parametrize("error_class", [ImageError, MissingDependencyError])
def test_errors_cross_process_borders_whole(error_class: type[HbsdkError]) -> None:
    error = error_class("the photo", expected="a picture", got="text", remedy="Pass a picture")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.got == "text"
