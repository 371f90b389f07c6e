"""From the chunks of a chat/completions stream to deltas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from studiolo.language.conversation import (
    Delta,
    FinishReason,
    Request,
    Text,
    Thought,
    TokenLogprob,
    Usage,
)
from studiolo.language.engines.upstream import (
    MalformedCallError,
    broken_off,
    broken_promise,
    callable_tools,
    checked_call,
)
from studiolo.language.errors import UpstreamError

_FINISH = {
    "stop": FinishReason.STOP,
    "tool_calls": FinishReason.STOP,
    "function_call": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.SAFETY,
}


@dataclass
class _Fragment:
    """A call that is still coming."""

    index: int
    id: str
    name: str = ""
    arguments: str = ""


@dataclass
class _Choice:
    """What is known of one candidate so far."""

    fragments: list[_Fragment] = field(default_factory=list)
    text: str = ""
    refusal: str = ""
    finish: str | None = None


class StreamReader:
    """Reads the chunks of one answer.

    Args:
        model: the name that deltas give.
        request: what was asked.
        notes: go out with the first delta.
        where: names the server in errors.
    """

    def __init__(self, model: str, request: Request, *, notes: list[str], where: str) -> None:
        self._model, self._request, self._where, self._notes = model, request, where, tuple(notes)
        self._tools = callable_tools(request)
        thinking = request.config.thinking
        self._show = thinking is not None and bool(thinking.show)
        self._choices: dict[int, _Choice] = {}
        self._usage: Mapping[str, Any] | None = None
        self._thought = False

    def read(self, chunk: Mapping[str, Any]) -> Iterator[Delta]:
        """The deltas of a chunk, as its JSON says it.

        Raises:
            UpstreamError: the server reports an error within the stream.
            KeyError, TypeError, ValueError: it is no chunk.
        """
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            index = int(choice.get("index", 0))
            state = self._choices.setdefault(index, _Choice())
            yield from self._read_delta(index, state, choice)
            if (finish := choice.get("finish_reason")) is not None:
                if finish == "error":
                    raise UpstreamError("the model failed in the middle of its answer", where=self._where)
                state.finish = str(finish)

    def _read_delta(self, index: int, state: _Choice, choice: Mapping[str, Any]) -> Iterator[Delta]:
        delta = choice.get("delta") or {}
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            self._thought = True
            if self._show:
                yield self._delta(index, part=Thought(text=thought))
        logprobs = tuple(_logprob(token) for token in (choice.get("logprobs") or {}).get("content") or ())
        text = delta.get("content")
        if text or logprobs:
            yield self._delta(index, part=Text(text=text) if text else None, logprobs=logprobs)
        state.text += text or ""
        state.refusal += delta.get("refusal") or ""
        for fragment in delta.get("tool_calls") or ():
            _gather(state.fragments, fragment)

    @property
    def usage(self) -> Usage | None:
        """What the server has told; None as long as it has not."""
        return None if self._usage is None else self._usage_of(self._usage)[0]

    def end(self) -> Iterator[Delta]:
        """What is known only now: the calls, how each candidate ended, what it cost.

        Raises:
            UpstreamError: the stream ended before the answer did.
        """
        if not self._choices or any(state.finish is None for state in self._choices.values()):
            raise broken_off(self._where)
        endings = []
        for index, state in sorted(self._choices.items()):
            calls, finish, message = self._ending(state)
            yield from (self._delta(index, part=call) for call in calls)
            endings.append({"candidate": index, "finish": finish, "finish_message": message})
        for ending in endings[:-1]:
            yield Delta(**ending, model=self._model)
        usage, notes = self._usage_of(self._usage)
        yield Delta(**endings[-1], usage=usage, notes=(*self._take_notes(), *notes), model=self._model)

    def _ending(self, state: _Choice) -> tuple[list[Any], FinishReason, str | None]:
        finish = _FINISH.get(state.finish or "", FinishReason.OTHER)
        if state.refusal:
            return [], FinishReason.SAFETY, state.refusal
        if finish is not FinishReason.STOP and state.fragments:
            return [], finish, "the call was cut off"
        try:
            calls = [
                checked_call(self._tools, part.name, part.arguments, call_id=part.id)
                for part in state.fragments
            ]
        except MalformedCallError as error:  # half of what the model wanted done together is not given out
            return [], FinishReason.MALFORMED_CALL, str(error)
        if finish is FinishReason.STOP:
            broken = broken_promise(self._request, state.text, called=bool(calls))
            return calls, *(broken or (finish, None))
        return [], finish, f"the upstream said '{state.finish}'" if finish is FinishReason.OTHER else None

    def _usage_of(self, usage: Mapping[str, Any] | None) -> tuple[Usage, tuple[str, ...]]:
        if usage is None:
            return Usage(), ("the upstream did not tell its usage",)
        asked = usage.get("prompt_tokens_details") or {}
        made = usage.get("completion_tokens_details") or {}
        completion, thoughts = (
            int(usage.get("completion_tokens") or 0),
            int(made.get("reasoning_tokens") or 0),
        )
        modalities = {
            name: int(asked[f"{name}_tokens"])
            for name in ("text", "image", "audio", "video")
            if asked.get(f"{name}_tokens")
        }
        counted = Usage(
            prompt=int(usage.get("prompt_tokens") or 0),
            cached=int(asked.get("cached_tokens") or 0),
            # A few servers count thoughts beside the completion instead of within it.
            answer=completion - thoughts if thoughts <= completion else completion,
            thoughts=thoughts,
            prompt_by_modality=modalities,
        )
        if self._thought and made.get("reasoning_tokens") is None:
            return counted, ("the upstream counts its thoughts with the answer",)
        return counted, ()

    def _delta(self, index: int, **content: Any) -> Delta:
        return Delta(candidate=index, model=self._model, notes=self._take_notes(), **content)

    def _take_notes(self) -> tuple[str, ...]:
        notes, self._notes = self._notes, ()
        return notes


def _gather(fragments: list[_Fragment], more: Mapping[str, Any]) -> None:
    """Adds a piece of a call to the call that it belongs to."""
    index, call_id = int(more.get("index") or 0), more.get("id") or ""
    fragment = next((known for known in reversed(fragments) if known.index == index), None)
    # Some servers number all calls 0; then only the id tells that a new one begins.
    if fragment is None or (call_id and fragment.id and call_id != fragment.id):
        fragment = _Fragment(index, call_id)
        fragments.append(fragment)
    function = more.get("function") or {}
    fragment.id = fragment.id or call_id
    fragment.name += function.get("name") or ""
    fragment.arguments += function.get("arguments") or ""


def _logprob(token: Mapping[str, Any]) -> TokenLogprob:
    text = token["token"]
    return TokenLogprob(
        token=text,
        bytes=tuple(token.get("bytes") or text.encode()),
        logprob=token["logprob"],
        top=tuple(_logprob(other) for other in token.get("top_logprobs") or ()),
    )
