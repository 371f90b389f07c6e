"""From an answer to an interaction: its steps, and the events that tell how they grow
(https://ai.google.dev/gemini-api/docs/interactions/streaming).

An answer that is wanted whole goes the same way.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from studiolo.language.conversation import Call, Data, Delta, FinishReason, Text, Thought, Usage
from studiolo.server.errors import Told
from studiolo.server.gemini.errors import error_of
from studiolo.server.gemini.wire_response import FINISH, time_of

JSON = dict[str, Any]

_TOLD_AGAIN = (
    "system_instruction", "tools", "response_format", "response_mime_type", "response_modalities",
    "generation_config", "safety_settings", "previous_interaction_id", "cached_content", "labels",
)  # fmt: skip


def usage_of(usage: Usage) -> JSON:
    """Thoughts and their summaries are counted by themselves."""
    thoughts = usage.thoughts + usage.summaries
    told: JSON = {
        "total_tokens": usage.total,
        "total_input_tokens": usage.prompt,
        "total_output_tokens": usage.answer,
        "total_thought_tokens": thoughts,
        "total_cached_tokens": usage.cached,
        "total_tool_use_tokens": 0,
        "output_tokens_by_modality": [{"modality": "text", "tokens": usage.answer}],
    }
    if usage.prompt_by_modality:
        told["input_tokens_by_modality"] = [
            {"modality": name, "tokens": count} for name, count in usage.prompt_by_modality.items()
        ]
    return told


class Interaction:
    """The growing interaction.

    Args:
        asked: the body of the request, whose words are told again.
        numbered: events have ids, by which a reader takes them up.
    """

    def __init__(self, asked: Mapping[str, Any], model: str, *, numbered: bool) -> None:
        now = time_of(datetime.now(UTC).replace(microsecond=0))
        self.body: JSON = {
            "id": f"v1_{uuid.uuid4().hex}",
            "object": "interaction",
            "model": model,
            "status": "in_progress",
            "created": now,
            "updated": now,
            "steps": [],
            **{name: asked[name] for name in _TOLD_AGAIN if asked.get(name) is not None},
        }
        self._numbered, self._number = numbered, 0
        self._steps: list[JSON] = []
        self._open: JSON | None = None
        self._usage: Usage | None = None
        self._finish, self._why = FinishReason.STOP, ""
        self._calls = False

    @property
    def now(self) -> JSON:
        """The interaction with the steps that are whole so far."""
        return {**self.body, "steps": list(self._steps)}

    def begin(self) -> Iterator[JSON]:
        yield self._event("interaction.created", interaction=self._short())
        yield self._event("interaction.status_update", interaction_id=self.body["id"], status="in_progress")

    def add(self, delta: Delta) -> Iterator[JSON]:
        """The events of a delta."""
        self._usage = delta.usage or self._usage
        match delta.part:
            case Text() if delta.part.text:
                yield from self._say({"type": "text", "text": delta.part.text})
            case Thought():
                yield from self._think(delta.part)
            case Call():
                yield from self._call(delta.part)
            case Data():
                data = base64.b64encode(delta.part.data).decode()
                yield from self._say({"type": "image", "mime_type": delta.part.media_type, "data": data})
            case _:
                pass
        if ended := delta.finish or delta.blocked:
            self._finish = ended
            self._why = delta.finish_message or ("The prompt was withheld." if delta.blocked else "")

    def finish(self) -> Iterator[JSON]:
        """The last step's end; then `body` is whole, and `last` tells of it."""
        yield from self._close()
        whole = self._finish is FinishReason.STOP
        status = ("requires_action" if self._calls else "completed") if whole else "incomplete"
        self._end(status, usage=usage_of(self._usage or Usage()))
        if not whole and self._finish is not FinishReason.LENGTH:
            word = FINISH[self._finish]
            self.body["errors"] = [{"code": word.lower(), "message": self._why or word}]

    def last(self) -> JSON:
        """The last event."""
        return self._event("interaction.completed", interaction=self.body)

    def failed(self, told: Told) -> Iterator[JSON]:
        """What is told of an answer that breaks off."""
        said = error_of(told)["error"]
        error = {"code": said["status"].lower(), "message": said["message"]}
        self._end("failed", errors=[error])
        yield self._event("error", error=error)

    def cancelled(self) -> Iterator[JSON]:
        """The same of one that nobody wants any more."""
        self._end("cancelled")
        yield self._event("interaction.status_update", interaction_id=self.body["id"], status="cancelled")

    # --- what comes in

    def _say(self, content: JSON) -> Iterator[JSON]:
        yield from self._opened({"type": "model_output", "content": []})
        assert self._open is not None
        contents = self._open["content"]
        if contents and content["type"] == "text" == contents[-1]["type"]:
            contents[-1]["text"] += content["text"]
        else:
            contents.append(dict(content))
        yield self._event("step.delta", index=len(self._steps), delta=content)

    def _think(self, thought: Thought) -> Iterator[JSON]:
        yield from self._opened({"type": "thought"})
        assert self._open is not None
        if thought.text:
            summary = self._open.setdefault("summary", [{"type": "text", "text": ""}])
            summary[0]["text"] += thought.text
            content = {"type": "text", "text": thought.text}
            delta = {"type": "thought_summary", "content": content}
            yield self._event("step.delta", index=len(self._steps), delta=delta)
        if thought.signature:
            signature = self._open["signature"] = base64.b64encode(thought.signature).decode()
            delta = {"type": "thought_signature", "signature": signature}
            yield self._event("step.delta", index=len(self._steps), delta=delta)

    def _call(self, call: Call) -> Iterator[JSON]:
        if call.signature:  # a thought's, which Google tells before the call
            yield from self._think(Thought(text="", signature=call.signature))
        self._calls = True
        step = {"type": "function_call", "id": call.id or f"call_{uuid.uuid4().hex[:16]}", "name": call.name}
        yield from self._close()
        yield from self._opened({**step, "arguments": {}})
        text = json.dumps(call.arguments, ensure_ascii=False)
        delta = {"type": "arguments_delta", "arguments": text}
        yield self._event("step.delta", index=len(self._steps), delta=delta)
        self._open = {**step, "arguments": call.arguments}
        yield from self._close()

    # --- steps that grow

    def _opened(self, step: JSON) -> Iterator[JSON]:
        """The step that what comes goes to; a new one unless one of its type is open."""
        if self._open is not None and self._open["type"] == step["type"]:
            return
        yield from self._close()
        self._open = step
        told = {name: value for name, value in step.items() if value != []}
        yield self._event("step.start", index=len(self._steps), step=told)

    def _close(self) -> Iterator[JSON]:
        if self._open is not None:
            self._steps.append(self._open)
            self._open = None
            yield self._event("step.stop", index=len(self._steps) - 1)

    def _end(self, status: str, **more: Any) -> None:
        now = time_of(datetime.now(UTC).replace(microsecond=0))
        self.body |= {"status": status, "updated": now, "steps": list(self._steps), **more}

    def _short(self) -> JSON:
        return {name: self.body[name] for name in ("id", "object", "model", "status", "created", "updated")}

    def _event(self, kind: str, **told: Any) -> JSON:
        self._number += 1
        numbered = {"event_id": str(self._number)} if self._numbered else {}
        return {**told, "event_type": kind, **numbered}
