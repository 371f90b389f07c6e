"""The recipe of the independent eye: trained on composed scenes, measured on scenes and sprites that it
never saw.

    python -m studiolo.base.train_eye --sprites sprites.npz --scenes DIR --run DIR
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from studiolo.base.autoencoder import to_tensor
from studiolo.base.dataset import SceneSet, scene_set
from studiolo.base.eye_scores import eye_scores
from studiolo.base.loop import Machine, Part, trained
from studiolo.base.sprites import SpriteBank
from studiolo.base.vocabulary import BACKGROUNDS, NOUNS, STYLES
from studiolo.evaluation.eye import EYE_FOLDER, Eye, EyeLabels, EyeNetwork
from studiolo.store.files import atomic_path

TRAINING, HELD_OUT_SCENES = (1, 60_000), (2, 4_000)
"""(seed, number) of the scenes to learn from and of those to measure on."""


@dataclass(frozen=True)
class EyeRecipe:
    """Hyper-parameters; `sharpness` multiplies the cosines of the identity loss."""

    steps: int = 2200
    batch_size: int = 128
    learning_rate: float = 2e-3
    sharpness: float = 20.0
    margin: float = 0.15
    seed: int = 0


class Identities(nn.Module):
    """A direction for every training sprite: cosine softmax with a margin (CosFace, Wang et al. 2018, eq.
    4)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(count, width) / width**0.5)

    def loss(self, embedding: Tensor, identity: Tensor, recipe: EyeRecipe) -> Tensor:
        """Of embeddings [B, D] of sprites number `identity` [B]; a negative number leaves the picture out."""
        cosines = F.normalize(embedding, dim=1) @ F.normalize(self.directions, dim=1).T
        right = F.one_hot(identity.clamp(min=0), cosines.shape[1])
        logits = recipe.sharpness * (cosines - recipe.margin * right)
        return F.cross_entropy(logits, identity, ignore_index=-1)


@dataclass
class Truths:
    """Labels of scenes: `nouns` float [N, nouns] (shares that sum to one), the others int64 [N]."""

    nouns: Tensor
    background: Tensor
    style: Tensor
    identity: Tensor

    @classmethod
    def of(cls, scenes: SceneSet, labels: EyeLabels, identities: list[tuple[str, str]]) -> Truths:
        """A pair beside each other has no one identity: -1."""
        nouns = torch.zeros(len(scenes), len(labels.nouns))
        for row, truth in zip(nouns, scenes.truths, strict=True):
            for noun in truth["nouns"]:
                row[labels.nouns.index(noun)] += 1 / len(truth["nouns"])
        number = {key: i for i, key in enumerate(identities)}
        return cls(
            nouns,
            torch.tensor([labels.backgrounds.index(truth["background"]) for truth in scenes.truths]),
            torch.tensor([labels.styles.index(truth["style"]) for truth in scenes.truths]),
            torch.tensor(
                [-1 if t["kind"] == "two" else number[t["nouns"][0], t["style"]] for t in scenes.truths]
            ),
        )


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Other places, sizes, tints, and half of the time softer: generated pictures are softer than composed
    ones.

    float [B, 3, H, W] in [-1, 1] in and out.
    """
    count, side = len(pixels), pixels.shape[-1]
    zoom, flip = (
        _uniform(generator, 0.85, 1.2, count),
        torch.randint(2, (count,), generator=generator) * 2 - 1,
    )
    move = torch.zeros(count, 2, 3)
    move[:, 0, 0], move[:, 1, 1] = zoom * flip, zoom
    move[:, :, 2] = _uniform(generator, -0.12, 0.12, count, 2)
    grid = F.affine_grid(move, list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    parts = []
    for part in pixels.chunk(4):  # a softness for each quarter of the batch
        small = int(_uniform(generator, 20, 2 * side, 1))
        if small < side:
            part = F.interpolate(part, size=(small, small), mode="area")
            part = F.interpolate(part, size=(side, side), mode="bilinear")
        parts.append(part)
    return _tinted(torch.cat(parts), generator)


def _tinted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    count = len(pixels)
    grey = pixels.mean(1, keepdim=True)
    pixels = grey + (pixels - grey) * _uniform(generator, 0.7, 1.2, count, 1, 1, 1)
    pixels = pixels * _uniform(generator, 0.8, 1.2, count, 1, 1, 1) + _uniform(
        generator, -0.1, 0.1, count, 3, 1, 1
    )
    noise = torch.randn(pixels.shape, generator=generator) * _uniform(generator, 0, 0.1, count, 1, 1, 1)
    return (pixels + noise).clamp(-1, 1)


class EyePart(Part):
    """The eye and the identities it learns by."""

    def __init__(self, network: EyeNetwork, scenes: SceneSet, labels: EyeLabels, recipe: EyeRecipe) -> None:
        super().__init__(recipe.learning_rate, recipe.steps, recipe.seed)
        identities = sorted({(t["nouns"][0], t["style"]) for t in scenes.truths})
        self.network, self.heads = network, Identities(len(identities), network.embedding)
        self.scenes, self.truths, self.recipe = scenes, Truths.of(scenes, labels, identities), recipe

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Truths]:
        """Augmented pictures [B, 3, 64, 64] in [-1, 1] and what is true of them."""
        # Reading in order is quicker, quarters must be mixed.
        rows = torch.randint(len(self.scenes), (self.recipe.batch_size,), generator=generator).sort().values
        pixels = to_tensor(torch.from_numpy(self.scenes.images[rows.tolist()]))
        shuffle = torch.randperm(len(rows), generator=generator)
        rows, pixels, truths = rows[shuffle], augmented(pixels[shuffle], generator), self.truths
        return pixels, Truths(
            truths.nouns[rows], truths.background[rows], truths.style[rows], truths.identity[rows]
        )

    def losses(self, batch: tuple[Tensor, Truths]) -> dict[str, Tensor]:
        pixels, truth = batch
        outputs = self.network(pixels.to(memory_format=torch.channels_last))
        noun, background, style, embedding = (output.float() for output in outputs)
        losses = {
            "noun": F.cross_entropy(noun, truth.nouns),
            "background": F.cross_entropy(background, truth.background),
            "style": F.cross_entropy(style, truth.style),
            "identity": self.heads.loss(embedding, truth.identity, self.recipe),
        }
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def train_eye(scenes: SceneSet, run: Path, recipe: EyeRecipe, machine: Machine) -> Eye:
    """Trains, or goes on training, in the folder `run`."""
    labels = EyeLabels(tuple(NOUNS), tuple(BACKGROUNDS), tuple(STYLES))
    torch.manual_seed(recipe.seed)
    network = EyeNetwork(len(labels.nouns), len(labels.backgrounds), len(labels.styles))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with trained(EyePart(network, scenes, labels, recipe), run, machine):
        return Eye(network.to(memory_format=torch.contiguous_format), labels)  # type: ignore[call-overload]


def save_eye(eye: Eye, folder: Path, scores: dict) -> None:
    """Writes the weights (float16), the labels and what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    state = eye.network.state_dict().items()
    weights = {name: value.half().contiguous() for name, value in state if "num_batches" not in name}
    words = {kind: list(getattr(eye.labels, kind)) for kind in ("nouns", "backgrounds", "styles")}
    with atomic_path(folder / "eye.safetensors") as temporary:
        save_file(weights, temporary)
    for name, content in (("labels.json", words), ("scores.json", scores)):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sprites", type=Path, required=True, help="sprites.npz")
    parser.add_argument(
        "--scenes", type=Path, required=True, help="folder of composed sets, made when missing"
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of checkpoints; gone on with when it holds one"
    )
    parser.add_argument("--out", type=Path, default=EYE_FOLDER)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long")
    chosen = parser.parse_args()
    bank = SpriteBank.load(chosen.sprites)
    scenes = scene_set(bank.training(), *TRAINING, chosen.scenes)
    eye = train_eye(scenes, chosen.run, EyeRecipe(), Machine(minutes=chosen.minutes))
    scores = eye_scores(eye, scene_set(bank.training(), *HELD_OUT_SCENES, chosen.scenes), bank)
    print(json.dumps(scores, indent=1))
    save_eye(eye, chosen.out, scores)


if __name__ == "__main__":
    main()
