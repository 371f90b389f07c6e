"""The folder of a run: what lies where, and the proof that a resumed run is still the same one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studiolo.dreambooth.material import Taught
from studiolo.dreambooth.recipe import Recipe
from studiolo.errors import StudioloError
from studiolo.models.registry import list_models
from studiolo.store.files import atomic_path, sha256_bytes
from studiolo.training.checkpoint import all_checkpoints


@dataclass(frozen=True)
class Run:
    """A run folder: recipe.yaml, run.json, metrics.csv, checkpoints/, previews/, tensorboard/, model/;
    with scores scores.csv, scores/, best/ and, where the best step was exported, last/."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def record(self) -> Path:
        return self.folder / "run.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def previews(self) -> Path:
        return self.folder / "previews"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def last(self) -> Path:
        """The model of the last step, where model/ is that of a better one."""
        return self.folder / "last"

    @property
    def newest_checkpoint(self) -> Path | None:
        found = all_checkpoints(self.checkpoints)
        return found[-1] if found else None

    def has_name(self, name: str) -> bool:
        """Whether the registered model `name` is this run's own."""
        return any(ref.name == name and ref.path == self.model.resolve() for ref in list_models())

    def check_free(self) -> None:
        """StudioloError if the folder holds something already."""
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            remedy = "Choose another folder."
            if self.record.exists():
                remedy = (
                    f"Go on with that run (studiolo train --resume {self.folder}), or choose another folder."
                )
            raise StudioloError("there is something already", where=self.folder, remedy=remedy)

    def begin(self, recipe: Recipe, record: dict[str, Any]) -> None:
        """Writes the resolved recipe, then the record, whose presence says that the run can be resumed."""
        for folder in (self.checkpoints, self.previews):
            folder.mkdir(parents=True, exist_ok=True)
        recipe.save(self.recipe)
        with atomic_path(self.record) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def add(self, facts: dict[str, Any]) -> None:
        """Adds what has turned out since the run began to its record."""
        with atomic_path(self.record) as temporary:
            temporary.write_text(json.dumps(self._record() | facts, indent=2) + "\n", encoding="utf-8")

    def clear_unless_begun(self) -> None:
        """Leaves nothing of a run that was refused before it began, so that its folder can be used again."""
        if not self.record.exists():
            shutil.rmtree(self.folder, ignore_errors=True)

    def load_recipe(self) -> Recipe:
        """The recipe to go on with; StudioloError unless it is the one that the run began with."""
        if not self.record.is_file() or not self.recipe.is_file():
            raise StudioloError(
                "not a run folder, or stopped before training began",
                where=self.folder,
                remedy="Start it again with `studiolo train`, in another folder.",
            )
        recipe = Recipe.from_yaml(self.recipe)
        # A setting that came later than the run was then as it is by default now.
        then = Recipe.build(self._record()["recipe"], where=self.record).model_dump(mode="json")
        now = recipe.model_dump(mode="json")
        if changed := [key for key in now if now[key] != then[key]]:
            raise StudioloError(
                f"changed since the run began: {', '.join(changed)}",
                where=self.recipe,
                remedy="Set it back; or train anew from this recipe: "
                f"studiolo train --recipe {self.recipe} --out ANOTHER",
            )
        if recipe.class_images.precision == "auto":  # but this one, which every run since has resolved
            return recipe.with_values({"class_images": {"precision": "32-true"}})
        return recipe

    def check_same(self, record: dict[str, Any]) -> None:
        """StudioloError naming what is not as it was when the run began: base model or images."""
        then = self._record()
        if record["base"]["fingerprint"] != then["base"]["fingerprint"]:
            raise StudioloError(
                "the base model is not the one that the run began with",
                where=then["base"]["name"],
                remedy="Put it back, or train anew.",
            )
        old, new = (_by_name(told["data"]["images"]) for told in (then, record))
        if changed := sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
            raise StudioloError(
                f"the images are not those that the run began with: {', '.join(changed)}",
                where=self.folder,
                remedy="Put them back, or train anew.",
            )

    def _record(self) -> dict[str, Any]:
        return json.loads(self.record.read_text(encoding="utf-8"))


def _by_name(images: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Images by the names of their files: from several folders, some may have the same."""
    named: dict[str, list[dict[str, str]]] = {}
    for image in images:
        named.setdefault(image["file"], []).append(image)
    return named


def describe_images(taught: Sequence[Taught]) -> list[dict[str, str]]:
    """File name and hash of each image, with the caption and the mask's hash where there are some.

    Of several subjects, the subject's name stands before that of the file.
    """
    described = []
    for owner, image in ((one, image) for one in taught for image in one.subject.images):
        name = image.name if len(taught) == 1 else f"{owner.name}/{image.name}"
        entry = {"file": name, "sha256": image.sha256}
        if image.caption is not None:
            entry["caption"] = image.caption
        if image.mask is not None:
            entry["mask_sha256"] = sha256_bytes(image.mask.tobytes())
        described.append(entry)
    return described
