"""`studiolo sweep`: which settings teach this subject best? Trainings over a space of settings, by score.

Optuna chooses the settings and keeps the trials in a journal in the sweep's folder; several processes may
share it. A trial holds a lock as long as its process lives, so one that was killed is known, and its training
goes on where it was.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import optuna
import torch
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from studiolo.dreambooth.progress import Display
from studiolo.dreambooth.recipe import MisfitError, Recipe
from studiolo.dreambooth.run import Run
from studiolo.errors import StudioloError
from studiolo.evaluation import training
from studiolo.evaluation.leaderboard import Leaderboard
from studiolo.evaluation.space import Choice, Parameter, grid
from studiolo.models.registry import remove
from studiolo.store.files import atomic_path, sha256_json
from studiolo.training.checkpoint import Interrupted

Method = Literal["grid", "random", "tpe"]
_STUDY = "sweep"
_HEAVY = ("checkpoints", "best", "last", "model", "tensorboard")
"""What of a run only its own going on needs."""


@dataclass(frozen=True)
class Sweep:
    """A search over settings of a recipe for the highest composite score.

    Args:
        recipe: the settings that all trials share: images and class noun, and scores (at the last step
            alone, if it asks for none).
        trials: how many trainings in all, resumed sweeps included; None is the whole grid.
        seed: of the search; that of the trainings is the recipe's.
    """

    recipe: Recipe
    parameters: Sequence[Parameter]
    out: Path
    method: Method = "tpe"
    trials: int | None = None
    seed: int = 0
    tell: Callable[[str], None] = print
    display: Callable[[], Display] = field(default=Display)

    def run(self) -> Leaderboard:
        """Does the trials that are missing; afterwards the folder holds leaderboard.* and best.yaml.

        Raises:
            StudioloError: settings that no recipe has, or a folder with a sweep over other ones;
                Interrupted, as training does.
        """
        wanted = self._prepare()
        while (trial := self._next(wanted)) is not None:
            number, lock = trial
            try:
                self._carry_out(number)
            finally:
                lock.release()
            board = self.leaderboard()
            board.save()
        board = self.leaderboard()
        board.save()
        return board

    def leaderboard(self) -> Leaderboard:
        """The trials that are done, as they stand in the journal."""
        return Leaderboard(
            self.out, [p.name for p in self.parameters], self._study().get_trials(deepcopy=False)
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What makes trials comparable."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "method": self.method,
            "seed": self.seed,
            "parameters": [repr(parameter) for parameter in self.parameters],
        }

    def _prepare(self) -> int:
        """Checks settings and folder, puts a grid's points into the journal; how many trials in all."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        points = grid(self.parameters) if self.method == "grid" else []
        if not points and self.trials is None:
            raise StudioloError("how many trials?", where="trials", remedy="Say so: --trials 20.")
        self._check_values()
        if points or all(isinstance(parameter, Choice) for parameter in self.parameters):
            self._check_together(points or grid(self.parameters))
        self.out.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._check_folder()
            study = self._study()
            for point in points[: self.trials]:
                study.enqueue_trial(point, skip_if_exists=True)
        return len(points[: self.trials]) if points else self.trials or 0

    def _check_values(self) -> None:
        """StudioloError for a value that its setting never takes; what else it needs, others may bring."""
        self._recipe({})
        for parameter in self.parameters:
            for value in _ends(parameter):
                with suppress(MisfitError):
                    self._recipe({parameter.name: value})

    def _check_together(self, points: Sequence[Mapping[str, Any]]) -> None:
        """StudioloError where none of some settings are a recipe."""
        refused = None
        for point in points:
            try:
                self._recipe(point)
                return
            except MisfitError as error:
                refused = refused or error
        if refused:
            raise refused

    def _check_folder(self) -> None:
        file = self.out / "sweep.json"
        if not file.exists():
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(self.identity, indent=2) + "\n", encoding="utf-8")
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        if changed := sorted(key for key, value in self.identity.items() if before.get(key) != value):
            raise StudioloError(
                f"this folder holds a sweep with another {', '.join(changed)}",
                where=self.out,
                remedy="Choose another folder: --out DIR.",
            )

    @cached_property
    def _lock(self) -> FileLock:
        return FileLock(self.out / ".lock")

    def _study(self) -> optuna.Study:
        storage = JournalStorage(JournalFileBackend(str(self.out / "journal.log")))
        study = optuna.create_study(
            storage=storage, study_name=_STUDY, direction="maximize", load_if_exists=True
        )
        # Not one sampler a process: processes that share a sweep would all suggest the same.
        seed = self.seed + len(study.get_trials(deepcopy=False))
        study.sampler = (
            optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            if self.method == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        return study

    def _next(self, wanted: int) -> tuple[Trial, FileLock] | None:
        """A trial to carry out, and the lock that says that somebody does; None when enough are done."""
        with self._lock:
            study = self._study()
            for dead in self._dead(study):
                study.tell(dead.number, state=TrialState.FAIL)
                params = dead.system_attrs.get("fixed_params", dead.params)
                study.enqueue_trial(params, user_attrs={"again": dead.number})
            trials = study.get_trials(deepcopy=False)
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            counted = sum(
                trial.state != TrialState.WAITING and not _given_up(trial, trials) for trial in trials
            )
            if not waiting and (self.method == "grid" or counted >= wanted):
                return None
            trial = study.ask()
            for parameter in self.parameters:
                parameter.suggest(trial)
            lock = FileLock(self._lock_of(trial.number))
            lock.acquire(timeout=0)
            return trial, lock

    def _dead(self, study: optuna.Study) -> list[FrozenTrial]:
        """Trials under way whose process is gone."""
        found = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            lock = FileLock(self._lock_of(trial.number))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            lock.release()
            found.append(trial)
        return found

    def _lock_of(self, number: int) -> Path:
        folder = self.out / "locks"
        folder.mkdir(exist_ok=True)
        return folder / f"{number:05d}.lock"

    def _recipe(self, params: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial."""
        recipe = self.recipe.with_settings(f"{key}={value}" for key, value in params.items())
        if recipe.scores.export == "last":
            raise StudioloError(
                "a sweep ranks trainings by their best step, and keeps that",
                where="scores.export",
                remedy="Leave it at best.",
            )
        return recipe if recipe.scores.every else recipe.with_values({"scores": {"every": recipe.steps}})

    def folder(self, params: Mapping[str, Any]) -> Path:
        """Where the run of these settings lies: the same for a trial that is done again."""
        return self.out / "trials" / sha256_json(dict(params))[:16]

    def _carry_out(self, trial: Trial) -> None:
        study, folder = self._study(), self.folder(trial.params)
        told = ", ".join(f"{key}={_short(value)}" for key, value in trial.params.items())
        begun = time.monotonic()
        try:
            found = _result(folder) or self._train(trial, folder)
        except Interrupted:
            raise
        except (StudioloError, torch.OutOfMemoryError) as error:
            why = error.message if isinstance(error, StudioloError) else "the device's memory is full"
            trial.set_user_attr("error", why)
            study.tell(trial.number, state=TrialState.FAIL)
            self.tell(f"trial {trial.number}: {told}: {why}")
            _drop_heavy(folder)
            return
        finally:
            _release_memory()
        trial.set_user_attr("folder", folder.name)
        trial.set_user_attr("seconds", round(time.monotonic() - begun, 1))
        for key, value in found.items():
            trial.set_user_attr(key, value)
        study.tell(trial.number, found["composite"])
        self.tell(f"trial {trial.number}: {told}: {found['composite']:.4f}")
        self._tidy(study)

    def _train(self, trial: Trial, folder: Path) -> dict[str, float]:
        run = Run(folder / "run")
        if run.record.exists():
            model = training.resume(run.folder, replace=True, display=self.display())
        else:
            shutil.rmtree(run.folder, ignore_errors=True)  # it was killed before it could begin
            model = training.train(
                name=f"sweep-{folder.name}",
                recipe=self._recipe(trial.params),
                out=run.folder,
                replace=True,
                display=self.display(),
            )
        remove(str(model.ref.card["name"]))  # a result of the sweep, no model of the user's
        found = dict(model.ref.card["scores"])
        with atomic_path(folder / "result.json") as temporary:
            temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")
        return found

    def _tidy(self, study: optuna.Study) -> None:
        """Writes the best recipe, and deletes of every other run what is big and can be made again."""
        with self._lock:
            best = study.best_trial
            self._recipe(best.params).save(self.out / "best.yaml")
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
                if trial.user_attrs["folder"] != best.user_attrs["folder"]:
                    _drop_heavy(self.folder(trial.params))


def _drop_heavy(folder: Path) -> None:
    """Deletes of a trial's run what is big and can be made again."""
    for name in _HEAVY:
        shutil.rmtree(folder / "run" / name, ignore_errors=True)


def _release_memory() -> None:
    """Gives back what a trial held on a GPU, for the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _given_up(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether a trial's process died, so that another trial does its work."""
    return any(other.user_attrs.get("again") == trial.number for other in trials)


def _result(folder: Path) -> dict[str, float] | None:
    file = folder / "result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _ends(parameter: Parameter) -> tuple[Any, ...]:
    """Values of a parameter that show whether a recipe takes them."""
    values = getattr(parameter, "values", None)
    if values:
        return values
    low, high = parameter.low, parameter.high  # type: ignore[union-attr]
    return (int(low), int(high)) if parameter.whole else (low, high)  # type: ignore[union-attr]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
