"""Turns of a conversation as the messages that chat templates know."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from studiolo.language.conversation import Call, CallResult, Content, Data, FileRef, Part, Role, Text
from studiolo.language.decoding import lark_calls
from studiolo.language.decoding.forms import Form
from studiolo.language.decoding.template import Message, Vault
from studiolo.language.errors import InvalidRequestError, UnsupportedError

RESULT_OPEN, RESULT_CLOSE = "<tool_response>", "</tool_response>"


def messages(
    contents: Sequence[Content],
    system: str | None,
    vault: Vault,
    *,
    takes_system: bool,
    form: Form,
    grammars: Collection[str] = (),
) -> list[Message]:
    """The messages, with all that was said hidden in `vault`.

    Turns of one speaker that follow each other are one message, with an empty line between (many templates
    demand that speakers alternate). A system text (hidden already where it must be) goes into the first user
    turn if there is no other place for it. Calls and results are `tool_calls` and messages of role "tool" (or
    `tool_responses`) if the form is the template's own, else they are written out in tags. Thoughts are
    passed as `reasoning_content`, for the templates that want the last turn's back. Calls of the functions in
    `grammars` are written as `lark_calls` has them.

    To templates, calls have ids of nine letters and digits in the order of the conversation, whatever their
    ids are to others: Mistral's want it so, and one conversation is one prompt, which the engine may have in
    its cache.

    Raises:
        InvalidRequestError: no turns, an empty turn, the first or last turn is not the user's, or a result
            without call.
        UnsupportedError: media; words beside calls, which the form has no place for.
    """
    _check(contents)
    made: list[Message] = []
    numbers = _Numbers()
    for content in contents:
        if content.role is Role.MODEL:
            said = _model(content, vault, form, numbers, grammars)
        elif form.native:
            said = _returned(content, vault, form, numbers, made[-1] if made else {})
        else:
            said = _user(content, vault)
        for message in said:
            _add(made, message)
    if system and takes_system:
        made.insert(0, {"role": "system", "content": system})
    elif system:
        made[0]["content"] = f"{system}\n\n{made[0]['content']}"
    return made


def _check(contents: Sequence[Content]) -> None:
    for index, content in enumerate(contents):
        where = f"contents[{index}]"
        if not any(_says(part) for part in content.parts):
            raise InvalidRequestError("an empty turn", where=where, remedy="Give it a part, or leave it out.")
        for part in content.parts:
            _check_part(part, content.role, where)
    if not contents or contents[0].role is not Role.USER:
        raise InvalidRequestError(
            "the conversation does not begin with the user",
            where="contents[0]",
            remedy="Put a user turn first.",
        )
    if contents[-1].role is not Role.USER:
        raise InvalidRequestError(
            "the last turn is the model's own",
            where=f"contents[{len(contents) - 1}]",
            remedy="End with a user turn, or with the results of the calls.",
        )


def _check_part(part: Part, role: Role, where: str) -> None:
    media = part.media if isinstance(part, CallResult) else (part,)
    for item in media:
        if isinstance(item, Data | FileRef):
            raise UnsupportedError(
                f"this model reads text only, and this is {item.media_type or 'a file'}",
                where=where,
                remedy="Leave it out, or choose a model that takes it.",
            )
    speaker = Role.MODEL if isinstance(part, Call) else Role.USER if isinstance(part, CallResult) else role
    if role is not speaker:
        raise InvalidRequestError(
            f"a {part.kind} in a turn of the {role.value}",
            where=where,
            remedy="Calls are the model's, their results the user's.",
        )


def _says(part: Part) -> bool:
    return bool(part.text) if isinstance(part, Text) else True


def _add(made: list[Message], message: Message) -> None:
    last = made[-1] if made else None
    mergeable = last is not None and last["role"] == message["role"] != "tool" and "tool_calls" not in last
    if last is None or not mergeable:
        made.append(message)
        return
    texts = [text for text in (last["content"], message["content"]) if text]
    last.update(message, content="\n\n".join(texts))


class _Numbers:
    """The ids of calls within a prompt."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, Call]] = []
        self._count = 0

    def of_call(self, call: Call) -> str:
        self._waiting.append((self._new(), call))
        return self._waiting[-1][0]

    def of_result(self, result: CallResult) -> str:
        """The id of the call that it answers: that of its own id, else the first of its name."""
        for same in (
            lambda call: bool(call.id) and call.id == result.id,
            lambda call: call.name == result.name,
        ):
            for number, call in self._waiting:
                if same(call):
                    self._waiting.remove((number, call))
                    return number
        return self._new()

    def _new(self) -> str:
        self._count += 1
        return f"call{self._count:05d}"


def _returned(
    content: Content, vault: Vault, form: Form, numbers: _Numbers, before: Message
) -> list[Message]:
    """A turn of the user's with its results in the template's own form."""
    made: list[Message] = []
    for result in _results(content):
        number = numbers.of_result(result)
        if form.inline and "tool_calls" in before:
            before.setdefault("tool_responses", []).append(_response(result, vault))
        else:
            text = vault.hide(result_text(result.result), wanted=True)
            made.append({"role": "tool", "name": result.name, "tool_call_id": number, "content": text})
    said = vault.hide(content.text, wanted=True)
    return [*made, {"role": "user", "content": said}] if said else made


def _response(result: CallResult, vault: Vault) -> dict[str, Any]:
    """A result as a field of the message that called: objects stay objects."""
    value = result.result
    said = vault.hide_json(value) if isinstance(value, dict) else vault.hide(result_text(value), wanted=True)
    return {"name": result.name, "response": said}


def _user(content: Content, vault: Vault) -> list[Message]:
    said = vault.hide(content.text, wanted=True)
    tagged = [
        f"{RESULT_OPEN}\n{vault.hide(result_text(result.result), wanted=True)}\n{RESULT_CLOSE}"
        for result in _results(content)
    ]
    return [{"role": "user", "content": "\n".join([*tagged, said] if said else tagged)}]


def _results(content: Content) -> list[CallResult]:
    return [part for part in content.parts if isinstance(part, CallResult)]


def _model(
    content: Content, vault: Vault, form: Form, numbers: _Numbers, grammars: Collection[str]
) -> list[Message]:
    said = vault.hide(content.text, wanted=True)
    message: Message = {"role": "assistant", "content": said}
    if content.thoughts:
        message["reasoning_content"] = vault.hide(content.thoughts)
    if content.calls and form.native:
        if said and not form.words:
            raise UnsupportedError("the model's template has no place for words beside calls")
        message["tool_calls"] = [_call(call, vault, numbers) for call in content.calls]
    elif content.calls:
        tagged = [_tagged(call, vault, form, grammars) for call in content.calls]
        message["content"] = "\n".join([said, *tagged] if said else tagged)
    return [message] if message["content"] or "tool_calls" in message else []


def _call(call: Call, vault: Vault, numbers: _Numbers) -> dict[str, Any]:
    function = {"name": call.name, "arguments": vault.hide_json(call.arguments)}
    return {"id": numbers.of_call(call), "type": "function", "function": function}


def _tagged(call: Call, vault: Vault, form: Form, grammars: Collection[str]) -> str:
    text = lark_calls.written(call) if call.name in grammars else call_text(call)
    return f"{form.openings[0]}\n{vault.hide(text, wanted=True)}{form.close}"


def call_text(call: Call) -> str:
    """A call as models write it, without the tags."""
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)


def result_text(result: Any) -> str:
    """What a function returned: text as it is, all else as JSON."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
