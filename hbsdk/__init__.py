"""One photo of a subject in; pictures of that subject in any prompt out (HybridBooth, ECCV 2024).

    session = hbsdk.Session()
    subject = session.personalize("fox.png")
    images = session.generate("a watercolor of S* in the snow", subject, seed=0)

Names are imported when first used: `import hbsdk` loads neither torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hbsdk.bundle import Bundle
    from hbsdk.errors import (
        BundleError,
        EngineError,
        HbsdkError,
        ImageError,
        MaskError,
        MissingDependencyError,
        OptionError,
        PromptError,
        SubjectError,
    )
    from hbsdk.options import GenerateOptions, PersonalizeOptions
    from hbsdk.session import Session
    from hbsdk.subject import Subject

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "bundle", "BundleError": "errors", "EngineError": "errors",
    "GenerateOptions": "options", "HbsdkError": "errors", "ImageError": "errors",
    "MaskError": "errors", "MissingDependencyError": "errors", "OptionError": "errors",
    "PersonalizeOptions": "options", "PromptError": "errors", "Session": "session",
    "Subject": "subject", "SubjectError": "errors",
}  # fmt: skip

__all__ = [
    "Bundle", "BundleError", "EngineError", "GenerateOptions", "HbsdkError", "ImageError",
    "MaskError", "MissingDependencyError", "OptionError", "PersonalizeOptions", "PromptError",
    "Session", "Subject", "SubjectError", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
