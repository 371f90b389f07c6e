"""The one form in which a conversation travels: what is asked, what comes back, what it cost.

No field bears the name that either API gives it on the wire; the server and the upstream engines translate.
All values are immutable and have a JSON form (`model_dump_json`, `model_validate_json`), so that a batch, a
history or a cached context can be kept and read again.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator


class Value(BaseModel):
    """Base of all of them: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


# --- what is said -----------------------------------------------------------------------------------------


class Text(Value):
    """Words of the conversation."""

    kind: Literal["text"] = "text"
    text: str


class Thought(Value):
    """Words that a model thought on the way to its answer; `signature` is what an upstream wants back
    unread."""

    kind: Literal["thought"] = "thought"
    text: str
    signature: bytes | None = None


class Data(Value):
    """A picture, a sound, a film or a document, as bytes of `media_type` (RFC 6838, such as image/png)."""

    kind: Literal["data"] = "data"
    media_type: str
    data: bytes
    name: str | None = None


class FileRef(Value):
    """The same, lying elsewhere: a URI that the engine, or who stands before it, can read."""

    kind: Literal["file"] = "file"
    uri: str
    media_type: str | None = None


class Call(Value):
    """A function that the model wants called; `id` tells several calls of one turn apart."""

    kind: Literal["call"] = "call"
    name: str
    arguments: dict[str, Any]
    id: str = ""
    signature: bytes | None = None


class CallResult(Value):
    """What the called function returned: `result` is JSON, `media` what else it made."""

    kind: Literal["result"] = "result"
    name: str
    result: Any
    id: str = ""
    media: tuple[Data | FileRef, ...] = ()


Part = Annotated[Text | Thought | Data | FileRef | Call | CallResult, Field(discriminator="kind")]


class Role(StrEnum):
    """Who speaks. Results of functions are the user's."""

    USER = "user"
    MODEL = "model"


class Content(Value):
    """One turn."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its words, thoughts left out."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def thoughts(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Thought))

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(part for part in self.parts if isinstance(part, Call))


def user(*parts: str | Part) -> Content:
    """A turn of the user; strings are text."""
    return Content(role=Role.USER, parts=tuple(_part(part) for part in parts))


def model(*parts: str | Part) -> Content:
    """A turn of the model; strings are text."""
    return Content(role=Role.MODEL, parts=tuple(_part(part) for part in parts))


def _part(part: str | Part) -> Part:
    return Text(text=part) if isinstance(part, str) else part


# --- what is wished ---------------------------------------------------------------------------------------


class Tool(Value):
    """A function that the model may call; `parameters` is a JSON Schema of type object, or None for no
    parameters. With a `grammar`, in llguidance's dialect of Lark, its one argument is the text `input`, which
    is of that grammar."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.:-]{0,127}$")
    description: str = ""
    parameters: dict[str, Any] | None = None
    returns: dict[str, Any] | None = None
    grammar: str | None = None


class ToolMode(StrEnum):
    """NONE: no calls. AUTO: calls or words. ANY: at least one call. VALIDATED: like AUTO.

    Arguments are valid against the declared parameters in every mode.
    """

    NONE = "none"
    AUTO = "auto"
    ANY = "any"
    VALIDATED = "validated"


class ToolChoice(Value):
    """How tools are to be used; `allowed` leaves only these names (None: all)."""

    mode: ToolMode = ToolMode.AUTO
    allowed: tuple[str, ...] | None = None
    parallel: bool = True


class FormatKind(StrEnum):
    TEXT = "text"
    JSON = "json"
    CHOICE = "choice"
    REGEX = "regex"
    LARK = "lark"
    GBNF = "gbnf"


class Format(Value):
    """What form the answer must have. `rule` is the JSON Schema (None: any JSON), the list of choices, the
    regular expression, or the grammar's text."""

    kind: FormatKind = FormatKind.TEXT
    rule: dict[str, Any] | bool | tuple[str, ...] | str | None = None


class ThinkingMode(StrEnum):
    """DYNAMIC leaves the length to the model, within what room there is."""

    OFF = "off"
    BUDGET = "budget"
    LEVEL = "level"
    DYNAMIC = "dynamic"


class Level(StrEnum):
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Show(StrEnum):
    """What of a thought is part of the stream: nothing, a short summary in its place, or all of it.

    As truth values: whether there is anything.
    """

    HIDDEN = "hidden"
    SUMMARY = "summary"
    FULL = "full"

    def __bool__(self) -> bool:
        return self is not Show.HIDDEN


class Thinking(Value):
    """How long to think before the answer; None in GenerationConfig means as the model does by itself.

    `budget` is in tokens. `show` says what of the thoughts is part of the stream (they are counted always);
    True and False are read as FULL and HIDDEN.
    """

    mode: ThinkingMode = ThinkingMode.DYNAMIC
    budget: int | None = Field(default=None, ge=0)
    level: Level | None = None
    show: Show = Show.HIDDEN

    @field_validator("show", mode="before")
    @classmethod
    def _said_in_a_word(cls, show: Any) -> Any:
        return (Show.FULL if show else Show.HIDDEN) if isinstance(show, bool) else show


class GenerationConfig(Value):
    """How to sample. None: the model's own default.

    `max_tokens` bounds the answer with its thoughts; `logprobs` is how many alternatives to tell per token
    (0: the chosen one alone). `bias` is added to the logits of tokens, by their ids in the model's own
    vocabulary.
    """

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    seed: int | None = None
    stop: tuple[str, ...] = Field(default=(), max_length=16)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    bias: tuple[tuple[NonNegativeInt, Annotated[float, Field(ge=-100, le=100)]], ...] = Field(
        default=(), max_length=1024
    )
    candidates: int = Field(default=1, ge=1, le=16)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    format: Format = Format()
    thinking: Thinking | None = None
    modalities: tuple[Literal["text", "image", "audio"], ...] = ("text",)


class Harm(StrEnum):
    HARASSMENT = "harassment"
    HATE = "hate"
    SEXUAL = "sexual"
    DANGEROUS = "dangerous"
    CIVIC = "civic"
    JAILBREAK = "jailbreak"


class Threshold(StrEnum):
    """From which probability of harm on an answer is withheld."""

    OFF = "off"
    NONE = "none"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


class SafetySetting(Value):
    harm: Harm
    threshold: Threshold


class Request(Value):
    """All that an engine needs for one answer; the history is passed each time, nothing is kept."""

    model: str
    contents: tuple[Content, ...] = Field(min_length=1)
    system: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    config: GenerationConfig = GenerationConfig()
    safety: tuple[SafetySetting, ...] = ()
    cache: str | None = None
    """Name of an explicit context (see `caching`) that goes before `contents`."""


# --- what comes back --------------------------------------------------------------------------------------


class FinishReason(StrEnum):
    """Why an answer ended. An answer with calls ends with STOP, as the model had said what it wanted.

    LENGTH: cut off at `max_tokens` or at the end of the context; what is there is no whole answer.
    """

    STOP = "stop"
    LENGTH = "length"
    SAFETY = "safety"
    RECITATION = "recitation"
    BLOCKLIST = "blocklist"
    PROHIBITED = "prohibited"
    PERSONAL = "personal"
    LANGUAGE = "language"
    MALFORMED_CALL = "malformed_call"
    OTHER = "other"


class Verdict(Value):
    """What a classifier says of the prompt or of an answer."""

    harm: Harm
    probability: Literal["negligible", "low", "medium", "high"]
    score: float | None = None
    blocked: bool = False


class Usage(Value):
    """Tokens. `cached` are those of `prompt` that did not need computing; `thoughts` are not in `answer`, and
    `summaries`, which a local model makes of its thoughts, are in neither."""

    prompt: int = 0
    cached: int = 0
    answer: int = 0
    thoughts: int = 0
    summaries: int = 0
    prompt_by_modality: dict[str, int] = {}

    @property
    def total(self) -> int:
        return self.prompt + self.answer + self.thoughts + self.summaries

    def __add__(self, other: Usage) -> Usage:
        both = {name: getattr(self, name) + getattr(other, name) for name in _TOKENS}
        modalities = Counter(self.prompt_by_modality) + Counter(other.prompt_by_modality)
        return Usage(**both, prompt_by_modality=dict(modalities))


_TOKENS = ("prompt", "cached", "answer", "thoughts", "summaries")


class TokenLogprob(Value):
    """A token that was chosen, its natural-log probability, and the likeliest others."""

    token: str
    bytes: tuple[int, ...]
    logprob: float
    id: int | None = None
    top: tuple[TokenLogprob, ...] = ()


class Delta(Value):
    """The next piece of an answer. Texts and thoughts come in pieces, all else whole.

    The last delta of each candidate has `finish`; the last of all has `usage`. `blocked` says that the
    prompt itself was refused (then there is no candidate). `notes` tell what a user should know of the way
    the answer came about, such as "reused" for one taken from the semantic cache.
    """

    candidate: int = 0
    part: Part | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    finish_message: str | None = None
    verdicts: tuple[Verdict, ...] = ()
    blocked: FinishReason | None = None
    usage: Usage | None = None
    model: str | None = None
    notes: tuple[str, ...] = ()


class Candidate(Value):
    """A whole answer."""

    content: Content
    finish: FinishReason
    finish_message: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    @property
    def text(self) -> str:
        return self.content.text


class Response(Value):
    """All deltas of a request, put together."""

    candidates: tuple[Candidate, ...]
    usage: Usage
    model: str
    blocked: FinishReason | None = None
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The first candidate's words; empty if the prompt was refused."""
        return self.candidates[0].text if self.candidates else ""

    @property
    def calls(self) -> tuple[Call, ...]:
        return self.candidates[0].content.calls if self.candidates else ()
