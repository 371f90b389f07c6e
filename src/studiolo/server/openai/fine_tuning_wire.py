"""The wire form of fine-tuning jobs (https://platform.openai.com/docs/api-reference/fine-tuning).

A job here teaches a subject from images. Hyper-parameters are the fields of the recipe by their names (see
`studiolo train --defaults`) and `class_noun`, what the subject is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from studiolo.errors import TooLargeError
from studiolo.jobs.batches import read_lines
from studiolo.jobs.photos import MOST_IMAGES
from studiolo.jobs.tuning_table import TuningEvent, TuningRecord, taught_score
from studiolo.jobs.tunings import TuningSpec
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.server.openai.batches_wire import Metadata
from studiolo.server.openai.fine_tuning_kept import KeptJob
from studiolo.server.openai.wire import Wire, emulated, extension, refused

JSON = dict[str, Any]
PREFIX = "ftjob-"
_EVENT = "ftevent-"
_LARGEST_LIST = 2**20
"""Bytes of a JSONL file that lists images."""


class Supervised(Wire):
    hyperparameters: JSON | None = None


class Method(Wire):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Supervised | None = None
    dpo: Annotated[JSON | None, refused("subjects are taught by DreamBooth alone")] = None
    reinforcement: Annotated[JSON | None, refused("subjects are taught by DreamBooth alone")] = None


class JobRequest(Wire):
    model: Annotated[str, Field(min_length=1)]
    training_file: Annotated[
        str,
        Field(min_length=1),
        emulated('a ZIP archive of images, an image, or JSON lines {"file_id": ...} that list images'),
    ]
    training_files: Annotated[
        list[str] | None, Field(max_length=MOST_IMAGES), extension("more images, by the ids of their files")
    ] = None
    hyperparameters: Annotated[
        JSON | None, emulated("class_noun, and the fields of the recipe by their names")
    ] = None
    method: Annotated[Method | None, emulated("its hyperparameters are read like those above")] = None
    suffix: Annotated[
        str | None, Field(min_length=1, max_length=64), emulated("it is the name of the subject")
    ] = None
    seed: Annotated[int | None, Field(ge=0)] = None
    metadata: Metadata | None = None
    validation_file: Annotated[str | None, refused("the previews show how far the subject is")] = None
    integrations: Annotated[
        list[JSON] | None, refused("curves are told as events, and by the recipe's trackers", [])
    ] = None


def spec_of(request: JobRequest, files: tuple[str, ...], owner: str | None) -> tuple[TuningSpec, KeptJob]:
    """What to teach, and what is kept of the job beside (its tuning is not known yet).

    Args:
        files: ids of the images or archives.

    Raises:
        InvalidRequestError: hyper-parameters that contradict each other, or no class noun.
        UnsupportedError: what cannot be meant of a subject.
    """
    given = dict(_hyperparameters(request))
    noun = given.pop("class_noun", None)
    if not isinstance(noun, str) or not noun.strip():
        raise InvalidRequestError(
            "missing: it says what the subject is, such as fox",
            where="hyperparameters.class_noun",
            remedy='Give {"class_noun": "fox"} among the hyperparameters.',
        )
    multiplier = _multiplier(given)
    if given.pop("n_epochs", "auto") != "auto":
        raise UnsupportedError(
            "trainings are counted in steps", where="hyperparameters.n_epochs", remedy="Give `steps`."
        )
    if given.get("batch_size") == "auto":
        del given["batch_size"]
    if request.seed is not None and given.setdefault("seed", request.seed) != request.seed:
        raise InvalidRequestError("another seed is among the hyperparameters", where="seed")
    _multiply(given, multiplier)
    spec = TuningSpec(
        name=request.suffix, base=request.model, class_noun=noun, files=files, recipe=given, owner=owner
    )
    return spec, KeptJob("", request.training_file, request.metadata, multiplier)


def _hyperparameters(request: JobRequest) -> JSON:
    method = request.method
    if method is not None and method.type != "supervised":
        raise UnsupportedError(
            "subjects are taught by DreamBooth alone", where="method.type", remedy="Give supervised."
        )
    named = method.supervised.hyperparameters if method and method.supervised else None
    if named and request.hyperparameters:
        raise InvalidRequestError(
            "hyperparameters are given twice", where="hyperparameters", remedy="Give those of method."
        )
    return named or request.hyperparameters or {}


def _multiplier(given: JSON) -> float | None:
    multiplier = given.pop("learning_rate_multiplier", "auto")
    if multiplier == "auto":
        return None
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float) or not multiplier > 0:
        raise InvalidRequestError("not a positive number", where="hyperparameters.learning_rate_multiplier")
    return float(multiplier)


def _multiply(given: JSON, multiplier: float | None) -> None:
    """Multiplies the rates of the recipe, and those that it leaves to the model."""
    if multiplier is None:
        return
    for name in ("learning_rate", "text_learning_rate"):
        if isinstance(rate := given.get(name), int | float):
            given[name] = rate * multiplier
    given["rate_multiplier"] = multiplier


def listed_in(path: Path) -> tuple[str, ...] | None:
    """The ids in a JSONL file that lists images; None for any other file.

    Raises:
        InvalidRequestError: a line that names no file.
    """
    with path.open("rb") as file:
        if not file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
    if path.stat().st_size > _LARGEST_LIST:
        raise TooLargeError("a list of images has at most 1 MiB", where="training_file")
    found = []
    for number, line in read_lines(path):
        if set(line) != {"file_id"} or not isinstance(line["file_id"], str):
            raise InvalidRequestError(
                f"line {number} names no file", where="training_file", remedy='Write {"file_id": "file-..."}.'
            )
        found.append(line["file_id"])
    if len(found) > MOST_IMAGES:
        raise TooLargeError(f"more than {MOST_IMAGES} images", where="training_file")
    return tuple(found)


# --- jobs -------------------------------------------------------------------------------------------------


def job_of(
    record: TuningRecord, kept: KeptJob | None, results: Sequence[str] = (), score: TuningEvent | None = None
) -> JSON:
    """The wire form of a job; `results` are ids of files.

    Beyond OpenAI's fields: all `training_files`, how far it is, and the scores of what was taught.
    """
    parameters = hyperparameters_of(record, kept)
    failed = record.state == "failed"
    problem = record.problem or "the training failed"
    return {
        "id": PREFIX + record.id,
        "object": "fine_tuning.job",
        "created_at": int(record.created.timestamp()),
        "finished_at": None if record.ended is None else int(record.ended.timestamp()),
        "estimated_finish": None,
        "model": record.base,
        "fine_tuned_model": record.name if record.state == "succeeded" else None,
        "organization_id": "studiolo",
        "status": "running" if record.state == "cancelling" else record.state,
        "error": {"code": "training_failed", "message": problem, "param": None} if failed else None,
        "hyperparameters": parameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": parameters}},
        "seed": record.recipe.get("seed", 0),
        "training_file": kept.training_file if kept else record.files[0],
        "training_files": list(record.files),
        "validation_file": None,
        "result_files": list(results),
        "integrations": None,
        "metadata": kept.metadata if kept else None,
        "trained_tokens": None,
        "user_provided_suffix": record.name,
        "step": record.step,
        "steps": record.steps,
        "scores": None if score is None else {"step": score.step, **scores_of(score)},
    }


def scores_of(event: TuningEvent) -> JSON:
    """The scores of a step by name, as `scores.csv` of a run has them."""
    return {name: value for name, value in event.data.items() if name != "best"}


def hyperparameters_of(record: TuningRecord, kept: KeptJob | None) -> JSON:
    return {
        "n_epochs": "auto",
        "batch_size": "auto",
        "learning_rate_multiplier": (kept.multiplier if kept else None) or "auto",
        "class_noun": record.class_noun,
        **record.recipe,
    }


def event_of(event: TuningEvent, file: str | None) -> JSON:
    """The wire form of an event; `file` is the id of a preview."""
    data: JSON = {} if event.step is None else {"step": event.step}
    if event.kind == "step":
        data |= {"train_loss" if name == "loss" else name: value for name, value in event.data.items()}
    if event.kind == "score":
        data |= {**scores_of(event), "best": bool(event.data["best"])}
    if file is not None:
        data["file_id"] = file
    return {
        "id": f"{_EVENT}{event.number}",
        "object": "fine_tuning.job.event",
        "created_at": int(event.created.timestamp()),
        "level": "error" if event.message.startswith("failed") else "info",
        "message": event.message,
        "type": "metrics" if event.kind in ("step", "score") else "message",
        "data": {"kind": event.kind, **data},
    }


def event_number(event: str) -> int:
    """
    Raises:
        InvalidRequestError: not an event's id.
    """
    found = re.fullmatch(rf"{_EVENT}(\d{{1,18}})", event, re.ASCII)
    if found is None:
        raise InvalidRequestError("not the id of an event", where="after")
    return int(found[1])


def checkpoint_of(
    record: TuningRecord, step: int, made: float, losses: dict[int, float], scores: Sequence[TuningEvent]
) -> JSON:
    """The wire form of a checkpoint.

    It is a state to go on from, not a model: that of the step whose weights were exported, the last or the
    best one, is the subject itself, and the names of the others cannot be asked for pictures.
    """
    exported = taught_score(record, scores)
    whole = record.state == "succeeded" and step == (exported.step if exported else record.step)
    metrics: JSON = {"step": step}
    if step in losses:
        metrics["train_loss"] = losses[step]
    for event in scores:
        if event.step == step:
            metrics |= scores_of(event)
    return {
        "id": f"ftckpt-{record.id}-{step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(made),
        "fine_tuned_model_checkpoint": record.name if whole else f"{record.name}:step-{step}",
        "fine_tuning_job_id": PREFIX + record.id,
        "metrics": metrics,
        "step_number": step,
    }
