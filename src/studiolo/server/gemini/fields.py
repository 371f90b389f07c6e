"""Every field of the Gemini dialect that requests may bring, and what becomes of it.

Named as https://ai.google.dev/api and the types of google-genai name them. A field that is not here is
refused as unknown, as Google does it.
"""

from __future__ import annotations

from studiolo.server.gemini.edit_fields import EDIT_ENUMS, EDIT_MESSAGES
from studiolo.server.gemini.field import Field, Support, emulated, ignored, refused, several
from studiolo.server.gemini.interaction_fields import INTERACTION_ENUMS, INTERACTION_MESSAGES

__all__ = ["ENUMS", "MESSAGES", "Field", "Support"]

TEXT, FLAG, JSON = Field("text"), Field("flag"), Field("json")

ENUMS: dict[str, tuple[str, ...]] = {
    **EDIT_ENUMS,
    "Type": ("TYPE_UNSPECIFIED", "STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL"),
    "FunctionCallingConfig.Mode": ("MODE_UNSPECIFIED", "AUTO", "ANY", "NONE", "VALIDATED"),
    "ThinkingLevel": ("THINKING_LEVEL_UNSPECIFIED", "MINIMAL", "LOW", "MEDIUM", "HIGH", "XHIGH"),
    "Modality": ("MODALITY_UNSPECIFIED", "TEXT", "IMAGE", "AUDIO", "VIDEO"),
    "HarmCategory": (
        "HARM_CATEGORY_UNSPECIFIED", "HARM_CATEGORY_HARASSMENT", "HARM_CATEGORY_HATE_SPEECH",
        "HARM_CATEGORY_SEXUALLY_EXPLICIT", "HARM_CATEGORY_DANGEROUS_CONTENT",
        "HARM_CATEGORY_CIVIC_INTEGRITY", "HARM_CATEGORY_JAILBREAK", "HARM_CATEGORY_IMAGE_HATE",
        "HARM_CATEGORY_IMAGE_DANGEROUS_CONTENT", "HARM_CATEGORY_IMAGE_HARASSMENT",
        "HARM_CATEGORY_IMAGE_SEXUALLY_EXPLICIT",
    ),
    "HarmBlockThreshold": (
        "HARM_BLOCK_THRESHOLD_UNSPECIFIED", "BLOCK_LOW_AND_ABOVE", "BLOCK_MEDIUM_AND_ABOVE",
        "BLOCK_ONLY_HIGH", "BLOCK_NONE", "OFF",
    ),
    "HarmBlockMethod": ("HARM_BLOCK_METHOD_UNSPECIFIED", "SEVERITY", "PROBABILITY"),
    "Behavior": ("UNSPECIFIED", "BEHAVIOR_UNSPECIFIED", "BLOCKING", "NON_BLOCKING"),
    "MediaResolution": (
        "MEDIA_RESOLUTION_UNSPECIFIED", "MEDIA_RESOLUTION_LOW", "MEDIA_RESOLUTION_MEDIUM",
        "MEDIA_RESOLUTION_HIGH", "MEDIA_RESOLUTION_ULTRA_HIGH",
    ),
    "MediaProcessing": ("MEDIA_PROCESSING_UNSPECIFIED", "STATIC"),
    "Delivery": ("DELIVERY_UNSPECIFIED", "INLINE"),
    "ServiceTier": ("UNSPECIFIED", "STANDARD", "FLEX", "PRIORITY"),
    "Scheduling": ("SCHEDULING_UNSPECIFIED", "SILENT", "WHEN_IDLE", "INTERRUPT"),
    **INTERACTION_ENUMS,
}  # fmt: skip
"""Their values, taken in any case."""

_SAID = ignored("json", "the server says it")
_NO_SEARCH = refused("there is no such tool here; declare a function, and answer its calls")
_LIVE = "of live sessions, which there are none of"
_SPEECH = refused("answers are text")

_OWN_SIZE = "the model reads media in its own size"
_CUT = refused("files are not cut here; cut them before")

_SCHEMA: dict[str, Field] = {
    "type": Field("Type"),
    "format": Field("text", "enforced where the constraint engine knows it"),
    "title": TEXT,
    "description": TEXT,
    "nullable": FLAG,
    "enum": several("text"),
    "items": Field("Schema"),
    "prefixItems": several("Schema"),
    "minItems": Field("integer", least=0),
    "maxItems": Field("integer", least=0),
    "properties": Field("Schema", keyed=True),
    "required": several("text"),
    "minProperties": Field("integer", least=0),
    "maxProperties": Field("integer", least=0),
    "minLength": Field("integer", least=0),
    "maxLength": Field("integer", least=0),
    "pattern": TEXT,
    "minimum": Field("number"),
    "maximum": Field("number"),
    "anyOf": several("Schema"),
    "propertyOrdering": several(Field("text", "the order in which properties are written")),
    "default": JSON,
    "example": JSON,
    "additionalProperties": Field("json", "a flag or a Schema; by default no others are allowed"),
    "defs": Field("Schema", keyed=True),
    "ref": TEXT,
    "$defs": Field("Schema", keyed=True),
    "$ref": TEXT,
}

_CONTENT: dict[str, Field] = {
    "role": Field("text", "user, model, or function for the results of functions; without one: user"),
    "parts": several("Part"),
}

_PART: dict[str, Field] = {
    "text": TEXT,
    "inlineData": Field("Blob", "passed on to models that take it; models here read text"),
    "fileData": Field("FileData", "the same"),
    "functionCall": Field("FunctionCall"),
    "functionResponse": Field("FunctionResponse"),
    "thought": FLAG,
    "thoughtSignature": Field("bytes", "kept, and sent back to the upstream that made it"),
    "partMetadata": ignored("object", "it is the client's own"),
    "videoMetadata": _CUT,
    "audioMetadata": _CUT,
    "documentMetadata": _CUT,
    "spreadsheetMetadata": _CUT,
    "mediaResolution": ignored("json", _OWN_SIZE),
    "mediaProcessing": ignored("MediaProcessing", "STATIC is how media are read; AGENTIC is refused"),
    "audioTranscription": ignored("json", "sent back from an answer"),
    "speechMetadata": refused("answers are text"),
    "executableCode": refused("there is no code execution here"),
    "codeExecutionResult": refused("there is no code execution here"),
    "toolCall": refused("tools of the server's side: there are none here"),
    "toolResponse": refused("tools of the server's side: there are none here"),
}

_GENERATION: dict[str, Field] = {
    "temperature": Field("number", least=0, most=2),
    "topP": Field("number", least=0, most=1),
    "topK": Field("integer", least=0),
    "candidateCount": Field("integer", "up to 16, as far as the model goes", least=1, most=16),
    "maxOutputTokens": Field("integer", "with the thoughts, as at Google", least=1),
    "stopSequences": several(Field("text", "up to 16")),
    "seed": Field("integer", least=-(2**31), most=2**31 - 1),
    "presencePenalty": Field("number", least=-2, most=2),
    "frequencyPenalty": Field("number", least=-2, most=2),
    "responseMimeType": Field("text", "text/plain, application/json, text/x.enum"),
    "responseSchema": Field("Schema", "enforced while decoding; what cannot be enforced is refused"),
    "responseJsonSchema": Field("json", "the same, as JSON Schema"),
    "responseLogprobs": Field("flag", "where the model tells them"),
    "logprobs": Field("integer", "alternatives for each token", least=0, most=20),
    "thinkingConfig": Field("ThinkingConfig"),
    "responseModalities": several(Field("Modality", "TEXT; IMAGE of models that draw")),
    "imageConfig": Field("ImageConfig", "of pictures; refused where no IMAGE is asked for"),
    "mediaResolution": ignored("MediaResolution", _OWN_SIZE),
    "speechConfig": _SPEECH,
    "audioTimestamp": refused("sounds have no time stamps here"),
    "audioTranscriptionConfig": _SPEECH,
    "translationConfig": _SPEECH,
    "enableEnhancedCivicAnswers": refused("there are no such answers here"),
    "enableAffectiveDialog": _SPEECH,
    "routingConfig": refused("the model is the one that is named"),
    "modelConfig": refused("the model is the one that is named"),
    "modelSelectionConfig": refused("the model is the one that is named"),
    "responseFormat": several(Field("ResponseFormat", "in place of responseMimeType and responseSchema")),
}

_REQUEST: dict[str, Field] = {
    "model": Field("text", "must be the one of the path, if it is there"),
    "contents": several("Content"),
    "systemInstruction": Field("Content", "text"),
    "tools": several("Tool"),
    "toolConfig": Field("ToolConfig"),
    "safetySettings": several("SafetySetting"),
    "generationConfig": Field("GenerationConfig"),
    "cachedContent": TEXT,
    "labels": ignored("object", "they are for Google's bills"),
    "serviceTier": ignored("ServiceTier", "there is one tier"),
    "store": ignored("flag", "it is for Google's logs; prompts are logged where the operator says so"),
    "continuationToken": refused("answers are not continued"),
    "modelArmorConfig": refused("use safetySettings"),
}

_EMBEDDING = {
    "taskType": ignored("text", "the models here have one embedding for all tasks"),
    "title": ignored("text", "the same"),
    "outputDimensionality": Field("integer", "cut, and of unit length again", least=1, most=65_536),
    "autoTruncate": ignored("flag", "texts that are too long are cut, or refused, as the model does it"),
}

_SAID_OF_FILES = dict.fromkeys(
    (
        "createTime", "updateTime", "expirationTime", "sha256Hash", "uri", "downloadUri", "state", "source",
        "error", "videoMetadata",
    ),
    _SAID,
)  # fmt: skip

_RATIO = Field("text", "such as 16:9; about as many pixels as the model was taught with")
_NO_SIZE = refused(
    "models draw at the size that they were taught with; predict takes width and height", "text"
)
_OUTPUT = {
    "mimeType": Field("text", "image/png; image/jpeg, with how it was made as its comment"),
    "compressionQuality": Field("integer", "of image/jpeg", least=0, most=100),
}

_HYPER = Field("object", "class_noun, and any field of a recipe by its name, such as steps, learning_rate")

MESSAGES: dict[str, dict[str, Field]] = {
    "GenerateContentRequest": _REQUEST,
    "CountTokensRequest": {
        **{name: _REQUEST[name] for name in ("model", "contents", "systemInstruction", "tools")},
        "generationConfig": Field("GenerationConfig"),
        "generateContentRequest": Field("GenerateContentRequest", "instead of all others"),
    },
    "ComputeTokensRequest": {
        **{name: _REQUEST[name] for name in ("model", "contents")},
        "instances": refused("that was for models before Gemini; give contents"),
    },
    "EmbedContentRequest": {
        "model": _REQUEST["model"],
        "content": Field("Content", "its texts, joined"),
        **_EMBEDDING,
        "embedContentConfig": Field("EmbedContentConfig"),
    },
    "EmbedContentConfig": {
        **_EMBEDDING,
        "mimeType": ignored("text", "it is text"),
        "documentOcr": refused("texts alone are embedded"),
        "audioTrackExtraction": refused("texts alone are embedded"),
    },
    "BatchEmbedContentsRequest": {"model": _REQUEST["model"], "requests": several("EmbedContentRequest")},
    "PredictRequest": {
        "instances": several(Field("EmbedInstance", "of models that embed")),
        "parameters": Field("EmbedParameters"),
    },
    "EmbedInstance": {
        "content": TEXT,
        "taskType": _EMBEDDING["taskType"],
        "title": _EMBEDDING["title"],
        "mimeType": ignored("text", "it is text"),
    },
    "EmbedParameters": {
        "outputDimensionality": _EMBEDDING["outputDimensionality"],
        "autoTruncate": _EMBEDDING["autoTruncate"],
    },
    "CachedContent": {
        "name": Field("text", "is made by the server; only a PATCH may repeat it"),
        "model": TEXT,
        "displayName": TEXT,
        "contents": several("Content"),
        "systemInstruction": Field("Content", "text"),
        "tools": several("Tool"),
        "toolConfig": Field("ToolConfig"),
        "ttl": Field("duration", "without it and expireTime: an hour"),
        "expireTime": Field("time"),
        "createTime": _SAID,
        "updateTime": _SAID,
        "usageMetadata": _SAID,
        "kmsKeyName": refused("contexts are kept as files, without keys of their own"),
    },
    "BatchGenerateContentRequest": {"batch": Field("GenerateContentBatch")},
    "GenerateContentBatch": {
        "name": _SAID,
        "model": Field("text", "must be the one of the path, if it is there"),
        "displayName": TEXT,
        "inputConfig": Field("InputConfig"),
        "priority": ignored("integer", "batches go in the order in which they came"),
        "webhookConfig": refused("ask how far it is"),
        **dict.fromkeys(("output", "createTime", "endTime", "updateTime", "batchStats", "state"), _SAID),
    },
    "InputConfig": {
        "requests": Field("InlinedRequests"),
        "fileName": Field("text", 'an uploaded file of lines {"key": TEXT, "request": {...}}'),
    },
    "InlinedRequests": {"requests": several("InlinedRequest")},
    "InlinedRequest": {
        "request": Field("object", "the body of generateContent, or of embedContent"),
        "metadata": Field("object", "comes back with the answer"),
    },
    "TunedModel": {
        "name": _SAID,
        "displayName": Field("text", "the name of the subject, too, where tunedModelId does not give it"),
        "description": refused("a subject has its title", "text"),
        "baseModel": TEXT,
        "tuningTask": Field("TuningTask"),
        "preTunedModel": refused("subjects are taught to the base model", "object"),
        "tunedModelSource": refused("subjects are taught to the base model", "object"),
        "temperature": refused("subjects draw", "number"),
        "topP": refused("subjects draw", "number"),
        "topK": refused("subjects draw", "integer"),
        "readerProjectNumbers": refused("all keys may draw all subjects"),
        **dict.fromkeys(("createTime", "updateTime", "state", "error", "defaultCheckpointId"), _SAID),
    },
    "TuningTask": {
        "trainingData": Field("TrainingData"),
        "hyperparameters": _HYPER,
        **dict.fromkeys(("startTime", "completeTime", "snapshots"), _SAID),
    },
    "TrainingData": {
        "files": several(Field("text", "Studiolo's own: files/ID of images, or of ZIP archives of them")),
        "examples": Field("TuningExamples"),
    },
    "TuningExamples": {"examples": several("TuningExample")},
    "TuningExample": {
        "output": Field("text", "files/ID of an image, or of a ZIP archive of images"),
        "textInput": refused("what the subject is, class_noun says", "text"),
    },
    "TuningJob": {
        "name": _SAID,
        "baseModel": TEXT,
        "tunedModelDisplayName": Field("text", "the name of the subject, too"),
        "supervisedTuningSpec": Field("SupervisedTuningSpec"),
        "labels": Field("text", "class_noun among them; the others have no effect", keyed=True),
        **dict.fromkeys(
            (
                "description",
                "preTunedModel",
                "customBaseModel",
                "encryptionSpec",
                "serviceAccount",
                "outputUri",
                "preferenceOptimizationSpec",
                "distillationSpec",
                "reinforcementTuningSpec",
                "fullFineTuningSpec",
                "veoTuningSpec",
                "veoLoraTuningSpec",
                "partnerModelTuningSpec",
                "distillationSamplingSpec",
                "evaluationConfig",
            ),
            refused("subjects are taught to the base model, by supervisedTuningSpec"),
        ),
    },
    "SupervisedTuningSpec": {
        "trainingDatasetUri": Field(
            "text", "files/ID of images or ZIP archives of them, with commas between"
        ),
        "hyperParameters": _HYPER,
        **dict.fromkeys(
            ("validationDatasetUri", "exportLastCheckpointOnly", "tuningMode", "evaluationConfig"),
            refused("give what a recipe has as hyperParameters"),
        ),
    },
    "CreateFileRequest": {"file": Field("File")},
    "File": {
        "name": Field("text", "files/ID, with an ID of the client's own; without it the server makes one"),
        "displayName": TEXT,
        "mimeType": Field("text", "kept, and checked against the bytes of known types"),
        "sizeBytes": Field("integer", "then no more and no fewer are taken", least=0),
        **_SAID_OF_FILES,
    },
    "GenerationConfig": _GENERATION,
    "Content": _CONTENT,
    "Part": _PART,
    "Blob": {
        "mimeType": TEXT,
        "data": Field("bytes"),
        "displayName": TEXT,
    },
    "FileData": {"mimeType": TEXT, "fileUri": TEXT, "displayName": ignored("text", "the file has its name")},
    "FunctionCall": {
        "id": TEXT,
        "name": TEXT,
        "args": Field("object"),
        "partialArgs": refused("calls are whole"),
        "willContinue": refused("calls are whole", "flag"),
    },
    "FunctionResponse": {
        "id": TEXT,
        "name": TEXT,
        "response": Field("object"),
        "parts": several("FunctionResponsePart"),
        "scheduling": refused(_LIVE, "Scheduling"),
        "willContinue": refused(_LIVE, "flag"),
    },
    "FunctionResponsePart": {
        "inlineData": Field("Blob"),
        "fileData": Field("FileData"),
        **{
            name: _PART[name]
            for name in (
                "videoMetadata",
                "mediaResolution",
                "mediaProcessing",
                "audioMetadata",
                "documentMetadata",
                "spreadsheetMetadata",
            )
        },
    },
    "Tool": {
        "functionDeclarations": several("FunctionDeclaration"),
        "googleSearch": _NO_SEARCH,
        "googleSearchRetrieval": _NO_SEARCH,
        "googleMaps": _NO_SEARCH,
        "enterpriseWebSearch": _NO_SEARCH,
        "parallelAiSearch": _NO_SEARCH,
        "exaAiSearch": _NO_SEARCH,
        "retrieval": _NO_SEARCH,
        "fileSearch": _NO_SEARCH,
        "urlContext": _NO_SEARCH,
        "codeExecution": _NO_SEARCH,
        "computerUse": _NO_SEARCH,
        "mcpServers": refused("the client's library calls them; the server does not"),
    },
    "FunctionDeclaration": {
        "name": TEXT,
        "description": TEXT,
        "parameters": Field("Schema", "arguments are always valid against it"),
        "parametersJsonSchema": Field("json", "the same, as JSON Schema"),
        "response": emulated("Schema", "passed on to upstreams; models here are not told"),
        "responseJsonSchema": emulated("json", "the same"),
        "behavior": Field("Behavior", "BLOCKING; NON_BLOCKING is refused: it is " + _LIVE),
    },
    "ToolConfig": {
        "functionCallingConfig": Field("FunctionCallingConfig"),
        "retrievalConfig": refused("there is no retrieval here"),
        "includeServerSideToolInvocations": refused("tools of the server's side: there are none", "flag"),
    },
    "FunctionCallingConfig": {
        "mode": Field("FunctionCallingConfig.Mode", "AUTO and VALIDATED are one: arguments are always valid"),
        "allowedFunctionNames": several(Field("text", "with ANY and VALIDATED")),
        "streamFunctionCallArguments": emulated("flag", "calls come whole, in one chunk"),
    },
    "SafetySetting": {
        "category": Field("HarmCategory", "of text; those of images only OFF or BLOCK_NONE"),
        "threshold": Field("HarmBlockThreshold"),
        "method": Field("HarmBlockMethod", "PROBABILITY; SEVERITY is refused"),
    },
    "ResponseFormat": {
        "text": Field("TextResponseFormat"),
        "image": Field("ImageResponseFormat", "of models that draw"),
        "audio": _SPEECH,
        "video": refused("answers are text and pictures"),
    },
    "TextResponseFormat": {
        "mimeType": _GENERATION["responseMimeType"],
        "schema": _GENERATION["responseJsonSchema"],
    },
    "ImageResponseFormat": {
        "aspectRatio": _RATIO,
        "mimeType": _OUTPUT["mimeType"],
        "imageSize": _NO_SIZE,
        "delivery": Field("Delivery", "INLINE; URI is refused: pictures come with the answer"),
    },
    "ThinkingConfig": {
        "includeThoughts": Field("flag", "thoughts come in full, where Google sums them up"),
        "thinkingBudget": Field("integer", "-1: as long as the model likes; 0: none", least=-1),
        "thinkingLevel": emulated("ThinkingLevel", "XHIGH is HIGH"),
    },
    "ImageConfig": {
        "aspectRatio": _RATIO,
        "imageSize": _NO_SIZE,
        "personGeneration": refused("nobody looks for persons here"),
        "prominentPeople": refused("nobody looks for persons here"),
        "outputMimeType": _OUTPUT["mimeType"],
        "outputCompressionQuality": _OUTPUT["compressionQuality"],
        "imageOutputOptions": Field("ImageOutputOptions"),
    },
    "ImageOutputOptions": _OUTPUT,
    "DrawRequest": {
        "instances": several(Field("DrawInstance", "one")),
        "parameters": Field("DrawParameters"),
        "labels": _REQUEST["labels"],
    },
    "DrawInstance": {
        "prompt": Field("text", "[V] stands for the subject"),
        "image": refused("a picture to begin from is one of the reference images"),
        "mask": refused("a mask is one of the reference images"),
        "referenceImages": several(Field("ReferenceImage", "a picture to begin from, and a mask of it")),
    },
    "DrawParameters": {
        "sampleCount": Field("integer", least=1, most=8),
        "aspectRatio": _RATIO,
        "seed": Field(
            "integer", "of the first picture; the others have those that follow", least=0, most=2**32 - 9
        ),
        "negativePrompt": TEXT,
        "guidanceScale": Field("number", least=0, most=100),
        "outputOptions": Field("ImageOutputOptions"),
        "steps": Field("integer", "Studiolo's own: denoising steps", least=1, most=1000),
        "sampler": Field("text", "Studiolo's own: as `studiolo generate` has it"),
        "eta": Field("number", "Studiolo's own: noise that DDIM adds back", least=0, most=1),
        "spacing": Field("text", "Studiolo's own: as `studiolo generate` has it"),
        "sigmas": Field("text", "Studiolo's own: as `studiolo generate` has it"),
        "guidanceRescale": Field("number", "Studiolo's own: as `studiolo generate` has it", least=0, most=1),
        "guidanceFrom": Field("number", "Studiolo's own: the part of the steps before the guided ones"),
        "guidanceUntil": Field("number", "Studiolo's own: the part of the steps after which none is guided"),
        "clipSkip": Field("integer", "Studiolo's own: as `studiolo generate` has it", least=0, most=100),
        "width": Field("integer", "Studiolo's own: pixels", least=1, most=2048),
        "height": Field("integer", "Studiolo's own: pixels", least=1, most=2048),
        "sampleImageSize": _NO_SIZE,
        "safetySetting": emulated("text", "only block_none: pictures are not judged here"),
        "personGeneration": emulated("text", "only allow_all: nobody looks for persons here"),
        "includeSafetyAttributes": ignored("flag", "pictures are not judged, so there is nothing to tell"),
        "includeRaiReason": ignored("flag", "the same"),
        "language": ignored("text", "prompts are read as they are"),
        "addWatermark": refused("pictures say how they were made, in their files, and nowhere else", "flag"),
        "enhancePrompt": refused("prompts are drawn as they are", "flag"),
        "storageUri": refused("pictures come with the answer", "text"),
        "mode": refused("pictures are drawn, and neither scaled nor looked at", "text"),
        "editMode": emulated("EditMode", "the modes of painting anew, everywhere or within a mask"),
        "editConfig": Field("EditConfig"),
        "strength": Field(
            "number",
            "Studiolo's own: how much of the picture to give up, to 1; 0.6, within a mask 1",
            least=0,
            most=1,
        ),
    },
    "Schema": _SCHEMA,
    **EDIT_MESSAGES,
    **INTERACTION_MESSAGES,
}
"""The fields of each message, by their names on the wire (camelCase; snake_case is taken everywhere)."""
