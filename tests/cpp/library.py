"""The bridge's C ABI through ctypes: what hbsdk.h declares, and calls that read well in tests."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

(
    OK, INVALID_ARGUMENT, NOT_FOUND, DAMAGED, MISMATCH, BAD_PROMPT, CANCELLED, OUT_OF_MEMORY,
    RUNTIME, INTERNAL,
) = range(10)  # fmt: skip
PROGRESS = ctypes.CFUNCTYPE(ctypes.c_int, c_int32, c_int32, c_void_p)


class Image(ctypes.Structure):
    _fields_ = (
        ("pixels", POINTER(ctypes.c_uint8)), ("width", c_int32), ("height", c_int32),
        ("channels", c_int32),
    )  # fmt: skip


class Stats(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t), ("total_ms", c_double), ("graphs_ms", c_double),
        ("loading_ms", c_double),
    )  # fmt: skip


class OpenParams(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t), ("engine_folder", c_char_p), ("bundle_folder", c_char_p),
        ("device", c_char_p), ("threads", c_int32), ("use_tensorrt", c_int32),
        ("low_memory", c_int32), ("load_all", c_int32),
    )  # fmt: skip


class GenerateParams(ctypes.Structure):
    _fields_ = (
        ("struct_size", c_size_t), ("prompt", c_char_p), ("negative_prompt", c_char_p),
        ("subjects", POINTER(c_void_p)), ("num_subjects", c_size_t), ("seed", c_uint64),
        ("num_images", c_int32), ("num_inference_steps", c_int32), ("guidance_scale", c_float),
        ("height", c_int32), ("width", c_int32), ("sampler", c_char_p), ("on_step", PROGRESS),
        ("user_data", c_void_p), ("stats", POINTER(Stats)),
    )  # fmt: skip


class BridgeError(Exception):
    """A call that did not end with HBSDK_OK."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Bridge:
    """The library; each method is a call that raises `BridgeError` where it fails."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.hbsdk_last_error.restype = c_char_p
        self.c.hbsdk_status_text.restype = c_char_p
        pointers = {
            "hbsdk_open": 2, "hbsdk_close": 1, "hbsdk_cancel": 1, "hbsdk_subject_load": 3,
            "hbsdk_subject_save": 2, "hbsdk_subject_free": 1, "hbsdk_probe": 5,
            "hbsdk_generate": 3, "hbsdk_image_free": 1,
        }  # fmt: skip
        for name, count in pointers.items():
            getattr(self.c, name).argtypes = [c_void_p] * count
        for name in ("hbsdk_open_params_init", "hbsdk_generate_params_init"):
            getattr(self.c, name).argtypes = [c_void_p, c_size_t]

    def last_error(self) -> str:
        return self.c.hbsdk_last_error().decode()

    def check(self, status: int) -> None:
        if status != OK:
            raise BridgeError(status, self.last_error())

    def open_params(self, engines: Path | str, **fields: Any) -> OpenParams:
        params = OpenParams()
        self.check(self.c.hbsdk_open_params_init(ctypes.byref(params), ctypes.sizeof(params)))
        params.engine_folder = str(engines).encode()
        for name, value in fields.items():
            setattr(params, name, str(value).encode() if isinstance(value, str | Path) else value)
        return params

    def open(self, engines: Path | str, **fields: Any) -> int:
        context = c_void_p()
        params = self.open_params(engines, **fields)
        self.check(self.c.hbsdk_open(ctypes.byref(params), ctypes.byref(context)))
        assert context.value
        return context.value

    def close(self, context: int | None) -> None:
        self.check(self.c.hbsdk_close(context))

    def load(self, path: Path | str, context: int | None = None) -> int:
        subject = c_void_p()
        self.check(self.c.hbsdk_subject_load(context, _path(path), ctypes.byref(subject)))
        assert subject.value
        return subject.value

    def save(self, subject: int | None, path: Path | str) -> None:
        self.check(self.c.hbsdk_subject_save(subject, _path(path)))

    def free(self, subject: int | None) -> None:
        self.check(self.c.hbsdk_subject_free(subject))

    def probe(
        self, context: int | None, photo: np.ndarray, mask: np.ndarray, name: str = "subject"
    ) -> int:
        subject = c_void_p()
        image, where = _image(photo), _image(mask[:, :, None])
        self.check(
            self.c.hbsdk_probe(
                context, ctypes.byref(image), ctypes.byref(where), c_char_p(name.encode()),
                ctypes.byref(subject),
            )
        )  # fmt: skip
        assert subject.value
        return subject.value

    def generate(
        self, context: int | None, prompt: str | bytes, *subjects: int, **fields: Any
    ) -> np.ndarray:
        """Return (num_images, H, W, 3) uint8."""
        params = GenerateParams()
        self.check(self.c.hbsdk_generate_params_init(ctypes.byref(params), ctypes.sizeof(params)))
        handles = (c_void_p * max(1, len(subjects)))(*subjects)
        params.prompt = prompt.encode() if isinstance(prompt, str) else prompt
        params.subjects, params.num_subjects = handles, len(subjects)
        for name, value in fields.items():
            setattr(params, name, value.encode() if isinstance(value, str) else value)
        images = (Image * max(1, params.num_images))()
        self.check(self.c.hbsdk_generate(context, ctypes.byref(params), images))
        drawn = []
        for image in images:
            pixels = np.ctypeslib.as_array(
                image.pixels, (image.height, image.width, image.channels)
            )
            drawn.append(pixels.copy())
            self.check(self.c.hbsdk_image_free(ctypes.byref(image)))
        return np.stack(drawn)


def _path(path: Path | str) -> c_char_p:
    return c_char_p(str(path).encode())


def _image(pixels: np.ndarray) -> Image:
    values = np.ascontiguousarray(pixels, np.uint8)
    image = Image(
        values.ctypes.data_as(POINTER(ctypes.c_uint8)),
        values.shape[1], values.shape[0], values.shape[2],
    )  # fmt: skip
    image.kept = values  # the memory that it points to
    return image
