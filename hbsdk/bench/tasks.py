"""What the measured processes do with hbsdk itself; `child.py` makes and runs them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import hbsdk
from hbsdk.bench.stopwatch import StepClock, Stopwatch, synchronise
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
TO_STEP = (
    ("text_encoder", "unet"), ("token_embedding", "text_encoder_embeds", "denoise_step")
)  # fmt: skip
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
    ways = {"torch": "network", "openvino": "prepare"}  # the latter also compiles
    load_one = getattr(backend, ways.get(backend.name, "load"))
    for name in networks if backend.name == "torch" else engines:
        load_one(name)


def draw_photo(size_px: int, seed: int = 0) -> tuple[Pixels, Pixels]:
    """Draw a character to personalize, (S, S, 3), and its mask in {0, 255}, (S, S)."""
    identity = world.identity(world.HELD_OUT_SEEDS[seed])
    pixels, mask = world.render(
        identity, world.NEUTRAL_VIEW, world.Context("forest"), height=size_px, width=size_px
    )
    return pixels, (mask * 255).astype(np.uint8)


class Generate:
    """One picture from a prompt, with the times between its steps' ends; or one guided step."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Open a session and load what draws; `settings["options"]` are `GenerateOptions`.

        With `settings["guided_step"]` all steps but the first count, and nothing is decoded.
        """
        self.step_alone = bool(settings.get("guided_step"))
        self.options = GenerateOptions(**settings.get("options", {}))
        self.steps_alike = is_exact(settings.get("options", {}))
        self.prompt = settings["prompt"]
        self._to_save: str | None = settings.get("picture")
        self.session = open_session(settings)
        if settings.get("memory") != "low":
            load(self.session.backend, TO_STEP if self.step_alone else TO_GENERATE)
        self.latents = unit_noise(self.session, self.options)
        self.on_cpu = str(self.session.backend.device) == "cpu"
        self.watch = Stopwatch(self.session)
        self.ends: list[tuple[float, float]] = []  # of steps, and the seconds inside of networks

    def run(self) -> dict[str, Any]:
        """Draw once; on a GPU a second time for the steps, whose ends have to be waited for."""
        if self.step_alone:
            _, drawn = self._draw(with_ends=True)
            answer = {"samples": self._steps(), "shares": self._host_share_of_step()}
        else:
            seconds, drawn = self._draw(with_ends=self.on_cpu)
            stages, inside = self.watch.stages(), self.watch.inside_s
            if not self.on_cpu:
                self._draw(with_ends=True)
            steps = self.options.num_inference_steps
            samples = {f"picture of {steps} steps": [seconds], **self._steps()}
            shares = {} if inside is None else {"host_share": 1.0 - inside / seconds}
            answer = {"samples": samples, "stages": stages, "shares": shares}
        if self._to_save:
            save_array(self._to_save, drawn)
            self._to_save = None
        return answer

    def _steps(self) -> dict[str, list[float]]:
        """Return each step's seconds but the first's; none where some do less than others."""
        ends = [end for end, _ in self.ends]
        return {"guided step": np.diff(ends).tolist()} if self.steps_alike and ends[1:] else {}

    def _host_share_of_step(self) -> dict[str, float]:
        if not self.on_cpu:
            return {}
        (first, before), *_, (last, inside) = self.ends
        return {"host_share": 1.0 - (inside - before) / (last - first)}

    def _draw(self, *, with_ends: bool) -> tuple[float, npt.NDArray[np.float32]]:
        self.ends = []

        def on_step_end(*_: Any) -> dict[str, Any]:
            synchronise()
            self.ends.append((time.perf_counter(), self.watch.inside_s or 0.0))
            return {}

        synchronise()
        self.watch.start()
        (drawn,) = self.session.generate(
            self.prompt, latents=self.latents, options=self.options,
            output_type="latent" if self.step_alone else "np",
            callback_on_step_end=on_step_end if with_ends else None,
        )  # fmt: skip
        synchronise()
        return time.perf_counter() - self.watch.started, drawn


# Options that change how much is drawn, not how much of the method's work is done for it.
_EXACT = {"num_inference_steps", "num_images_per_prompt", "height", "width", "seed", "output_type"}


def is_exact(options: Mapping[str, Any]) -> bool:
    """Tell whether drawing with these options leaves no work out: then all steps are alike."""
    return _EXACT.issuperset(options)


def save_array(path: str, values: npt.NDArray[Any]) -> None:
    """Write a .npy file under a temporary name, then rename it."""
    temporary = Path(path).with_suffix(".part.npy")
    np.save(temporary, values)
    temporary.replace(path)


class Personalize:
    """One photo to a subject, by stage; its refinement steps also one by one."""

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
        self.clock = StepClock(backend) if refines else None
        self.watch = Stopwatch(self.session)

    def run(self) -> dict[str, Any]:
        """Personalize once."""
        synchronise()
        self.watch.start()
        subject = self.session.personalize(self.photo, self.mask, options=self.options)
        synchronise()
        seconds = time.perf_counter() - self.watch.started
        stages = self.watch.stages()
        if self.clock is None:
            return {"samples": {"probe": [seconds]}, "stages": stages}
        steps = self.clock.steps_s()
        rest = stages.pop("refine") - sum(steps)
        host = stages.pop("host")
        stages |= {"steps": sum(steps), "loss before and after": max(0.0, rest), "host": host}
        assert subject.report is not None
        facts = {key: subject.report.as_dict()[key] for key in ("losses", "word_change")}
        samples = {REFINEMENT_STEP: steps, whole_refinement(self.options.steps): [seconds]}
        return {"samples": samples, "stages": stages, "facts": facts}


REFINEMENT_STEP = "refinement step"


def whole_refinement(steps: int) -> str:
    """Return what a photo's probe and refinement is called."""
    return f"probe and {steps} step" + ("s" if steps > 1 else "")


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
            pixels_a_cell=np.int64(info.vae_scale_factor),
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
        import torch

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
