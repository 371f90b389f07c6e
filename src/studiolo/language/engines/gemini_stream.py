"""From the chunks of Google's streamGenerateContent to deltas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from google.genai import types

from studiolo.language.conversation import (
    Data,
    Delta,
    FileRef,
    FinishReason,
    Part,
    Request,
    Text,
    Thought,
    TokenLogprob,
    Usage,
    Verdict,
)
from studiolo.language.engines.gemini_body import HARMS
from studiolo.language.engines.upstream import (
    MalformedCallError,
    broken_off,
    broken_promise,
    callable_tools,
    checked_call,
)

_FINISH = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    "SAFETY": FinishReason.SAFETY,
    "IMAGE_SAFETY": FinishReason.SAFETY,
    "MODEL_ARMOR": FinishReason.SAFETY,
    "RECITATION": FinishReason.RECITATION,
    "IMAGE_RECITATION": FinishReason.RECITATION,
    "BLOCKLIST": FinishReason.BLOCKLIST,
    "PROHIBITED_CONTENT": FinishReason.PROHIBITED,
    "IMAGE_PROHIBITED_CONTENT": FinishReason.PROHIBITED,
    "SPII": FinishReason.PERSONAL,
    "LANGUAGE": FinishReason.LANGUAGE,
    "MALFORMED_FUNCTION_CALL": FinishReason.MALFORMED_CALL,
    "UNEXPECTED_TOOL_CALL": FinishReason.MALFORMED_CALL,
    "TOO_MANY_TOOL_CALLS": FinishReason.MALFORMED_CALL,
}
_BLOCKED = {
    "SAFETY": FinishReason.SAFETY,
    "IMAGE_SAFETY": FinishReason.SAFETY,
    "MODEL_ARMOR": FinishReason.SAFETY,
    "JAILBREAK": FinishReason.SAFETY,
    "BLOCKLIST": FinishReason.BLOCKLIST,
    "PROHIBITED_CONTENT": FinishReason.PROHIBITED,
}
_HARMS = {name: harm for harm, name in HARMS.items()}
_HARMS |= {name.replace("CATEGORY_", "CATEGORY_IMAGE_"): harm for harm, name in HARMS.items()}
_HARMS["HARM_CATEGORY_IMAGE_HATE"] = _HARMS["HARM_CATEGORY_HATE_SPEECH"]

_Probability = Literal["negligible", "low", "medium", "high"]


@dataclass
class _Candidate:
    """What is known of one candidate so far."""

    text: str = ""
    calls: int = 0
    malformed: str | None = None
    finish: str | None = None


class StreamReader:
    """Reads the chunks of one answer.

    Args:
        model: the name that deltas give.
        request: what was asked.
        where: names the server in errors.
    """

    def __init__(self, model: str, request: Request, *, where: str) -> None:
        self._model, self._request, self._where = model, request, where
        self._tools = callable_tools(request)
        thinking = request.config.thinking
        self._show = thinking is not None and bool(thinking.show)
        self._candidates: dict[int, _Candidate] = {}
        self._blocked: FinishReason | None = None
        self._usage: types.GenerateContentResponseUsageMetadata | None = None

    def read(self, chunk: types.GenerateContentResponse) -> Iterator[Delta]:
        """The deltas of a chunk.

        Raises:
            ValueError: a part of a kind that was not asked for.
        """
        self._usage = chunk.usage_metadata or self._usage
        feedback = chunk.prompt_feedback
        if feedback and feedback.block_reason:
            self._blocked = _BLOCKED.get(_name(feedback.block_reason), FinishReason.OTHER)
            yield Delta(
                blocked=self._blocked,
                finish_message=feedback.block_reason_message
                or f"the upstream said '{_name(feedback.block_reason)}'",
                verdicts=_verdicts(feedback.safety_ratings),
                model=self._model,
            )
        for candidate in chunk.candidates or ():
            yield from self._read_candidate(candidate)

    def _read_candidate(self, candidate: types.Candidate) -> Iterator[Delta]:
        index = candidate.index or 0
        state = self._candidates.setdefault(index, _Candidate())
        parts = (candidate.content.parts if candidate.content else None) or []
        read = [part for wire in parts for part in self._read_part(wire, state)]
        logprobs, verdicts = _logprobs(candidate.logprobs_result), _verdicts(candidate.safety_ratings)
        if read or logprobs or verdicts:  # what belongs to the chunk goes with its first part
            yield Delta(
                candidate=index,
                part=read[0] if read else None,
                logprobs=logprobs,
                verdicts=verdicts,
                model=self._model,
            )
        for part in read[1:]:
            yield Delta(candidate=index, part=part, model=self._model)
        if candidate.finish_reason:
            state.finish = _name(candidate.finish_reason)

    def _read_part(self, part: types.Part, state: _Candidate) -> Iterator[Part]:
        signature = part.thought_signature
        if part.function_call:
            yield from self._read_call(part.function_call, signature, state)
        elif part.inline_data:
            blob = part.inline_data
            yield Data(media_type=blob.mime_type or "application/octet-stream", data=blob.data or b"")
            yield from _signature(signature)
        elif part.file_data:
            yield FileRef(uri=part.file_data.file_uri or "", media_type=part.file_data.mime_type)
            yield from _signature(signature)
        elif part.thought:
            text = (part.text or "") if self._show else ""
            if text or signature:
                yield Thought(text=text, signature=signature)
        elif part.text is not None:
            if part.text:
                state.text += part.text
                yield Text(text=part.text)
            yield from _signature(signature)
        elif signature:
            yield from _signature(signature)
        elif part.model_dump(exclude_none=True):
            raise ValueError("a part of a kind that was not asked for")

    def _read_call(
        self, call: types.FunctionCall, signature: bytes | None, state: _Candidate
    ) -> Iterator[Part]:
        # The API gives no ids outside of live sessions, but results must find their calls.
        call_id = call.id or f"call_{state.calls}"
        state.calls += 1
        try:
            yield checked_call(
                self._tools, call.name or "", call.args or {}, call_id=call_id, signature=signature
            )
        except MalformedCallError as error:
            state.malformed = state.malformed or str(error)

    @property
    def usage(self) -> Usage:
        """What the server has told so far."""
        return _usage(self._usage)

    def end(self) -> Iterator[Delta]:
        """What is known only now: how each candidate ended, what it cost.

        Raises:
            UpstreamError: the stream ended before the answer did.
        """
        if self._blocked and not self._candidates:
            yield Delta(usage=_usage(self._usage), model=self._model)
            return
        if not self._candidates or any(state.finish is None for state in self._candidates.values()):
            raise broken_off(self._where)
        last = max(self._candidates)
        for index, state in sorted(self._candidates.items()):
            finish, message = self._ending(state)
            yield Delta(
                candidate=index,
                finish=finish,
                finish_message=message,
                usage=_usage(self._usage) if index == last else None,
                model=self._model,
            )

    def _ending(self, state: _Candidate) -> tuple[FinishReason, str | None]:
        if state.malformed:
            return FinishReason.MALFORMED_CALL, state.malformed
        finish = _FINISH.get(state.finish or "", FinishReason.OTHER)
        if finish is FinishReason.STOP:
            return broken_promise(self._request, state.text, called=state.calls > 0) or (finish, None)
        # The wire has a message too, but the SDK does not hand it on.
        return finish, None if finish is FinishReason.LENGTH else f"the upstream said '{state.finish}'"


def _name(value: Any) -> str:
    """The wire's word for an enum's member, also for one that the SDK does not know."""
    return str(getattr(value, "value", value))


def _signature(signature: bytes | None) -> Iterator[Thought]:
    """A signature that came on a part which has no place for it."""
    if signature:
        yield Thought(text="", signature=signature)


def _verdicts(ratings: Sequence[types.SafetyRating] | None) -> tuple[Verdict, ...]:
    verdicts = []
    for rating in ratings or ():
        harm, probability = _HARMS.get(_name(rating.category)), _name(rating.probability).lower()
        if harm is not None and probability in ("negligible", "low", "medium", "high"):
            verdicts.append(
                Verdict(
                    harm=harm,
                    probability=cast(_Probability, probability),
                    score=rating.probability_score,
                    blocked=bool(rating.blocked),
                )
            )
    return tuple(verdicts)


def _logprobs(result: types.LogprobsResult | None) -> tuple[TokenLogprob, ...]:
    if result is None or not result.chosen_candidates:
        return ()
    tops = [tuple(_logprob(token) for token in top.candidates or ()) for top in result.top_candidates or ()]
    tops += [()] * (len(result.chosen_candidates) - len(tops))
    return tuple(_logprob(chosen, top) for chosen, top in zip(result.chosen_candidates, tops, strict=False))


def _logprob(token: types.LogprobsResultCandidate, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    text = token.token or ""
    return TokenLogprob(
        token=text,
        bytes=tuple(text.encode()),
        logprob=token.log_probability or 0.0,  # the wire leaves a zero out
        id=token.token_id,
        top=top,
    )


def _usage(usage: types.GenerateContentResponseUsageMetadata | None) -> Usage:
    if usage is None:
        return Usage()
    details = [*(usage.prompt_tokens_details or ()), *(usage.tool_use_prompt_tokens_details or ())]
    modalities: dict[str, int] = {}
    for detail in details:
        name = _name(detail.modality).lower()
        modalities[name] = modalities.get(name, 0) + (detail.token_count or 0)
    return Usage(
        prompt=(usage.prompt_token_count or 0) + (usage.tool_use_prompt_token_count or 0),
        cached=usage.cached_content_token_count or 0,
        answer=usage.candidates_token_count or 0,
        thoughts=usage.thoughts_token_count or 0,
        prompt_by_modality=modalities,
    )
