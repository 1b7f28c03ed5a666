"""Measures the mini bundle on identities that no training saw: `python -m hbsdk.mini.evaluate`.

Retrieval: does a drawn picture's DINO class token find its own identity among all the held-out
ones, whose gallery is two other real pictures each? CLIP-T: does CLIP find the prompt in it?
Beside every figure stand its ceiling (real pictures of the same identities in the same contexts)
and its floor (the class word alone). Refinement is judged by the denoising loss on *other* pictures
of the identity, paired, with the same noise.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

import hbsdk
from hbsdk.features import CLIP_MEAN, CLIP_STD, DINO_MEAN, DINO_STD, encoder_pixels
from hbsdk.generate import Canvas, denoise, initial_noise
from hbsdk.mini import world
from hbsdk.mini.cache import draw_picture
from hbsdk.objective import Denoiser, NoisyBatch, ObjectiveWeights, objective, stratified_timesteps
from hbsdk.schedule import make_schedule
from hbsdk.text import PromptTokens, tokenize_prompt

Pixels = npt.NDArray[np.uint8]
Words = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Prompt:
    """A prompt with {} for the subject, and the context that a real picture of it has."""

    text: str
    context: world.Context


PROMPTS = (
    Prompt("a picture of {}", world.Context("plain blue", "cartoon", "none")),
    Prompt("a picture of {} in the snow", world.Context("snow", "cartoon", "none")),
    Prompt("a picture of {} on the beach", world.Context("beach", "cartoon", "none")),
    Prompt("a picture of {} wearing a crown in the forest",
           world.Context("forest", "cartoon", "crown")),
    Prompt("a picture of {} wearing a red hat in the city",
           world.Context("city", "cartoon", "red hat")),
    Prompt("a watercolor of {} in a meadow", world.Context("meadow", "watercolor", "none")),
    Prompt("a picture of {} with a red balloon at sunset",
           world.Context("sunset", "cartoon", "balloon")),
    Prompt("a picture of {} wearing headphones in space",
           world.Context("space", "cartoon", "headphones")),
)  # fmt: skip
REFERENCE = 0  # which of an identity's pictures is the photo
GALLERY = (1, 2)  # its real pictures that retrieval searches


def class_noun(seed: int) -> str:
    """Return the word for an identity's class, with its article."""
    kind = world.identity(seed).kind
    return "a person" if kind == "human" else f"a {kind}"


class Judge:
    """The bundle's own DINO and CLIP, as measures."""

    def __init__(self, session: hbsdk.Session) -> None:
        self.session = session
        folder = session.bundle.folder
        assert folder is not None
        session.bundle.verify("clip_projections.safetensors")
        self.projections = load_file(folder / "clip_projections.safetensors")

    @torch.no_grad()
    def dino(self, pixels: Pixels) -> Tensor:
        """(N, 64, 64, 3) uint8 -> (N, d) unit class tokens."""
        network = self.session.torch_backend.network("dino")
        shown = encoder_pixels(_unit(pixels), network.config.image_size, DINO_MEAN, DINO_STD)
        return F.normalize(network(shown).last_hidden_state[:, 0].float(), dim=-1)

    @torch.no_grad()
    def clip_t(self, pixels: Pixels, texts: Sequence[str]) -> Tensor:
        """Return (N,) cosine similarities of pictures and texts in CLIP's space."""
        vision = self.session.torch_backend.network("image_encoder")
        shown = encoder_pixels(_unit(pixels), vision.config.image_size, CLIP_MEAN, CLIP_STD)
        images = self._project("visual", vision(shown).pooler_output)
        ids = np.stack([tokenize_prompt(self.session.tokenizer, text, {}).ids for text in texts])
        text = self.session.torch_backend.network("text_encoder")
        return F.cosine_similarity(
            images, self._project("text", text(torch.from_numpy(ids)).pooler_output)
        )

    def _project(self, tower: str, pooled: Tensor) -> Tensor:
        return pooled @ self.projections[f"{tower}_projection.weight"].float().T


def _unit(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def draw(
    session: hbsdk.Session,
    prompts: Sequence[PromptTokens],
    words: Mapping[str, Words],
    *,
    seed: int,
    steps: int = 20,
    guidance_scale: float | None = None,
) -> Pixels:
    """Draw one guided picture a prompt, (N, 64, 64, 3) uint8, in one batch."""
    backend = session.torch_backend
    scale = session.bundle.info.guidance_scale if guidance_scale is None else guidance_scale
    schedule = make_schedule(
        session.bundle.scheduler_config(), sampler="dpm++2m", num_inference_steps=steps
    )
    empty = tokenize_prompt(session.tokenizer, "", {})
    states = backend.encode_prompts([empty] * len(prompts) + list(prompts), words, copies=1)
    factor = session.bundle.info.vae_scale_factor
    side = session.bundle.info.image_size_px // factor
    noise = initial_noise(
        seed, len(prompts), Canvas(session.bundle.info.latent_channels, side, side)
    )
    latents = denoise(backend, noise, states, schedule, scale)
    pictures: Pixels = np.rint(backend.decode(latents) * 255.0).astype(np.uint8)
    return pictures


def draw_all(
    session: hbsdk.Session,
    seeds: Sequence[int],
    subjects: Mapping[int, Words] | None,
    **how: Any,
) -> Pixels:
    """Return (identities, prompts, 64, 64, 3): each subject, or its class word, in each prompt."""
    rows = []
    for number, prompt in enumerate(tqdm(PROMPTS, desc="drawing")):
        tokens, words = [], {}
        for seed in seeds:
            name = f"<{seed}>"
            if subjects is None:
                text = prompt.text.format(class_noun(seed))
                tokens.append(tokenize_prompt(session.tokenizer, text, {}))
                continue
            words[name] = subjects[seed]
            counts = {name: len(subjects[seed])}
            text = prompt.text.format(name)
            tokens.append(tokenize_prompt(session.tokenizer, text, counts))
        parts = [
            draw(
                session, tokens[i : i + 16],
                {k: w for k, w in words.items() if any(k in t.places for t in tokens[i : i + 16])},
                seed=1000 * number + i, **how,
            )
            for i in range(0, len(tokens), 16)
        ]  # fmt: skip
        rows.append(np.concatenate(parts))
    return np.stack(rows, axis=1)


def real_pictures(seeds: Sequence[int]) -> Pixels:
    """Return (identities, prompts, 64, 64, 3): each identity really in each prompt's context."""
    rows = []
    for seed in seeds:
        views = [world.view(np.random.default_rng([seed, 77, i])) for i in range(len(PROMPTS))]
        rows.append([
            world.render(world.identity(seed), view, prompt.context)[0]
            for view, prompt in zip(views, PROMPTS, strict=True)
        ])  # fmt: skip
    return np.array(rows, np.uint8)


def figures(judge: Judge, pictures: Pixels, seeds: Sequence[int]) -> dict[str, Any]:
    """Return retrieval, DINO-I and CLIP-T of (identities, prompts, 64, 64, 3) pictures."""
    real = np.array([[draw_picture(s, index)[0] for index in GALLERY] for s in seeds])
    flat = judge.dino(real.reshape(-1, *real.shape[2:])).unflatten(0, real.shape[:2])
    gallery = F.normalize(flat.mean(dim=1), dim=-1)
    own = torch.arange(len(seeds))
    by_prompt = {}
    for number, prompt in enumerate(PROMPTS):
        shown = pictures[:, number]
        similar = judge.dino(shown) @ gallery.T
        texts = [prompt.text.format(class_noun(seed)) for seed in seeds]
        by_prompt[prompt.text] = {
            "retrieved": (similar.argmax(1) == own).float().mean().item(),
            "dino_i": similar.diagonal().mean().item(),
            "dino_i_of_others": _off_diagonal(similar).mean().item(),
            "clip_t": judge.clip_t(shown, texts).mean().item(),
        }
    means = {
        key: float(np.mean([row[key] for row in by_prompt.values()]))
        for key in ("retrieved", "dino_i", "dino_i_of_others", "clip_t")
    }
    return {"plain": by_prompt[PROMPTS[0].text], "mean": means, "by_prompt": by_prompt}


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


@torch.no_grad()
def other_pictures_loss(session: hbsdk.Session, seed: int, words: Words) -> float:
    """Return the mask-weighted denoising loss on four other pictures of an identity.

    The noise and its 16 levels a picture depend on the identity alone.
    """
    backend = session.torch_backend
    denoiser = Denoiser(backend.network("unet"), backend.network("text_encoder"), backend.scheduler)
    losses = []
    generator = torch.Generator().manual_seed(seed)
    for index in (3, 4, 5, 6):
        pixels, mask, captions = draw_picture(seed, index)
        prompt = tokenize_prompt(session.tokenizer, captions[-1], {"s*": len(words)})
        latents = backend.encode_image(_unit(pixels[None])).expand(16, -1, -1, -1)
        small = F.interpolate(
            torch.from_numpy(mask)[None, None].float(), latents.shape[-2:], mode="area"
        )
        ((places,),) = prompt.places.values()
        batch = NoisyBatch(
            latents=latents,
            noise=torch.randn(latents.shape, generator=generator),
            timesteps=stratified_timesteps(16, 1000, generator),
            mask=small.expand(16, -1, -1, -1),
            ids=torch.from_numpy(prompt.ids).expand(16, -1),
            positions=torch.tensor(places).expand(16, -1),
        )
        repeated = torch.from_numpy(words).expand(16, -1, -1)
        weights = ObjectiveWeights(mask_loss=0.0, background=0.1)
        losses.append(objective(denoiser, repeated, batch, weights).denoising.item())
    return float(np.mean(losses))


def evaluate(session: hbsdk.Session, count: int, **options: Any) -> dict[str, Any]:
    """Return all figures of `count` held-out identities."""
    from scipy.stats import wilcoxon

    seeds = list(world.HELD_OUT_SEEDS[:count])
    judge = Judge(session)
    photos = {seed: draw_picture(seed, REFERENCE)[0] for seed in seeds}
    probes = {s: session.personalize(photos[s], steps=0).words for s in tqdm(seeds, desc="probe")}
    made = {s: session.personalize(photos[s], **options) for s in tqdm(seeds, desc="refine")}
    refined = {seed: subject.words for seed, subject in made.items()}
    losses = np.array([
        [other_pictures_loss(session, s, probes[s]), other_pictures_loss(session, s, refined[s])]
        for s in tqdm(seeds, desc="loss on other pictures")
    ])  # fmt: skip
    reports = [subject.report for subject in made.values() if subject.report]
    return {
        "identities": count,
        "real pictures (ceiling)": figures(judge, real_pictures(seeds), seeds),
        "class word (floor)": figures(judge, draw_all(session, seeds, None), seeds),
        "probe": figures(judge, draw_all(session, seeds, probes), seeds),
        "refined": figures(judge, draw_all(session, seeds, refined), seeds),
        "loss on other pictures": {
            "probe": losses[:, 0].mean(),
            "refined": losses[:, 1].mean(),
            "identities lower": int((losses[:, 1] < losses[:, 0]).sum()),
            "p (Wilcoxon, one-sided)": wilcoxon(
                losses[:, 1], losses[:, 0], alternative="less"
            ).pvalue,
        },
        "refinement": {
            key: float(np.mean([getattr(report, key) for report in reports]))
            for key in ("loss_before", "loss_after", "word_change", "weight_change", "seconds")
        },
    }


def main() -> None:
    """Evaluate, print the means, and write everything to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", help="default: the embedded mini bundle")
    parser.add_argument("--identities", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    arguments = parser.parse_args()
    session = hbsdk.Session(arguments.bundle, engine="torch", progress=False)
    started = time.time()
    report = {
        "command": " ".join(["python", "-m", "hbsdk.mini.evaluate", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"hbsdk": hbsdk.__version__, "torch": torch.__version__},
        "bundle_hash": session.bundle.hash,
        **evaluate(session, arguments.identities),
    }
    report["seconds"] = round(time.time() - started, 1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2, default=float) + "\n", "utf-8")
    means = {key: part.get("mean", part) for key, part in report.items() if isinstance(part, dict)}
    print(json.dumps(means, indent=1, default=float))


if __name__ == "__main__":
    main()
