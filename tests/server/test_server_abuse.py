"""What nobody decent sends: broken bytes, broken HTTP, tricks with names, other people's things.

Each is answered with a 4xx in the dialect's own envelope and with a request id, and the server lives on.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest
from gemini_stub import Scripted
from serving import Serving, serving

from studiolo.server import bodies

GOOGLE = {"x-goog-api-key": "k"}
GENERATE, CHAT = "/v1beta/models/stub:generateContent", "/v1/chat/completions"
BODIES: dict[str, Any] = {
    GENERATE: {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    CHAT: {"model": "stub", "messages": [{"role": "user", "content": "hello"}]},
    "/v1/responses": {"model": "stub", "input": "hello"},
}
BROKEN = {
    "nothing": b"",
    "cut": b'{"contents": [',
    "not an object": b"[]",
    "null": b"null",
    "NaN": b'{"x": NaN}',
    "infinite": b'{"x": 1e999}',
    "a number of 5000 digits": b'{"x": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"x": "\xff"}',
    "UTF-16": '{"x": 1}'.encode("utf-16"),
    "half a surrogate pair": b'{"x": "\\ud800"}',
    "half a surrogate pair in bytes": b'{"x": "\xed\xa0\x80"}',
    "half a surrogate pair in a name": b'{"\\ud800": 1}',
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "compressed": b"\x1f\x8b\x08" + bytes(20),
    "an unknown field": b'{"x": 1}',
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("STUDIOLO_HOME")
    os.environ["STUDIOLO_HOME"] = str(home)
    try:
        stub = {"stub": Scripted(["fine"])}
        with serving(home, stub, largest_body=2**20, largest_file=2**22, jobs=True) as here:
            yield here
    finally:
        os.environ.pop("STUDIOLO_HOME")
        if before is not None:
            os.environ["STUDIOLO_HOME"] = before


@pytest.fixture
def http(served: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60, verify=False) as client:
        yield client
        assert client.get("/health").json() == {"status": "ok"}


def refused(response: httpx.Response, *statuses: int) -> str:
    """The message of a refusal, which must be in the envelope of the dialect that its path speaks."""
    assert response.status_code in (statuses or range(400, 500)), response.text
    assert response.headers["x-request-id"]
    assert "Traceback" not in response.text
    error = response.json()["error"]
    path = response.request.url.path
    if path.startswith(("/v1beta", "/upload", "/gemini")):
        assert {"code", "message", "status"} <= set(error) <= {"code", "message", "status", "details"}
        assert error["code"] == response.status_code
    else:
        assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return str(error["message"])


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_bodies(http, path, name):
    refused(http.post(path, content=BROKEN[name], headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize("path", BODIES)
def test_the_type_of_the_content_does_not_matter_where_it_is_json(http, path):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "nonsense"):
        answer = http.post(path, content=json.dumps(BODIES[path]), headers={"content-type": kind})
        assert answer.status_code == 200


@pytest.mark.parametrize("path", BODIES)
def test_of_a_name_given_twice_the_last_holds(http, path):
    first = "".join(f'"{name}": 1, ' for name in BODIES[path])
    body = json.dumps(BODIES[path])
    assert http.post(path, content="{" + first + body[1:]).status_code == 200
    assert http.post(path, content=body[:-1] + ", " + first[:-2] + "}").status_code == 400


JUNK: list[Any] = [
    None, True, -(2**70), 1.5, "a\0\r\nb: c", "../../etc/passwd", "x" * 70_000, [None, [[]]],
    {"": {"": None}},
]  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        *BODIES, "/v1/embeddings", "/v1/files", "/v1/uploads", "/v1/batches",
        "/v1/fine_tuning/jobs", "/v1/moderations", "/v1beta/cachedContents", "/v1beta/tuningJobs",
        "/v1beta/tunedModels", "/v1beta/models/stub:countTokens", "/v1beta/models/stub:embedContent",
        "/v1beta/models/stub:batchEmbedContents", "/v1beta/models/stub:batchGenerateContent",
        "/v1beta/models/stub:predict", "/v1beta/models/stub:asyncBatchEmbedContent",
    ],
)  # fmt: skip
def test_junk_in_every_field(served, http, path):
    """Every field of the request in the OpenAPI document, with values that it was not made for."""
    document = http.get("/openapi.json").json()["paths"]
    gemini = path.startswith("/v1beta")
    known = (
        path.replace("/v1beta", "/gemini/v1beta").replace("stub", "{model}") if gemini else "/openai" + path
    )
    content = document[known]["post"]["requestBody"]["content"]
    schema = content.get("application/json", content.get("multipart/form-data"))["schema"]
    good = BODIES.get(path, {})
    schemas = schema.get("anyOf", [schema])
    for field in sorted({name for one in schemas for name in one["properties"]}):
        for value in JUNK:
            answer = http.post(path, json=good | {field: value}, headers=GOOGLE if gemini else {})
            assert answer.status_code < 500, (field, value, answer.text)
            if answer.status_code >= 400:
                refused(answer)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/{}", "/v1/files/{}/content", "/v1/files?after={}", "/v1/files?purpose={}",
        "/v1/batches/{}",
        "/v1/batches?after={}", "/v1/models/{}", "/v1/responses/{}", "/v1/responses/{}/input_items",
        "/v1/fine_tuning/jobs/{}", "/v1/fine_tuning/jobs?after={}", "/v1/fine_tuning/jobs/{}/events",
        "/v1beta/files/{}", "/v1beta/files/{}:download", "/v1beta/files?pageToken={}",
        "/v1beta/files/batch-{}",
        "/v1beta/cachedContents/{}", "/v1beta/cachedContents?pageToken={}", "/v1beta/batches/{}",
        "/v1beta/batches?pageToken={}", "/v1beta/models/{}", "/v1beta/tunedModels/{}",
        "/v1beta/tuningJobs/{}",
        "/v1beta/tunedModels/{}/operations/x", "/v1beta/tunedModels/{}/previews",
        "/v1beta/tunedModels/x/previews/{}",
        "/v1beta/projects/p/locations/l/tuningJobs?pageToken={}", "/v1beta1/publishers/google/models/{}",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "name", ["%00", "..%2F..%2Fetc%2Fpasswd", "%ED%A0%80", "%0D%0Ax-evil:%201", "a" * 9000, "..", "%2e%2e%5c"]
)
def test_names_that_lead_elsewhere(http, path, name):
    answer = http.get(path.format(name), headers=GOOGLE if "v1beta" in path else {})
    assert "x-evil" not in answer.headers
    assert "root:" not in answer.text
    if answer.status_code != 200:  # lists may be empty
        assert answer.status_code < 500, answer.text
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "TRACE", "BREW"])
@pytest.mark.parametrize(
    "path", [*BODIES, "/v1/nothing", "/v1beta/nothing", "/v1/", "/gemini", "/openai/v2/x"]
)
def test_unknown_paths_and_methods(http, path, method):
    if (method, path) == ("GET", CHAT):
        path = "/v1/chat"  # completions that were kept are listed there
    answer = http.request(method, path)
    assert answer.status_code in (400, 404, 405), answer.text
    assert answer.json()["error"]["message"]


def operations(http: httpx.Client) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in http.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_the_openapi_document_tells_what_is_so(http):
    names = []
    for _, path, operation in operations(http):
        names.append(operation["operationId"])
        if path.startswith(("/gemini", "/openai")):
            assert {"bearer": []} in operation["security"], path
            assert "422" not in operation["responses"], path
            assert {parameter["name"] for parameter in operation.get("parameters", [])} >= {
                piece.partition("}")[0].partition(":")[0] for piece in path.split("{")[1:]
            }
    assert len(names) == len(set(names)) > 60


def test_every_operation_of_the_document_refuses_nonsense(http):
    """With a name that there is not in each place, and a body of an unknown field."""
    for method, path, operation in operations(http):
        asked = re.sub(r"\{[^}]*\}", "nothing", path)
        body = {"json": {"no such field": 1}} if "requestBody" in operation else {}
        answer = http.request(method, asked, **body)
        if answer.status_code != 200:  # lists are empty, and uploads take any bytes
            refused(answer, *range(400, 500), 501, 503)


# --- HTTP by hand -----------------------------------------------------------------------------------------


def by_hand(served: Serving, data: bytes, *, end: bool = False) -> bytes:
    """What comes back until the server hangs up, or has answered once; `end` closes our half at once."""
    with closing(served.connect()) as connection:
        try:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            got = b""
            while piece := connection.recv(65536):
                got += piece
                if _whole(got):
                    break
        except ConnectionError:
            pass
        return got


def _whole(got: bytes) -> bool:
    head, found, body = got.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(found and lengths) and len(body) >= int(lengths[0].split(b":")[1])


def post(path: str, *headers: str, body: bytes = b"") -> bytes:
    return (
        "\r\n".join([f"POST {path} HTTP/1.1", "host: localhost", *headers, "", ""]).encode("latin-1") + body
    )


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
        b"GET /health\r\n\r\n",
        b"GET /hea lth HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        post("/v1/responses", "content-length: -1"),
        post("/v1/responses", "content-length: 1_0", body=b"0123456789"),
        post("/v1/responses", "content-length: 5", "content-length: 6", body=b"012345"),
        post("/v1/responses", "transfer-encoding: chunked", body=b"zz\r\n"),
        post("/v1/responses", "content-length: 5", "transfer-encoding: chunked", body=b"0\r\n\r\n"),
        post("/v1/responses", "x: a\0b", body=b""),
    ],
)
def test_what_is_no_http(served, http, data):
    got = by_hand(served, data)
    assert got.split(b" ")[1] in (b"400", b"404") if got else True


def test_headers_without_end(served, http):
    got = by_hand(served, b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 2_000_000)
    assert got == b"" or b" 4" in got.split(b"\r\n")[0]


@pytest.mark.parametrize("path", BODIES)
def test_bodies_that_say_that_they_are_huge(served, http, path):
    got = by_hand(served, post(path, "content-length: 99999999999"))
    assert got.startswith(b"HTTP/1.1 413")
    assert b'"error"' in got


@pytest.mark.parametrize("path", [*BODIES, "/v1/files", "/upload/v1beta/files"])
def test_bodies_without_a_length_end_at_the_bound(served, path):
    """Far more than the bound is offered in chunks: refused when it is reached, and kept nowhere."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kind = "multipart/form-data; boundary=a" if path == "/v1/files" else "application/json"
    begun = form(b"a.txt")["content"].removesuffix(b"x\r\n--a--\r\n") if path == "/v1/files" else b" "
    with closing(served.connect()) as connection:
        connection.sendall(post(path, "transfer-encoding: chunked", f"content-type: {kind}"))
        connection.sendall(b"%x\r\n%s\r\n" % (len(begun), begun))
        with suppress(ConnectionError):  # it is cut off in the midst
            for _ in range(2**10):
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        got = connection.recv(65536)
    assert got.startswith(b"HTTP/1.1 413")
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000
    )  # KiB, of the 64 MiB that came


@pytest.mark.parametrize("length", ["content-length: 99999999999", "transfer-encoding: chunked"])
@pytest.mark.parametrize("path", [CHAT, "/v1/no-such-path"])
def test_what_is_sent_behind_a_refusal_is_not_read_for_ever(served, path, length):
    """It is told so, and the connection ends soon; the system's own buffers may take a little more."""
    sent, most = 0, bodies.LINGER_BYTES + 2**26
    with closing(served.connect()) as connection:
        connection.sendall(post(path, length))
        with suppress(ConnectionError):
            while sent < most:
                sent += connection.send(b"10000\r\n" + b" " * 65536 + b"\r\n")
        got = connection.recv(65536)
    assert sent < most
    assert got.split(b" ")[1] in (b"413", b"404", b"400")
    assert b"\r\nconnection: close" in got.lower()


def test_who_sends_nothing_behind_a_refusal_is_let_go(served, monkeypatch):
    monkeypatch.setattr(bodies, "LINGER", 0.05)
    with closing(served.connect()) as connection:
        connection.sendall(post(CHAT, "content-length: 99999999999"))
        got = b"".join(iter(lambda: connection.recv(65536), b""))
    assert got.startswith(b"HTTP/1.1 413")


def test_a_short_body_that_is_refused_does_not_end_the_connection(served):
    """Nor is a long one cut off that comes to its end soon."""
    with closing(HTTPConnection("127.0.0.1", served.port, timeout=60)) as connection:
        for size, ending in ((1000, None), (2**19, "close")):
            connection.request("POST", "/v1/no-such-path", b" " * size)
            answer = connection.getresponse()
            assert (answer.status, answer.headers["connection"]) == (404, ending)
            assert json.loads(answer.read())["error"]


def test_clients_that_go_in_the_middle_of_a_body(served, http):
    for path in BODIES:
        by_hand(served, post(path, "content-length: 1000", body=b'{"contents": ['), end=True)
        with closing(served.connect()) as connection:
            connection.sendall(post(path, "content-length: 1000", body=b'{"contents": ['))


def test_slow_bodies_hold_up_nobody(served, http):
    """Sixty clients send half of their body and wait; others are answered meanwhile."""
    waiting = [served.connect() for _ in range(60)]
    try:
        for connection in waiting:
            connection.sendall(post(GENERATE, "content-length: 1000", body=b'{"contents": ['))
        assert http.post(CHAT, json=BODIES[CHAT]).status_code == 200
        assert http.post(GENERATE, json=BODIES[GENERATE]).status_code == 200
    finally:
        for connection in waiting:
            connection.close()


def test_long_queries_and_headers(http):
    assert http.get("/v1/models?" + "a=1&" * 12_000).status_code == 200
    refused(http.get("/v1beta/models?pageToken=" + "a" * 50_000 + "&pageSize=-1"))
    assert (
        http.get("/v1/models", headers={"x-request-id": "a" * 5000})
        .headers["x-request-id"]
        .startswith("req_")
    )


@pytest.mark.parametrize("host", ["a b", "[::1", "h:port", "x/y?z#", "é", "evil.example"])
def test_whatever_host_is_asked_for(served, http, host):
    """It is refused without a key. With one, addresses of uploads are made from it where it is one, and
    nothing else is."""
    start = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start", "host": host.encode()}
    anybody = http.post("/upload/v1beta/files", json={}, headers={**start, **GOOGLE})
    assert anybody.status_code in (400, 403)
    key, _ = served.studio.keys.store.create(f"anna of {host}")
    answer = http.post("/upload/v1beta/files", json={}, headers={**start, "x-goog-api-key": key})
    assert answer.status_code in (200, 400)
    if answer.status_code == 200:
        address = httpx.URL(answer.headers["x-goog-upload-url"])
        assert address.host in ("127.0.0.1", "evil.example")


# --- files ------------------------------------------------------------------------------------------------


def form(filename: bytes, data: bytes = b"x", kind: str = "text/plain", purpose: str = "user_data") -> dict:
    head = b'--a\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + purpose.encode() + b"\r\n"
    head += b'--a\r\nContent-Disposition: form-data; name="file"; filename="' + filename + b'"\r\n'
    head += b"Content-Type: " + kind.encode() + b"\r\n\r\n"
    return {
        "content": head + data + b"\r\n--a--\r\n",
        "headers": {"content-type": "multipart/form-data; boundary=a"},
    }


@pytest.mark.parametrize(
    "name",
    [b"../../../etc/cron.d/x", b"/etc/passwd", b"..", b"\xff\xfe", b"%0d%0ax-evil: 1", b"C:\\x", b"'; --"],
)
def test_names_of_files_are_only_told(served, http, name):
    answer = http.post("/v1/files", **form(name))
    assert answer.status_code == 200, answer.text
    kept = served.studio.files.path(answer.json()["id"])
    assert kept.resolve().is_relative_to(served.studio.settings.data.resolve())
    content = http.get(f"/v1/files/{answer.json()['id']}/content")
    assert content.content == b"x"
    assert content.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
    assert content.headers["x-content-type-options"] == "nosniff"
    assert "x-evil" not in content.headers


@pytest.mark.parametrize("name", [b"a\0b", b"a\tb", b"x" * 600])
def test_names_that_are_none(http, name):
    refused(http.post("/v1/files", **form(name)), 400)


@pytest.mark.parametrize(
    "told",
    [
        {"name": "files/../../x"}, {"name": "files/a\0"}, {"displayName": "a\r\nb"},
        {"mimeType": "a\r\nb: c"},
        {"mimeType": "x" * 10_000}, {"displayName": "x" * 100_000}, {"sizeBytes": "-1"},
        {"name": "files/batch-x"},
    ],
)  # fmt: skip
def test_uploads_that_lie_about_their_file(http, told):
    start = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"} | GOOGLE
    refused(http.post("/upload/v1beta/files", json={"file": told}, headers=start), 400)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", b"--a\r\n" + b"X" * 100_000, b"--a\r\nx: " + b"X" * 1_000_000,
        b"--a\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a--",
        b"".join(b'--a\r\nContent-Disposition: form-data; name="f%d"\r\n\r\nx\r\n' % n for n in range(2000)),
        b'--a\r\nContent-Disposition: form-data; name="purpose[a][b]"\r\n\r\nx\r\n--a--',
    ],
)  # fmt: skip
def test_forms_that_are_none(http, body):
    kind = "multipart/{}; boundary=a"
    refused(http.post("/v1/files", content=body, headers={"content-type": kind.format("form-data")}), 400)
    headers = GOOGLE | {"content-type": kind.format("related")}
    refused(http.post("/upload/v1beta/files", content=body, headers=headers), 400)


def archive(**entries: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in entries.items():
            packed.writestr(name.replace("_SLASH_", "/"), data)
    return out.getvalue()


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "a bomb": lambda: archive(**{"a.png": bytes(200_000_000)}),
    "a way out": lambda: archive(**{".._SLASH_.._SLASH_x.png": b"x"}),
    "the root": lambda: archive(**{"_SLASH_etc_SLASH_x.png": b"x"}),
    "no archive": lambda: b"PK\x03\x04" + bytes(100),
    "cut": lambda: archive(**{"a.png": b"x" * 1000})[:-30],
    "nothing in it": archive,
    "no picture": lambda: archive(**{"a.png": b"no picture"}),
    "many": lambda: archive(**{f"{n}.png": b"" for n in range(5000)}),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_which_nothing_is_taught(served, http, name):
    data = ARCHIVES[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file = http.post("/v1/files", **form(b"photos.zip", data, "application/zip", "fine-tune")).json()["id"]
    body = {
        "model": "studiolo-base", "training_file": file, "suffix": "toy",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
    }  # fmt: skip
    answer = http.post("/v1/fine_tuning/jobs", json=body)
    refused(answer, 400, 413)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert not (served.studio.settings.data.parent / "x.png").exists()


# --- keys -------------------------------------------------------------------------------------------------


def test_keys_that_do_not_open(served, monkeypatch):
    keys = served.studio.keys
    monkeypatch.setattr(keys, "needed", True)
    expired, _ = keys.store.create("expired", lifetime=timedelta(microseconds=1))
    revoked, _ = keys.store.create("revoked")
    keys.store.revoke("revoked")
    wrong = ["nothing", "x" * 60_000, "sk-ant'; DROP TABLE keys; --", expired, revoked]
    with httpx.Client(base_url=served.url) as http:
        for key in wrong:
            refused(http.get("/v1/models", headers={"authorization": f"Bearer {key}"}), 401)
            refused(http.get("/v1beta/models", headers={"x-goog-api-key": key}), 401)
            refused(http.post(GENERATE, params={"key": key}, json=BODIES[GENERATE]), 401)
        for raw in (b"Bearer \xff\xfe", b"Basic eDp5", b"Bearer", b"\x80"):
            refused(http.get("/v1/models", headers={"authorization": raw}), 401)


def test_what_is_anothers_is_not_there(served, monkeypatch):
    keys = served.studio.keys
    monkeypatch.setattr(keys, "needed", True)
    (mine, _), (other, _) = keys.store.create("mine"), keys.store.create("other")
    with httpx.Client(base_url=served.url, timeout=60) as http:

        def ask(method: str, path: str, key: str, **more: Any) -> httpx.Response:
            headers = {"x-goog-api-key": key} if "beta" in path else {"authorization": f"Bearer {key}"}
            return http.request(method, path, headers=headers | more.pop("headers", {}), **more)

        contents = BODIES[GENERATE]["contents"]
        file = ask("POST", "/v1/files", mine, **form(b"a.txt")).json()["id"]
        cached = {"model": "models/stub", "contents": contents}
        context = ask("POST", "/v1beta/cachedContents", mine, json=cached).json()["name"]
        inline = {"requests": {"requests": [{"request": {"contents": contents}}]}}
        batch = ask(
            "POST", "/v1beta/models/stub:batchGenerateContent", mine, json={"batch": {"inputConfig": inline}}
        ).json()["name"]
        said = ask("POST", "/v1/responses", mine, json=BODIES["/v1/responses"]).json()["id"]
        for path in (
            f"/v1/files/{file}", f"/v1beta/files/{file}", f"/v1beta/{context}", f"/v1beta/{batch}",
            f"/v1/responses/{said}",
        ):  # fmt: skip
            assert ask("GET", path, mine).status_code == 200, path
            theirs, nothing = ask("GET", path, other), ask("GET", path + "0", other)
            name = path.rpartition("/")[2]
            assert refused(theirs, 404) == refused(nothing, 404).replace(name + "0", name)
            refused(ask("DELETE", path, other), 404, 405)
        refused(ask("GET", f"/v1/files/{file}/content", other), 404)
        refused(ask("POST", GENERATE, other, json={"contents": contents, "cachedContent": context}), 404)
        named = {"fileData": {"fileUri": f"files/{file}"}}
        refused(ask("POST", GENERATE, other, json={"contents": [{"parts": [named]}]}), 404)
        follow = BODIES["/v1/responses"] | {"previous_response_id": said}
        refused(ask("POST", "/v1/responses", other, json=follow), 404)
        told = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        refused(ask("POST", "/v1/batches", other, json=told), 404)
        refused(ask("POST", f"/v1beta/{batch}:cancel", other, json={}), 404)
        assert file not in ask("GET", "/v1/files", other).text
        assert batch not in ask("GET", "/v1beta/batches", other).text
