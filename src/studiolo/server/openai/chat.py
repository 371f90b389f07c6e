"""POST /chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from studiolo.language import conversation as c
from studiolo.language.collect import Collector, collected
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import json_body
from studiolo.server.errors import Told
from studiolo.server.openai import answering, chat_kept, document
from studiolo.server.openai.answering import WAITING, Asking, in_terms
from studiolo.server.openai.chat_answer import Chunks, Frame, completion_of
from studiolo.server.openai.chat_request import custom_tools, request_of
from studiolo.server.openai.chat_wire import ChatRequest
from studiolo.server.openai.errors import error_of
from studiolo.server.openai.pauses import with_pauses
from studiolo.server.openai.wire import read
from studiolo.server.sse import Event, Stream, attended
from studiolo.server.studio import Studio, studio_of

FIELDS = {
    "cache": "cached_content",
    "config.bias": "logit_bias",
    "config.candidates": "n",
    "config.format": "response_format",
    "config.frequency_penalty": "frequency_penalty",
    "config.logprobs": "logprobs",
    "config.max_tokens": "max_completion_tokens",
    "config.modalities": "modalities",
    "config.presence_penalty": "presence_penalty",
    "config.seed": "seed",
    "config.stop": "stop",
    "config.temperature": "temperature",
    "config.thinking": "reasoning_effort",
    "config.thinking.budget": "thinking_budget",
    "config.top_k": "top_k",
    "config.top_p": "top_p",
    "contents": "messages",
    "tool_choice": "tool_choice",
}
"""What engines call a field, and what the client called it."""


def add_routes(router: APIRouter) -> None:
    router.add_api_route(
        "/chat/completions",
        chat_completions,
        methods=["POST"],
        tags=["OpenAI"],
        response_model=None,
        openapi_extra=document.body(ChatRequest),
    )


async def chat_completions(
    request: Request, studio: Studio = Depends(studio_of), caller: Caller = Depends(caller)
) -> Response:
    """An answer to a conversation, whole or in events."""
    chat = read(ChatRequest, await json_body(request))
    asking = Asking(studio, caller)
    frame = Frame(chat.model, custom_tools(chat), logprobs=bool(chat.logprobs))
    with in_terms(FIELDS):
        wanted = await asking.resolved(request_of(chat, show=asking.shown(chat.model)))
    if chat.stream:
        options = chat.stream_options
        chunks = Chunks(frame, include_usage=bool(options and options.include_usage))
        return Stream(_events(asking, chat, wanted, chunks, frame), broken=_broken)
    return JSONResponse(await attended(request, _whole(asking, chat, wanted, frame)))


async def answer_item(asking: Asking, body: dict[str, Any]) -> dict[str, Any]:
    """The chat completion that a body asks for, where nobody waits at a socket, as in a batch.

    Raises:
        StudioloError: what a client of its own would be told as an error.
    """
    chat = read(ChatRequest, body)
    frame = Frame(chat.model, custom_tools(chat), logprobs=bool(chat.logprobs))
    with in_terms(FIELDS):
        wanted = await asking.resolved(request_of(chat, show=asking.shown(chat.model)))
    return await _whole(asking, chat, wanted, frame)


async def _whole(asking: Asking, chat: ChatRequest, wanted: c.Request, frame: Frame) -> dict[str, Any]:
    with in_terms(FIELDS):
        completion = completion_of(await collected(asking.answer(wanted)), frame)
    await chat_kept.keep(asking, chat, completion)
    return completion


async def _events(
    asking: Asking, chat: ChatRequest, wanted: c.Request, chunks: Chunks, frame: Frame
) -> AsyncGenerator[Event]:
    said = Collector() if chat.store else None
    with in_terms(FIELDS):
        async with aclosing(with_pauses(asking.answer(wanted), answering.KEEP_ALIVE)) as deltas:
            async for delta in deltas:
                if delta is None:
                    yield WAITING
                    continue
                if said is not None:
                    said.add(delta)
                for chunk in chunks.of(delta):
                    yield Event(chunk)
    for chunk in chunks.end():
        yield Event(chunk)
    if said is not None:
        await chat_kept.keep(asking, chat, completion_of(said.response(), frame))
    yield Event("[DONE]")


def _broken(told: Told) -> list[Event]:
    """What the client raises as an APIError. No [DONE]: the answer is not."""
    return [Event({"error": error_of(told)})]
