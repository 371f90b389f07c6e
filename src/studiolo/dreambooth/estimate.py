"""What a training will take, before it begins: memory by counting, time by doing a little of the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from studiolo.diffusion.components import Components
from studiolo.diffusion.sampling import SamplerSettings, generate
from studiolo.dreambooth.batches import Batch, HalfBatch
from studiolo.dreambooth.material import Material
from studiolo.dreambooth.memory import Memory, available_memory, estimate_memory
from studiolo.dreambooth.parts import left_alone
from studiolo.dreambooth.personalize import Personalization
from studiolo.dreambooth.predictions import PredictionSet
from studiolo.dreambooth.prior import ClassImageSet
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe
from studiolo.dreambooth.run import Run
from studiolo.dreambooth.teaching import Teaching
from studiolo.dreambooth.trainer import prepare
from studiolo.training.halves import HALVES

_TRIAL_STEPS = 2
"""Denoising steps of the picture that drawing is timed by."""


@dataclass(frozen=True)
class Estimate:
    """Of a run that starts now on this machine.

    `seconds` are by what they go to: steps, class images or predictions that are missing, previews, scores.
    There are none of steps that cannot be tried: what does not fit, or is shared out over processes (fsdp).
    `memory` is MiB at the worst moment, of `available` ones.
    """

    memory: Memory
    available: float
    seconds: dict[str, float]
    device: str

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.available

    @property
    def total_seconds(self) -> float | None:
        """None where the steps are not among them."""
        return sum(self.seconds.values()) if "steps" in self.seconds else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "memory_mb": round(self.memory.total, 1),
            "memory_parts_mb": self.memory.parts,
            "available_mb": round(self.available, 1),
            "fits": self.fits,
            "seconds": None if self.total_seconds is None else round(self.total_seconds, 1),
            "seconds_parts": {key: round(value, 1) for key, value in self.seconds.items()},
            "device": self.device,
        }


def estimate(recipe: Recipe, display: Display | None = None) -> Estimate:
    """Loads the base, and measures one step and one batch of class images or predictions (which stays in the
    cache).

    Raises:
        StudioloError: as `train` does, for what cannot be trained.
    """
    unjudged = recipe.with_values({"scores": {"every": 0, "patience": None}})
    with TemporaryDirectory() as folder, display or Display.silent() as shown:
        teaching = prepare(unjudged, Run(Path(folder)), shown, None)
        return _measured(teaching, recipe)


def _measured(teaching: Teaching, asked: Recipe) -> Estimate:
    recipe = teaching.recipe
    components = teaching.components.to(teaching.trainer.strategy.root_device)
    material = Material(recipe, components, teaching.taught)
    seconds: dict[str, float] = {}
    missing, a_picture, artist = _prior(teaching, components, material)
    seconds |= missing
    # Drawing before training: the networks are put into training mode for good.
    per_step = a_picture or _drawing(components, material)
    for name, pictures, steps in _drawn_on_the_way(asked):
        if pictures:
            seconds[name] = pictures * steps * per_step
    module = _begun(teaching, components, material)
    memory = estimate_memory(module, components, recipe, artist)
    available = available_memory(components.device)
    if memory.total <= available and recipe.strategy != "fsdp":
        seconds["steps"] = recipe.steps * _step(module, components, material)
    return Estimate(memory, available, seconds, str(components.device))


def _begun(teaching: Teaching, components: Components, material: Material) -> Personalization:
    """The module as a trainer has it when it begins: on its device, and knowing so."""
    tokens = [ids for one in teaching.taught for ids in one.take_words(components)]
    module = Personalization(components, teaching.recipe, material.prompts, tokens, _no_batches)
    module.to(components.device)
    module.on_fit_start()
    return module


def _prior(
    teaching: Teaching, components: Components, material: Material
) -> tuple[dict[str, float], float, Components | None]:
    """Seconds for what of the prior is missing, if anything is, and for a denoising step of a class image;
    what draws them.

    The first missing batch is made, and is one less for the run.
    """
    recipe = teaching.recipe
    if not recipe.prior_weight:
        return {}, 0.0, None
    is_drawn, drawn = recipe.prior == "images", recipe.class_images
    made: ClassImageSet | PredictionSet = (
        teaching.class_images(material) if is_drawn else teaching.class_predictions(material)
    )
    if not (missing := made.missing()):
        return {}, 0.0, None
    artist = None
    if isinstance(made, ClassImageSet):
        artist = made.artist(components, left_alone(components, recipe))
    took = _timed(lambda: made.make_batch(artist or components, missing[0]), components.device)
    left = {f"class_{recipe.prior}": (len(missing) - 1) * took} if len(missing) > 1 else {}
    return left, took / (drawn.batch_size * drawn.steps) if is_drawn else 0.0, artist if left else None


def _drawing(components: Components, material: Material) -> float:
    """Seconds for a denoising step of one picture, decoding included."""
    settings = SamplerSettings("ddim", _TRIAL_STEPS, 4.0)
    size = material.size
    words = [material.captions[0]] * 2
    took = _timed(
        lambda: generate(components, words, [0, 1], settings, height=size, width=size), components.device
    )
    return took / (2 * _TRIAL_STEPS)


def _drawn_on_the_way(recipe: Recipe) -> list[tuple[str, int, int]]:
    """(what for, pictures in all, denoising steps of each)."""
    previews, scores = recipe.previews, recipe.scores
    times = 1 + recipe.steps // previews.every if previews.every else 0
    scored = 1 + -(-recipe.steps // scores.every) if scores.every else 0
    subjects = len(recipe.all_subjects)
    return [
        ("previews", times * subjects * len(previews.prompts) * previews.count, previews.steps),
        ("scores", scored * subjects * 2 * scores.contexts * scores.n, scores.steps),
    ]


def _step(module: Personalization, components: Components, material: Material) -> float:
    """Seconds of an optimizer step: the second one, as the first allocates."""
    recipe = module.recipe
    optimizer: Any = module.configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
    batch = _batch(components, material)
    dtype = HALVES.get(recipe.precision)
    kind = components.device.type

    def step() -> None:
        for _ in range(recipe.accumulate):
            with torch.autocast(kind, dtype, enabled=dtype is not None):
                loss = module.training_step(batch, 0)["loss"]
            (loss / recipe.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(
            [p for p in module.parameters() if p.grad is not None], recipe.clip_norm or float("inf")
        )
        optimizer.step()
        optimizer.zero_grad()

    step()
    return _timed(step, components.device)


def _batch(components: Components, material: Material) -> Batch:
    """A micro-batch of zeros, of the shape that the run has."""
    recipe, size = material.recipe, material.size
    shape = components.latent_shape(size, size)
    sizes = components.family.sizes(size, size)
    count = recipe.class_batch_size or recipe.batch_size

    def half(examples: int, prompts: list[str]) -> HalfBatch:
        rows = torch.tensor([material.prompts.index(prompts[i % len(prompts)]) for i in range(examples)])
        empty = torch.zeros(examples, *shape)
        told = None if sizes is None else sizes.expand(examples, -1)
        drawn = HalfBatch(empty, empty, torch.zeros(examples, dtype=torch.long), rows, None, told)
        return HalfBatch(*(_on(value, components.device) for value in vars(drawn).values()))

    prior = half(count, material.class_captions) if recipe.prior_weight else None
    return Batch(half(recipe.batch_size, material.captions), prior)


def _on(value: torch.Tensor | None, device: torch.device) -> Any:
    return None if value is None else value.to(device)


def _no_batches(start: int, rank: int, world: int) -> Any:
    raise NotImplementedError("an estimate draws its one batch itself")


def _timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
