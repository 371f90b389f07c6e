"""computeTokens: which tokens a model makes of texts, where its engine tells them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from studiolo.errors import TooLargeError
from studiolo.language.engines.base import Token
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.errors import NotBuiltError
from studiolo.server.gemini import models
from studiolo.server.gemini.reading import read
from studiolo.server.gemini.wire_content import texts_of
from studiolo.server.gemini.wire_request import check_model
from studiolo.server.sse import attended
from studiolo.server.studio import Studio, studio_of

Who = Annotated[Caller, Depends(caller)]
House = Annotated[Studio, Depends(studio_of)]

MOST = 2**20
"""Bytes of the texts of a request; what is told of them is some thirty times as much."""


async def compute(model: str, http: HttpRequest, studio: House, who: Who) -> Response:
    """The tokens of each text, its parts one by one, without the model's template around them."""
    asked = read("ComputeTokensRequest", await json_body(http))
    name = models.named(studio, model, "computeTokens", http)
    check_model(asked.get("model"), name)
    said = texts_of(asked.get("contents", []))
    if not said:
        raise InvalidRequestError("contents is not specified", where="contents")
    texts = [text for _, text in said]
    _check_size(texts)
    async with studio.engines.lease(name, who.key_id) as engine:
        try:
            found = await attended(http, engine.tokenize(texts))
        except UnsupportedError as error:
            raise NotBuiltError(
                f"the tokens of this model are counted, and not told one by one: {error.message}",
                where=name,
                remedy="Ask countTokens, or a model whose weights are on this machine.",
            ) from error
    told = [_info(role, tokens) for (role, _), tokens in zip(said, found, strict=True)]
    return JSONResponse({"tokensInfo": told})


def _check_size(texts: Sequence[str]) -> None:
    size = sum(len(text.encode()) for text in texts)
    if size > MOST:
        raise TooLargeError(
            f"the texts have {size:,} bytes, and the tokens of at most {MOST:,} are told",
            where="contents",
            remedy="Send less, or ask countTokens.",
        )


def _info(role: str, tokens: Sequence[Token]) -> dict[str, Any]:
    """Google's TokensInfo: numbers of 64 bits are texts in JSON, and bytes are base64."""
    info = {
        "tokens": [base64.b64encode(token.data).decode() for token in tokens],
        "tokenIds": [str(token.id) for token in tokens],
    }
    return {"role": role} | info if role else info
