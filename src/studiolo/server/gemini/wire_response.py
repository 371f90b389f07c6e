"""From the conversation form's answers to the JSON of the Gemini dialect."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from studiolo.language.collect import join
from studiolo.language.conversation import (
    Call,
    CallResult,
    Data,
    Delta,
    FileRef,
    FinishReason,
    Part,
    Response,
    Text,
    Thought,
    TokenLogprob,
    Usage,
    Verdict,
)
from studiolo.server.gemini.wire_config import HARMS

Wire = dict[str, Any]

FINISH = {
    FinishReason.STOP: "STOP",
    FinishReason.LENGTH: "MAX_TOKENS",
    FinishReason.SAFETY: "SAFETY",
    FinishReason.RECITATION: "RECITATION",
    FinishReason.BLOCKLIST: "BLOCKLIST",
    FinishReason.PROHIBITED: "PROHIBITED_CONTENT",
    FinishReason.PERSONAL: "SPII",
    FinishReason.LANGUAGE: "LANGUAGE",
    FinishReason.MALFORMED_CALL: "MALFORMED_FUNCTION_CALL",
    FinishReason.OTHER: "OTHER",
}
_BLOCKED = {
    FinishReason.SAFETY: "SAFETY",
    FinishReason.BLOCKLIST: "BLOCKLIST",
    FinishReason.PROHIBITED: "PROHIBITED_CONTENT",
}
_CATEGORIES = {harm: category for category, harm in HARMS.items()}
_WITH_CONTENT = (None, FinishReason.STOP, FinishReason.LENGTH)


def response_of(response: Response, answer_id: str) -> Wire:
    """The body of generateContent's answer."""
    wire: Wire = {}
    if response.candidates:
        wire["candidates"] = [
            _candidate(
                index,
                parts=candidate.content.parts,
                finish=candidate.finish,
                message=candidate.finish_message,
                logprobs=candidate.logprobs,
                average=_average(candidate.logprobs),
                verdicts=candidate.verdicts,
            )
            for index, candidate in enumerate(response.candidates)
        ]
    if response.blocked:
        wire["promptFeedback"] = _feedback(response.blocked, None, response.verdicts)
    return wire | _end(response.usage, response.model, answer_id)


@dataclass
class _Waiting:
    """What there is of a candidate's last chunk."""

    parts: list[Part] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    verdicts: tuple[Verdict, ...] = ()
    finish: FinishReason | None = None
    message: str | None = None

    def add(self, delta: Delta) -> None:
        if delta.part is not None:
            join(self.parts, delta.part)
        self.logprobs.extend(delta.logprobs)
        self.verdicts = delta.verdicts or self.verdicts
        self.finish, self.message = delta.finish or self.finish, delta.finish_message or self.message


class Chunks:
    """The chunks of a stream.

    Google's clients look for the finish reason, some content and the usage in the last one, and those of 2025
    for all calls too. So calls, and what comes behind them, wait for the end of their candidate, and that
    waits for whatever comes next.

    Args:
        model: the name that chunks give where deltas give none.
        answer_id: the same in all.
    """

    def __init__(self, model: str, answer_id: str) -> None:
        self._model, self._id = model, answer_id
        self._waiting: dict[int, _Waiting] = {}
        self._logprobs: dict[int, list[float]] = {}
        self.usage: Usage | None = None

    def add(self, delta: Delta) -> list[Wire]:
        """What can be sent now."""
        self._model = delta.model or self._model
        self.usage = delta.usage or self.usage
        if delta.blocked:
            feedback = _feedback(delta.blocked, delta.finish_message, delta.verdicts)
            return [{"promptFeedback": feedback} | _end(self.usage or Usage(), self._model, self._id)]
        if delta.part is None and delta.finish is None and not delta.logprobs and not delta.verdicts:
            return []  # usage alone goes with the last chunk
        self._logprobs.setdefault(delta.candidate, []).extend(one.logprob for one in delta.logprobs)
        ended = [index for index, one in self._waiting.items() if one.finish and index != delta.candidate]
        sent = [self._chunk(index, self._waiting.pop(index)) for index in ended]
        waits = delta.candidate in self._waiting or isinstance(delta.part, Call) or delta.finish
        chunk = self._waiting.setdefault(delta.candidate, _Waiting()) if waits else _Waiting()
        chunk.add(delta)
        return sent if waits else [*sent, self._chunk(delta.candidate, chunk)]

    def end(self) -> list[Wire]:
        """What has waited; the usage is in the last."""
        sent = [self._chunk(index, chunk) for index, chunk in self._waiting.items()]
        if sent:
            sent[-1] |= _end(self.usage or Usage(), self._model, self._id)
        return sent

    def _chunk(self, index: int, chunk: _Waiting) -> Wire:
        logprobs = self._logprobs.get(index, [])
        candidate = _candidate(
            index,
            parts=chunk.parts,
            finish=chunk.finish,
            message=chunk.message,
            logprobs=chunk.logprobs,
            average=sum(logprobs) / len(logprobs) if logprobs and chunk.finish else None,
            verdicts=chunk.verdicts,
        )
        return {"candidates": [candidate], "modelVersion": self._model, "responseId": self._id}


def usage_of(usage: Usage) -> Wire:
    """usageMetadata. Counts of nothing are left out, as Google does it; details are told where they are
    known."""
    thoughts = usage.thoughts + usage.summaries
    wire: Wire = {
        "promptTokenCount": usage.prompt,
        "candidatesTokenCount": usage.answer,
        "totalTokenCount": usage.total,
    }
    if thoughts:
        wire["thoughtsTokenCount"] = thoughts
    if usage.cached:
        wire["cachedContentTokenCount"] = usage.cached
    if usage.prompt_by_modality:
        wire["promptTokensDetails"] = _by_modality(usage.prompt_by_modality)
        if usage.cached and usage.prompt_by_modality.keys() == {"text"}:
            wire["cacheTokensDetails"] = _by_modality({"text": usage.cached})
    if usage.answer:
        wire["candidatesTokensDetails"] = _by_modality({"text": usage.answer})
    return wire


def time_of(time: datetime) -> str:
    """RFC 3339, in UTC."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _end(usage: Usage, model: str, answer_id: str) -> Wire:
    return {"usageMetadata": usage_of(usage), "modelVersion": model, "responseId": answer_id}


def _by_modality(counts: dict[str, int]) -> list[Wire]:
    return [{"modality": name.upper(), "tokenCount": count} for name, count in counts.items()]


def _candidate(
    index: int,
    *,
    parts: Sequence[Part],
    finish: FinishReason | None,
    message: str | None,
    logprobs: Sequence[TokenLogprob],
    average: float | None,
    verdicts: Sequence[Verdict],
) -> Wire:
    wire: Wire = {"index": index}
    if parts or finish in _WITH_CONTENT:
        # A content without parts counts as no answer with Google's clients: an empty text stands in.
        wire["content"] = {"parts": [part_of(part) for part in parts] or [{"text": ""}], "role": "model"}
    if finish:
        wire["finishReason"] = FINISH[finish]
    if message:
        wire["finishMessage"] = message
    if average is not None:
        wire["avgLogprobs"] = average
    if logprobs:
        wire["logprobsResult"] = _logprobs(logprobs)
    if verdicts:
        wire["safetyRatings"] = [_rating(verdict) for verdict in verdicts]
    return wire


def part_of(part: Part) -> Wire:
    """A part of an answer."""
    match part:
        case Text():
            return {"text": part.text}
        case Thought():
            # A signature without words belongs to what stood before it.
            thought: Wire = {"text": part.text, "thought": True} if part.text else {"text": ""}
            return thought | _signed(part.signature)
        case Data() | FileRef():
            return _media(part)
        case Call():
            named = {"name": part.name, "args": part.arguments}
            return {"functionCall": {"id": part.id, **named} if part.id else named} | _signed(part.signature)
        case CallResult():
            value = part.result if isinstance(part.result, dict) else {"output": part.result}
            result: Wire = {"name": part.name, "response": value}
            if part.id:
                result["id"] = part.id
            if part.media:
                result["parts"] = [_media(medium) for medium in part.media]
            return {"functionResponse": result}


def _media(part: Data | FileRef) -> Wire:
    if isinstance(part, FileRef):
        typed = {"mimeType": part.media_type} if part.media_type else {}
        return {"fileData": {**typed, "fileUri": part.uri}}
    named = {"displayName": part.name} if part.name else {}
    return {"inlineData": {"mimeType": part.media_type, "data": _base64(part.data), **named}}


def _signed(signature: bytes | None) -> Wire:
    return {"thoughtSignature": _base64(signature)} if signature else {}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _average(logprobs: Sequence[TokenLogprob]) -> float | None:
    return sum(one.logprob for one in logprobs) / len(logprobs) if logprobs else None


def _logprobs(logprobs: Sequence[TokenLogprob]) -> Wire:
    return {
        "chosenCandidates": [_token(one) for one in logprobs],
        "topCandidates": [{"candidates": [_token(other) for other in one.top]} for one in logprobs],
        "logProbabilitySum": sum(one.logprob for one in logprobs),
    }


def _token(one: TokenLogprob) -> Wire:
    token: Wire = {"token": one.token, "logProbability": one.logprob}
    return token if one.id is None else token | {"tokenId": one.id}


def _feedback(reason: FinishReason, message: str | None, verdicts: Sequence[Verdict]) -> Wire:
    feedback: Wire = {"blockReason": _BLOCKED.get(reason, "OTHER")}
    if message:
        feedback["blockReasonMessage"] = message
    if verdicts:
        feedback["safetyRatings"] = [_rating(verdict) for verdict in verdicts]
    return feedback


def _rating(verdict: Verdict) -> Wire:
    rating: Wire = {"category": _CATEGORIES[verdict.harm], "probability": verdict.probability.upper()}
    if verdict.score is not None:
        rating["probabilityScore"] = verdict.score
    return rating | {"blocked": True} if verdict.blocked else rating
