"""What a run learns from: the subjects' images and the prior, as the two halves of its micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from studiolo.diffusion.components import Components
from studiolo.diffusion.conditioning import join_present
from studiolo.drawing.prompts import fill_identifier
from studiolo.dreambooth.batches import Batches, Examples, Half
from studiolo.dreambooth.buckets import Buckets, bucket_shapes, nearest_shape
from studiolo.dreambooth.examples import Draw, ExampleSet, LatentEncoder
from studiolo.dreambooth.identifier import take_identifier
from studiolo.dreambooth.parts import TokenIds
from studiolo.dreambooth.prior import ClassExamples, ClassImageMaker
from studiolo.dreambooth.recipe import Recipe, fill
from studiolo.dreambooth.subject import InstanceImage, Subject
from studiolo.dreambooth.transforms import Size, Transform


@dataclass(frozen=True)
class Taught:
    """One subject of a run: [NAME] in prompts, its checked images and class, what stands for it."""

    name: str
    subject: Subject
    identifier: str
    """A word, or several: one for each of its vectors (diffusion/words.py)."""

    @property
    def word(self) -> str:
        """The first of them, which the others follow from."""
        return self.identifier.split()[0]

    def take_words(self, components: Components) -> list[TokenIds]:
        """The token of each of its words, added to `components` where they are none yet."""
        noun = self.subject.class_noun
        return [take_identifier(components, word, noun).token_ids for word in self.identifier.split()]

    def caption(self, template: str) -> str:
        """A prompt with the class noun and the identifier in place."""
        return fill(template, self.subject.class_noun, self.identifier)

    def describe(self) -> dict[str, Any]:
        """As the model's card has it."""
        noun = self.subject.class_noun
        return {"name": self.name, "class_noun": noun, "identifier": self.identifier}


def class_captions(recipe: Recipe, taught: Sequence[Taught]) -> list[str]:
    """The prompts of the class half: each of the recipe's for each class noun in turn."""
    nouns = dict.fromkeys(one.subject.class_noun for one in taught)
    return [fill(prompt, noun) for prompt in recipe.class_prompts for noun in nouns]


@dataclass(frozen=True)
class Material:
    """All that a run learns from.

    Args:
        recipe: resolved.
        components: the model; its VAE encodes.
        taught: the subjects, which are met equally often, however many images each has.
        world: processes that share each micro-batch.
        cache: folder of encoded images, or None.
    """

    recipe: Recipe
    components: Components
    taught: Sequence[Taught]
    world: int = 1
    cache: Path | None = None

    @property
    def size(self) -> int:
        """Side of the square that the run trains at, in pixels."""
        return self.recipe.resolution or self.components.image_size

    @cached_property
    def captions(self) -> list[str]:
        """The prompt of each image, subject after subject; [NAME] stands for any of them."""
        words = {one.name: one.identifier for one in self.taught}
        return [
            fill_identifier(one.caption(image.caption or self.recipe.instance_prompt), words)
            for one in self.taught
            for image in one.subject.images
        ]

    @cached_property
    def class_captions(self) -> list[str]:
        """The prompts of the class half; none without a prior."""
        return class_captions(self.recipe, self.taught) if self.recipe.prior_weight else []

    @cached_property
    def prompts(self) -> list[str]:
        """The run's table of prompts."""
        return list(dict.fromkeys(self.captions + self.class_captions))

    def batches(self, prior: Examples | None) -> Callable[[int, int, int], Batches]:
        """(start, rank, world) -> micro-batches of the images, which are encoded now, and of `prior`."""
        recipe, levels = self.recipe, self.components.schedule.num_steps
        instance = Half("instance", self._instances(), recipe.batch_size, self._rows(self.captions))
        other = None
        if prior is not None:
            size = recipe.class_batch_size or recipe.batch_size
            other = Half("class", prior, size, self._rows(self.class_captions))

        def made(start: int, rank: int, world: int) -> Batches:
            return Batches(recipe, instance, other, levels, start=start, rank=rank, world=world)

        return made

    def class_examples(self, maker: ClassImageMaker, cancelled: Callable[[], None]) -> ClassExamples:
        """Class images that are being made, as examples."""
        encoder = LatentEncoder(self.components, Transform(self.size, flip=False))
        return ClassExamples(maker, encoder, cancelled)

    def _rows(self, captions: Sequence[str]) -> torch.Tensor:
        return torch.tensor([self.prompts.index(caption) for caption in captions])

    def _instances(self) -> Examples:
        block = self.recipe.batch_size * self.world if self.recipe.buckets else 1
        sets = [self._encode(one.subject.images) for one in self.taught]
        return sets[0] if len(sets) == 1 else Interleaved(sets, self._firsts, block)

    @property
    def _firsts(self) -> list[int]:
        """The number in the run of each subject's first image."""
        counts = [len(one.subject.images) for one in self.taught]
        return [sum(counts[:i]) for i in range(len(counts))]

    def _encode(self, images: Sequence[InstanceImage]) -> Examples:
        if not self.recipe.buckets:
            return self._encode_at(self.size, images)
        step = self.recipe.bucket_step or self.components.size_step
        shapes = bucket_shapes(self.size, step)
        found: dict[tuple[int, int], list[int]] = {}
        for number, image in enumerate(images):
            found.setdefault(nearest_shape(image.image.size, shapes), []).append(number)
        sets = [self._encode_at(shape, [images[i] for i in members]) for shape, members in found.items()]
        return Buckets(sets, list(found.values()), self.recipe.batch_size * self.world)

    def _encode_at(self, size: Size, images: Sequence[InstanceImage]) -> ExampleSet:
        recipe = self.recipe
        transform = Transform(
            size,
            crop=recipe.crop,
            flip=recipe.flip,
            crop_variants=recipe.crop_variants,
            color_jitter=recipe.color_jitter,
            seed=recipe.seed,
        )
        encoder = LatentEncoder(self.components, transform, self.cache)
        return encoder.encode(
            [i.image for i in images], [i.mask for i in images], [i.original for i in images]
        )


@dataclass(frozen=True)
class Interleaved:
    """Examples of several subjects in turn, `block` of each at a time.

    Args:
        sets: the examples of each.
        firsts: number in the run of the first image of each.
    """

    sets: Sequence[Examples]
    firsts: Sequence[int]
    block: int = 1

    def draw(self, seed: int, stream: str, counters: Sequence[int]) -> Draw:
        """As `ExampleSet.draw`: which subject a counter meets, and its how manieth, follow from it alone."""
        draws = []
        for which, own in self._runs(counters):
            drawn = self.sets[which].draw(seed, f"{stream}/subject {which}", own)
            draws.append(drawn._replace(image_index=drawn.image_index + self.firsts[which]))
        return _joined(draws)

    def _runs(self, counters: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Counters in a row that meet the same subject: (subject, its own counters)."""
        runs: list[tuple[int, list[int]]] = []
        for counter in counters:
            turn, place = divmod(counter, self.block)
            round_, which = divmod(turn, len(self.sets))
            if not runs or runs[-1][0] != which:
                runs.append((which, []))
            runs[-1][1].append(round_ * self.block + place)
        return runs


def _joined(draws: Sequence[Draw]) -> Draw:
    """One draw of several of one shape; where only some have masks, the others count in full."""
    masked = any(draw.masks is not None for draw in draws)
    masks = [torch.ones_like(d.latents[:, :1]) if d.masks is None else d.masks for d in draws]
    return Draw(
        torch.cat([draw.latents for draw in draws]),
        torch.cat([draw.image_index for draw in draws]),
        torch.cat(masks) if masked else None,
        join_present([draw.sizes for draw in draws]),
    )
