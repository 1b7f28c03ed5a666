"""Makes the mini bundle from nothing: `python -m hbsdk.mini.train --work DIR`.

Stages, in order, each resumable and each in a file of its own: the world's pictures (cache.py), the
tokenizer, the autoencoder, CLIP, DINO, the UNet, the regressor. A finished stage's weights are in
`--bundle`; `DIR/<stage>.jsonl` holds its losses and figures, `DIR/regressor/` all of the
regressor's run.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from hbsdk.bundle import Bundle, BundleInfo, write_manifest, write_model_index
from hbsdk.bundle_info import sha256_of
from hbsdk.mini import (
    networks,
    train_clip,
    train_dino,
    train_regressor,
    train_unet,
    train_vae,
    world,
)
from hbsdk.mini.cache import Pictures, Pixels, draw_cache, draw_picture, load_cache
from hbsdk.mini.record import record
from hbsdk.mini.tokenizer import learn_tokenizer, save_tokenizer
from hbsdk.mini.training_loop import Plan, run, save_atomically, save_weights
from hbsdk.training.world_source import WorldSource

WEIGHTS = Path(__file__).parent / "weights"
RECORD = Path(__file__).parent / "training.json"
CLASS_WORD = "cat"
PROJECTIONS = "clip_projections.safetensors"
GUIDANCE_SCALE = 3.0  # chosen on the validation identities: benchmarks/results/guidance_scale.json


@dataclasses.dataclass(frozen=True)
class Work:
    """Where a training run keeps its files, and what was asked of it."""

    folder: Path
    bundle: Path
    identities: int
    steps: int | None = None
    go_on: bool = False

    def plan(self, plan: Plan) -> Plan:
        """Return a stage's plan with the number of steps asked for."""
        return plan if self.steps is None else dataclasses.replace(plan, steps=self.steps)

    def pictures(self) -> Pictures:
        """Load the training pictures."""
        return load_cache(self.folder / "pictures", self.identities)

    def begun(self, module: Any, name: str) -> Any:
        """Return a network with random weights, or to go on with the bundle's, with those."""
        if self.go_on:
            module.load_state_dict(load(type(module), self.bundle / name).state_dict())
        return module


def held_out_pixels(count: int) -> Pixels:
    """Return (count, 64, 64, 3) uint8 pictures of identities that no stage trains on."""
    seeds = world.HELD_OUT_SEEDS[-count:]  # the evaluation uses the first ones
    return np.stack([draw_picture(seed, index % 9)[0] for index, seed in enumerate(seeds)])


def train_tokenizer(work: Work) -> None:
    """Learn the vocabulary from captions."""
    captions = work.pictures().captions.reshape(-1)[:200_000]
    save_tokenizer(learn_tokenizer(map(str, captions)), work.bundle / "tokenizer")


def train_vae_stage(work: Work) -> bool:
    """Train the autoencoder and fold its normalisation in."""
    vae = work.begun(networks.vae(), "vae")
    pixels = work.pictures().pixels.reshape(-1, 64, 64, 3)
    plan = work.plan(train_vae.PLAN)
    if not run(train_vae.stage(vae, pixels, held_out_pixels(256), plan), work.folder):
        return False
    train_vae.fold_normalisation(vae, train_vae.encode_all(vae, pixels[:8192]))
    save_pretrained(vae, work.bundle / "vae")
    return True


def train_clip_stage(work: Work) -> bool:
    """Train both CLIP towers."""
    tokenizer = load_tokenizer(work.bundle)
    pictures = work.pictures()
    tokens = caption_tokens(tokenizer, pictures)
    text = work.begun(networks.text_encoder(tokenizer), "text_encoder")
    vision = work.begun(networks.image_encoder(), "image_encoder")
    projections = train_clip.ClipProjections()
    if work.go_on:
        projections.load_state_dict(load_file(work.bundle / PROJECTIONS))
    stage = train_clip.stage(
        text, vision, projections, pictures, tokens, work.plan(train_clip.PLAN)
    )
    if not run(stage, work.folder):
        return False
    save_pretrained(text, work.bundle / "text_encoder")
    save_pretrained(vision, work.bundle / "image_encoder")
    save_weights(projections, work.bundle / PROJECTIONS)
    return True


def train_dino_stage(work: Work) -> bool:
    """Train the DINO-class encoder."""
    dino = work.begun(networks.dino(), "dino")
    stage = train_dino.stage(
        dino, train_dino.DinoHeads(), work.pictures(), work.plan(train_dino.PLAN)
    )
    if not run(stage, work.folder):
        return False
    save_pretrained(dino, work.bundle / "dino")
    return True


def train_unet_stage(work: Work) -> bool:
    """Train the denoiser."""
    pictures, tokenizer = work.pictures(), load_tokenizer(work.bundle)
    unet = work.begun(networks.unet(), "unet")
    text = load(CLIPTextModel, work.bundle / "text_encoder")
    tokens = caption_tokens(tokenizer, pictures)
    empty = train_clip.tokenize(tokenizer, [""])[0]
    plan = work.plan(train_unet.PLAN)
    stage = train_unet.stage(unet, text, all_latents(work, pictures), tokens, empty, plan)
    if not run(stage, work.folder):
        return False
    save_pretrained(unet, work.bundle / "unet")
    sampler = DPMSolverMultistepScheduler.from_config(train_unet.noise_scheduler().config)
    sampler.save_config(work.bundle / "scheduler")
    return True


def train_regressor_stage(work: Work) -> bool:
    """Train the regressor, or go on with it where it was stopped."""
    write_bundle_manifest(work)  # the training loop checks the networks' hashes
    options = train_regressor.OPTIONS
    if work.steps is not None:
        options = dataclasses.replace(options, steps=work.steps)
    source = WorldSource(work.identities, work.folder / "pictures")
    trained = train_regressor.train(
        Bundle.open(work.bundle), source, work.folder, options, go_on=work.go_on
    )
    save_pretrained(trained, work.bundle / "regressor")
    return True


def write_bundle_manifest(work: Work) -> None:
    """Write the bundle's manifest over whatever networks there are."""
    write_model_index(work.bundle)
    write_manifest(
        work.bundle,
        BundleInfo(
            name="hbsdk-mini",
            class_word=CLASS_WORD,
            image_size_px=networks.IMAGE_SIZE,
            licence="Apache-2.0",
            trained_on="pictures that hbsdk.mini.world draws; no photographs",
            base="nothing: trained from random weights by hbsdk.mini.train",
            guidance_scale=GUIDANCE_SCALE,
        ),
    )


def write_bundle(work: Work) -> bool:
    """Write the bundle's manifest, and the record of its training."""
    write_bundle_manifest(work)
    if stages := record(work.folder):
        # Stages that this work folder has no log of were trained elsewhere.
        others = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
        text = json.dumps(others | stages, indent=2) + "\n"
        save_atomically(lambda path: path.write_text(text, "utf-8"), RECORD)
    return True


def caption_tokens(tokenizer: Any, pictures: Pictures) -> train_clip.Tokens:
    """Return (identities, pictures, captions + 1, 77) int16 token ids of all captions."""
    tokens = train_clip.tokenize(tokenizer, list(map(str, pictures.captions.reshape(-1))))
    return tokens.reshape(*pictures.captions.shape, -1)


def all_latents(work: Work, pictures: Pictures) -> torch.Tensor:
    """Return (identities, pictures, 16, 8, 8) float16 latents, encoded once and kept."""
    vae_weights = work.bundle / "vae" / "diffusion_pytorch_model.safetensors"
    kept = work.folder / f"latents-{work.identities}-{sha256_of(vae_weights)[:16]}.pt"
    if not kept.exists():
        vae = load(AutoencoderKL, work.bundle / "vae")
        encoded = train_vae.encode_all(vae, pictures.pixels.reshape(-1, 64, 64, 3))
        save_atomically(partial(torch.save, encoded), kept)
    latents: torch.Tensor = torch.load(kept, weights_only=True)
    return latents.reshape(*pictures.pixels.shape[:2], *latents.shape[1:])


def load(kind: Any, folder: Path) -> Any:
    """Load a frozen network in float32."""
    module = kind.from_pretrained(folder, local_files_only=True).float().eval()
    return module.requires_grad_(False)


def load_tokenizer(bundle: Path) -> Any:
    """Load the bundle's tokenizer as transformers has it, which takes many texts at once."""
    return CLIPTokenizer.from_pretrained(bundle / "tokenizer")


def save_pretrained(module: Any, folder: Path) -> None:
    """Save config.json and half-precision weights as diffusers and transformers do."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        copy.deepcopy(module).half().save_pretrained(temporary)
        _forget_folder(Path(temporary) / "config.json")
        for file in Path(temporary).iterdir():
            os.replace(file, folder / file.name)


def _forget_folder(config: Path) -> None:
    """Take the folder that a network was loaded from out of its configuration."""
    settings = json.loads(config.read_text("utf-8"))
    settings.pop("_name_or_path", None)
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")


STAGES = {
    "vae": train_vae_stage,
    "clip": train_clip_stage,
    "dino": train_dino_stage,
    "unet": train_unet_stage,
    "regressor": train_regressor_stage,
    "bundle": write_bundle,
}


def main() -> None:
    """Run the stages asked for, or all of them in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; default: all")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--bundle", type=Path, default=WEIGHTS)
    parser.add_argument("--identities", type=int, default=12_000, help="characters to draw")
    parser.add_argument("--steps", type=int, help="in place of the stage's own number of steps")
    parser.add_argument(
        "--go-on", action="store_true", help="start stages from the bundle's weights, not random"
    )
    parser.add_argument("--threads", type=int, help="CPU threads")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    work = Work(
        arguments.work, arguments.bundle, arguments.identities, arguments.steps, arguments.go_on
    )
    draw_cache(work.folder / "pictures", work.identities)
    if not (work.bundle / "tokenizer").exists():
        train_tokenizer(work)
    for name in arguments.stages or STAGES:
        torch.manual_seed(0)  # of the stage's random weights
        if not STAGES[name](work):
            break


if __name__ == "__main__":
    main()
