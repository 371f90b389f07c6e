"""Every parameter that OpenAI's client can send is decided: taken, ignored, or refused by name."""

from __future__ import annotations

import typing

import pytest
from openai.types import (
    batch_create_params,
    embedding_create_params,
    image_generate_params,
    moderation_create_params,
)
from openai.types.chat import completion_create_params
from openai.types.fine_tuning import job_create_params
from openai.types.responses import response_create_params

from studiolo.server.openai.batches_wire import BatchRequest
from studiolo.server.openai.chat_wire import ChatRequest
from studiolo.server.openai.embeddings import EmbeddingRequest
from studiolo.server.openai.fine_tuning_wire import JobRequest
from studiolo.server.openai.images_wire import ImageRequest
from studiolo.server.openai.moderations import ModerationRequest
from studiolo.server.openai.responses_wire import ResponseRequest


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (completion_create_params.CompletionCreateParamsStreaming, ChatRequest),
        (response_create_params.ResponseCreateParamsStreaming, ResponseRequest),
        (embedding_create_params.EmbeddingCreateParams, EmbeddingRequest),
        (image_generate_params.ImageGenerateParamsStreaming, ImageRequest),
        (batch_create_params.BatchCreateParams, BatchRequest),
        (job_create_params.JobCreateParams, JobRequest),
        (moderation_create_params.ModerationCreateParams, ModerationRequest),
    ],
)
def test_no_parameter_of_the_client_is_unknown(theirs, ours):
    known = {field.alias or name for name, field in ours.model_fields.items()}
    assert typing.get_type_hints(theirs).keys() <= known
