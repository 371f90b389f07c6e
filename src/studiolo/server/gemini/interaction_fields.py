"""The fields of interactions (https://ai.google.dev/api/interactions-api), as `fields` has those of the rest.

On the wire they are in snake_case; contents and steps are told apart by their `type`.
"""

from __future__ import annotations

from studiolo.server.gemini.field import Field, emulated, ignored, refused, several

_TEXT, _FLAG = Field("text"), Field("flag")
_AGENT = refused("there are no agents here; name a model")

INTERACTION_ENUMS: dict[str, tuple[str, ...]] = {
    "InteractionModality": ("TEXT", "IMAGE", "AUDIO", "VIDEO", "DOCUMENT"),
    "ThinkingSummaries": ("AUTO", "NONE"),
    "InteractionHarm": (
        "HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT", "CIVIC_INTEGRITY", "JAILBREAK",
        "IMAGE_HATE", "IMAGE_DANGEROUS_CONTENT", "IMAGE_HARASSMENT", "IMAGE_SEXUALLY_EXPLICIT",
    ),
    "InteractionThreshold": (
        "BLOCK_LOW_AND_ABOVE", "BLOCK_MEDIUM_AND_ABOVE", "BLOCK_ONLY_HIGH", "BLOCK_NONE", "OFF",
    ),
    "InteractionHarmMethod": ("SEVERITY", "PROBABILITY"),
    "InteractionTier": ("FLEX", "STANDARD", "PRIORITY", "DEFERRED"),
}  # fmt: skip

INTERACTION_MESSAGES: dict[str, dict[str, Field]] = {
    "CreateInteractionRequest": {
        "model": _TEXT,
        "input": Field("json", "a text, an InteractionContent, or a list of those or of InteractionSteps"),
        "systemInstruction": Field("text", "not taken over from the interaction before"),
        "tools": several(Field("InteractionTool", "not taken over from the interaction before")),
        "responseFormat": Field("json", "an InteractionFormat, a JSON Schema, or a list of formats"),
        "responseMimeType": Field(
            "text", "the old form: text/plain, or application/json with responseFormat"
        ),
        "responseModalities": several(Field("InteractionModality", "TEXT; IMAGE of models that draw")),
        "generationConfig": Field("InteractionConfig"),
        "safetySettings": several("InteractionSafetySetting"),
        "previousInteractionId": Field("text", "its turns, and those before it, go before the input"),
        "store": Field("flag", "by default true: for 30 days"),
        "stream": _FLAG,
        "background": Field("flag", "made while nobody waits; needs store"),
        "cachedContent": _TEXT,
        "labels": Field("text", "kept, and told again", keyed=True),
        "serviceTier": ignored("InteractionTier", "there is one tier"),
        "agent": _AGENT,
        "agentConfig": _AGENT,
        "environment": _AGENT,
        "continuationToken": refused("answers are not continued", "text"),
        "webhookConfig": refused("ask how far it is"),
    },
    "InteractionConfig": {
        "temperature": Field("number", least=0, most=2),
        "topP": Field("number", least=0, most=1),
        "seed": Field("integer", least=-(2**31), most=2**31 - 1),
        "maxOutputTokens": Field("integer", "with the thoughts", least=1),
        "stopSequences": several(Field("text", "up to 16")),
        "thinkingLevel": emulated("ThinkingLevel", "XHIGH is HIGH"),
        "thinkingSummaries": Field("ThinkingSummaries", "AUTO: thoughts come summed up; by default NONE"),
        "toolChoice": Field("json", "auto, any, none, validated, or InteractionToolChoice"),
        "imageConfig": Field("InteractionImageConfig", "the old form of an image as responseFormat"),
        "speechConfig": refused("answers are text"),
        "transcriptionConfig": refused("answers are text"),
        "videoConfig": refused("answers are text and pictures"),
    },
    "InteractionToolChoice": {"allowedTools": Field("InteractionAllowedTools")},
    "InteractionAllowedTools": {
        "mode": Field("FunctionCallingConfig.Mode"),
        "tools": several(Field("text", "names of functions")),
    },
    "InteractionImageConfig": {
        "aspectRatio": Field("text", "such as 16:9; about as many pixels as the model was taught with"),
        "imageSize": refused("models draw at the size that they were taught with", "text"),
    },
    "InteractionFormat": {
        "type": Field("text", "text or image"),
        "mimeType": Field(
            "text", "of text: text/plain or application/json; of images: image/png or image/jpeg"
        ),
        "schema": Field("json", "of application/json; enforced while decoding"),
        "aspectRatio": Field("text", "of images"),
        "imageSize": refused("models draw at the size that they were taught with", "text"),
        "delivery": emulated("text", "only inline"),
    },
    "InteractionTool": {
        "type": Field("text", "function; tools that Google runs are not here"),
        "name": _TEXT,
        "description": _TEXT,
        "parameters": Field("json", "JSON Schema; arguments are always valid against it"),
        "shortDescription": ignored("text", "functions are told at once, with their description"),
        "deferLoading": refused("functions are told at once", "flag"),
    },
    "InteractionSafetySetting": {
        "type": Field("InteractionHarm", "of text; those of images only OFF or BLOCK_NONE"),
        "threshold": Field("InteractionThreshold"),
        "method": Field("InteractionHarmMethod", "PROBABILITY; SEVERITY is refused"),
    },
    "InteractionContent": {
        "type": Field("text", "text, image, audio, video, document"),
        "text": _TEXT,
        "data": Field("bytes", "passed on to models that take it; models here read text"),
        "mimeType": _TEXT,
        "uri": Field("text", "the same; files/ID of a file that was uploaded"),
        "name": ignored("text", "the file has its name"),
        "annotations": ignored("json", "sent back from an answer"),
        "channels": refused("sounds are read as their files have it", "integer"),
        "sampleRate": refused("sounds are read as their files have it", "integer"),
        "resolution": ignored("text", "the model reads media in its own size"),
        "processing": Field("json", "only static: media are read as they are"),
    },
    "InteractionStep": {
        "type": Field("text", "user_input, model_output, thought, function_call, function_result"),
        "content": several("InteractionContent"),
        "summary": several(Field("InteractionContent", "what was thought, of a thought")),
        "signature": Field("bytes", "kept, and sent back to the upstream that made it"),
        "id": _TEXT,
        "name": _TEXT,
        "arguments": Field("object"),
        "callId": _TEXT,
        "result": Field("json", "a text, an object, or a list of InteractionContents"),
        "isError": emulated("flag", "the result is told as an error"),
        "error": ignored("json", "sent back from an answer"),
    },
}
