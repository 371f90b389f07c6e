"""Turns of a conversation as the messages that chat templates know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from studiolo.language.conversation import Call, CallResult, Content, Data, FileRef, Part, Role, Text
from studiolo.language.decoding.template import Message, Vault
from studiolo.language.errors import InvalidRequestError, UnsupportedError

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
RESULT_OPEN, RESULT_CLOSE = "<tool_response>", "</tool_response>"


def messages(
    contents: Sequence[Content], system: str | None, vault: Vault, *, takes_system: bool, takes_tools: bool
) -> list[Message]:
    """The messages, with all that was said hidden in `vault`.

    Turns of one speaker that follow each other are one message, with an empty line between (many templates
    demand that speakers alternate). A system text (hidden already where it must be) goes into the first user
    turn if there is no other place for it. Calls and results are `tool_calls` and messages of role "tool" if
    the template takes tools, else they are written out in tags. Thoughts are passed as `reasoning_content`,
    for the templates that want the last turn's back.

    Raises:
        InvalidRequestError: no turns, an empty turn, the first or last turn is not the user's, or a result
            without call.
        UnsupportedError: media.
    """
    _check(contents)
    made: list[Message] = []
    for content in contents:
        turn = _model if content.role is Role.MODEL else _user
        for message in turn(content, vault, takes_tools):
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


def _user(content: Content, vault: Vault, takes_tools: bool) -> list[Message]:
    results = [part for part in content.parts if isinstance(part, CallResult)]
    said = vault.hide(content.text, wanted=True)
    if takes_tools:
        made = [
            {
                "role": "tool",
                "name": result.name,
                "tool_call_id": result.id,
                "content": vault.hide(result_text(result.result), wanted=True),
            }
            for result in results
        ]
        return [*made, {"role": "user", "content": said}] if said else made
    tagged = [
        f"{RESULT_OPEN}\n{vault.hide(result_text(result.result), wanted=True)}\n{RESULT_CLOSE}"
        for result in results
    ]
    return [{"role": "user", "content": "\n".join([*tagged, said] if said else tagged)}]


def _model(content: Content, vault: Vault, takes_tools: bool) -> list[Message]:
    said = vault.hide(content.text, wanted=True)
    message: Message = {"role": "assistant", "content": said}
    if content.thoughts:
        message["reasoning_content"] = vault.hide(content.thoughts)
    if content.calls and takes_tools:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": vault.hide_json(call.arguments)},
            }
            for call in content.calls
        ]
    elif content.calls:
        tagged = [
            f"{CALL_OPEN}\n{vault.hide(call_text(call), wanted=True)}\n{CALL_CLOSE}" for call in content.calls
        ]
        message["content"] = "\n".join([said, *tagged] if said else tagged)
    return [message] if message["content"] or "tool_calls" in message else []


def call_text(call: Call) -> str:
    """A call as models write it."""
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)


def result_text(result: Any) -> str:
    """What a function returned: text as it is, all else as JSON."""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
