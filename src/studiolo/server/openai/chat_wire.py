"""The request of chat/completions, field by field (https://platform.openai.com/docs/api-reference/chat/create).

What is beyond OpenAI's API is marked as an extension. Clients send extensions in `extra_body`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from studiolo.server.openai.asked import Effort, ToolName
from studiolo.server.openai.wire import Wire, emulated, extension, ignored, refused

CACHED_BY_ITSELF = "prefixes are kept by themselves wherever prompts share them"
NOT_KEPT = "nothing is done with it"

Breakpoint = Annotated[Any, ignored(CACHED_BY_ITSELF)]
Name = Annotated[str, Field(pattern=ToolName)]


def _texts_or_parts(value: Any) -> str:
    return "text" if isinstance(value, str) else "parts"


# --- what is said -----------------------------------------------------------------------------------------


class TextPart(Wire):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Breakpoint = None


class ImageURL(Wire):
    url: str
    detail: Annotated[
        Literal["auto", "low", "high", "original"] | None, ignored("the model reads pictures in its own size")
    ] = None


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageURL
    prompt_cache_breakpoint: Breakpoint = None


class InputAudio(Wire):
    data: str
    format: Literal["wav", "mp3"]


class AudioPart(Wire):
    type: Literal["input_audio"]
    input_audio: InputAudio
    prompt_cache_breakpoint: Breakpoint = None


class FileFile(Wire):
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class FilePart(Wire):
    type: Literal["file"]
    file: FileFile
    prompt_cache_breakpoint: Breakpoint = None


class RefusalPart(Wire):
    type: Literal["refusal"]
    refusal: str


UserPart = Annotated[TextPart | ImagePart | AudioPart | FilePart, Field(discriminator="type")]
ModelPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
Texts = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[TextPart], Tag("parts")], Discriminator(_texts_or_parts)
]
UserParts = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[UserPart], Tag("parts")], Discriminator(_texts_or_parts)
]
ModelParts = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[ModelPart], Tag("parts")], Discriminator(_texts_or_parts)
]
ParticipantName = Annotated[str | None, ignored("models here know no names of participants")]


class SystemMessage(Wire):
    """All of them make one system text, in their order, wherever they stand."""

    role: Literal["system", "developer"]
    content: Texts
    name: ParticipantName = None


class UserMessage(Wire):
    role: Literal["user"]
    content: UserParts
    name: ParticipantName = None


class CalledFunction(Wire):
    name: Name
    arguments: str


class CalledCustom(Wire):
    name: Name
    input: str


class FunctionCall(Wire):
    type: Literal["function"]
    id: str
    function: CalledFunction
    index: Annotated[int | None, ignored("of a piece in a stream, sent back")] = None
    extra_content: Annotated[
        dict[str, Any] | None, extension("google.thought_signature: what Gemini wants back with its calls")
    ] = None
    parsed_arguments: Annotated[Any, ignored("added by the client's own parser")] = None


class CustomCall(Wire):
    type: Literal["custom"]
    id: str
    custom: CalledCustom
    index: Annotated[int | None, ignored("of a piece in a stream, sent back")] = None


class MadePicture(ImagePart):
    index: int | None = None


class AssistantMessage(Wire):
    role: Literal["assistant"]
    content: ModelParts | None = None
    refusal: str | None = None
    tool_calls: list[Annotated[FunctionCall | CustomCall, Field(discriminator="type")]] | None = None
    reasoning_content: Annotated[str | None, extension("what the model thought, as it was answered")] = None
    images: Annotated[list[MadePicture] | None, extension("pictures that it made, as answered")] = None
    name: ParticipantName = None
    annotations: Annotated[Any, ignored("sent back from an answer")] = None
    parsed: Annotated[Any, ignored("added by the client's own parser")] = None
    provider_specific_fields: Annotated[Any, ignored("added by litellm")] = None
    audio: Annotated[Any, refused("answers in sound are not kept")] = None
    function_call: Annotated[Any, refused("it was replaced by tool_calls")] = None


class ToolMessage(Wire):
    role: Literal["tool"]
    content: Texts
    tool_call_id: str
    name: Annotated[str | None, ignored("the call that it answers has the name")] = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]

# --- tools and forms --------------------------------------------------------------------------------------


class Function(Wire):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[
        bool | None, emulated("arguments are held to the schema in any case, where the engine can")
    ] = None


class FunctionTool(Wire):
    type: Literal["function"]
    function: Function


class Grammar(Wire):
    syntax: Literal["lark", "regex"]
    definition: str


class TextForm(Wire):
    type: Literal["text"]


class GrammarForm(Wire):
    type: Literal["grammar"]
    grammar: Grammar


class Custom(Wire):
    name: Name
    description: str | None = None
    format: Annotated[TextForm | GrammarForm, Field(discriminator="type")] | None = None


class CustomTool(Wire):
    type: Literal["custom"]
    custom: Annotated[Custom, emulated("as a function of one text; upstreams take no Lark grammar")]


Tool = Annotated[FunctionTool | CustomTool, Field(discriminator="type")]


class Named(Wire):
    name: str


class ChosenFunction(Wire):
    type: Literal["function"]
    function: Named


class ChosenCustom(Wire):
    type: Literal["custom"]
    custom: Named


Chosen = Annotated[ChosenFunction | ChosenCustom, Field(discriminator="type")]


class AllowedTools(Wire):
    mode: Literal["auto", "required"]
    tools: list[Chosen]


class Allowed(Wire):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _word_or_choice(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", "word")
    return str(kind) if kind in ("function", "custom", "allowed_tools") else "word"


Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[ChosenFunction, Tag("function")]
    | Annotated[ChosenCustom, Tag("custom")]
    | Annotated[Allowed, Tag("allowed_tools")],
    Discriminator(_word_or_choice),
]


class JSONSchema(Wire):
    name: str = Field(min_length=1, max_length=64)
    description: Annotated[str | None, ignored("say in the prompt what the answer is for")] = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: Annotated[bool | None, emulated("the answer is held to the schema in any case")] = None


class JSONSchemaForm(Wire):
    type: Literal["json_schema"]
    json_schema: JSONSchema


class JSONForm(Wire):
    type: Literal["json_object"]


ResponseFormat = Annotated[TextForm | JSONForm | JSONSchemaForm, Field(discriminator="type")]


class StreamOptions(Wire):
    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, ignored("chunks are never padded")] = None


def _one_or_more(value: Any) -> str:
    return "one" if isinstance(value, str) else "more"


Stops = Annotated[
    Annotated[str, Tag("one")] | Annotated[list[str], Field(max_length=16), Tag("more")],
    Discriminator(_one_or_more),
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]

# --- extensions, of chat/completions and responses alike ---------------------------------------------------


class Extensions(Wire):
    """Fields that are not OpenAI's."""

    top_k: Annotated[int | None, Field(ge=0), extension("only the likeliest so many tokens are drawn")] = None
    thinking_budget: Annotated[
        int | None, Field(ge=-1), extension("most tokens of thought; 0: none, -1: as many as it takes")
    ] = None
    include_reasoning: Annotated[
        bool | None, extension("whether thoughts are told; by default those of models that run here")
    ] = None
    guided_choice: Annotated[
        list[str] | None, Field(min_length=1), extension("the answer is one of these texts")
    ] = None
    guided_regex: Annotated[str | None, extension("the answer matches this regular expression")] = None
    guided_grammar: Annotated[
        str | None, extension("the answer is of this grammar: Lark, or GBNF if it has ::=")
    ] = None
    cached_content: Annotated[str | None, extension("name of an explicit context that goes before it")] = None
    safety: Annotated[
        str | dict[str, str] | None,
        extension("from which probability of harm on to withhold: low, medium or high, or one for each harm"),
    ] = None


class ChatRequest(Extensions):
    """All that may stand in the body."""

    messages: list[Message] = Field(min_length=1)
    model: str = Field(min_length=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None,
        Field(max_length=1024),
        emulated("by ids of the model's own vocabulary; upstreams take none"),
    ] = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1, le=16)
    parallel_tool_calls: bool | None = None
    reasoning_effort: Annotated[Effort | None, emulated("by a budget of tokens; xhigh and max are high")] = (
        None
    )
    response_format: ResponseFormat | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stops | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    tool_choice: Choice | None = None
    tools: list[Tool] | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    verbosity: Annotated[
        Literal["low", "medium", "high"] | None, emulated("by a sentence in the system text")
    ] = None

    modalities: Annotated[
        list[Literal["text", "image"]] | None,
        Field(min_length=1),
        emulated("image, which is not OpenAI's, of a model that draws; audio is refused"),
    ] = None

    metadata: Annotated[Metadata | None, emulated("kept with `store`, and without it of no effect")] = None
    prediction: Annotated[dict[str, Any] | None, ignored("it makes no answer different")] = None
    prompt_cache_key: Annotated[str | None, ignored(CACHED_BY_ITSELF)] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, ignored(CACHED_BY_ITSELF)] = None
    prompt_cache_retention: Annotated[str | None, ignored(CACHED_BY_ITSELF)] = None
    safety_identifier: Annotated[str | None, ignored(NOT_KEPT)] = None
    service_tier: Annotated[str | None, ignored("there is one tier, default")] = None
    user: Annotated[str | None, ignored(NOT_KEPT)] = None

    audio: Annotated[Any, refused("answers are in text")] = None
    function_call: Annotated[Any, refused("it was replaced by tool_choice")] = None
    functions: Annotated[Any, refused("it was replaced by tools", [])] = None
    moderation: Annotated[Any, refused("use safety, or a context with safety settings")] = None
    web_search_options: Annotated[Any, refused("nothing is searched on the web")] = None
