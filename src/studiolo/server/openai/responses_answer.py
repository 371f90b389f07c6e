"""From an answer to a response: its items, and the events that tell how they grow.

An answer that is wanted whole goes the same way, and only its last event is looked at.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from studiolo.language.conversation import (
    Call,
    Data,
    Delta,
    FinishReason,
    Text,
    Thought,
    TokenLogprob,
    Usage,
)
from studiolo.server.errors import Told
from studiolo.server.openai import responses_wire as w
from studiolo.server.openai.chat_answer import WITHHELD, arguments_text, custom_input, logprobs_of
from studiolo.server.openai.errors import code_of

JSON = dict[str, Any]

_WITHHELD_PROMPT = "The prompt was withheld from the model."


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def usage_of(usage: Usage) -> JSON:
    reasoning = usage.thoughts + usage.summaries
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.answer + reasoning,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.total,
    }


@dataclass
class Open:
    """The item that grows now. `text` is what it has so far."""

    index: int
    item: JSON
    text: str = ""
    logprobs: list[JSON] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return str(self.item["type"])


class Output:
    """The growing response to one request.

    Args:
        summary: thoughts come as summaries, not as they were thought.
    """

    def __init__(self, request: w.ResponseRequest, *, custom: frozenset[str], summary: bool) -> None:
        self._request, self._custom, self._summary = request, custom, summary
        include = request.include or ()
        self._logprobs = "message.output_text.logprobs" in include or request.top_logprobs is not None
        self._signatures = "reasoning.encrypted_content" in include
        self._items: list[JSON] = []
        self._open: Open | None = None
        self._ahead: tuple[TokenLogprob, ...] = ()
        self._number = 0
        self._notes: list[str] = []
        self._usage: Usage | None = None
        self._finish = FinishReason.STOP
        self.response = _begun(request)

    @property
    def now(self) -> JSON:
        """The response with the items that are whole so far."""
        return {**self.response, "output": list(self._items)}

    def begin(self) -> Iterator[JSON]:
        yield self._event("response.created", response=dict(self.response))
        if self.response["background"]:
            yield self._event("response.queued", response=dict(self.response))
            self.response["status"] = "in_progress"
        yield self._event("response.in_progress", response=dict(self.response))

    def add(self, delta: Delta) -> Iterator[JSON]:
        """The events of a delta."""
        self._usage = delta.usage or self._usage
        self._notes += [note for note in delta.notes if note not in self._notes]
        match delta.part:
            case Text():
                yield from self._say(delta.part.text, delta.logprobs)
            case Thought():
                yield from self._think(delta.part)
            case Call():
                yield from self._call(delta.part)
            case Data():
                yield from self._draw(delta.part)
            case _:  # tokens of a character that is not whole yet
                self._ahead += delta.logprobs
        if delta.finish is not None:
            self._finish = delta.finish
            if delta.finish in WITHHELD and delta.finish_message:
                yield from self._refuse(delta.finish_message)
        if delta.blocked is not None:
            self._finish = delta.blocked
            yield from self._refuse(_WITHHELD_PROMPT)

    def finish(self) -> Iterator[JSON]:
        """The last items' ends; then `response` is whole, and `last` tells of it."""
        whole = self._finish is FinishReason.STOP
        yield from self._close("completed" if whole else "incomplete")
        reason = "content_filter" if self._finish in WITHHELD else "max_output_tokens"
        self.response |= {
            "status": "completed" if whole else "incomplete",
            "incomplete_details": None if whole else {"reason": reason},
            "completed_at": int(time.time()) if whole else None,
            "output": self._items,
            "usage": usage_of(self._usage or Usage()),
        }
        if self._notes:
            self.response["notes"] = self._notes

    def last(self) -> JSON:
        """The last event."""
        return self._event(f"response.{self.response['status']}", response=self.response)

    def failed(self, told: Told) -> Iterator[JSON]:
        """What is told of an answer that breaks off."""
        code = code_of(told)
        yield self._event("error", code=code, message=told.text, param=told.where)
        known = code if code == "rate_limit_exceeded" else "server_error"
        error = {"code": known, "message": told.text}
        self.response |= {"status": "failed", "error": error, "output": self._items}
        yield self._event("response.failed", response=self.response)

    def cancelled(self) -> Iterator[JSON]:
        """The same of one that is not wanted any more: of that no event tells."""
        self.response |= {"status": "cancelled", "output": self._items}
        return iter(())

    # --- what comes in

    def _say(self, text: str, logprobs: tuple[TokenLogprob, ...]) -> Iterator[JSON]:
        part: JSON = {"type": "output_text", "text": "", "annotations": []}
        yield from self._opened("message", part)
        now = self._now
        told = logprobs_of((*self._ahead, *logprobs)) if self._logprobs else []
        self._ahead = ()
        now.text += text
        now.logprobs += told
        yield self._event("response.output_text.delta", **self._at(content=0), delta=text, logprobs=told)

    def _think(self, thought: Thought) -> Iterator[JSON]:
        if self._summary:
            yield from self._opened("reasoning", {"type": "summary_text", "text": ""})
        else:
            yield from self._opened("reasoning", {"type": "reasoning_text", "text": ""})
        now = self._now
        if thought.signature and self._signatures:
            now.item["encrypted_content"] = base64.b64encode(thought.signature).decode()
        now.text += thought.text
        if not thought.text:
            return
        if self._summary:
            at = self._at(summary=0)
            yield self._event("response.reasoning_summary_text.delta", **at, delta=thought.text)
        else:
            yield self._event("response.reasoning_text.delta", **self._at(content=0), delta=thought.text)

    def _call(self, call: Call) -> Iterator[JSON]:
        yield from self._close()
        call_id = call.id or new_id("call")
        if call.name in self._custom:
            text, kind, grows = custom_input(call), "custom_tool_call", "input"
        else:
            text, kind, grows = arguments_text(call), "function_call", "arguments"
        item: JSON = {"id": new_id("fc" if grows == "arguments" else "ctc"), "type": kind}
        item |= {"call_id": call_id, "name": call.name, grows: "", "status": "in_progress"}
        if call.signature:
            signature = base64.b64encode(call.signature).decode()
            item["extra_content"] = {"google": {"thought_signature": signature}}
        yield from self._added(item)
        event = "function_call_arguments" if grows == "arguments" else "custom_tool_call_input"
        yield self._event(f"response.{event}.delta", **self._at(), delta=text)
        yield self._event(f"response.{event}.done", **self._at(), **{grows: text, **_named(grows, call)})
        item[grows] = text
        yield from self._done("completed")

    def _draw(self, picture: Data) -> Iterator[JSON]:
        yield from self._close()
        item: JSON = {"id": new_id("ig"), "type": "image_generation_call", "status": "in_progress"}
        yield from self._added(item | {"result": None})
        item["result"] = base64.b64encode(picture.data).decode()
        item["output_format"] = picture.media_type.removeprefix("image/")
        yield self._event("response.image_generation_call.completed", **self._at())
        self._now.item = item
        yield from self._done("completed")

    def _refuse(self, why: str) -> Iterator[JSON]:
        """A message of its own: what was said before it stays what it is."""
        yield from self._close("incomplete")
        part: JSON = {"type": "refusal", "refusal": ""}
        yield from self._opened("message", part)
        yield self._event("response.refusal.delta", **self._at(content=0), delta=why)
        yield self._event("response.refusal.done", **self._at(content=0), refusal=why)
        part = {"type": "refusal", "refusal": why}
        yield self._event("response.content_part.done", **self._at(content=0), part=part)
        self._now.item["content"] = [part]
        yield from self._done("completed")

    # --- items that grow

    @property
    def _now(self) -> Open:
        assert self._open is not None
        return self._open

    def _opened(self, kind: str, part: JSON) -> Iterator[JSON]:
        """The item that text goes to; a new one unless one of its kind is open."""
        if self._open is not None and self._open.kind == kind:
            return
        yield from self._close()
        item: JSON = {"id": new_id("rs"), "type": kind, "summary": []}
        if kind == "message":
            item = {"id": new_id("msg"), "type": kind, "role": "assistant", "status": "in_progress"}
            item["content"] = []
        yield from self._added(item)
        if part["type"] == "summary_text":
            yield self._event("response.reasoning_summary_part.added", **self._at(summary=0), part=part)
        else:
            yield self._event("response.content_part.added", **self._at(content=0), part=part)

    def _added(self, item: JSON) -> Iterator[JSON]:
        self._open = Open(len(self._items), item)
        yield self._event("response.output_item.added", output_index=self._open.index, item=dict(item))

    def _close(self, status: str = "completed") -> Iterator[JSON]:
        """Ends the item of text that is open, if one is."""
        if self._open is None:
            return
        if self._open.kind == "message":
            yield from self._close_message()
        else:
            yield from self._close_thought()
        yield from self._done(status)

    def _close_message(self) -> Iterator[JSON]:
        now = self._now
        part: JSON = {"type": "output_text", "text": now.text, "annotations": []}
        if self._logprobs:
            part["logprobs"] = now.logprobs
        at = self._at(content=0)
        yield self._event("response.output_text.done", **at, text=now.text, logprobs=now.logprobs)
        yield self._event("response.content_part.done", **at, part=part)
        now.item["content"] = [part]

    def _close_thought(self) -> Iterator[JSON]:
        now = self._now
        if self._summary:
            part, at = {"type": "summary_text", "text": now.text}, self._at(summary=0)
            yield self._event("response.reasoning_summary_text.done", **at, text=now.text)
            yield self._event("response.reasoning_summary_part.done", **at, part=part)
            now.item["summary"] = [part]
        else:
            part, at = {"type": "reasoning_text", "text": now.text}, self._at(content=0)
            yield self._event("response.reasoning_text.done", **at, text=now.text)
            yield self._event("response.content_part.done", **at, part=part)
            now.item["content"] = [part]

    def _done(self, status: str) -> Iterator[JSON]:
        now = self._now
        now.item["status"] = status
        self._items.append(now.item)
        self._open = None
        yield self._event("response.output_item.done", output_index=now.index, item=now.item)

    def _at(self, *, content: int | None = None, summary: int | None = None) -> JSON:
        at: JSON = {"item_id": self._now.item["id"], "output_index": self._now.index}
        if content is not None:
            at["content_index"] = content
        if summary is not None:
            at["summary_index"] = summary
        return at

    def _event(self, kind: str, **told: Any) -> JSON:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **told}


def _named(grows: str, call: Call) -> JSON:
    return {"name": call.name} if grows == "arguments" else {}


def _begun(request: w.ResponseRequest) -> JSON:
    """The response before there is anything in it: what was asked, as it is carried out."""
    text, reasoning = request.text or w.TextWish(), request.reasoning or w.Reasoning()
    form = text.format.model_dump(by_alias=True, exclude_none=True) if text.format else {"type": "text"}
    choice = request.tool_choice
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "queued" if request.background else "in_progress",
        "background": bool(request.background),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "reasoning": {
            "effort": reasoning.effort,
            "summary": reasoning.summary or reasoning.generate_summary,
        },
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.store is not False,
        "temperature": request.temperature,
        "text": {"format": form, "verbosity": text.verbosity or "medium"},
        "tool_choice": choice.model_dump() if isinstance(choice, w.Wire) else choice or "auto",
        "tools": [_tool(tool) for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _tool(tool: w.Tool) -> JSON:
    told = tool.model_dump(exclude_none=True)
    if isinstance(tool, w.FunctionTool):
        told = {"strict": True, "parameters": None} | told
    return told
