"""What models there are on this machine, what they need and what they cost."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import cache

from studiolo.language.catalog import Catalog, load_catalog
from studiolo.language.conversation import Usage
from studiolo.language.engines.base import Capabilities
from studiolo.language.opening import longest_context
from studiolo.language.prices import Price, cost
from studiolo.models import registry, weights
from studiolo.models.known import table
from studiolo.models.registry import ModelRef
from studiolo.models.weights import Weights
from studiolo.server.pool import ModelInfo

_DRAWING_KINDS = {"base": "drawing", "folder": "drawing", "subject": "subject"}


@cache
def catalog() -> Catalog:
    """Hosted models, as they were when the server started."""
    return load_catalog()


def models() -> list[ModelInfo]:
    """All models that can be asked now: weights that are here, hosted models with a key, those that draw."""
    here = [_of_weights(found) for found in weights.list_weights() if found.path.exists()]
    names = {model.name for model in here}
    hosted = [model for model in _hosted() if model.name not in names]
    drawing = [_of_drawing(ref) for ref in registry.list_models() if ref.marker.exists()]
    return [*here, *hosted, *drawing]


def bytes_of(name: str) -> int:
    """What loading a model will take, about: its weights and a fifth. 0 for one that runs elsewhere."""
    if not weights.has(name):
        return 0
    return round(weights.find_record(name).size * 1.2)


def dollars_of(model: str, usage: Usage, *, batch: bool = False) -> float:
    """What a use costs at the catalogue's prices; batches at half where they have no price of their own."""
    price = price_of(model)
    if price is None:
        return 0.0
    if batch and price.batch is None:
        return cost(usage, price) / 2
    return cost(usage, price, batch=batch)


def price_of(model: str) -> Price | None:
    """The price of a model that has one; that of "CHAT+DRAWING" is the chat model's."""
    models = catalog().models
    known = models.get(model) or models.get(model.partition("+")[0])
    return known.routes[0].price if known else None


def _of_weights(found: Weights) -> ModelInfo:
    entry, gguf, longest = table().weights.get(found.name), found.format == "gguf", longest_context()
    return ModelInfo(
        name=found.name,
        kind=found.purpose,
        title=entry.title if entry else found.name,
        created=found.since,
        capabilities=Capabilities(
            context=min(longest, found.facts.context or longest) if gguf else found.facts.context or longest,
            tools=found.purpose == "chat",
            thinking=found.purpose == "chat",
            grammar=found.purpose != "embedding",
            embeddings=found.purpose == "embedding",
        ),
    )


def _hosted() -> list[ModelInfo]:
    told = catalog()
    found = []
    for name, known in told.models.items():
        place = next((p for p in known.routes if _has_key(told, p.upstream)), None)
        if place is not None:
            dated = datetime.combine(told.dated, datetime.min.time(), UTC)
            capabilities = told.capabilities(name, place)
            found.append(
                ModelInfo(name=name, kind="hosted", title=name, created=dated, capabilities=capabilities)
            )
    return found


def _has_key(told: Catalog, upstream: str) -> bool:
    described = told.upstreams[upstream]
    if described.kind == "local":
        return False
    return not described.keys or any(os.environ.get(key) for key in described.keys)


def _of_drawing(ref: ModelRef) -> ModelInfo:
    made = datetime.fromtimestamp(ref.marker.stat().st_mtime, UTC)
    return ModelInfo(
        name=ref.name,
        kind="subject" if ref.kind == "subject" else "drawing",
        title=str(ref.card.get("title") or ref.name),
        created=made.replace(microsecond=0),
        base=(ref.card.get("base") or {}).get("name"),
    )
