"""The one object that apps use: a bundle, a runtime, and the two verbs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from hbsdk.backends.base import Backend, Memory
from hbsdk.backends.choose import Engine, choose, open_backend, open_torch
from hbsdk.bundle import Bundle, Source
from hbsdk.errors import HbsdkError, SubjectError
from hbsdk.generate import (
    Canvas,
    canvas_of,
    check_prompts,
    denoise,
    starting_noise,
    text_states,
    tokenize,
)
from hbsdk.image import ImageInput, load_photo
from hbsdk.mask import find_mask
from hbsdk.options import GenerateOptions, PersonalizeOptions, changed, check_whole
from hbsdk.personalize import PreparedPhoto, prepare_photo, prepare_photos, subject_of
from hbsdk.room import check_room_to_draw
from hbsdk.schedule import Sampler, make_schedule
from hbsdk.speed import pace_of
from hbsdk.subject import Subject
from hbsdk.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    import torch

    from hbsdk.backends.torch import DType, TorchBackend

OnStepEnd = Callable[["Session", int, float, dict[str, Any]], "dict[str, Any] | None"]


class Session:
    """Personalizes and generates with one bundle on one device; threads may share it.

    Threads that share a session take turns on its networks.
    """

    def __init__(
        self,
        bundle: Source | Bundle | None = None,
        *,
        engine: Engine = "auto",
        engines: str | os.PathLike[str] | None = None,
        device: str | None = None,
        dtype: DType = "auto",
        memory: Memory = "high",
        progress: bool = True,
    ) -> None:
        """Open a bundle; networks are loaded when first needed (see `prewarm`).

        Args:
            bundle: a `Bundle`, a bundle's folder, a hub id, or None for the embedded mini.
            engine: what runs probe, text, denoising and VAE: "torch", or on engines built before
                "onnxruntime", "openvino" (which runs ONNX Runtime's) or "tensorrt"; "auto" is the
                fastest that is installed, built and matching (`hbsdk doctor` tells). Refinement
                always runs in torch.
            engines: an engine folder, or a folder of them; None is $HBSDK_ENGINES, or engines/built
                in the current folder.
            device: as torch names it; None is the first GPU, or else the CPU.
            dtype: in torch, of UNet, VAE and image encoders; "auto" fits the device and the
                bundle's size. An engine's precision is its recipe's.
            memory: "low" releases each network after its stage, for small GPUs.
            progress: show progress bars.

        Raises:
            BundleError: the bundle cannot be opened.
            OptionError: there is no such device or engine.
            EngineError: no engines match, or none can run here.
            MissingDependencyError: PyTorch is needed and not installed.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.progress = progress
        self._device, self._dtype, self._memory = device, dtype, memory
        folder = None if engines is None else Path(os.path.expanduser(engines))
        chosen = choose(self.bundle, engine, folder, device)
        self.backend: Backend = open_backend(
            self.bundle, chosen, device=device, dtype=dtype, memory=memory
        )
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"Session({self.bundle.info.name!r}, {self.backend.name} on {self.backend.device})"

    @cached_property
    def tokenizer(self) -> PromptTokenizer:
        """The bundle's CLIP tokenizer."""
        return self.bundle.load_tokenizer()

    @cached_property
    def torch_backend(self) -> TorchBackend:
        """PyTorch on the same device: what refines, and what runs diffusers' own schedulers."""
        if self.backend.name == "torch":
            return cast("TorchBackend", self.backend)
        return open_torch(self.bundle, device=self._device, dtype=self._dtype, memory=self._memory)

    def prewarm(self) -> None:
        """Load every network now rather than when it is first needed."""
        with self._lock:
            self.backend.load_all()

    def mask(self, image: ImageInput, mask: ImageInput | None = None) -> Image.Image:
        """Show the mask that `personalize` would use, as an "L" picture of the photo's size.

        Args:
            image: as of `personalize`.
            mask: as of `personalize`.

        Raises:
            ImageError: the photo cannot be used.
            MaskError: the mask cannot.
        """
        found = find_mask(load_photo(image), mask)
        return Image.fromarray(found.values * np.uint8(255))

    def personalize(
        self,
        image: ImageInput,
        mask: ImageInput | None = None,
        *,
        name: str = "subject",
        options: PersonalizeOptions | None = None,
        **changes: Any,
    ) -> Subject:
        """Turn one photo into a subject: the probe, then `steps` refinement steps.

        Args:
            image: a path, bytes, PIL picture or (H, W, 3) array (uint8, or floats in 0..1).
            mask: of the same size, nonzero on the subject; None takes the alpha channel, else
                a segmenter's.
            name: lower case; in prompts the subject is `S*` or `<name>`.
            options: all settings; None is the defaults.
            **changes: single settings of `PersonalizeOptions`, such as `steps=0` for the probe.

        Returns:
            The subject, with `subject.report` if it was refined.

        Raises:
            ImageError, MaskError, OptionError: bad input.
            SubjectError: the name cannot be a file's or a placeholder's.
            PromptError: `options.prompt` does not hold the subject just once.
            BundleError: the bundle cannot personalize.
        """
        chosen = changed(PersonalizeOptions, options, changes)
        photo = prepare_photo(self.bundle, image, mask, name, chosen)
        (subject,) = self._personalize([photo], chosen)
        return subject

    def personalize_batch(
        self,
        images: Iterable[ImageInput],
        masks: Iterable[ImageInput | None] | None = None,
        *,
        names: Iterable[str] | None = None,
        batch_size: int = 8,
        options: PersonalizeOptions | None = None,
        **changes: Any,
    ) -> Iterator[Subject]:
        """Turn many photos into subjects, `batch_size` at once; made as they are asked for.

        Memory does not grow with their number. Where a photo cannot be used, the subjects of those
        before it come first, then the error.

        Args:
            images: as of `personalize`; loaded as they are needed.
            masks: as many, each as of `personalize`; None is none.
            names: as many; None is "subject-1" and so on.
            batch_size: photos that are encoded and probed at once; refinement is of one at a time.
            options: of all.
            **changes: single settings of `PersonalizeOptions`.

        Yields:
            Subjects, in order.

        Raises:
            OptionError: also where masks or names are not as many as the photos.
            ImageError, MaskError, SubjectError, PromptError, BundleError: as `personalize`; the
                message says which photo.
        """
        chosen = changed(PersonalizeOptions, options, changes)
        check_whole("batch_size", batch_size, 1, 1024)
        photos = prepare_photos(self.bundle, images, masks, names, chosen)
        return self._in_batches(photos, batch_size, chosen)

    def _in_batches(
        self, photos: Iterator[PreparedPhoto], size: int, options: PersonalizeOptions
    ) -> Iterator[Subject]:
        refused: HbsdkError | None = None
        while refused is None:
            batch: list[PreparedPhoto] = []
            try:
                batch.extend(islice(photos, size))
            except HbsdkError as error:
                refused = error
            if batch:
                yield from self._personalize(batch, options)
            elif refused is None:
                return
        raise refused

    def _personalize(
        self, photos: Sequence[PreparedPhoto], options: PersonalizeOptions
    ) -> Iterator[Subject]:
        """Encode photos together and refine them one by one; the lock is not held in between."""
        number, names = self.bundle.info.num_words, {photo.name for photo in photos}
        runs = {"s*": number, **{f"<{name}>": number for name in names}}
        prompt = tokenize(self.tokenizer, options.prompt, runs)
        references = [photo.reference for photo in photos]
        if options.steps == 0:
            with self._lock:
                every = self.backend.probe(self.backend.encode_references(references, prompt))
            for photo, words in zip(photos, every, strict=True):
                yield subject_of(self.bundle, photo, words, options)
            return
        torch_backend = self.torch_backend
        with self._lock:
            encoded = torch_backend.encode_references(references, prompt, mirrored=options.mirror)
        for row, photo in enumerate(photos):
            with self._lock, self._bar(options.steps, "refining") as advance:
                words, report = torch_backend.refine(
                    encoded.only(row), options, lambda _: advance()
                )
            yield subject_of(self.bundle, photo, words, options, report)

    def generate(
        self,
        prompt: str | Sequence[str],
        subject: Subject | Iterable[Subject] | None = None,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: npt.NDArray[np.float32] | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        options: GenerateOptions | None = None,
        **changes: Any,
    ) -> list[Any]:
        """Draw pictures of a prompt, with any number of subjects in it.

        Args:
            prompt: text, or several texts; `S*` or `<name>` stands for a subject.
            subject: one, several or none.
            generator: draws all noise in place of `seed`, as in diffusers; on the CPU.
            latents: (num_images_per_prompt, C, h, w) unit noise in place of both.
            callback_on_step_end: called as in diffusers, (session, step, timestep, {"latents"});
                latents that it returns in a dictionary replace them.
            options: all settings; None is the defaults.
            **changes: single settings of `GenerateOptions`, such as `seed=1`.

        Returns:
            `num_images_per_prompt` pictures for each prompt, in order: PIL pictures, or arrays of
            (H, W, 3) in 0..1 for `output_type="np"`, of (C, h, w) for "latent".

        Raises:
            PromptError: a placeholder without a subject, a subject without a placeholder, no text,
                or a subject's words beyond the text encoder's 77 tokens.
            SubjectError: the subject is of another width than the bundle.
            OptionError: a setting is out of range.
        """
        chosen = changed(GenerateOptions, options, changes)
        subjects = _as_list(subject)
        for one in subjects:
            self._check_width(one)
        canvas = canvas_of(self.bundle.info, chosen)
        pictures: list[Any] = []
        for text in check_prompts(prompt):
            noise = starting_noise(canvas, chosen, generator, latents)
            pictures += self._draw(text, subjects, noise, chosen, callback_on_step_end, generator)
        return pictures

    def _draw(
        self,
        prompt: str,
        subjects: list[Subject],
        noise: npt.NDArray[np.float32],
        options: GenerateOptions,
        callback: OnStepEnd | None,
        generator: Any,
    ) -> list[Any]:
        own = self.bundle.info.guidance_scale
        scale = own if options.guidance_scale is None else options.guidance_scale
        backend, steps, run = self._sampler(options, generator)
        if backend.name == "torch":  # engines take what their recipe allows
            check_room_to_draw(cast("TorchBackend", backend), Canvas(*noise.shape[1:]), len(noise))
        with self._lock:
            states = text_states(
                backend, self.tokenizer, prompt, subjects, options, guided=scale > 1.0
            )
            with self._bar(len(steps), "drawing") as advance:

                def on_step(step: int, latents: Any) -> Any:
                    advance()
                    if callback is None:
                        return latents
                    shown = {"latents": backend.shown(latents)}
                    kept = (callback(self, step, float(steps[step]), shown) or {}).get("latents")
                    # Also what is the same object may have been changed in place.
                    return latents if kept is None else backend.to_device(kept)

                drawn = run(noise, states, scale, on_step)
            if options.output_type == "latent":
                return list(backend.to_host(drawn))
            decoded = backend.decode(drawn)
        if options.output_type == "np":
            return list(decoded)
        return [Image.fromarray(np.rint(one * 255.0).astype(np.uint8)) for one in decoded]

    def _sampler(
        self, options: GenerateOptions, generator: Any
    ) -> tuple[Backend, Sequence[float], Callable[..., Any]]:
        """Return what draws: a backend, the timesteps, and its loop over them."""
        config, pace = self.bundle.scheduler_config(), pace_of(options)
        count = pace.num_inference_steps
        settings: dict[str, Any] = {
            "timestep_spacing": options.timestep_spacing,
            "use_karras_sigmas": options.use_karras_sigmas,
        }
        if options.sampler in get_args(Sampler):
            sampler = cast("Sampler", options.sampler)
            schedule = make_schedule(config, sampler=sampler, num_inference_steps=count, **settings)

            def by_table(noise: Any, states: Any, scale: float, on_step: Any) -> Any:
                return denoise(self.backend, noise, states, schedule, scale, on_step, pace)

            return self.backend, list(schedule.timesteps), by_table
        backend = self.torch_backend
        from hbsdk.diffusers_sampler import denoise_with_scheduler, make_scheduler

        scheduler = make_scheduler(options.sampler, config, count, **settings)

        own_noise = options.seed if generator is None else generator

        def by_scheduler(noise: Any, states: Any, scale: float, on_step: Any) -> Any:
            return denoise_with_scheduler(
                backend, noise, states, scheduler, scale, own_noise, on_step, pace
            )

        return backend, list(scheduler.timesteps), by_scheduler

    def _check_width(self, subject: Subject) -> None:
        width, own = subject.words.shape[1], self.bundle.info.word_dim
        if width != own:
            raise SubjectError(
                f"subject {subject.name!r}",
                expected=f"words of width {own}, as of bundle {self.bundle.info.name!r}",
                got=f"width {width}",
                remedy="Use the bundle that it was made with, or personalize anew",
            )

    @contextmanager
    def _bar(self, total: int, description: str) -> Iterator[Callable[[], Any]]:
        with tqdm(
            total=total, desc=description, unit="step", disable=not self.progress, leave=False
        ) as bar:
            yield bar.update


def _as_list(subject: Subject | Iterable[Subject] | None) -> list[Subject]:
    if subject is None:
        return []
    subjects = [subject] if isinstance(subject, Subject | str) else list(subject)
    for one in subjects:
        if not isinstance(one, Subject):
            raise SubjectError(
                "subject", expected="a hbsdk.Subject", got=repr(one)[:100],
                remedy="Load a file with hbsdk.Subject.load(path)",
            )  # fmt: skip
    return subjects
