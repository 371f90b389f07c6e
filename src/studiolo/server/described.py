"""The OpenAPI document, where FastAPI by itself says other than what is so.

Wrong parameters are 400 here and not 422, in the envelope of each dialect; keys come in one of three ways.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from studiolo.server.dialects import GEMINI, OPENAI

_SCHEMES = {
    "googleHeader": {"type": "apiKey", "in": "header", "name": "x-goog-api-key"},
    "googleQuery": {"type": "apiKey", "in": "query", "name": "key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}
_WAYS: list[dict[str, list[str]]] = [{}, {"googleHeader": []}, {"googleQuery": []}, {"bearer": []}]
"""`{}`: without a key, which is for who is on the server's own machine."""


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT, _MAYBE = {"type": "string"}, {"type": ["string", "null"]}
_ENVELOPES = {
    GEMINI: _object(error=_object(code={"type": "integer"}, message=_TEXT, status=_TEXT)),
    OPENAI: _object(error=_object(message=_TEXT, type=_TEXT, param=_MAYBE, code=_MAYBE)),
}


def described(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        components = document.setdefault("components", {})
        components["securitySchemes"] = _SCHEMES
        for name in ("HTTPValidationError", "ValidationError"):
            components.get("schemas", {}).pop(name, None)
        for path, operations in document["paths"].items():
            for prefix, envelope in _ENVELOPES.items():
                if path.startswith(prefix):
                    for operation in operations.values():
                        _describe(operation, envelope)
    assert app.openapi_schema is not None
    return app.openapi_schema


def _describe(operation: dict[str, Any], envelope: dict[str, Any]) -> None:
    operation["security"] = _WAYS
    answers = operation["responses"]
    answers.pop("422", None)
    content = {"application/json": {"schema": envelope}}
    answers["4XX"] = {"description": "The request is at fault", "content": content}
    answers["5XX"] = {
        "description": "Not offered here (501), or a fault of the server or of one behind it",
        "content": content,
    }
