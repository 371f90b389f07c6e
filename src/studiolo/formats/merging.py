"""One model out of several: adapters into their base, and weighted sums of whole models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import studiolo
from studiolo.diffusion.components import Components
from studiolo.errors import StudioloError
from studiolo.formats.adapter_folder import Wanted, put_all_on
from studiolo.formats.converting import check_dtype, refuse_existing, write_model
from studiolo.formats.opening import open_components
from studiolo.formats.sources import Source, find, stored_dtype
from studiolo.formats.tensors import OnProgress
from studiolo.models.registry import ModelRef, check_name, register, resolve

Weighted = str | Path | tuple[str | Path, float | None]


def merge(
    models: Sequence[Weighted],
    out: str | Path,
    minus: str | Path | None = None,
    dtype: str | None = None,
    name: str | None = None,
    on_progress: OnProgress | None = None,
) -> ModelRef:
    """Makes one model out of several and writes it; its card says out of what.

    Args:
        models: names, hub ids, folders or files, each alone or with its weight. A base and then adapters
            (LoRA, DoRA, embeddings): base + sum of weight x adapter, weights 1 by default. Whole models:
            the sum of weight x model, weights adding up to 1, equal by default.
        out: where nothing is yet: a .safetensors file, or else a Diffusers folder.
        minus: makes of two models A and B, with weight w (1 by default), A + w (B - `minus`): what B has
            learned, added to A.
        dtype: of the stored weights; by default that of the first model.
        name: to register the result.

    Returns:
        The model that was written.

    Raises:
        StudioloError: a model cannot be read, or they do not fit each other.
    """
    out = Path(out).expanduser()
    refuse_existing(out)
    if out.suffix and out.suffix.lower() != ".safetensors":
        raise StudioloError("only .safetensors files and folders are written", where=out)
    if name:
        check_name(name)
    stored = check_dtype(dtype)
    parts = [_weighted(model) for model in models]
    if len(parts) < 2:
        raise StudioloError("what is to be merged?", remedy="Give a base and adapters, or several models.")
    if parts[0][0].kind != "model":
        raise StudioloError(
            "the first must be a whole model",
            where=parts[0][0].ref.path,
            remedy="studiolo merge BASE ADAPTER ...",
        )
    if minus is not None:
        terms = _difference(parts, find(minus))
    elif any(_is_adapter(source) for source, _ in parts[1:]):
        terms = _adapters(parts)
    else:
        terms = _shares(parts)
    chosen = stored or stored_dtype(parts[0][0].ref)
    components = _with_adapters(terms) if _is_adapter(terms[1][0]) else _sum(terms)
    write_model(components.to(dtype=chosen), out, _card(terms, name or out.stem), on_progress)
    return register(out, name) if name else resolve(out)


def _weighted(model: Weighted) -> tuple[Source, float | None]:
    path, weight = model if isinstance(model, tuple) else (model, None)
    if weight is not None and not math.isfinite(weight):
        raise StudioloError(f"{weight} is no weight", where=path, remedy="Use a number, such as 0.8.")
    return find(path), weight


def _is_adapter(source: Source) -> bool:
    return source.kind != "model"


def _adapters(parts: list[tuple[Source, float | None]]) -> list[tuple[Source, float]]:
    base, weight = parts[0]
    if weight not in (None, 1.0):
        raise StudioloError(
            f"the base has the weight {weight:g}, and it counts once",
            remedy="Give weights to adapters alone.",
        )
    for source, _ in parts[1:]:
        if not _is_adapter(source):
            raise StudioloError(
                "adapters go into one base, and this is another whole model",
                where=source.ref.path,
                remedy="Merge the models first, then the adapters into the result.",
            )
    return [(base, 1.0), *((source, 1.0 if weight is None else weight) for source, weight in parts[1:])]


def _shares(parts: list[tuple[Source, float | None]]) -> list[tuple[Source, float]]:
    given = [weight for _, weight in parts if weight is not None]
    if not given:
        return [(source, 1 / len(parts)) for source, _ in parts]
    if len(given) < len(parts) or abs(sum(given) - 1) > 1e-4:
        raise StudioloError(
            f"weights are to add up to 1, and these make {sum(given):g}"
            if len(given) == len(parts)
            else "some models have a weight, and some have none",
            where="weights",
            remedy="Such as: studiolo merge A:0.7 B:0.3 --out C",
        )
    return [(source, weight) for source, weight in parts if weight is not None]


def _difference(parts: list[tuple[Source, float | None]], minus: Source) -> list[tuple[Source, float]]:
    """A + w (B - C) as a sum."""
    if len(parts) != 2 or any(_is_adapter(source) for source in (parts[1][0], minus)):
        raise StudioloError(
            "a difference is of whole models: A + w (B - C)",
            remedy="studiolo merge A B:0.8 --minus C --out D",
        )
    (first, one), (second, weight) = parts
    if one not in (None, 1.0):
        raise StudioloError(f"the first model counts once, not {one:g} times", where="weights")
    scale = 1.0 if weight is None else weight
    return [(first, 1.0), (second, scale), (minus, -scale)]


def _with_adapters(terms: list[tuple[Source, float]]) -> Components:
    components = open_components(terms[0][0].ref)
    taken: dict[str, str] = {}
    wanted: list[Wanted] = []
    for source, weight in terms[1:]:
        adapter = source.adapter()
        for word in {word for words in adapter.words.values() for word in words}:
            if word in taken:
                raise StudioloError(
                    f"two adapters have learned the word '{word}': {taken[word]} and {source.ref.name}",
                    remedy="Teach one of them again by another identifier.",
                )
            taken[word] = source.ref.name
        wanted.append(Wanted(adapter, weight, source.ref.path))
    put_all_on(components, wanted)
    return components


@torch.no_grad()
def _sum(terms: list[tuple[Source, float]]) -> Components:
    """The weighted sum of all weights, in float32; the first model is changed in place."""
    first, weight = terms[0]
    total = open_components(first.ref)
    for module in total.modules.values():
        _scale(module, weight)
    for source, weight in terms[1:]:
        other = open_components(source.ref, stored_dtype(source.ref))  # half the memory of float32, often
        _check_fit(total, other, first, source)
        for part, module in total.modules.items():
            theirs = other.modules[part].state_dict()
            for name, tensor in module.state_dict().items():
                if tensor.is_floating_point():
                    tensor.add_(theirs[name].float(), alpha=weight)
    return total


def _scale(module: torch.nn.Module, weight: float) -> None:
    for tensor in module.state_dict().values():
        if tensor.is_floating_point() and weight != 1:
            tensor.mul_(weight)


def _check_fit(one: Components, two: Components, first: Source, second: Source) -> None:
    def shapes(components: Components) -> dict[str, torch.Size]:
        return {
            f"{part}.{name}": tensor.shape
            for part, module in components.modules.items()
            for name, tensor in module.state_dict().items()
        }

    different = dict(shapes(one).items() ^ shapes(two).items())
    words = [[tokenizer.get_vocab() for tokenizer in model.tokenizers] for model in (one, two)]
    told = None
    if one.family.name != two.family.name or different:
        told = f"their weights are not alike, such as {min(different, default='those of the text encoders')}"
    elif words[0] != words[1]:
        told = "they have other vocabularies: words were added to one of them"
    elif one.scheduler_config.get("prediction_type") != two.scheduler_config.get("prediction_type"):
        told = "one predicts the noise, and the other something else"
    if told:
        raise StudioloError(
            f"{first.ref.name} and {second.ref.name} cannot be summed: {told}",
            where=second.ref.path,
            remedy="Merge models of one architecture; of subjects, their adapters.",
        )


def _card(terms: list[tuple[Source, float]], name: str) -> dict[str, Any]:
    """Out of what, with which weights; and whom it knows, so that prompts may say [V]."""
    subjects = [subject for source, weight in terms if weight > 0 for subject in source.subjects()]
    card: dict[str, Any] = {
        "name": name,
        "merged": [dict(source.trace()) | {"weight": weight} for source, weight in terms],
        "studiolo_version": studiolo.__version__,
    }
    if len(subjects) == 1:
        card |= _alone(subjects[0])
    return card | ({"subjects": subjects} if subjects else {})


def _alone(subject: Mapping[str, Any]) -> dict[str, Any]:
    return {key: subject.get(key) for key in ("class_noun", "identifier")}
