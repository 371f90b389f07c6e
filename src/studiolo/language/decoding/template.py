"""From a conversation to the tokens of a prompt, by the model's own chat template.

Templates are Jinja, compiled as transformers does it (`apply_chat_template`, transformers 5). What people,
tools and models said goes through the template as private placeholders and is put back afterwards, so that
the prompt falls into the template's own text, whose control tokens count, and what was said, which is read as
plain text: nobody can forge the end of a turn by writing `<|im_end|>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from studiolo.language.decoding import forms
from studiolo.language.decoding.forms import Form
from studiolo.language.errors import InvalidRequestError, UnsupportedError

Segment = tuple[str, bool]
"""A stretch of the prompt, and whether control tokens in it count."""

Message = dict[str, Any]

# Placeholders are made of private-use characters: START, one LEVEL for each time they went through JSON, the
# number in private digits, END. They have no case and no white space, so `upper` and `trim` leave them alone.
_START, _END, _LEVEL = "\ue000", "\ue001", "\ue002"
_DIGITS = "\ue010\ue011\ue012\ue013\ue014\ue015\ue016\ue017\ue018\ue019"
_PLACEHOLDER = re.compile(f"{_START}({_LEVEL}*)([{_DIGITS}]+){_END}")
_HARMLESS = re.compile(
    r"[A-Za-z0-9_$ .,:/-]*"
)  # no vocabulary names a control token by such characters alone


class Vault:
    """Texts that must not be read for control tokens, behind placeholders."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._wanted: set[int] = set()

    def hide(self, text: str, *, wanted: bool = False) -> str:
        """A placeholder; white space around the text stays outside, where the template may trim it.

        `wanted` texts must be in the prompt in the end; others the template may leave out.
        """
        core = text.strip()
        if not core:
            return text
        number = len(self._texts)
        self._texts.append(core)
        if wanted:
            self._wanted.add(number)
        start = text.index(core)
        digits = "".join(_DIGITS[int(digit)] for digit in str(number))
        return f"{text[:start]}{_START}{digits}{_END}{text[start + len(core) :]}"

    def hide_json(self, value: Any) -> Any:
        """A JSON value with its strings and keys hidden, except those that can do no harm."""
        if isinstance(value, str):
            return value if _HARMLESS.fullmatch(value) else self.hide(value)
        if isinstance(value, Mapping):
            return {self.hide_json(key): self.hide_json(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide_json(item) for item in value]
        return value

    def segments(self, rendered: str) -> list[Segment]:
        """What was rendered, with the texts put back.

        Raises:
            UnsupportedError: the template left out something that was said.
        """
        segments: list[Segment] = []
        missing, position = set(self._wanted), 0
        for match in _PLACEHOLDER.finditer(rendered):
            number = int("".join(str(_DIGITS.index(digit)) for digit in match[2]))
            missing.discard(number)
            text = self._texts[number]
            for _ in match[1]:
                text = json.dumps(text, ensure_ascii=False)[1:-1]
            _append(segments, rendered[position : match.start()], True)
            _append(segments, text, False)
            position = match.end()
        _append(segments, rendered[position:], True)
        if missing:
            lost = self._texts[min(missing)]
            raise UnsupportedError(
                "the model's chat template leaves this part of the conversation out",
                where=repr(lost[:60]),
                remedy="Leave it out yourself, or choose another model.",
            )
        return segments


def _append(segments: list[Segment], text: str, special: bool) -> None:
    if not text:
        return
    if segments and segments[-1][1] == special:
        segments[-1] = segments[-1][0] + text, special
    else:
        segments.append((text, special))


class Tokenize(Protocol):
    def __call__(self, text: str, *, special: bool = True) -> tuple[int, ...]: ...


def token_ids(segments: Sequence[Segment], tokenize: Tokenize) -> tuple[int, ...]:
    """The tokens of the segments, one after another."""
    ids: list[int] = []
    newline = tokenize("\n", special=False) if len(segments) > 1 else ()
    for index, (text, special) in enumerate(segments):
        ids += inner_ids(text, special, tokenize, newline) if index else tokenize(text, special=special)
    return tuple(ids)


def inner_ids(text: str, special: bool, tokenize: Tokenize, newline: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens of a text within a prompt.

    SentencePiece vocabularies put a space before whatever they think is the beginning. A newline before it
    keeps them from that, and its tokens (`newline`) are taken off again (as transformers'
    `encode_marked_chat` does).
    """
    ids = tokenize("\n" + text, special=special)
    if ids[: len(newline)] == newline:
        return ids[len(newline) :]
    return tokenize(text, special=special)


class ChatTemplate:
    """A model's template and what it can express, found out by trying.

    Models without one (`source` None, base models) get a plain form: the system text and an empty line, then
    "User: ..." and "Assistant: ..." a turn, with an empty line between turns. It has no control tokens:
    whoever writes "User:" at the beginning of a line looks like a turn there. `stop` is where its answers
    end.

    Attributes:
        takes_parts: texts must be lists of parts (models that see).
        takes_system: it has a place for a system instruction (else that is folded into the first user turn).
        form: how it writes calls; `forms.EMULATED` if it does not, or in a way that is not known.
        stop: texts at which an answer ends besides the model's own end of turn.
    """

    def __init__(self, source: str | None, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._names = dict(special_tokens or {})
        self._template = None if source is None else _compiled(source)
        self._arguments: Callable[[dict[str, Any]], Any] = _as_object
        self.stop: tuple[str, ...] = ("\nUser:",) if source is None else ()
        self.takes_parts = False
        self.takes_parts = source is not None and self._try_parts()
        self.takes_system = source is None or self._try_system()
        self.form = forms.EMULATED if source is None else self._try_tools()

    def render(
        self,
        messages: Sequence[Message],
        vault: Vault,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        thinking: bool | None = None,
    ) -> list[Segment]:
        """The prompt up to where the model's turn begins.

        Args:
            messages: as templates know them ("role", "content", "tool_calls", ...), texts hidden in `vault`;
                arguments of calls as objects.
            tools: declarations, for templates that take them.
            thinking: `enable_thinking`; None leaves the template's default.

        Raises:
            InvalidRequestError: the template refuses the conversation; says why.
            UnsupportedError: the template leaves a part of it out.
        """
        return vault.segments(self._render([self._ready(message) for message in messages], tools, thinking))

    def _render(
        self, messages: list[Message], tools: Sequence[dict[str, Any]] | None, thinking: bool | None
    ) -> str:
        if self._template is None:
            return _plain(messages, self._names.get("bos_token", ""))
        variables: dict[str, Any] = {**self._names, "messages": messages, "add_generation_prompt": True}
        variables["tools"] = list(tools) if tools else None
        if thinking is not None:
            variables |= {"enable_thinking": thinking, "thinking": thinking}
        try:
            return self._template.render(variables)
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise InvalidRequestError(
                f"the model's chat template refuses this conversation ({error})",
                where="contents",
                remedy="Let turns of user and model alternate, beginning with the user's.",
            ) from error

    def _ready(self, message: Message) -> Message:
        if self.takes_parts:
            message = {**message, "content": [{"type": "text", "text": message["content"]}]}
        if "tool_calls" not in message:
            return message
        calls = [
            {
                **call,
                "function": {**call["function"], "arguments": self._arguments(call["function"]["arguments"])},
            }
            for call in message["tool_calls"]
        ]
        return {**message, "tool_calls": calls}

    def _try_parts(self) -> bool:
        """Whether a text is understood as a list of parts, and not by itself."""
        return not self._shows("hello-there", [_said("user", "hello-there")]) and self._shows(
            "hello-there", [_said("user", [{"type": "text", "text": "hello-there"}])]
        )

    def _try_system(self) -> bool:
        said = [self._ready(_said("system", "instruct-me")), self._ready(_said("user", "hello-there"))]
        return self._shows("instruct-me", said) and self._shows("hello-there", said)

    def _shows(self, text: str, messages: list[Message]) -> bool:
        try:
            return text in self._render(messages, None, None)
        except InvalidRequestError:
            return False

    def _try_tools(self) -> Form:
        """The form in which a call that was made, and its result, come out."""
        for arguments in (_as_object, _as_text):
            self._arguments = arguments
            for inline in (False, True):
                form = forms.recognised(self._tried(_probe(inline)), self._between_turns())
                if form is not None:
                    return replace(form, inline=inline, words=self._words_go_before(inline))
        self._arguments = _as_object
        return forms.EMULATED

    def _tried(self, messages: list[Message]) -> str:
        """The prompt of messages about the probing function; empty if the template refuses them."""
        try:
            return self._render([self._ready(message) for message in messages], [_PROBE_TOOL], None)
        except InvalidRequestError:
            return ""

    def _between_turns(self) -> str:
        """What comes behind a turn of the user's, up to where the model's words begin."""
        return self._tried([_said("user", "hello-there")]).rpartition("hello-there")[2]

    def _words_go_before(self, inline: bool) -> bool:
        """Whether words that go before a call are written, and before it."""
        text = self._tried(_probe(inline, forms.PROBE_WORDS))
        return 0 <= text.find(forms.PROBE_WORDS) < text.find(forms.PROBE_NAME)


# --- how transformers compiles templates -------------------------------------------------------------------


@lru_cache(maxsize=16)
def _compiled(source: str) -> Template:
    if "<|channel|>" in source and "<|message|>" in source:
        raise UnsupportedError(
            "this model answers in channels of its own (Harmony), which are not understood here",
            remedy="Serve it by an OpenAI-compatible server, and ask that.",
        )
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise UnsupportedError(
            f"the model's chat template cannot be read ({error})", remedy="Choose another file of this model."
        ) from error


class _Generation(Extension):
    """`{% generation %}` marks what a model said, for training; here it is as if it were not there."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja wants it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


def _tojson(value: Any, ensure_ascii: bool = False, **form: Any) -> str:
    """Jinja's own escapes for HTML. What is hidden is marked, to be escaped when it is put back."""
    text = json.dumps(value, ensure_ascii=False, **form)
    if ensure_ascii and _START not in text:
        return json.dumps(value, **form)
    return _PLACEHOLDER.sub(f"{_START}{_LEVEL}\\1\\2{_END}", text)


def _raise(message: str) -> None:
    raise TemplateError(message)


# --- models without a template, and what the others are tried with -----------------------------------------


def _plain(messages: Sequence[Message], begin: str) -> str:
    names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    turns = [names[message["role"]] + str(message["content"]) for message in messages]
    return begin + "\n\n".join([*turns, "Assistant:"])


def _as_object(arguments: dict[str, Any]) -> Any:
    return arguments


def _as_text(arguments: dict[str, Any]) -> Any:
    return _tojson(arguments)


def _said(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_function",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "A value."}}},
    },
}


def _probe(inline: bool, words: str = "") -> list[Message]:
    """A call and its result, that goes into the same message or has one of its own."""
    function = {"name": forms.PROBE_NAME, "arguments": forms.PROBE_ARGUMENTS}
    called = {**_said("assistant", words), "tool_calls": [_call(function)]}
    if inline:
        result = {"name": forms.PROBE_NAME, "response": forms.PROBE_RESULT}
        return [_said("user", "hello-there"), {**called, "tool_responses": [result]}]
    result = {"name": forms.PROBE_NAME, "tool_call_id": _PROBE_ID}
    return [_said("user", "hello-there"), called, _said("tool", forms.PROBE_RESULT) | result]


def _call(function: dict[str, Any]) -> dict[str, Any]:
    return {"id": _PROBE_ID, "type": "function", "function": function}


_PROBE_ID = "call00000"  # nine letters and digits, as Mistral's templates demand
