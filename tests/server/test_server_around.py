"""What stands around the routes: dialects, bounds, keys, logs, metrics, origins."""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
import pytest
from fastapi import APIRouter, Depends, Request
from serving import serving
from starlette.datastructures import Headers

from language.stub import StubEngine
from studiolo.language.conversation import Usage
from studiolo.server import sse
from studiolo.server.auth import Caller, caller
from studiolo.server.bodies import check_depth, json_body
from studiolo.server.dialects import way_of
from studiolo.server.keys import KeyLimits
from studiolo.server.studio import studio_behind

GOOGLE = {"x-goog-api-key": "k"}
BEARER = {"authorization": "Bearer k"}


@pytest.mark.parametrize(
    ("asked", "headers", "query", "expected"),
    [
        ("/v1/models", BEARER, "", "/openai/v1/models"),
        ("/v1/models", {}, "", "/openai/v1/models"),
        ("/v1/models", GOOGLE, "", "/gemini/v1beta/models"),
        ("/v1/models", {"x-goog-api-client": "google-genai-sdk/3.4.0"}, "", "/gemini/v1beta/models"),
        ("/v1/models", {}, "key=k", "/gemini/v1beta/models"),
        ("/v1/models", {}, "monkey=k", "/openai/v1/models"),
        ("/v1beta/models", BEARER, "", "/gemini/v1beta/models"),
        ("/v1/models/smollm2:generateContent", {}, "", "/gemini/v1beta/models/smollm2:generateContent"),
        ("/v1/files/file-1", GOOGLE, "", "/gemini/v1beta/files/file-1"),
        ("/v1/files/file-1", BEARER, "", "/openai/v1/files/file-1"),
        ("/v1/batches", GOOGLE, "", "/gemini/v1beta/batches"),
        ("/v1/batches/b/cancel", BEARER, "", "/openai/v1/batches/b/cancel"),
        ("/v1/batches/b:cancel", {}, "", "/gemini/v1beta/batches/b:cancel"),
        ("/v1/chat/completions", GOOGLE, "", "/openai/v1/chat/completions"),
        ("/v1/cachedContents", BEARER, "", "/gemini/v1beta/cachedContents"),
        ("/upload/v1beta/files", {}, "", "/gemini/v1beta/upload/files"),
        ("/upload/v1/files", {}, "", "/gemini/v1beta/upload/files"),
        ("/gemini/v1/models", BEARER, "", "/gemini/v1beta/models"),
        ("/gemini/upload/v1beta/files", {}, "", "/gemini/v1beta/upload/files"),
        ("/gemini/v1beta/upload/files", {}, "", "/gemini/v1beta/upload/files"),
        ("/openai/v1/models", GOOGLE, "key=k", "/openai/v1/models"),
        ("/openai/models", {}, "", "/openai/v1/models"),
        ("/v1beta1/publishers/google/models/m:predict", {}, "",
         "/gemini/v1beta/publishers/google/models/m:predict"),
    ],
)  # fmt: skip
def test_a_path_and_a_credential_tell_the_dialect(asked, headers, query, expected):
    way = way_of(asked, Headers(headers), query)
    assert way is not None
    assert way.path == expected
    assert way.dialect == expected.split("/")[1]


@pytest.mark.parametrize("asked", ["/", "/health", "/v1x/models", "/v2/models", "/openaiv1", "/metrics"])
def test_other_paths_are_no_dialects(asked):
    assert way_of(asked, Headers(GOOGLE), "key=k") is None


def plain() -> APIRouter:
    router = APIRouter()

    @router.post("/echo")
    async def echo(request: Request) -> dict:
        return await json_body(request)

    @router.post("/spend")
    async def spend(request: Request, who: Caller = Depends(caller)) -> dict:
        usage = Usage(prompt=1000, cached=200, answer=100, thoughts=50)
        return {
            "caller": who.name,
            "dollars": await studio_behind(request).account(who, "gemini-2.5-flash", usage),
        }

    @router.post("/held")
    async def held(request: Request, who: Caller = Depends(caller)) -> sse.Stream:
        await request.body()

        async def events():
            yield sse.Event({"caller": who.name})
            await asyncio.Event().wait()

        return sse.Stream(events(), broken=lambda told: ())

    @router.get("/broken")
    async def broken() -> None:
        raise RuntimeError("what somebody said in confidence")

    return router


@pytest.fixture
def ask(studiolo_home):
    return lambda **settings: serving(studiolo_home, {"stub": StubEngine()}, plain(), **settings)


@pytest.fixture
def lines():
    """What is logged, as the server writes it."""
    from studiolo.server.logs import JsonLines

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            self.lines.append(json.loads(JsonLines().format(record)))

    handler = Kept()
    handler.lines = []
    logger = logging.getLogger("studiolo")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b'{"a": 1}', 200, ""),
        (b"", 400, "no JSON"),
        (b"{", 400, "nested deeper than 64 levels, or its brackets do not match"),
        (b'{"a": NaN}', 400, "no JSON"),
        (b"\xff", 400, "no JSON"),
        (b"[]", 400, "no JSON object"),
        (b'"' + b"[" * 100 + b'"', 400, "no JSON object"),  # these are no brackets of the JSON
        (b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}", 200, ""),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", 400, "nested deeper"),
        (b'{"a": ' * 2000 + b"1" + b"}" * 2000, 400, "nested deeper"),
        (b"[" * 1_000_000, 400, "nested deeper"),
        (b'{"a": "' + b"x" * 5000 + b'"}', 413, "more than 4,096 bytes"),
    ],
)  # fmt: skip
def test_bodies(ask, body, status, told):
    with ask(largest_body=4096 if status == 413 else 2**21) as server:
        answer = httpx.post(f"{server.url}/echo", content=body)
    assert answer.status_code == status, answer.text
    assert told in answer.text


def test_a_body_that_does_not_tell_its_size_is_bounded_too(ask):
    with ask(largest_body=4096) as server:
        answer = httpx.post(f"{server.url}/echo", content=(b" " * 1000 for _ in range(10)))
    assert answer.status_code == 413


def test_a_huge_body_is_refused_before_it_is_sent(ask):
    with ask() as server, server.connect() as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_depth_is_what_a_parser_says_it_is():
    def depth(value) -> int:
        if isinstance(value, dict | list):
            return 1 + max(
                (depth(v) for v in (value.values() if isinstance(value, dict) else value)), default=0
            )
        return 0

    for text in ('{"a": [{"b": []}], "c": "]]]}}}"}', '[[], [[]], {"\\"[": {}}]', "{}", "1", '["\\\\", []]'):
        found = depth(json.loads(text))
        check_depth(text.encode(), found)
        if found:
            with pytest.raises(Exception, match="nested deeper"):
                check_depth(text.encode(), found - 1)


def test_what_nobody_foresaw_tells_nothing_and_is_logged_without_words(ask, lines):
    with ask() as server:
        answer = httpx.get(f"{server.url}/broken")
    assert answer.status_code == 500
    assert "confidence" not in answer.text
    assert "RuntimeError" not in answer.text
    error = next(line for line in lines if line["level"] == "error")
    assert error["error"] == "RuntimeError"
    assert error["request"] == answer.headers["x-request-id"]
    assert any("test_server_around.py" in place for place in error["at"])
    assert "confidence" not in json.dumps(lines)


def test_each_answer_has_an_id_and_a_decent_one_of_the_client_is_kept(ask, lines):
    with ask() as server:
        mine = httpx.get(f"{server.url}/nothing", headers={"x-request-id": "trace-12345678"})
        bad = httpx.get(f"{server.url}/nothing", headers={"x-request-id": 'x" y'})
    assert mine.headers["x-request-id"] == "trace-12345678"
    assert bad.headers["x-request-id"].startswith("req_")
    ids = [line["request"] for line in lines if line["event"] == "request"]
    assert ids == [mine.headers["x-request-id"], bad.headers["x-request-id"]]


def test_the_log_tells_what_it_cost_and_whom_and_not_the_key(ask, lines):
    with ask(host="0.0.0.0") as server:
        text, key = server.studio.keys.store.create("anna")
        answer = httpx.post(f"{server.url}/spend?key={text}")
        spent = answer.json()["dollars"]
    line = next(line for line in lines if line["event"] == "request")
    assert (line["caller"], line["key"], line["dollars"]) == ("anna", key.id, spent)
    # gemini-2.5-flash: 3e-7 a prompt token, 3e-8 a cached one, 2.5e-6 of answer and thought (catalog.yaml).
    assert spent == pytest.approx(800 * 3e-7 + 200 * 3e-8 + 150 * 2.5e-6)
    assert line["usage"] == {"prompt": 1000, "cached": 200, "answer": 100, "thoughts": 50}
    assert text not in json.dumps(lines)


def test_who_may_not_is_told_so(ask):
    with ask(host="0.0.0.0") as server:
        store = server.studio.keys.store
        nobody = httpx.post(f"{server.url}/spend")
        assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer")
        text, _ = store.create("anna", limits=KeyLimits(dollars_per_day=0.001))
        forms = [
            {"x-goog-api-key": text},
            {"authorization": f"Bearer {text}"},
            {"authorization": f"bearer {text}"},
        ]
        answers = [httpx.post(f"{server.url}/spend", headers=headers) for headers in forms]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 0 < int(answers[2].headers["retry-after"]) <= 24 * 3600
        assert httpx.post(f"{server.url}/spend", headers={"x-goog-api-key": text[:-2]}).status_code == 401
        for path in ("health", "metrics"):
            assert httpx.get(f"{server.url}/{path}").status_code == 200


def test_a_client_that_goes_away_gives_its_place_back(ask):
    with ask(host="0.0.0.0") as server:
        text, _ = server.studio.keys.store.create("anna", limits=KeyLimits(concurrent=1))
        head = f"POST /held HTTP/1.1\r\nHost: x\r\nx-goog-api-key: {text}\r\nContent-Length: 0\r\n\r\n"
        with server.connect() as connection:
            connection.sendall(head.encode())
            got = b""
            while b"anna" not in got:
                got += connection.recv(4096)
            assert server.studio.room.busy
            assert httpx.post(f"{server.url}/spend", headers={"x-goog-api-key": text}).status_code == 429
        while (
            answer := httpx.post(f"{server.url}/spend", headers={"x-goog-api-key": text})
        ).status_code == 429:
            pass
        assert answer.status_code == 200
        while server.studio.room.busy:
            pass


def test_metrics_count(ask):
    with ask() as server:
        for _ in range(3):
            httpx.post(f"{server.url}/spend")
        httpx.get(f"{server.url}/v1/nothing-that-there-is")
        text = httpx.get(f"{server.url}/metrics").text
    assert 'studiolo_requests_total{dialect="",model="",route="/spend",status="200"} 3.0' in text
    assert 'studiolo_requests_total{dialect="openai",model="",route="",status="404"} 1.0' in text
    assert 'studiolo_tokens_total{kind="cached",model="gemini-2.5-flash"} 600.0' in text
    assert "nothing-that-there-is" not in text


def test_ready_when_the_model_is_loaded_and_the_database_answers(ask, studiolo_home):
    with ask(preload=True) as server:
        while (answer := httpx.get(f"{server.url}/ready")).status_code == 503:
            assert answer.json() == {"ready": False, "model": False, "database": True}
        assert answer.json() == {"ready": True, "model": True, "database": True}
        server.studio.database.close()
        database = studiolo_home / "studiolo.sqlite"
        database.rename(studiolo_home / "away")
        database.mkdir()
        assert httpx.get(f"{server.url}/ready").json() == {"ready": False, "model": True, "database": False}
        assert httpx.get(f"{server.url}/health").status_code == 200
        database.rmdir()
        (studiolo_home / "away").rename(database)


def test_pages_of_other_origins_are_let_in_by_name_alone(ask):
    asking = {"origin": "https://me.example", "access-control-request-method": "POST"}
    with ask() as server:
        answer = httpx.options(f"{server.url}/echo", headers=asking)
        assert "access-control-allow-origin" not in answer.headers
    with ask(cors=("https://me.example",)) as server:
        answer = httpx.options(f"{server.url}/echo", headers=asking)
        assert answer.headers["access-control-allow-origin"] == "https://me.example"
        other = httpx.options(f"{server.url}/echo", headers=asking | {"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_pages_that_may_not_call_cannot_have_work_done_blindly(ask):
    """A form of any page can send this, without asking before; it only cannot read the answer."""
    page = {"origin": "https://me.example", "content-type": "text/plain"}

    def sent(server, **headers: str) -> int:
        return httpx.post(f"{server.url}/spend", content="{}", headers=page | headers).status_code

    with ask() as server:
        key, _ = server.studio.keys.store.create("anna")
        refused = httpx.post(f"{server.url}/spend", headers=page)
        assert (refused.status_code, "--cors" in refused.text) == (403, True)
        assert sent(server, origin="null") == sent(server, **{"x-goog-api-key": "any"}) == 403
        assert sent(server, origin=server.url) == 200  # a page of its own
        assert sent(server, **{"x-goog-api-key": key}) == 200
    for allowed in ("https://me.example", "*"):
        with ask(cors=(allowed,)) as server:
            assert sent(server) == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "LocalHost.", "[::1]"])
def test_names_that_mean_this_machine_to_everybody(ask, host):
    with ask() as server:
        for name in (host, f"{host}:{server.port}"):
            headers = {"host": name, "origin": f"http://{name}"}
            assert httpx.post(f"{server.url}/spend", headers=headers).status_code == 200


FOREIGN = (
    "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "1localhost", "[::2]", "0.0.0.0",
    "10.0.0.1", "localhost:80:80", "[::1", "me@localhost", "",
)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/spend"), ("GET", "/v1/files"), ("GET", "/v1beta/files"), ("GET", "/metrics")],
)
def test_a_page_whose_name_was_made_to_mean_this_machine_is_refused(ask, method, path):
    """DNS rebinding: for its browser such a page and this server are one origin, and a GET tells of none."""
    with ask() as server, httpx.Client(base_url=server.url) as http:
        for host in FOREIGN:
            page = {"host": host, "origin": f"http://{host}"}
            for headers in ({"host": host}, page, {**page, "x-goog-api-key": "any"}):
                answer = http.request(method, path, headers=headers)
                assert (answer.status_code, "--allow-host" in answer.text) == (403, True), headers


def test_a_key_of_ours_is_good_under_any_name(ask):
    page = {"host": "evil.example", "origin": "http://evil.example"}
    with ask() as server:
        key, _ = server.studio.keys.store.create("anna")
        assert httpx.post(f"{server.url}/spend", headers={**page, "x-goog-api-key": key}).status_code == 200
        assert httpx.get(f"{server.url}/health", headers=page).status_code == 200


def test_names_that_are_given_are_answered_to(ask):
    def sent(server, host: str, **headers: str) -> int:
        return httpx.post(f"{server.url}/spend", headers={"host": host, **headers}).status_code

    with ask(hosts=("Studio.example", "fd00::5")) as server:
        assert sent(server, "studio.example") == sent(server, "STUDIO.example:8443") == 200
        assert sent(server, "studio.example", origin="https://studio.example") == 200
        assert sent(server, "[fd00::5]:8484") == sent(server, f"127.0.0.1:{server.port}") == 200
        assert sent(server, "other.example") == sent(server, "a.studio.example") == 403
        assert sent(server, "studio.example", origin="https://me.example") == 403
    with ask(hosts=("*",)) as server:
        assert sent(server, "any.example") == 200
        assert sent(server, "any.example", origin="https://me.example") == 403
    with ask(cors=("*",)) as server:  # every page may call anyway
        assert sent(server, "any.example", origin="https://me.example") == 200
    with ask(cors=("https://me.example",)) as server:
        assert sent(server, "me.example", origin="https://me.example") == 403


def test_where_a_key_is_needed_any_name_is_answered_to(ask):
    with ask(host="0.0.0.0") as server:
        key, _ = server.studio.keys.store.create("anna")
        page = {"host": "studio.example", "origin": "https://studio.example"}
        assert httpx.post(f"{server.url}/spend", headers={**page, "x-goog-api-key": key}).status_code == 200
        assert httpx.post(f"{server.url}/spend", headers=page).status_code == 401
        assert httpx.get(f"{server.url}/metrics", headers=page).status_code == 200


def test_the_document_is_one(ask):
    with ask() as server:
        document = httpx.get(f"{server.url}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/health", "/ready", "/metrics"} <= set(document["paths"])
