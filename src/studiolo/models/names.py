"""One set of names for models that draw and models that speak."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from studiolo.errors import StudioloError
from studiolo.models import known, registry, weights
from studiolo.models.known import Known
from studiolo.models.registry import ModelRef
from studiolo.models.weights import Weights


def list_models() -> list[ModelRef | Weights]:
    """All models that are here: those to draw with first, each kind by name."""
    return [*registry.list_models(), *weights.list_weights()]


def show(name: str) -> ModelRef | Weights | Known:
    """The model of that name; `Known` if it is one that could be pulled.

    Raises:
        StudioloError: nothing has that name.
    """
    if weights.has(name):
        return weights.find(name)
    if entry := known.table().weights.get(name):
        return entry
    with _nearest_of_both(name):
        return registry.resolve(name)


def add(path: str | Path, name: str) -> ModelRef | Weights:
    """Gives a model that draws (a Diffusers folder, the folder of an adapter, a single file) or one that
    speaks (a .gguf file, a folder of safetensors) a name. Nothing is copied.

    Raises:
        StudioloError: no such weights, or a name that cannot be one or is taken.
    """
    place = Path(path).expanduser()
    if registry.draws(place):
        return registry.register(place, name)
    return weights.add(place, name)


def remove(name: str) -> ModelRef | Weights:
    """Forgets a name; deletes files only if they were pulled. Returns what it stood for.

    Raises:
        StudioloError: nothing has that name.
    """
    if not weights.has(name) and name in known.table().weights:
        raise StudioloError("these weights are not here, so there is nothing to remove", where=name)
    if weights.has(name):
        return weights.remove(name)
    with _nearest_of_both(name):
        return registry.remove(name)


@contextmanager
def _nearest_of_both(name: str) -> Iterator[None]:
    """Whoever mistyped the name of a model that speaks is not told those of models that draw."""
    try:
        yield
    except registry.NoSuchModelError as error:
        if weights.nearest(name):
            raise weights.not_here(name) from error
        raise
