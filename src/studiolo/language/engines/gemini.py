"""An engine over Google's Gemini API, by the google-genai SDK."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import httpx2
from google import genai
from google.genai import errors, types
from pydantic import ValidationError

from studiolo.language.conversation import Delta, Request
from studiolo.language.engines.base import Capabilities, Token
from studiolo.language.engines.gemini_body import body_of
from studiolo.language.engines.gemini_stream import StreamReader
from studiolo.language.engines.upstream import (
    TimeLimits,
    error_of_status,
    find_key,
    in_time,
    protocol_kept,
    retry_after_of,
    timed,
    unit,
    without_key,
)
from studiolo.language.errors import (
    InvalidRequestError,
    LanguageError,
    TimedOutError,
    UnsupportedError,
    UpstreamError,
)
from studiolo.language.metering import note

GEMINI_URL = "https://generativelanguage.googleapis.com"

_KEY_VARIABLES = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
_ANY = Capabilities(
    modalities=frozenset({"text", "image", "audio", "video", "document"}), context=1_048_576, thinking=True,
    tools=True, grammar=True, logprobs=True, embeddings=True, seed=True, candidates=8,
)  # fmt: skip

# The SDK's generators do not close the response that they read when they are closed themselves; it is
# caught here on its way from the HTTP client, and closed by whom it belongs to.
_opened: ContextVar[list[httpx2.Response] | None] = ContextVar("_opened", default=None)


class GeminiEngine:
    """An `Engine`. One attempt a request: who wants retries puts a `Router` before it.

    Args:
        model: the model's name at the API, such as gemini-2.5-flash.
        base_url: without the version.
        key: else that of GEMINI_API_KEY or GOOGLE_API_KEY.
        capabilities: what the model can do, as far as it is known.
        limits: how long to wait.

    Raises:
        AuthenticationError: there is no key.
        InvalidRequestError: no such URL.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = GEMINI_URL,
        key: str | None = None,
        capabilities: Capabilities = _ANY,
        limits: TimeLimits | None = None,
    ) -> None:
        if urlsplit(base_url).scheme not in ("http", "https"):
            raise InvalidRequestError("not an http or https URL", where=base_url)
        self._model, self._base_url = model, base_url
        self._capabilities, self._limits = capabilities, limits or TimeLimits()
        self._where = f"{model} at {urlsplit(base_url).hostname}"
        self._key = find_key(key, _KEY_VARIABLES, upstream=self._where)
        # A client of our own: with its default one the SDK tries again by itself, after seconds of sleep.
        self._http = httpx2.AsyncClient(event_hooks={"request": [self._set_time_limit], "response": [_catch]})
        self._client = genai.Client(
            vertexai=False,
            api_key=self._key.get_secret_value(),
            http_options=types.HttpOptions(base_url=base_url, httpx_async_client=self._http),
        )

    async def _set_time_limit(self, request: httpx2.Request) -> None:
        # The SDK passes "no limit" for each request, over what the client has; `timed` watches the rest.
        request.extensions["timeout"] = {"connect": self._limits.connect}

    def __repr__(self) -> str:
        return f"GeminiEngine({self._model!r}, base_url={self._base_url!r})"

    @property
    def model(self) -> str:
        return self._model

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        """See `Engine`. Closing the generator closes the connection, and with it the server's work."""
        body = body_of(request)
        reader = StreamReader(self._model, request, where=self._where)
        deltas = timed(self._deltas(body, reader), self._limits, where=self._where)
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    yield delta
        finally:
            note(reader.usage)

    async def _deltas(self, body: dict[str, Any], reader: StreamReader) -> AsyncGenerator[Delta]:
        responses: list[httpx2.Response] = []
        contents, config = _sdk_form(body)
        try:
            with self._errors():
                chunks = await self._client.aio.models.generate_content_stream(
                    model=self._model, contents=contents, config=config
                )
                while (chunk := await _next_chunk(chunks, responses)) is not None:
                    with protocol_kept(self._where):
                        deltas = list(reader.read(chunk))
                    for delta in deltas:
                        yield delta
                for delta in reader.end():
                    yield delta
        finally:
            for response in responses:
                await response.aclose()

    async def count_tokens(self, request: Request) -> int:
        """See `Engine`."""
        body = body_of(request)
        contents, _ = _sdk_form(body)
        # The SDK has no parameter for the whole request, the API has: then `contents` count for nothing.
        whole = {"generateContentRequest": {"model": f"models/{self._model}"} | body}
        with self._errors():
            answer = await in_time(
                self._client.aio.models.count_tokens(
                    model=self._model,
                    contents=contents,
                    config=types.CountTokensConfig(http_options=types.HttpOptions(extra_body=whole)),
                ),
                self._limits,
                where=self._where,
            )
        if answer.total_tokens is None:
            raise UpstreamError("no count in the answer", where=self._where)
        return answer.total_tokens

    async def tokenize(self, texts: Sequence[str]) -> list[list[Token]]:
        """See `Engine`; not with a key of the Gemini API, which has no such call."""
        raise UnsupportedError("the Gemini API counts tokens and does not tell them", where=self._where)

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        """See `Engine`."""
        if not texts:
            return []
        with self._errors():
            answer = await in_time(
                self._client.aio.models.embed_content(
                    model=self._model,
                    contents=[types.Content(role="user", parts=[types.Part(text=text)]) for text in texts],
                    config=types.EmbedContentConfig(output_dimensionality=dimensions),
                ),
                self._limits,
                where=self._where,
            )
        vectors = [unit(embedding.values or (), dimensions) for embedding in answer.embeddings or ()]
        if len(vectors) != len(texts) or not all(vectors):
            raise UpstreamError(f"{len(vectors)} vectors for {len(texts)} texts", where=self._where)
        return vectors

    async def close(self) -> None:
        """See `Engine`."""
        await self._client.aio.aclose()
        await self._http.aclose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except LanguageError:
            raise
        except errors.APIError as error:  # "from None": its text may repeat the key
            raise self._told(error) from None
        except httpx2.TimeoutException as error:
            raise TimedOutError("no connection in time", where=self._where) from error
        except httpx2.HTTPError as error:
            message = f"the connection failed ({without_key(str(error), self._key) or type(error).__name__})"
            raise UpstreamError(message, where=self._where) from error
        except (errors.UnknownApiResponseError, json.JSONDecodeError, ValidationError) as error:
            raise UpstreamError(f"no readable answer ({type(error).__name__})", where=self._where) from None
        except (TypeError, AttributeError, KeyError) as error:  # the SDK's reader, on JSON of another form
            raise UpstreamError(f"no readable answer ({type(error).__name__})", where=self._where) from error

    def _told(self, error: errors.APIError) -> LanguageError:
        details = _details(error.details)
        status = error.code if isinstance(error.code, int) else 500
        if any(detail.get("reason") == "API_KEY_INVALID" for detail in details):
            status = 401  # the API says 400
        headers = getattr(error.response, "headers", None) or {}
        retry_after = _retry_delay(details)
        return error_of_status(
            status,
            without_key(error.message or error.status or "an error without words", self._key),
            where=self._where,
            retry_after=retry_after_of(headers) if retry_after is None else retry_after,
        )


async def _catch(response: httpx2.Response) -> None:
    if (opened := _opened.get()) is not None:
        opened.append(response)


async def _next_chunk(chunks: Any, responses: list[httpx2.Response]) -> types.GenerateContentResponse | None:
    token = _opened.set(responses)
    try:
        return await anext(chunks, None)
    finally:
        _opened.reset(token)


def _sdk_form(body: dict[str, Any]) -> tuple[list[types.Content], types.GenerateContentConfig]:
    """The body as the SDK takes it: it knows the names of the wire, and has one flat config."""
    rest = {name: value for name, value in body.items() if name not in ("contents", "generationConfig")}
    off = {"automaticFunctionCalling": {"disable": True}, "automaticContinuation": False}
    return (
        [types.Content.model_validate(content) for content in body["contents"]],
        types.GenerateContentConfig.model_validate(body["generationConfig"] | rest | off),
    )


def _details(answer: Any) -> list[Mapping[str, Any]]:
    error = answer.get("error", answer) if isinstance(answer, dict) else {}
    details = error.get("details") if isinstance(error, dict) else None
    return [detail for detail in details or () if isinstance(detail, dict)]


def _retry_delay(details: list[Mapping[str, Any]]) -> float | None:
    """Seconds of a google.rpc.RetryInfo, whose durations are written "3.5s"."""
    for detail in details:
        seconds = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(detail.get("retryDelay", "")))
        if seconds and str(detail.get("@type", "")).endswith("google.rpc.RetryInfo"):
            return float(seconds[1])
    return None
