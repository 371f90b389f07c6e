"""The request of responses, field by field (https://platform.openai.com/docs/api-reference/responses/create).

Items are the currency of this API: what is sent, what comes back, and what is kept.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from studiolo.server.openai.asked import Effort, ToolName
from studiolo.server.openai.chat_wire import (
    CACHED_BY_ITSELF,
    NOT_KEPT,
    Breakpoint,
    Extensions,
    InputAudio,
    JSONForm,
    Metadata,
    TextForm,
)
from studiolo.server.openai.wire import Wire, emulated, extension, ignored, refused

Name = Annotated[str, Field(pattern=ToolName)]
Status = Annotated[
    Literal["in_progress", "completed", "incomplete"] | None, ignored("sent back from an answer")
]
SentBack = Annotated[Any, ignored("sent back from an answer")]
ItemId = Annotated[str | None, ignored("calls are told apart by call_id")]


def _text_or_parts(value: Any) -> str:
    return "text" if isinstance(value, str) else "parts"


# --- contents ---------------------------------------------------------------------------------------------


class InputText(Wire):
    type: Literal["input_text"]
    text: str
    prompt_cache_breakpoint: Breakpoint = None


class InputImage(Wire):
    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: Annotated[
        Literal["auto", "low", "high", "original"] | None, ignored("the model reads pictures in its own size")
    ] = None
    prompt_cache_breakpoint: Breakpoint = None


class InputFile(Wire):
    type: Literal["input_file"]
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    filename: str | None = None
    detail: Annotated[Literal["auto", "low", "high"] | None, ignored("files are read whole")] = None
    prompt_cache_breakpoint: Breakpoint = None


class InputSound(Wire):
    type: Literal["input_audio"]
    input_audio: InputAudio


class OutputText(Wire):
    type: Literal["output_text"]
    text: str
    annotations: SentBack = None
    logprobs: SentBack = None
    parsed: Annotated[Any, ignored("added by the client's own parser")] = None


class OutputRefusal(Wire):
    type: Literal["refusal"]
    refusal: str


Part = Annotated[
    InputText | InputImage | InputFile | InputSound | OutputText | OutputRefusal, Field(discriminator="type")
]
Parts = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("parts")], Discriminator(_text_or_parts)
]
ReturnedPart = Annotated[InputText | InputImage | InputFile, Field(discriminator="type")]
Returned = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[ReturnedPart], Tag("parts")], Discriminator(_text_or_parts)
]

# --- items ------------------------------------------------------------------------------------------------


class Message(Wire):
    """System messages make one system text with the instructions, in their order, wherever they stand."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    id: ItemId = None
    status: Status = None
    phase: SentBack = None


class FunctionCall(Wire):
    type: Literal["function_call"]
    call_id: str
    name: Name
    arguments: str
    id: ItemId = None
    status: Status = None
    parsed_arguments: Annotated[Any, ignored("added by the client's own parser")] = None
    extra_content: Annotated[
        dict[str, Any] | None, extension("google.thought_signature: what Gemini wants back with its calls")
    ] = None
    caller: SentBack = None
    namespace: Annotated[Any, refused("tools have no name spaces")] = None


class FunctionCallOutput(Wire):
    type: Literal["function_call_output"]
    call_id: str
    output: Returned
    id: ItemId = None
    status: Status = None
    name: Annotated[str | None, ignored("the call that it answers has the name")] = None
    caller: SentBack = None


class CustomToolCall(Wire):
    type: Literal["custom_tool_call"]
    call_id: str
    name: Name
    input: str
    id: ItemId = None
    status: Status = None
    caller: SentBack = None


class CustomToolCallOutput(Wire):
    type: Literal["custom_tool_call_output"]
    call_id: str
    output: Returned
    id: ItemId = None
    status: Status = None
    caller: SentBack = None


class ThoughtText(Wire):
    type: Literal["reasoning_text"]
    text: str


class SummaryText(Wire):
    type: Literal["summary_text"]
    text: str


class Reasoned(Wire):
    type: Literal["reasoning"]
    id: ItemId = None
    summary: Annotated[list[SummaryText] | None, ignored("no model is shown summaries of its thoughts")] = (
        None
    )
    content: list[ThoughtText] | None = None
    encrypted_content: Annotated[
        str | None, emulated("the signature of an upstream's thought, in base64; thoughts are not encrypted")
    ] = None
    status: Status = None


class ImageGenerationCall(Wire):
    type: Literal["image_generation_call"]
    id: ItemId = None
    result: str | None = None
    status: SentBack = None
    output_format: SentBack = None
    revised_prompt: SentBack = None
    size: SentBack = None
    quality: SentBack = None
    background: SentBack = None
    action: SentBack = None


_ITEMS = {
    "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning",
    "image_generation_call",
}  # fmt: skip


def _item(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind in (None, "message"):
        return "message"
    return kind if kind in _ITEMS else None


Item = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[CustomToolCall, Tag("custom_tool_call")]
    | Annotated[CustomToolCallOutput, Tag("custom_tool_call_output")]
    | Annotated[Reasoned, Tag("reasoning")]
    | Annotated[ImageGenerationCall, Tag("image_generation_call")],
    Discriminator(
        _item,
        custom_error_type="unsupported",
        custom_error_message="items of this type are not taken here",
    ),
]
"""Other items belong to OpenAI's own tools, or refer to what is kept there."""

Input = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Item], Tag("items")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "items"),
]

# --- wishes -----------------------------------------------------------------------------------------------


class FunctionTool(Wire):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[
        bool | None, emulated("arguments are held to the schema in any case, where the engine can")
    ] = None
    output_schema: dict[str, Any] | None = None
    allowed_callers: Annotated[Any, refused("the model itself calls", ["direct"])] = None
    defer_loading: Annotated[Any, refused("tools are told at once", False)] = None


class GrammarForm(Wire):
    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


class CustomTool(Wire):
    type: Literal["custom"]
    name: Name
    description: str | None = None
    format: Annotated[
        Annotated[TextForm | GrammarForm, Field(discriminator="type")] | None,
        emulated("as a function of one text; upstreams take no Lark grammar"),
    ] = None
    allowed_callers: Annotated[Any, refused("the model itself calls", ["direct"])] = None
    defer_loading: Annotated[Any, refused("tools are told at once", False)] = None


class ImageTool(Wire):
    type: Literal["image_generation"]
    model: Annotated[str, emulated("the name of a drawing model or a subject")]
    output_format: Annotated[Any, refused("pictures are PNG", "png")] = None
    size: Annotated[Any, refused("the drawing model has its own size", "auto")] = None
    quality: Annotated[Any, refused("there is one quality", "auto")] = None
    background: Annotated[Any, refused("backgrounds are drawn", "auto", "opaque")] = None
    moderation: Annotated[Any, refused("pictures are not judged", "auto", "low")] = None
    action: Annotated[Any, refused("pictures are drawn, not edited", "auto", "generate")] = None
    partial_images: Annotated[Any, refused("pictures come whole", 0)] = None


Tool = Annotated[FunctionTool | CustomTool | ImageTool, Field(discriminator="type")]


class Chosen(Wire):
    type: Literal["function", "custom"]
    name: str


class Allowed(Wire):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[Chosen]


class ChosenImage(Wire):
    type: Literal["image_generation"]


_CHOICES = {
    "function": "chosen",
    "custom": "chosen",
    "allowed_tools": "allowed_tools",
    "image_generation": "image_generation",
}


def _choice(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return _CHOICES.get(str(kind), "word")


Choice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[Chosen, Tag("chosen")]
    | Annotated[Allowed, Tag("allowed_tools")]
    | Annotated[ChosenImage, Tag("image_generation")],
    Discriminator(_choice),
]


class JSONSchemaForm(Wire):
    type: Literal["json_schema"]
    name: str = Field(min_length=1, max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    description: Annotated[str | None, ignored("say in the prompt what the answer is for")] = None
    strict: Annotated[bool | None, emulated("the answer is held to the schema in any case")] = None


class TextWish(Wire):
    format: Annotated[TextForm | JSONForm | JSONSchemaForm, Field(discriminator="type")] | None = None
    verbosity: Annotated[
        Literal["low", "medium", "high"] | None, emulated("by a sentence in the system text")
    ] = None


class Reasoning(Wire):
    effort: Annotated[Effort | None, emulated("by a budget of tokens; xhigh and max are high")] = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Annotated[
        Literal["auto", "concise", "detailed"] | None, emulated("the old name of summary")
    ] = None
    context: Annotated[Any, refused("thoughts that are sent back are shown to the model", "auto")] = None
    mode: Annotated[Any, refused("there is one mode", "standard")] = None


class StreamOptions(Wire):
    include_obfuscation: Annotated[bool | None, ignored("events are never padded")] = None


Include = Literal[
    "message.output_text.logprobs", "reasoning.encrypted_content", "message.input_image.image_url",
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "computer_call_output.output.image_url", "code_interpreter_call.outputs",
]  # fmt: skip


class ResponseRequest(Extensions):
    """All that may stand in the body."""

    model: str = Field(min_length=1)
    input: Input
    background: bool | None = None
    instructions: str | None = None
    include: Annotated[
        list[Include] | None, emulated("logprobs and encrypted_content; of tools there are no results")
    ] = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    metadata: Metadata | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    reasoning: Reasoning | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    text: TextWish | None = None
    tool_choice: Choice | None = None
    tools: list[Tool] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63), extension("as in chat completions")] = None
    stop: Annotated[list[str] | None, Field(max_length=16), extension("as in chat completions")] = None

    max_tool_calls: Annotated[int | None, ignored("it bounds tools that OpenAI runs")] = None
    prompt_cache_key: Annotated[str | None, ignored(CACHED_BY_ITSELF)] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, ignored(CACHED_BY_ITSELF)] = None
    prompt_cache_retention: Annotated[str | None, ignored(CACHED_BY_ITSELF)] = None
    safety_identifier: Annotated[str | None, ignored(NOT_KEPT)] = None
    service_tier: Annotated[str | None, ignored("there is one tier, default")] = None
    user: Annotated[str | None, ignored(NOT_KEPT)] = None

    access_programs: Annotated[Any, refused("there are none")] = None
    background_options: Annotated[
        Any, refused("it is begun at once; send it in a batch for half the price")
    ] = None
    context_management: Annotated[Any, refused("contexts are not compacted", [])] = None
    conversation: Annotated[Any, refused("use previous_response_id")] = None
    image: Annotated[Any, refused("pictures are not compressed")] = None
    moderation: Annotated[Any, refused("use safety")] = None
    prompt: Annotated[Any, refused("no templates of prompts are kept")] = None
    truncation: Annotated[str | None, refused("nothing is left out of a long conversation", "disabled")] = (
        None
    )
