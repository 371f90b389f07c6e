"""Where curves and previews go besides the run folder: TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from studiolo.dreambooth.recipe import Recipe
from studiolo.errors import StudioloError
from studiolo.store.files import atomic_path

if TYPE_CHECKING:
    from PIL import Image


class Tracker(Protocol):
    """Takes what the run has to tell at a step."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def picture(self, step: int, name: str, picture: Image.Image) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `folder`; what a killed run wrote after `step` is hidden by what comes now."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else 0)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A W&B run in `folder`, gone on with when training is; WANDB_MODE, WANDB_PROJECT and the like work as
    everywhere."""

    def __init__(self, folder: Path, recipe: Recipe, step: int) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        identity = folder / "run-id"
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "studiolo"),
            name=recipe.name,
            id=identity.read_text() if step and identity.exists() else None,
            resume="allow",
            dir=str(folder),
            config=recipe.model_dump(mode="json"),
        )
        with atomic_path(identity) as temporary:
            temporary.write_text(self._run.id)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        import wandb

        self._run.log({name: wandb.Image(picture)}, step=step)

    def close(self) -> None:
        self._run.finish()


def check_trackers(recipe: Recipe) -> None:
    """Refuses, before any work is done, a tracker whose package is not installed."""
    packages = {"tensorboard": "tensorboardX", "wandb": "wandb"}
    for name in recipe.trackers:
        if importlib.util.find_spec(packages[name]) is None:
            raise StudioloError(
                f"the tracker {name} needs the package {packages[name]}, which is not installed",
                where="trackers",
                remedy=f"pip install {packages[name]}, or take {name} out of trackers",
            )


def open_trackers(recipe: Recipe, run: Path, step: int) -> list[Tracker]:
    """The recipe's trackers for the run folder `run`, of which `step` steps are done."""
    made: dict[str, Any] = {
        "tensorboard": lambda: TensorBoard(run / "tensorboard", step),
        "wandb": lambda: WeightsAndBiases(run / "wandb", recipe, step),
    }
    return [made[name]() for name in recipe.trackers]
