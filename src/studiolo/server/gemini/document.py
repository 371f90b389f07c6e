"""Requests in the OpenAPI document, from the table of fields."""

from __future__ import annotations

from typing import Any

from studiolo.server.gemini.fields import ENUMS, MESSAGES, Field, Support

_SCALARS: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "flag": {"type": "boolean"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "bytes": {"type": "string", "format": "byte"},
    "object": {"type": "object"},
    "json": {},
    "duration": {"type": "string", "pattern": r"^-?\d{1,12}(\.\d{1,9})?s$"},
    "time": {"type": "string", "format": "date-time"},
}
_REQUIRED = {
    "GenerateContentRequest": ["contents"],
    "ComputeTokensRequest": ["contents"],
    "EmbedContentRequest": ["content"],
    "BatchEmbedContentsRequest": ["requests"],
    "PredictRequest": ["instances"],
    "DrawRequest": ["instances"],
    "DrawInstance": ["prompt"],
    "Content": ["parts"],
    "Blob": ["mimeType", "data"],
    "FileData": ["fileUri"],
    "FunctionCall": ["name"],
    "FunctionResponse": ["name"],
    "FunctionDeclaration": ["name"],
    "SafetySetting": ["category"],
}


def body(*messages: str) -> dict[str, Any]:
    """What a route that reads its own body says of it: the schema, without references, of a message, or of
    any of several. Refused fields are not in it."""
    schemas = [_message(message) for message in messages]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _message(name: str) -> dict[str, Any]:
    if name == "Schema":  # it holds itself
        return {"type": "object"}
    told = {key: field for key, field in MESSAGES[name].items() if field.support is not Support.REFUSED}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {key: _field(field) for key, field in told.items()},
        "additionalProperties": False,
    }
    return schema | {"required": _REQUIRED[name]} if name in _REQUIRED else schema


def _field(field: Field) -> dict[str, Any]:
    schema = _one(field)
    if field.keyed:
        schema = {"type": "object", "additionalProperties": schema}
    if field.many:
        schema = {"type": "array", "items": schema}
    return schema | {"description": field.note} if field.note else schema


def _one(field: Field) -> dict[str, Any]:
    if field.type in MESSAGES:
        return _message(field.type)
    if field.type in ENUMS:
        return {"type": "string", "enum": list(ENUMS[field.type])}
    bounds = {"minimum": field.least, "maximum": field.most}
    return _SCALARS[field.type] | {key: value for key, value in bounds.items() if value is not None}
