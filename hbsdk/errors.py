"""The errors hbsdk raises: each says what failed, what was expected, what came, and what to do."""

from __future__ import annotations


class HbsdkError(Exception):
    """Base of every error hbsdk raises on purpose; its message is one line.

    Args:
        what: the thing that is wrong, e.g. `"mask photo.png"`.
        expected: what would have been accepted.
        got: what came instead.
        remedy: one sentence that says what to do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.expected = expected
        self.got = got
        self.remedy = remedy
        super().__init__(_format_message(what, expected, got, remedy))


def _format_message(what: str, expected: str | None, got: str | None, remedy: str | None) -> str:
    """The one line `what: expected X, got Y. Remedy.`, without the parts that are not given."""
    comparison = ", ".join(
        f"{label} {_one_line(text)}"
        for label, text in (("expected", expected), ("got", got))
        if text is not None
    )
    problem = f"{_one_line(what)}: {comparison}" if comparison else _one_line(what)
    sentences = [problem] if remedy is None else [problem, _one_line(remedy)]
    return " ".join(_end_sentence(sentence) for sentence in sentences)


def _one_line(text: str) -> str:
    """The text with every run of white space, line breaks included, made one space."""
    return " ".join(text.split())


def _end_sentence(text: str) -> str:
    """The text with a full stop, unless it already ends as a sentence does."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


class ImageError(HbsdkError, ValueError):
    """A picture cannot be read, or is not one hbsdk can work with."""


class MaskError(HbsdkError, ValueError):
    """A mask does not fit its photo, is empty or full, or is too small to be of use."""


class PromptError(HbsdkError, ValueError):
    """A prompt and the subjects given with it do not go together."""


class SubjectError(HbsdkError, ValueError):
    """A subject or its file is damaged, or does not fit the bundle."""


class BundleError(HbsdkError):
    """A bundle is incomplete, was changed, or lacks the network that is asked for."""


class OptionError(HbsdkError, ValueError):
    """An option is outside the range that has a meaning."""


class MissingDependencyError(HbsdkError, ImportError):
    """An optional package that this operation needs is not installed."""


class EngineError(HbsdkError, RuntimeError):
    """An engine is missing, does not match its manifest, or failed to run."""


class TrainingError(HbsdkError, RuntimeError):
    """Training data, a checkpoint or a training run cannot be used or cannot go on."""


class EvaluationError(HbsdkError, RuntimeError):
    """An evaluation set, a method or earlier results cannot be used."""
