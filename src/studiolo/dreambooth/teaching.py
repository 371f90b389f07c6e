"""One run: the class images, the examples, the Lightning trainer, the exported model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

import studiolo
from studiolo.diffusion.components import Components
from studiolo.dreambooth.batches import Examples
from studiolo.dreambooth.callbacks import PreviewPainter, Recorder
from studiolo.dreambooth.exporting import export_model
from studiolo.dreambooth.forecast import Forecast
from studiolo.dreambooth.machine import make_trainer
from studiolo.dreambooth.material import Material, Taught, class_captions
from studiolo.dreambooth.memory import LESS, available_memory, estimate_memory, told
from studiolo.dreambooth.parts import left_alone
from studiolo.dreambooth.personalize import MakeBatches, Personalization
from studiolo.dreambooth.predictions import PredictionExamples, PredictionSet
from studiolo.dreambooth.prior import ClassImageMaker, ClassImageSet
from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import Recipe, fill
from studiolo.dreambooth.run import Run, describe_images
from studiolo.dreambooth.scoring import ScoreKeeper, Scorer
from studiolo.dreambooth.trackers import Tracker, open_trackers
from studiolo.errors import StudioloError
from studiolo.formats.opening import open_components
from studiolo.models.registry import ModelRef
from studiolo.store.paths import cache_dir
from studiolo.training.checkpoint import Checkpoints, Interrupted, Interruption
from studiolo.training.processes import first_process
from studiolo.training.quiet import quiet
from studiolo.training.steps import MovingAverage, evaluating

_LARGE = 50_000_000
"""Numbers from which on a model's memory is estimated: smaller ones train anywhere."""


@dataclass
class Teaching:
    """A run whose parts are loaded and checked, its trainer included: `fit`, then `export`.

    `recipe` is resolved: class nouns, identifiers and resolution are set. `taught` are its subjects.
    `components` is the base; `fit` trains it in place.
    """

    recipe: Recipe
    run: Run
    display: Display
    base: ModelRef
    components: Components
    taught: Sequence[Taught]
    scorer: Scorer | None = None
    """Judges the model while it is trained, where the recipe asks for scores."""
    facts: dict[str, Any] = field(init=False)
    """What the run is made from: the core of run.json and of the model's card."""
    _draws_class: str = field(init=False)
    _interruption: Interruption = field(init=False, default_factory=Interruption)
    _average: MovingAverage | None = field(init=False, default=None)
    _keeper: ScoreKeeper | None = field(init=False, default=None)
    _forecast: Forecast = field(init=False)
    _maker: ClassImageMaker | None = field(init=False, default=None)
    _trackers: list[Tracker] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.recipe.ema_decay:
            self._average = MovingAverage(self.recipe.ema_decay)
        self.trainer = self._make_trainer()
        self.facts = {
            "name": self.recipe.name,
            "class_noun": self.recipe.class_noun,
            "identifier": self.recipe.phrase,
            "subjects": [one.describe() for one in self.taught],
            "base": {"name": self.base.name, "fingerprint": self.components.fingerprint()},
            "instance_prompt": fill(self.recipe.instance_prompt, self.recipe.class_noun or "{class_noun}"),
            "class_prompt": class_captions(self.recipe, self.taught)[0],
            "data": {"images": describe_images(self.taught)},
            "recipe": self.recipe.model_dump(mode="json"),
            "studiolo_version": studiolo.__version__,
        }
        self._draws_class = self._skip_layers(self.facts["base"]["fingerprint"])

    def _skip_layers(self, fingerprint: str) -> str:
        """Has the text read as the recipe says; what names the model that draws the class so."""
        family, skipped = self.components.family, self.recipe.clip_skip
        if skipped is None or skipped == family.clip_skip:
            return fingerprint
        self.components.family = self.components.skipping(skipped).family
        return f"{fingerprint}, clip_skip {skipped}"

    def fit(self) -> None:
        """Trains from the newest checkpoint, or from the start, to the last step.

        Raises:
            Interrupted: a signal ended it early, all steps saved.
        """
        checkpoint = self.run.newest_checkpoint
        with ExitStack() as stack:
            self._open_trackers(stack, checkpoint)
            self.components.to(self.trainer.strategy.root_device)
            material = Material(
                self.recipe, self.components, self.taught, self.trainer.world_size, cache_dir("latents")
            )
            try:
                # Of the base, so before the identifiers are added to it.
                prior = self._make_prior(material, stack)
                batches = material.batches(prior)
                self.module = self._make_module(material, batches)
                self._tell_parts()
                self._tell_memory()
                with quiet(), torch.random.fork_rng():
                    self.trainer.fit(self.module, ckpt_path=checkpoint, weights_only=True)
                if self.recipe.strategy == "fsdp":
                    self._gather(material, batches)
                # The export needs the room of gradients and moments.
                self.module.zero_grad()
                self.trainer.strategy.optimizers = []
            except Interrupted as error:
                raise self._told(error.signum) from None
            except torch.OutOfMemoryError as error:
                raise StudioloError(
                    f"the memory of {self.trainer.strategy.root_device} is full",
                    where=self.run.folder,
                    remedy=f"What takes less: {LESS}.",
                ) from error
        if self._interruption.signum and self.trainer.global_step < self.recipe.steps:
            raise self._told(self._interruption.signum)

    def _make_module(self, material: Material, batches: MakeBatches) -> Personalization:
        tokens = [ids for one in self.taught for ids in one.take_words(self.components)]
        return Personalization(self.components, self.recipe, material.prompts, tokens, batches)

    def _gather(self, material: Material, batches: MakeBatches) -> None:
        """After a training in which each process had a part of the weights: the first gets all of them."""
        with evaluating(self.module, self._average):
            learned = self.module.gathered()
        self._average = None
        if first_process():
            self.components = open_components(self.base)
            self._skip_layers("")
            self.module = self._make_module(material, batches)
            self.module.load_state_dict(learned, strict=False)

    def _tell_parts(self) -> None:
        """Says which weights move, and how many of how many."""
        self.facts["parts"] = self.module.parts.report
        if first_process():
            self.run.add({"parts": self.facts["parts"]})
            self.display.note(str(self.module.parts))

    def _tell_memory(self) -> None:
        """Says what memory a large model will need. Raises StudioloError where a GPU has less."""
        if self.module.parts.total < _LARGE or self.recipe.strategy not in ("auto", "ddp"):
            return
        device = self.components.device
        artist = self._maker.artist if self._maker else None
        memory = estimate_memory(self.module, self.components, self.recipe, artist)
        available = available_memory(device)
        self._forecast.expected_memory = memory.total
        self.display.note(told(memory, available))
        if memory.total <= available:
            return
        if device.type == "cuda":
            raise StudioloError("this does not fit into the GPU's memory", remedy=f"What takes less: {LESS}.")
        self.display.note(f"note: that is more than there is. What takes less: {LESS}.")

    def export(self) -> None:
        """Writes the taught model, with its card, to the run's model/ folder: whole, or not at all.

        Where the best step by its scores is exported, the last one goes to last/ before.
        """
        step, average, card = self.trainer.global_step, self._average, {}
        if self._keeper and self._keeper.best and self.recipe.scores.export == "best":
            card = {"scores": self._keeper.best}
            if self._keeper.best["step"] != step:
                self._write(self.run.last, average, {"step": step})
                self._keeper.put_best(self.module)
                step, average = int(self._keeper.best["step"]), None
        self._write(self.run.model, average, {"step": step} | card)

    def _write(self, folder: Path, average: MovingAverage | None, card: dict[str, Any]) -> None:
        with evaluating(self.module, average):
            export_model(
                self.components,
                self.module.parts,
                self.recipe,
                self.taught,
                self.base,
                self.facts | card,
                folder,
            )

    def wait_for_all(self) -> None:
        """Returns when every process of the training is here."""
        self.trainer.strategy.barrier("exported")

    def _open_trackers(self, stack: ExitStack, checkpoint: Path | None) -> None:
        if not first_process():
            return
        done = int(checkpoint.stem.removeprefix("step-")) if checkpoint else 0
        for tracker in open_trackers(self.recipe, self.run.folder, done):
            self._trackers.append(tracker)
            stack.callback(tracker.close)

    def _make_trainer(self) -> pl.Trainer:
        recipe, run, trackers = self.recipe, self.run, self._trackers
        callbacks: list[pl.Callback] = [self._interruption]
        if self._average:
            callbacks.append(self._average)
        self._forecast = Forecast(run, self.display)
        callbacks += [Recorder(recipe, run.metrics, trackers, self.display), self._forecast]
        if recipe.previews.every:
            painter = PreviewPainter(
                recipe, self.components, self.taught, run.previews, trackers, self._average
            )
            callbacks.append(painter)
        if self.scorer:
            self._keeper = ScoreKeeper(
                recipe, self.scorer, self.components, run.folder, trackers, self._average, self.display
            )
            callbacks.append(self._keeper)
        # Last, so that a checkpoint holds what the others did in its step.
        callbacks.append(
            Checkpoints(run.checkpoints, recipe.checkpoint_every, recipe.keep_checkpoints, self._interruption)
        )
        return make_trainer(recipe, run.folder, callbacks)

    def _make_prior(self, material: Material, stack: ExitStack) -> Examples | None:
        """The class half: images that are being made from now on, or predictions that are made now."""
        if not self.recipe.prior_weight:
            return None
        if self.recipe.prior == "predictions":
            return self._predict_class(material)
        return material.class_examples(
            self._start_class_images(material, stack), self._interruption.raise_if_asked
        )

    def class_images(self, material: Material) -> ClassImageSet:
        """The class images of this run, whether they are made yet or not."""
        made = self.recipe.class_images
        where = cache_dir("class-images")
        return ClassImageSet(made, material.class_captions, self._draws_class, material.size, where)

    def class_predictions(self, material: Material) -> PredictionSet:
        """The predictions of the base for this run, whether they are made yet or not."""
        made = self.recipe.class_predictions
        where = cache_dir("class-predictions")
        return PredictionSet(made, material.class_captions, self._draws_class, material.size, where)

    def _start_class_images(self, material: Material, stack: ExitStack) -> ClassImageMaker:
        images, title = self.class_images(material), "class images"
        self.display.begin(title, images.count)
        maker = self._maker = ClassImageMaker(
            images,
            self.components,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            sharing=left_alone(self.components, self.recipe),
            on_picture=lambda done: self.display.advance(title, done),
        )
        self._forecast.is_slowed = lambda: maker.is_at_work
        return stack.enter_context(maker)

    def _predict_class(self, material: Material) -> PredictionExamples:
        predictions, title = self.class_predictions(material), "class predictions"
        self.display.begin(title, predictions.settings.count)
        predictions.make(
            self.components,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            on_batch=lambda done: self.display.advance(title, done),
            cancelled=self._interruption.raise_if_asked,
        )
        return predictions.load()

    def _told(self, signum: int) -> Interrupted:
        newest = self.run.newest_checkpoint
        saved = f"saved up to {newest.stem.replace('-', ' ')}" if newest else "before the first checkpoint"
        return Interrupted(
            signum,
            between_steps=True,
            where=f"{self.run.folder} ({saved})",
            remedy=f"Go on: studiolo train --resume {self.run.folder}",
        )
