"""Hosted models that are known by name, and how a router is made of them.

The table is `catalog.yaml` beside this file; `catalog.yaml` in Studiolo's home goes over it.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from studiolo.errors import StudioloError
from studiolo.language.conversation import Value
from studiolo.language.engines.base import Capabilities, Engine, Modality
from studiolo.language.limits import Limits
from studiolo.language.prices import Price
from studiolo.language.routing import Route, Router
from studiolo.language.safety.guarded import Guarded
from studiolo.language.safety.lexicon import Lexicon
from studiolo.store.paths import home

FILE_NAME = "catalog.yaml"
SHIPPED = Path(__file__).with_name(FILE_NAME)

OpenLocal = Callable[[str], Engine | Awaitable[Engine]]
"""Opens local weights by name, at once or in time."""


class Upstream(Value):
    """A service. `keys` are the environment variables that may hold its key; none: it needs no key."""

    kind: Literal["gemini", "openai", "local"]
    base_url: str | None = None
    dialect: str = "openai"
    keys: tuple[str, ...] = ()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _has_an_address(self) -> Upstream:
        if self.kind == "openai" and self.base_url is None:
            raise ValueError("an upstream of kind 'openai' needs its base_url")
        return self


class Place(Value):
    """Where a model answers, under which name, at which price."""

    upstream: str
    model: str
    price: Price | None = None
    unverified: tuple[str, ...] = ()
    """Dotted names of what was not found on a page of the provider."""


class Known(Value):
    """A model. `context` and `max_output` in tokens; `routes` in the order in which they are asked."""

    context: int = Field(gt=0)
    max_output: int | None = Field(default=None, gt=0)
    modalities: frozenset[Modality] = frozenset({"text"})
    thinking: bool = False
    tools: bool = False
    embeddings: bool = False
    aliases: tuple[str, ...] = ()
    note: str = ""
    routes: tuple[Place, ...] = Field(min_length=1)


class Catalog(Value):
    """The whole table; `dated` is the day on which its prices were looked up."""

    dated: datetime.date
    upstreams: dict[str, Upstream] = Field(default_factory=dict)
    models: dict[str, Known] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Catalog:
        names = list(self.models)
        for name, known in self.models.items():
            names += known.aliases
            for place in known.routes:
                if place.upstream not in self.upstreams:
                    raise ValueError(f"models.{name}: no upstream '{place.upstream}' is described")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"this name stands for two models: {', '.join(sorted(twice))}")
        return self

    def capabilities(self, name: str, place: Place) -> Capabilities:
        """What a model can do at a place, as far as it is known."""
        known, kind = self.models[name], self.upstreams[place.upstream].kind
        return Capabilities(
            modalities=known.modalities,
            context=known.context,
            max_output=known.max_output,
            thinking=known.thinking,
            tools=known.tools,
            grammar=kind != "openai",
            embeddings=known.embeddings,
            seed=True,
            candidates=8 if kind == "gemini" else 1,
        )


def load_catalog(file: Path | None = None) -> Catalog:
    """The table that is shipped, with the user's over it.

    Args:
        file: the user's; else `catalog.yaml` in Studiolo's home, if there is one.

    Raises:
        StudioloError: says which key of which file is wrong, and why.
    """
    shipped = _read(SHIPPED)
    mine = file or home() / FILE_NAME
    if file is None and not mine.exists():
        return _checked(shipped, SHIPPED)
    own = _read(mine)
    merged = shipped | {name: value for name, value in own.items() if name not in ("upstreams", "models")}
    for part in ("upstreams", "models"):
        over = own.get(part) or {}
        if not isinstance(over, dict):
            raise StudioloError("names with their descriptions were expected", where=f"{mine}: {part}")
        merged[part] = shipped[part] | over
    return _checked(merged, mine)


def router_of(catalog: Catalog, *, open_local: OpenLocal | None = None, **options: Any) -> Router:
    """A router over all models of the table. Engines are opened when they are first asked.

    Args:
        open_local: opens local weights; without it, routes to them are left out.
        options: of `Router`.
    """
    routes: dict[str, list[Route]] = {}
    for name, known in catalog.models.items():
        places = [
            place for place in known.routes if _reachable(catalog.upstreams[place.upstream], open_local)
        ]
        if places:
            routes[name] = [_route(catalog, name, place, open_local) for place in places]
    aliases = {alias: name for name in routes for alias in catalog.models[name].aliases}
    limits = {name: upstream.limits for name, upstream in catalog.upstreams.items()}
    return Router(routes, aliases=aliases, limits=limits, **options)


def _reachable(upstream: Upstream, open_local: OpenLocal | None) -> bool:
    return upstream.kind != "local" or open_local is not None


def _route(catalog: Catalog, name: str, place: Place, open_local: OpenLocal | None) -> Route:
    upstream, capabilities = catalog.upstreams[place.upstream], catalog.capabilities(name, place)

    def open_engine() -> Engine | Awaitable[Engine]:
        if upstream.kind == "local" and open_local is not None:
            return open_local(place.model)
        return _open_upstream(upstream, place, capabilities)

    return Route(place.upstream, place.model, open_engine, capabilities, place.price)


def _open_upstream(upstream: Upstream, place: Place, capabilities: Capabilities) -> Engine:
    # The SDKs take seconds to import, and are needed only by who asks an upstream.
    from studiolo.language.engines.upstream import find_key

    key = find_key(None, upstream.keys, upstream=place.upstream).get_secret_value() if upstream.keys else None
    if upstream.kind == "gemini":
        from studiolo.language.engines.gemini import GEMINI_URL, GeminiEngine

        return GeminiEngine(
            place.model, base_url=upstream.base_url or GEMINI_URL, key=key, capabilities=capabilities
        )
    from studiolo.language.engines.openai_upstream import OpenAIUpstream

    engine = OpenAIUpstream(
        place.model,
        base_url=upstream.base_url or "",
        dialect=upstream.dialect,
        key=key,
        capabilities=capabilities,
    )
    return Guarded(engine, Lexicon())  # that API has no safety settings


def _read(file: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudioloError(f"cannot be read ({error.strerror})", where=file) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudioloError(
            f"not readable as YAML ({error})", where=file, remedy="Mend or delete it."
        ) from error
    if not isinstance(value, dict):
        raise StudioloError("keys with their values were expected", where=file, remedy="Mend or delete it.")
    return value


def _checked(value: dict[str, Any], file: Path) -> Catalog:
    try:
        return Catalog.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        given = (
            ""
            if first["type"] in ("missing", "value_error", "extra_forbidden")
            else f" (it is {first['input']!r})"
        )
        raise StudioloError(
            f"{first['msg'].removeprefix('Value error, ')}{given}",
            where=f"{file}: {key}",
            remedy="Mend this key.",
        ) from error
