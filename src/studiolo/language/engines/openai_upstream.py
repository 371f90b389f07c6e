"""An engine over any server that speaks OpenAI's chat/completions: vLLM, SGLang, Ollama, OpenRouter, ..."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
from openai import AsyncOpenAI

from studiolo.language.conversation import Delta, Request, Text, Thought
from studiolo.language.engines.base import Capabilities, Token
from studiolo.language.engines.openai_body import DIALECTS, Body, body_of
from studiolo.language.engines.openai_stream import StreamReader
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
from studiolo.language.metering import estimated, note

OPENAI_URL = "https://api.openai.com/v1"
OPENROUTER_URL = "https://openrouter.ai/api/v1"

_KEY_VARIABLES = {"openai": ("OPENAI_API_KEY",), "openrouter": ("OPENROUTER_API_KEY",)}
_ANY = Capabilities(
    context=8192, thinking=True, tools=True, logprobs=True, embeddings=True, seed=True, candidates=8
)


class OpenAIUpstream:
    """An `Engine`. One attempt a request: who wants retries puts a `Router` before it.

    Args:
        model: the model's name at the server.
        base_url: up to and with `/v1`.
        dialect: the kind of server, one of `DIALECTS`.
        key: else that of OPENAI_API_KEY for OpenAI's own address and of OPENROUTER_API_KEY for OpenRouter's;
            other servers are asked without one.
        capabilities: what the model can do, as far as it is known.
        limits: how long to wait.

    Raises:
        AuthenticationError: the server needs a key, and there is none.
        InvalidRequestError: no such dialect, or no such URL.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = OPENAI_URL,
        dialect: str = "openai",
        key: str | None = None,
        capabilities: Capabilities = _ANY,
        limits: TimeLimits | None = None,
    ) -> None:
        if dialect not in DIALECTS:
            raise InvalidRequestError(
                "no such kind of server", where=dialect, remedy=f"There are: {', '.join(DIALECTS)}."
            )
        if urlsplit(base_url).scheme not in ("http", "https"):
            raise InvalidRequestError("not an http or https URL", where=base_url)
        self._model, self._base_url, self._dialect = model, base_url.rstrip("/"), DIALECTS[dialect]
        self._capabilities, self._limits = capabilities, limits or TimeLimits()
        self._where = f"{model} at {urlsplit(base_url).hostname}"
        # A key of the environment goes only to the server that it belongs to.
        own = {OPENAI_URL: "openai", OPENROUTER_URL: "openrouter"}.get(self._base_url)
        needs_key = key is not None or own is not None
        self._key = (
            find_key(key, _KEY_VARIABLES[own] if own else (), upstream=self._where) if needs_key else None
        )
        self._left_out = self._headers_to_leave_out(ours=own == "openai")
        self._client = AsyncOpenAI(
            api_key=self._key.get_secret_value() if self._key else "none",
            base_url=self._base_url,
            max_retries=0,
            # Only the connection is timed down there; `timed` watches the rest.
            timeout=httpx2.Timeout(None, connect=self._limits.connect),
        )

    def _headers_to_leave_out(self, *, ours: bool) -> dict[str, Any]:
        """What the SDK takes from the environment for every server, and some must not get."""
        names = [] if ours else ["OpenAI-Organization", "OpenAI-Project"]
        return {name: openai.Omit() for name in (names if self._key else [*names, "Authorization"])}

    def __repr__(self) -> str:
        return f"OpenAIUpstream({self._model!r}, base_url={self._base_url!r}, dialect={self._dialect.name!r})"

    @property
    def model(self) -> str:
        return self._model

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        """See `Engine`. Closing the generator closes the connection, and with it the server's work."""
        body = body_of(request, self._model, self._dialect)
        reader = StreamReader(self._model, request, notes=body.notes, where=self._where)
        deltas = timed(self._deltas(body, reader), self._limits, where=self._where)
        made = 0
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    made += len(delta.part.text.encode()) if isinstance(delta.part, Text | Thought) else 0
                    yield delta
        finally:
            if (usage := reader.usage) is not None or made:
                note(usage or estimated(request, made))

    async def _deltas(self, body: Body, reader: StreamReader) -> AsyncGenerator[Delta]:
        fields = dict(body.fields)
        model, messages = fields.pop("model"), fields.pop("messages")
        with self._errors():
            stream = await self._client.chat.completions.create(
                model=model,
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=fields,
                extra_headers=self._left_out,
            )
            async with stream:
                async for chunk in stream:
                    with protocol_kept(self._where):
                        deltas = list(reader.read(chunk.to_dict(warnings=False)))
                    for delta in deltas:
                        yield delta
            with protocol_kept(self._where):
                deltas = list(reader.end())
            for delta in deltas:
                yield delta

    async def count_tokens(self, request: Request) -> int:
        """Tokens of the prompt, by the server's own endpoint for it (vLLM and llama.cpp have one)."""
        fields = body_of(request, self._model, self._dialect).fields
        names = ("messages", "tools", "chat_template_kwargs")
        kept: dict[str, Any] = {name: fields[name] for name in names if name in fields}
        with self._errors(), protocol_kept(self._where):
            if self._dialect.name == "vllm":
                answer = await self._post(
                    "tokenize", {"model": self._model, "add_generation_prompt": True} | kept
                )
                return int(answer["count"])
            if self._dialect.name == "llamacpp":
                prompt = (await self._post("apply-template", kept))["prompt"]
                # As its completions do: the begin-of-text token is added, special tokens are read as such.
                wanted = {"content": prompt, "add_special": True, "parse_special": True}
                return len((await self._post("tokenize", wanted))["tokens"])
        raise UnsupportedError("the OpenAI API has no endpoint that counts tokens", where="count_tokens")

    async def tokenize(self, texts: Sequence[str]) -> list[list[Token]]:
        """See `Engine`; the OpenAI API has no such call."""
        raise UnsupportedError("the OpenAI API does not tell tokens", where=self._where)

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        root = self._base_url.removesuffix("/v1")
        response = self._client.post(
            f"{root}/{path}", cast_to=httpx2.Response, body=body, options={"headers": self._left_out}
        )
        return json.loads((await in_time(response, self._limits, where=self._where)).text)

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        """See `Engine`."""
        if not texts:
            return []
        wish = {} if dimensions is None else {"dimensions": dimensions}
        with self._errors(), protocol_kept(self._where):
            answer = await in_time(
                self._client.embeddings.create(
                    model=self._model,
                    input=list(texts),
                    encoding_format="float",
                    extra_body=wish,
                    extra_headers=self._left_out,
                ),
                self._limits,
                where=self._where,
            )
            vectors = {item.index: unit(item.embedding, dimensions) for item in answer.data}
            return [vectors[index] for index in range(len(texts))]

    async def models(self) -> list[str]:
        """Names of the models that the server has."""
        with self._errors(), protocol_kept(self._where):
            page = await in_time(
                self._client.models.list(extra_headers=self._left_out), self._limits, where=self._where
            )
            return [model.id for model in page.data]

    async def close(self) -> None:
        """See `Engine`."""
        await self._client.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except LanguageError:
            raise
        except openai.APITimeoutError as error:
            raise TimedOutError("no connection in time", where=self._where) from error
        except openai.APIConnectionError as error:
            raise UpstreamError(
                f"the connection failed ({error.__cause__ or error})", where=self._where
            ) from error
        except openai.APIStatusError as error:
            # Not "from error": its text may repeat the key.
            raise self._told(error.status_code, error, retry_after_of(error.response.headers)) from None
        except openai.APIError as error:  # an error within the stream has its status in `code`, if at all
            status = int(error.code) if error.code and error.code.isdigit() else 500
            raise self._told(status, error, None) from None
        except (json.JSONDecodeError, httpx2.HTTPError) as error:
            raise UpstreamError(f"no readable answer ({type(error).__name__})", where=self._where) from error

    def _told(self, status: int, error: openai.APIError, retry_after: float | None) -> LanguageError:
        message = without_key(error.message, self._key)
        return error_of_status(status, message, where=self._where, retry_after=retry_after)
