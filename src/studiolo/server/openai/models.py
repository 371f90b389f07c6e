"""The wire form of models (https://platform.openai.com/docs/api-reference/models)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studiolo.server.pool import ModelInfo


def model_of(info: ModelInfo) -> dict[str, Any]:
    """A model. Beyond OpenAI's fields: its kind, its title, and how many tokens it reads."""
    told: dict[str, Any] = {
        "id": info.name,
        "object": "model",
        "created": int(info.created.timestamp()),
        "owned_by": "studiolo" if info.kind != "hosted" else "hosted",
        "kind": info.kind,
        "title": info.title,
    }
    if info.base is not None:
        told["parent"] = info.base
    if info.capabilities is not None:
        told["context_length"] = info.capabilities.context
        told["modalities"] = sorted(info.capabilities.modalities)
    return told


def list_of(infos: Sequence[ModelInfo]) -> dict[str, Any]:
    return {"object": "list", "data": [model_of(info) for info in infos]}
