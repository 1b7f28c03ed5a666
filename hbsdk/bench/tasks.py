"""What the measured processes do with hbsdk itself; `child.py` makes and runs them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import hbsdk
from hbsdk.bench.stopwatch import Stopwatch, synchronise
from hbsdk.generate import canvas_of, initial_noise, text_states
from hbsdk.mini import world
from hbsdk.options import GenerateOptions, PersonalizeOptions
from hbsdk.schedule import make_schedule

Pixels = npt.NDArray[np.uint8]
# What each needs, by the names of networks in torch and of engines.
TO_GENERATE = (
    ("text_encoder", "unet", "vae"),
    ("token_embedding", "text_encoder_embeds", "denoise_step", "vae_decoder"),
)
TO_PROBE = (
    ("image_encoder", "dino", "vae", "regressor"), ("image_features", "vae_encoder", "regressor")
)  # fmt: skip
TO_REFINE = (("text_encoder", "unet"), ())
_SESSION = ("engine", "engines", "device", "dtype", "memory")


def open_session(settings: Mapping[str, Any]) -> hbsdk.Session:
    """Open a session; what is not set is as by default."""
    chosen = {key: settings[key] for key in _SESSION if settings.get(key) is not None}
    return hbsdk.Session(settings.get("bundle"), progress=False, **chosen)


def load(backend: Any, names: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    """Load what is needed and nothing else: at SD 1.5's size, all networks are 8 GB in float32."""
    networks, engines = names
    for name in networks if backend.name == "torch" else engines:
        (backend.network if backend.name == "torch" else backend.load)(name)


def draw_photo(size_px: int, seed: int = 0) -> tuple[Pixels, Pixels]:
    """Draw a character to personalize, (S, S, 3), and its mask in {0, 255}, (S, S)."""
    identity = world.identity(world.HELD_OUT_SEEDS[seed])
    pixels, mask = world.render(
        identity, world.NEUTRAL_VIEW, world.Context("forest"), height=size_px, width=size_px
    )
    return pixels, (mask * 255).astype(np.uint8)


class Generate:
    """One picture from a prompt, with the times between its steps' ends."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Open a session and load what draws; `settings["options"]` are `GenerateOptions`."""
        self.options = GenerateOptions(**settings.get("options", {}))
        self.prompt = settings["prompt"]
        self._to_save: str | None = settings.get("picture")
        self.session = open_session(settings)
        if settings.get("memory") != "low":
            load(self.session.backend, TO_GENERATE)
        self.latents = unit_noise(self.session, self.options)
        self.on_cpu = str(self.session.backend.device) == "cpu"
        self.watch = Stopwatch(self.session)

    def run(self) -> dict[str, Any]:
        """Draw once; on a GPU a second time for the steps, whose ends have to be waited for."""
        ends: list[float] = []

        def on_step_end(*_: Any) -> dict[str, Any]:
            synchronise()
            ends.append(time.perf_counter())
            return {}

        callback = on_step_end if self.on_cpu else None
        seconds, picture = self._draw(callback)
        stages, inside = self.watch.stages(), self.watch.inside_s
        if callback is None:
            self._draw(on_step_end)
        if self._to_save:
            np.save(self._to_save, picture)
            self._to_save = None
        steps = self.options.num_inference_steps
        samples = {f"picture of {steps} steps": [seconds]}
        if len(ends) > 1:
            samples["guided step"] = np.diff(ends).tolist()
        facts = {} if inside is None else {"host_share": 1.0 - inside / seconds}
        return {"samples": samples, "stages": stages, "facts": facts}

    def _draw(self, callback: Any) -> tuple[float, npt.NDArray[np.float32]]:
        self.watch.start()
        (picture,) = self.session.generate(
            self.prompt, latents=self.latents, options=self.options, output_type="np",
            callback_on_step_end=callback,
        )  # fmt: skip
        return time.perf_counter() - self.watch.started, picture


class Personalize:
    """One photo to a subject, by stage."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Open a session and load what personalizes; `settings["options"]` are its options."""
        self.options = PersonalizeOptions(**settings.get("options", {}))
        self.session = open_session(settings)
        size = self.session.bundle.info.image_size_px
        self.photo, self.mask = draw_photo(size)
        refines = self.options.steps > 0
        backend: Any = self.session.torch_backend if refines else self.session.backend
        if settings.get("memory") != "low":
            load(backend, TO_PROBE)
            if refines:
                load(backend, TO_REFINE)
        self.watch = Stopwatch(self.session)

    def run(self) -> dict[str, Any]:
        """Personalize once."""
        self.watch.start()
        subject = self.session.personalize(self.photo, self.mask, options=self.options)
        synchronise()
        seconds = time.perf_counter() - self.watch.started
        steps = self.options.steps
        what = f"probe and {steps} steps" if steps else "probe"
        facts: dict[str, Any] = {}
        if subject.report is not None:
            facts = {key: subject.report.as_dict()[key] for key in ("losses", "word_change")}
        return {"samples": {what: [seconds]}, "stages": self.watch.stages(), "facts": facts}


class Inputs:
    """Writes what peers start from: noise, the prompt's states and the sampler's table."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Encode the prompt in torch, float32, and write `settings["inputs"]`, a .npz file."""
        options = GenerateOptions(**settings.get("options", {}))
        session = open_session({**settings, "engine": "torch", "dtype": "float32"})
        states = text_states(
            session.backend, session.tokenizer, settings["prompt"], [], options, guided=True
        )
        negative, positive = states.float().cpu().numpy()
        info = session.bundle.info
        table = make_schedule(
            session.bundle.scheduler_config(), sampler="dpm++2m",
            num_inference_steps=options.num_inference_steps,
        )  # fmt: skip
        rows = [table.timesteps, table.p, table.q, table.a, table.b, table.c]
        path = Path(settings["inputs"])
        temporary = path.with_name(f"part-{path.name}")
        np.savez(
            temporary,
            latents=unit_noise(session, options),
            prompt_embeds=positive[None],
            negative_prompt_embeds=negative[None],
            guidance_scale=np.float32(info.guidance_scale),
            table=np.stack([np.asarray(row, np.float64) for row in rows], axis=1),
            initial_noise_scale=np.float64(table.initial_noise_scale),
            latent_scale=np.array(_latent_scale(session.bundle), np.float64),
        )
        temporary.replace(path)

    def run(self) -> dict[str, Any]:
        """Nothing is left to do."""
        return {}


def _latent_scale(bundle: hbsdk.Bundle) -> tuple[float, float]:
    """Return the VAE's scaling factor and shift."""
    from hbsdk.backends.engine_math import latent_scale

    scale = latent_scale(bundle)
    return scale.factor, scale.shift


def unit_noise(session: hbsdk.Session, options: GenerateOptions) -> npt.NDArray[np.float32]:
    """Return the noise that every case starts from."""
    canvas = canvas_of(session.bundle.info, options)
    return initial_noise(options.seed, options.num_images_per_prompt, canvas)


class Rates:
    """How fast this machine multiplies large matrices and copies memory."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Prepare; `settings["dtypes"]` names the products'."""
        self.dtypes = settings["dtypes"]
        self.device_name = settings.get("device")

    def run(self) -> dict[str, Any]:
        """Return operations a second by dtype, and bytes a second read and written by a copy."""
        try:
            import torch
        except ImportError:
            return {"facts": {"rates": _numpy_rates()}}
        from hbsdk.training.machine import product_rate

        default = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(self.device_name or default)
        rates = {name: product_rate(device, getattr(torch, name)) for name in self.dtypes}
        source = torch.zeros(_COPIED_BYTES // 4, device=device)
        target = torch.ones_like(source)
        rates["copy"] = _copy_rate(lambda: target.copy_(source))
        return {"facts": {"rates": rates}}


_COPIED_BYTES = 256_000_000


def _copy_rate(copy: Any) -> float:
    copy()
    seconds = []
    for _ in range(5):
        synchronise()
        started = time.perf_counter()
        copy()
        synchronise()
        seconds.append(time.perf_counter() - started)
    return 2.0 * _COPIED_BYTES / min(seconds)


def _numpy_rates() -> dict[str, float]:
    side = 2048
    left = np.ones((side, side), np.float32)
    left @ left
    started = time.perf_counter()
    left @ left
    seconds = time.perf_counter() - started
    source = np.zeros(_COPIED_BYTES // 4, np.float32)
    target = np.ones_like(source)
    return {
        "float32": 2.0 * side**3 / seconds,
        "copy": _copy_rate(lambda: np.copyto(target, source)),
    }
