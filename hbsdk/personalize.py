"""From photos to subjects: what is done to each photo before the networks see it, and after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, count, repeat
from typing import Any

from hbsdk.bundle import Bundle
from hbsdk.errors import HbsdkError, OptionError
from hbsdk.image import ImageInput, Reference, load_photo, make_reference
from hbsdk.mask import check_latent_coverage, find_mask
from hbsdk.options import PersonalizeOptions
from hbsdk.subject import Subject, check_name

_MISSING: Any = object()


@dataclass(frozen=True)
class PreparedPhoto:
    """A photo as the networks take it.

    Attributes:
        name: of the subject.
        reference: the crop around the subject, and its mask.
        mask_source: "user", "alpha" or a segmenter's name.
    """

    name: str
    reference: Reference
    mask_source: str


def prepare_photo(
    bundle: Bundle,
    image: ImageInput,
    mask: ImageInput | None,
    name: str,
    options: PersonalizeOptions,
) -> PreparedPhoto:
    """Load a photo, find its mask and crop both to the subject.

    Args:
        bundle: says the size.
        image: as of `Session.personalize`.
        mask: as of `Session.personalize`.
        name: of the subject, in capitals or not.
        options: name the segmenter.

    Raises:
        SubjectError, ImageError, MaskError: the name, the photo or the mask cannot be used.
    """
    name = name.lower() if isinstance(name, str) else name
    check_name(name)
    photo = load_photo(image)
    found = find_mask(photo, mask, segmenter=options.segmenter)
    reference = make_reference(photo, found.values, size=bundle.info.image_size_px)
    check_latent_coverage(reference.mask, factor=bundle.info.vae_scale_factor)
    return PreparedPhoto(name, reference, found.source)


def prepare_photos(
    bundle: Bundle,
    images: Iterable[ImageInput],
    masks: Iterable[ImageInput | None] | None,
    names: Iterable[str] | None,
    options: PersonalizeOptions,
) -> Iterator[PreparedPhoto]:
    """Prepare photos one by one, as they are asked for; an error says which one it is of.

    Args:
        bundle: as of `prepare_photo`.
        images: the photos.
        masks: as many; None is none for all.
        names: as many; None is "subject-1" and so on.
        options: as of `prepare_photo`.

    Raises:
        OptionError: there are fewer masks or names than photos, or more.
        HbsdkError: as of `prepare_photo`.
    """
    every_mask = repeat(None) if masks is None else chain(masks, repeat(_MISSING))
    every_name = (
        (f"subject-{number}" for number in count(1)) if names is None
        else chain(names, repeat(_MISSING))
    )  # fmt: skip
    number = 0
    for number, (image, mask, name) in enumerate(
        zip(images, every_mask, every_name, strict=False), start=1
    ):
        for what, one in (("masks", mask), ("names", name)):
            if one is _MISSING:
                raise _other_number(what, "photo", number, f"{number - 1} {what}")
        try:
            yield prepare_photo(bundle, image, mask, name, options)
        except HbsdkError as error:
            raise type(error)(
                f"photo {number}: {error.what}", expected=error.expected, got=error.got,
                remedy=error.remedy,
            ) from error  # fmt: skip
    for what, rest, given in (("masks", every_mask, masks), ("names", every_name, names)):
        if given is not None and next(rest) is not _MISSING:
            raise _other_number(what, "photos", number, "more")


def _other_number(what: str, of: str, number: int, got: str) -> OptionError:
    return OptionError(
        what, expected=f"one for each photo: {of} {number}", got=got,
        remedy=f"Give as many {what} as photos, or none",
    )  # fmt: skip


def subject_of(
    bundle: Bundle,
    photo: PreparedPhoto,
    words: Any,
    options: PersonalizeOptions,
    report: Any | None = None,
) -> Subject:
    """Return the subject that a photo became, with what it was made with.

    Args:
        bundle: that made it.
        photo: it was made of.
        words: (n, d) float32.
        options: it was made with.
        report: of its refinement.
    """
    metadata = {
        "bundle": bundle.info.name,
        "bundle_hash": bundle.hash,
        "class_word": bundle.info.class_word,
        "mask": photo.mask_source,
        **{key: str(value) for key, value in asdict(options).items()},
    }
    return Subject(words=words, name=photo.name, metadata=metadata, report=report)
