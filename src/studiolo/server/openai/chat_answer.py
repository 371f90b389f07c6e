"""From an answer to what chat/completions returns, whole or in chunks.

Built as plain JSON: the official package's types (`ChatCompletion`, `ChatCompletionChunk`) are what the tests
read it with, and building them for each token would cost more than the rest of the way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from studiolo import __version__
from studiolo.language.conversation import (
    Call,
    Candidate,
    Data,
    Delta,
    FinishReason,
    Response,
    Text,
    Thought,
    TokenLogprob,
    Usage,
)
from studiolo.server.openai.asked import CUSTOM_INPUT

JSON = dict[str, Any]

WITHHELD = frozenset(
    {
        FinishReason.SAFETY,
        FinishReason.RECITATION,
        FinishReason.BLOCKLIST,
        FinishReason.PROHIBITED,
        FinishReason.PERSONAL,
    }
)
_SAID_OF_THE_PROMPT = "The prompt was withheld from the model."


def finish_reason(finish: FinishReason, *, called: bool) -> str:
    """OpenAI's word. What broke an answer off for another reason has none there, and is told as "length":
    what is there is no whole answer."""
    if finish in WITHHELD:
        return "content_filter"
    if finish is not FinishReason.STOP:
        return "length"
    return "tool_calls" if called else "stop"


def usage_of(usage: Usage) -> JSON:
    """Thoughts and their summaries are part of the completion, as with OpenAI."""
    reasoning = usage.thoughts + usage.summaries
    asked: JSON = {"cached_tokens": usage.cached, "audio_tokens": usage.prompt_by_modality.get("audio", 0)}
    if "image" in usage.prompt_by_modality:
        asked["image_tokens"] = usage.prompt_by_modality["image"]
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer + reasoning,
        "total_tokens": usage.total,
        "prompt_tokens_details": asked,
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def fingerprint(model: str) -> str:
    """Changes when the same seed may give another answer: with the model, and with this software."""
    return "fp_" + hashlib.sha256(f"{__version__}:{model}".encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Frame:
    """What every part of one answer carries.

    Attributes:
        model: as it was asked for.
        custom: tools whose calls are told in the custom form.
        logprobs: whether they were asked for.
    """

    model: str
    custom: frozenset[str] = frozenset()
    logprobs: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.model)

    def around(self, kind: str, choices: list[JSON], **more: Any) -> JSON:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self._fingerprint,
            "service_tier": "default",
            "choices": choices,
            **more,
        }


# --- whole ------------------------------------------------------------------------------------------------


def completion_of(response: Response, frame: Frame) -> JSON:
    """The chat completion. A prompt that was withheld is answered by one choice without content."""
    choices = [_choice(index, candidate, frame) for index, candidate in enumerate(response.candidates)]
    if not choices and response.blocked:
        choices = [_withheld_prompt()]
    told: JSON = {"notes": list(response.notes)} if response.notes else {}
    return frame.around("chat.completion", choices, usage=usage_of(response.usage), **told)


def _choice(index: int, candidate: Candidate, frame: Frame) -> JSON:
    content, calls = candidate.content, candidate.content.calls
    message: JSON = {"role": "assistant", "content": content.text or (None if calls else ""), "refusal": None}
    if content.thoughts:
        message["reasoning_content"] = content.thoughts
    if calls:
        message["tool_calls"] = [_call(call, frame) for call in calls]
    if pictures := [part for part in content.parts if isinstance(part, Data)]:
        message["images"] = [_picture(number, part) for number, part in enumerate(pictures)]
    if candidate.finish in WITHHELD and candidate.finish_message:
        message["refusal"] = candidate.finish_message
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": logprobs_of(candidate.logprobs), "refusal": None} if frame.logprobs else None,
        "finish_reason": finish_reason(candidate.finish, called=bool(calls)),
    }


def _withheld_prompt() -> JSON:
    message = {"role": "assistant", "content": None, "refusal": _SAID_OF_THE_PROMPT}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": "content_filter"}


def _picture(number: int, picture: Data) -> JSON:
    """As OpenRouter gives pictures that models make."""
    return {"type": "image_url", "index": number, "image_url": {"url": data_url(picture)}}


def data_url(data: Data) -> str:
    return f"data:{data.media_type};base64,{base64.b64encode(data.data).decode()}"


def arguments_text(call: Call) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)


def custom_input(call: Call) -> str:
    """The text that a custom tool is called with."""
    return str(call.arguments.get(CUSTOM_INPUT, ""))


def _call(call: Call, frame: Frame) -> JSON:
    made: JSON = {"id": call.id or f"call_{uuid.uuid4().hex[:24]}"}
    if call.name in frame.custom:
        return made | {"type": "custom", "custom": {"name": call.name, "input": custom_input(call)}}
    made |= {"type": "function", "function": {"name": call.name, "arguments": arguments_text(call)}}
    if call.signature:  # as Google's own OpenAI-like endpoint gives it
        signature = base64.b64encode(call.signature).decode()
        made["extra_content"] = {"google": {"thought_signature": signature}}
    return made


def logprobs_of(tokens: Iterable[TokenLogprob]) -> list[JSON]:
    return [{**_logprob(token), "top_logprobs": [_logprob(other) for other in token.top]} for token in tokens]


def _logprob(token: TokenLogprob) -> JSON:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.bytes)}


# --- in chunks --------------------------------------------------------------------------------------------


class Chunks:
    """Makes the chunks of one answer.

    Args:
        include_usage: the last chunk has the usage and no choices; all others have "usage": null.
    """

    def __init__(self, frame: Frame, *, include_usage: bool = False) -> None:
        self._frame, self._include_usage = frame, include_usage
        self._calls: dict[int, int] = {}  # of each candidate that has begun, how many calls it made
        self._pictures: Counter[int] = Counter()
        self.usage = Usage()

    def of(self, delta: Delta) -> Iterator[JSON]:
        """The chunks that a delta makes; none for what only the last chunk tells."""
        index = delta.candidate
        self.usage = delta.usage or self.usage
        if delta.blocked:
            yield from self._refused(index, _SAID_OF_THE_PROMPT)
        if delta.part is not None or delta.logprobs:
            yield from self._begun(index)
            yield self._chunk(index, self._content(delta, index), logprobs=delta.logprobs)
        if delta.finish is not None:
            yield from self._ending(index, delta.finish, delta.finish_message, delta.notes)

    def end(self) -> Iterator[JSON]:
        """The last chunk, where it was asked for."""
        if self._include_usage:
            yield self._frame.around("chat.completion.chunk", [], usage=usage_of(self.usage))

    def _begun(self, index: int) -> Iterator[JSON]:
        if index not in self._calls:
            self._calls[index] = 0
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def _content(self, delta: Delta, index: int) -> JSON:
        match delta.part:
            case Text():
                return {"content": delta.part.text}
            case Thought():
                return {"reasoning_content": delta.part.text}
            case Call():
                number = self._calls[index]
                self._calls[index] += 1
                return {"tool_calls": [{"index": number, **_call(delta.part, self._frame)}]}
            case Data():
                number = self._pictures[index]
                self._pictures[index] += 1
                return {"images": [_picture(number, delta.part)]}
            case _:
                return {}

    def _ending(
        self, index: int, finish: FinishReason, message: str | None, notes: tuple[str, ...]
    ) -> Iterator[JSON]:
        if finish in WITHHELD and message:
            yield from self._begun(index)
            yield self._chunk(index, {"refusal": message})
        yield from self._begun(index)
        word = finish_reason(finish, called=self._calls[index] > 0)
        told: JSON = {"notes": list(notes)} if notes else {}
        yield self._chunk(index, {}, finish=word) | told

    def _refused(self, index: int, why: str) -> Iterator[JSON]:
        yield from self._begun(index)
        yield self._chunk(index, {"refusal": why})
        yield self._chunk(index, {}, finish="content_filter")

    def _chunk(
        self, index: int, delta: JSON, *, finish: str | None = None, logprobs: tuple[TokenLogprob, ...] = ()
    ) -> JSON:
        told = {"content": logprobs_of(logprobs), "refusal": None} if logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": told, "finish_reason": finish}
        more: JSON = {"usage": None} if self._include_usage else {}
        return self._frame.around("chat.completion.chunk", [choice], **more)
