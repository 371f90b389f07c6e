"""/moderations, by the rules of the lexicon (https://platform.openai.com/docs/api-reference/moderations).

The lexicon knows fewer harms than OpenAI's classifier, and English alone: see docs/safety.md. Categories that
it does not judge are false, with a score of 0, and have no input types.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studiolo.language.conversation import FinishReason, Harm
from studiolo.language.errors import InvalidRequestError, UnsupportedError
from studiolo.language.safety.lexicon import Lexicon
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.openai import document
from studiolo.server.openai.wire import Wire, ignored, read

JSON = dict[str, Any]
FLAGGED = 0.5
"""From which score on a category is true: that of a harm that is probable in medium degree."""
MODEL = "studiolo-lexicon"
MOST_TEXTS = 2048

_HARMS = {
    "harassment": Harm.HARASSMENT,
    "hate": Harm.HATE,
    "illicit": Harm.DANGEROUS,
    "sexual": Harm.SEXUAL,
}
_NOT_JUDGED = (
    "harassment/threatening", "hate/threatening", "illicit/violent", "self-harm", "self-harm/instructions",
    "self-harm/intent", "violence", "violence/graphic",
)  # fmt: skip
_MINORS = "sexual/minors"
"""What is withheld whatever the thresholds are."""


class ModerationRequest(Wire):
    input: str | list[Any]
    model: Annotated[str | None, Field(min_length=1), ignored("there is one, the lexicon")] = None


def add_routes(router: APIRouter) -> None:
    router.add_api_route(
        "/moderations",
        create_moderation,
        methods=["POST"],
        response_model=None,
        openapi_extra=document.body(ModerationRequest),
    )


async def create_moderation(request: Request, _: Caller = Depends(caller)) -> Response:
    """What harms are in texts."""
    wanted = read(ModerationRequest, await json_body(request))
    results = [await _judged(text) for text in _texts(wanted.input)]
    return JSONResponse({"id": f"modr-{secrets.token_hex(12)}", "model": MODEL, "results": results})


def _texts(given: str | list[Any]) -> list[str]:
    """The texts; parts of one multi-modal input are one text.

    Raises:
        UnsupportedError: a picture.
        InvalidRequestError: nothing, or what is no text.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidRequestError("nothing to judge", where="input")
    if len(given) > MOST_TEXTS:
        raise InvalidRequestError(f"1 to {MOST_TEXTS} texts at a time, not {len(given)}", where="input")
    if all(isinstance(text, str) for text in given):
        return given
    texts = []
    for number, part in enumerate(given):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image_url":
            raise UnsupportedError(
                "pictures are not judged", where=f"input[{number}]", remedy="Leave it out."
            )
        if kind != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequestError("not a text", where=f"input[{number}]")
        texts.append(part["text"])
    return ["\n".join(texts)]


async def _judged(text: str) -> JSON:
    await asyncio.sleep(0)  # others may run between two texts
    judgement = await Lexicon().judge(text)
    scores = {name: judgement.scores.get(harm, 0.0) for name, harm in _HARMS.items()}
    scores[_MINORS] = 1.0 if judgement.always is FinishReason.PROHIBITED else 0.0
    scores |= dict.fromkeys(_NOT_JUDGED, 0.0)
    categories = {name: score >= FLAGGED for name, score in scores.items()}
    return {
        "flagged": any(categories.values()),
        "categories": categories,
        "category_scores": scores,
        "category_applied_input_types": {name: [] if name in _NOT_JUDGED else ["text"] for name in scores},
    }
