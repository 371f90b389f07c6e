"""The whole recipe of the embedded base model, stage by stage, in one folder that can be gone on with at
any time.

    studiolo base build --out FOLDER

Sprites are fetched, scenes composed, then the autoencoder, the text encoder and the U-Net are trained one
after the other; each stage takes what the ones before it left in FOLDER and is skipped when its own result
is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from studiolo.base.autoencoder import AutoencoderRecipe, sharpen_decoder, train_autoencoder
from studiolo.base.dataset import SceneSet, scene_set
from studiolo.base.loop import Machine
from studiolo.base.sample_subjects import write_subjects
from studiolo.base.sprites import SpriteBank, render_sprites
from studiolo.base.text import TextRecipe, train_text_encoder
from studiolo.base.unet import SCHEDULER, UnetRecipe, new_unet, train_unet
from studiolo.diffusion.components import Components
from studiolo.diffusion.sampling import SamplerSettings, generate
from studiolo.drawing.sheet import comparison_table
from studiolo.formats.diffusers_folder import save_components
from studiolo.store.files import atomic_path
from studiolo.training.processes import first_process

PREVIEW_PROMPTS = (
    *(
        "a dog on the grass",
        "a photo of a panda in space",
        "a fox in the snow",
        "a red apple on a blue background",
    ),
    *("a car in the city", "a rocket in space", "a guitar on a wooden floor", "a robot on the moon"),
    *(
        "a cat and a pumpkin on the beach",
        "a noto style penguin wearing a top hat in the snow",
        "an owl at night",
    ),
    *("a 3d style pizza on a purple background", "a house in the mountains", "a cactus in the desert"),
)
_PREVIEW_SEEDS = 3


@dataclass(frozen=True)
class BuildRecipe:
    """What is built: which nouns, how many scenes, and the recipe of each part."""

    nouns: tuple[str, ...] = ()
    scenes: int = 60_000
    held_out_scenes: int = 4_000
    seed: int = 1
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    text: TextRecipe = field(default_factory=TextRecipe)
    unet: UnetRecipe = field(default_factory=UnetRecipe)
    start: Path | None = None
    """A U-Net folder whose weights are gone on from, with a new optimizer."""


class Build:
    """One folder in which the base model comes to be."""

    def __init__(self, folder: Path, recipe: BuildRecipe, machine: Machine) -> None:
        self.folder, self.recipe, self.machine = folder, recipe, machine

    def drawings(self) -> SpriteBank:
        """All drawings, the held-out ones too."""
        path = self.folder / "sprites.npz"
        return SpriteBank.load(path) if path.exists() else render_sprites(self.folder / "packages", path)

    def sprites(self) -> SpriteBank:
        """The drawings of the recipe's nouns that may be trained on."""
        bank = self.drawings().training()
        return bank.only(self.recipe.nouns) if self.recipe.nouns else bank

    def scenes(self, held_out: bool = False) -> SceneSet:
        """The training scenes, or as many others of the same sprites that no stage trains on."""
        count = self.recipe.held_out_scenes if held_out else self.recipe.scenes
        return scene_set(self.sprites(), self.recipe.seed + held_out, count, self.folder / "scenes")

    def autoencoder(self) -> AutoencoderKL:
        """The trained autoencoder (training it first if `vae/` is not there)."""
        path = self.folder / "vae"
        if not path.exists():
            work, recipe = self.folder, self.recipe.autoencoder
            model = train_autoencoder(self.scenes(), work / "autoencoder", recipe, self.machine)
            model = sharpen_decoder(model, self.scenes(), work / "decoder", recipe, self.machine)
            model.save_pretrained(path)
        return AutoencoderKL.from_pretrained(path).eval()

    def text(self) -> tuple[CLIPTokenizer, CLIPTextModel]:
        """The tokenizer and the trained text encoder (training it first if `text_encoder/` is not there)."""
        if not (self.folder / "text_encoder").exists():
            tokenizer, encoder = train_text_encoder(
                self.scenes(), self.scenes(True), self.folder / "clip", self.recipe.text, self.machine
            )
            tokenizer.save_pretrained(self.folder / "tokenizer")
            encoder.save_pretrained(self.folder / "text_encoder")
        encoder = CLIPTextModel.from_pretrained(self.folder / "text_encoder").eval()
        return CLIPTokenizer.from_pretrained(self.folder / "tokenizer"), encoder

    def unet(self) -> Components:
        """The finished model in `weights/` (float16), after what time the machine gives from where it
        stood."""
        tokenizer, text_encoder = self.text()
        torch.manual_seed(self.recipe.unet.seed)
        unet = new_unet(self.recipe.unet, text_encoder.config.hidden_size)
        if self.recipe.start:
            unet.load_state_dict(UNet2DConditionModel.from_pretrained(self.recipe.start).state_dict())
        components = Components((tokenizer,), (text_encoder,), self.autoencoder(), unet, dict(SCHEDULER))
        finished = train_unet(
            components,
            self.scenes(),
            self.scenes(True),
            self.folder / "unet",
            self.recipe.unet,
            self.machine,
            on_save=lambda step: self._preview(components, step),
        )
        if first_process():
            save_components(finished, self.folder / "weights", torch.float16)
        return finished

    def _preview(self, components: Components, step: int) -> None:
        """The weights as they are, and a contact sheet of the preview prompts at fixed seeds."""
        save_components(components, self.folder / "weights", torch.float16)
        components.vae.to(components.device)
        seeds = range(_PREVIEW_SEEDS)
        prompts = [prompt for prompt in PREVIEW_PROMPTS for _ in seeds]
        pictures = generate(
            components, prompts, [*seeds] * len(PREVIEW_PROMPTS), SamplerSettings(steps=16), batch_size=28
        )
        rows = [pictures[start : start + len(seeds)] for start in range(0, len(pictures), len(seeds))]
        sheet = comparison_table(
            rows, row_captions=PREVIEW_PROMPTS, column_captions=[f"seed {seed}" for seed in seeds], cell=64
        )
        with atomic_path(self.folder / f"previews/{step:06d}.png") as temporary:
            sheet.save(temporary, format="PNG")

    def sample_subjects(self) -> None:
        """The views of the sample subjects, in `subjects/`."""
        write_subjects(self.drawings(), self.folder / "subjects")
