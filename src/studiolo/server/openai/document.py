"""Requests in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from studiolo.server.openai.wire import Wire

_OURS = "#/$defs/"


def body(kind: type[Wire]) -> dict[str, Any]:
    """What a route that reads its own body says of it: the schema, without references."""
    schema = kind.model_json_schema()
    whole = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": whole}}}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].removeprefix(_OURS)], definitions)
    return {
        key: _inlined(value, definitions)
        for key, value in node.items()
        if key != "discriminator"  # it refers to the definitions, and the constants say the same
    }


def form(kind: type[Wire], *, file: str) -> dict[str, Any]:
    """The same of a route that reads a form with a file."""
    whole = body(kind)["requestBody"]["content"]["application/json"]["schema"]
    whole["properties"] = {file: {"type": "string", "format": "binary"}, **whole["properties"]}
    whole["required"] = [file, *whole.get("required", [])]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": whole}}}}


def form_or_body(kind: type[Wire], *, file: str, also: str) -> dict[str, Any]:
    """The same of a route that reads either; `also` names another file, which a form may have."""
    either = form(kind, file=file)
    content = either["requestBody"]["content"]
    content["multipart/form-data"]["schema"]["properties"][also] = {"type": "string", "format": "binary"}
    content |= body(kind)["requestBody"]["content"]
    return either
