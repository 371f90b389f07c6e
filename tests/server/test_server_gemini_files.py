"""files of the Gemini dialect, by Google's own client, and by hand where a client never breaks off."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from gemini_stub import Scripted, client_of
from google.genai import errors, types
from PIL import Image
from serving import serving

from studiolo.language import conversation as c

CHUNK = 8 * 2**20
"""Bytes that Google's client sends at once."""


def data_of(size: int) -> bytes:
    """Bytes that are nowhere the same as `CHUNK` or 1 MiB before."""
    block = hashlib.sha256(b"studiolo").digest() * 2**15  # a MiB
    return b"".join(bytes([n]) + block[1:] for n in range(-(-size // 2**20)))[:size]


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, "png")
    return file.getvalue()


@pytest.fixture
def files(serve):
    client = client_of(serve(Scripted()).url)
    yield client.files
    client.close()


def begin(url: str, data: bytes, **headers: str) -> str:
    """The address of a new upload."""
    started = httpx.post(
        f"{url}/upload/v1beta/files?key=test-key",
        headers={
            "X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(len(data)),
            "X-Goog-Upload-Header-Content-Type": "application/octet-stream", **headers,
        },
        json={"file": {"display_name": "a book"}},
    )  # fmt: skip
    assert started.status_code == 200, started.text
    assert started.headers["x-goog-upload-status"] == "active"
    return started.headers["x-goog-upload-url"]


def send(address: str, command: str, data: bytes = b"", offset: int = 0) -> httpx.Response:
    return httpx.post(
        address,
        content=data,
        headers={"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)},
    )


# --- by the client ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, CHUNK, 2 * CHUNK + 3])
def test_files_of_any_size_come_back_as_they_were(files, tmp_path, size):
    data, path = data_of(size), tmp_path / "notes.bin"
    path.write_bytes(data)
    made = files.upload(file=path, config={"mime_type": "application/x-notes", "display_name": "Notes"})
    assert (made.size_bytes, made.mime_type, made.display_name) == (size, "application/x-notes", "Notes")
    assert base64.b64decode(made.sha256_hash) == hashlib.sha256(data).digest()
    assert (made.state, made.source) == (types.FileState.ACTIVE, types.FileSource.UPLOADED)
    assert made.expiration_time - made.create_time == timedelta(hours=48)
    assert files.get(name=made.name) == made
    assert files.download(file=made) == data
    files.delete(name=made.name)
    with pytest.raises(errors.ClientError, match="404 NOT_FOUND"):
        files.get(name=made.name)


def test_the_asynchronous_client(serve):
    async def main() -> tuple[str, bytes]:
        client = client_of(serve(Scripted()).url)
        file = io.BytesIO(data_of(CHUNK + 1))
        made = await client.aio.files.upload(file=file, config={"mime_type": "a/b"})
        return made.name, await client.aio.files.download(file=made)

    name, data = asyncio.run(main())
    assert name.startswith("files/")
    assert data == data_of(CHUNK + 1)


def test_the_title_is_the_name_of_the_file_if_there_is_no_other(serve, tmp_path):
    (path := tmp_path / "notes 1.txt").write_text("hello")
    client = client_of((here := serve(Scripted())).url)
    made = client.files.upload(file=path)
    assert (made.display_name, made.mime_type) == ("notes 1.txt", "text/plain")
    name = {b"x-goog-upload-file-name": "Grüße.txt".encode()}  # which that client cannot send
    raw = httpx.post(f"{here.url}/upload/v1beta/files?key=k", content=b"hello", headers=name)
    assert raw.json()["file"]["displayName"] == "Grüße.txt"


def test_a_name_of_ones_own(files):
    made = files.upload(file=io.BytesIO(b"x"), config={"name": "my-notes", "mime_type": "text/plain"})
    assert made.name == "files/my-notes"
    assert files.get(name="my-notes").uri.endswith("/v1/files/my-notes")
    with pytest.raises(errors.ClientError, match="409"):
        files.upload(file=io.BytesIO(b"x"), config={"name": "my-notes", "mime_type": "text/plain"})
    for bad in ("../keys", "batch-1", "UPPER"):
        with pytest.raises(errors.ClientError, match="400"):
            files.upload(file=io.BytesIO(b"x"), config={"name": bad, "mime_type": "text/plain"})


def test_the_list_comes_in_pages_the_newest_first(files):
    names = [files.upload(file=io.BytesIO(b"x"), config={"mime_type": "text/plain"}).name for _ in range(5)]
    pages = files.list(config={"page_size": 2})
    assert len(pages.page) == 2
    assert [file.name for file in pages] == names[::-1]


def test_what_is_not_what_it_says_is_told_as_failed(files):
    made = files.upload(file=io.BytesIO(b"no picture"), config={"mime_type": "image/png"})
    assert made.state is types.FileState.FAILED
    assert made.error.message == "The bytes of this file are not image/png."
    assert files.upload(file=io.BytesIO(png()), config={"mime_type": "image/png"}).state.value == "ACTIVE"


def test_a_picture_that_is_being_deleted_does_not_spoil_the_list(serve):
    here = serve(Scripted())
    client = client_of(here.url)
    names = [
        client.files.upload(file=io.BytesIO(png()), config={"mime_type": "image/png"}).name for _ in range(2)
    ]
    here.studio.files.path(names[0].removeprefix("files/")).unlink()
    assert [(file.name, file.state.value) for file in client.files.list()] == [
        (names[1], "ACTIVE"), (names[0], "FAILED"),
    ]  # fmt: skip
    gone = types.Part.from_uri(file_uri=names[0], mime_type="image/png")
    with pytest.raises(errors.ClientError, match=r"400.*are gone"):
        client.models.generate_content(model="stub", contents=[gone])


def test_files_are_their_owners_alone(serve):
    here = serve(Scripted())
    keys = [here.studio.keys.store.create(name)[0] for name in ("me", "you")]
    clients = [client_of(here.url, api_key=key) for key in keys]
    mine, others = (client.files for client in clients)
    made = mine.upload(file=io.BytesIO(b"x"), config={"mime_type": "text/plain"})
    assert [file.name for file in mine.list()] == [made.name]
    assert list(others.list()) == []
    for act in (others.get, others.delete):
        with pytest.raises(errors.ClientError, match="404"):
            act(name=made.name)
    with pytest.raises(errors.ClientError, match="404"):
        others.download(file=made.name)


def test_a_file_larger_than_is_taken_is_refused_before_it_is_sent(serve):
    client = client_of(serve(Scripted(), largest_file=2**20).url)
    with pytest.raises(errors.ClientError, match=r"413.*at most 1,048,576"):
        client.files.upload(file=io.BytesIO(bytes(2**20 + 1)), config={"mime_type": "a/b"})


# --- in contents ------------------------------------------------------------------------------------------


def test_a_model_gets_the_bytes_of_a_picture_and_the_words_of_a_text(serve):
    engine = Scripted()
    client = client_of(serve(engine).url)
    picture = client.files.upload(file=io.BytesIO(png()), config={"mime_type": "image/png"})
    text = client.files.upload(file=io.BytesIO("Grüße".encode()), config={"mime_type": "text/plain"})
    client.models.generate_content(model="stub", contents=["see", picture, text])
    _, shown, words = engine.requests[0].contents[0].parts
    assert (shown.media_type, shown.data) == ("image/png", png())
    assert words == c.Text(text="Grüße")
    by_name = types.Part.from_uri(file_uri=picture.name, mime_type="image/png")
    client.models.generate_content(model="stub", contents=[by_name])
    assert engine.requests[1].contents[0].parts[0].data == png()
    assert client.models.count_tokens(model="stub", contents=[text]).total_tokens == 1


@pytest.mark.parametrize("uri", ["files/nothing", "https://example.org/v1beta/files/nothing"])
def test_a_file_that_is_not_there_is_told(serve, uri):
    client = client_of(serve(Scripted()).url)
    with pytest.raises(errors.ClientError, match="404 NOT_FOUND"):
        client.models.generate_content(
            model="stub", contents=[types.Part.from_uri(file_uri=uri, mime_type="image/png")]
        )


def test_a_picture_that_is_none_is_refused(serve):
    client = client_of(serve(Scripted()).url)
    made = client.files.upload(file=io.BytesIO(b"no picture"), config={"mime_type": "image/png"})
    with pytest.raises(errors.ClientError, match=r"400 INVALID_ARGUMENT.*are not image/png"):
        client.models.generate_content(model="stub", contents=[made])


# --- uploads that break off -------------------------------------------------------------------------------


def test_an_upload_that_breaks_off_goes_on_where_it_was_also_after_the_server_was_away(
    studiolo_home: Path,
):
    data = data_of(5 * 2**20 + 7)
    with serving(studiolo_home, {"stub": Scripted()}) as here:
        address = begin(here.url, data)
        path = address.removeprefix(here.url)
        with here.connect() as wire:  # a chunk of 4 MiB, of which two and some more arrive
            wire.sendall(
                f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {4 * 2**20}\r\n"
                "x-goog-upload-command: upload\r\nx-goog-upload-offset: 0\r\n\r\n".encode()
            )
            wire.sendall(data[: 2 * 2**20 + 100])
        while (received := int(send(address, "query").headers["x-goog-upload-size-received"])) < 2**21 + 100:
            assert received <= 2**21 + 100
    with serving(studiolo_home, {"stub": Scripted()}) as there:
        address = there.url + path
        asked = send(address, "query")
        assert asked.headers["x-goog-upload-status"] == "active"
        offset = int(asked.headers["x-goog-upload-size-received"])
        assert offset == 2**21 + 100
        early = send(address, "upload, finalize", data[offset:-1], offset)
        assert (early.status_code, early.headers["x-goog-upload-status"]) == (409, "active")
        done = send(address, "upload, finalize", data[-1:], len(data) - 1)
        assert done.headers["x-goog-upload-status"] == "final"
        file = done.json()["file"]
        assert base64.b64decode(file["sha256Hash"]) == hashlib.sha256(data).digest()
        assert send(address, "query").headers["x-goog-upload-status"] == "final"
        assert httpx.get(f"{there.url}/v1beta/{file['name']}:download?alt=media&key=k").content == data


def test_an_upload_whose_address_was_lost_is_begun_again_under_its_name(serve):
    here, data = serve(Scripted()), data_of(2**20)
    told = {"json": {"file": {"name": "files/my-notes"}}, "params": {"key": "k"}}
    started = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
    lost, address = (
        httpx.post(f"{here.url}/upload/v1beta/files", headers=started, **told).headers["x-goog-upload-url"]
        for _ in range(2)
    )
    assert send(lost, "upload", data).status_code == 404
    done = send(address, "upload, finalize", data)
    assert done.json()["file"]["name"] == "files/my-notes"
    again = httpx.post(f"{here.url}/upload/v1beta/files", headers=started, **told)
    assert again.status_code == 409


def test_chunks_that_are_sent_again_are_not_kept_twice(serve):
    here, data = serve(Scripted()), data_of(3 * 2**20)
    address = begin(here.url, data)
    for _ in range(2):
        assert send(address, "upload", data[: 2**20]).headers["x-goog-upload-status"] == "active"
    for _ in range(2):
        done = send(address, "upload, finalize", data[2**20 :], 2**20)
        assert done.headers["x-goog-upload-status"] == "final", done.text
    assert base64.b64decode(done.json()["file"]["sha256Hash"]) == hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    ("command", "offset", "status"),
    [("upload", 7, 409), ("jump", 0, 400), ("upload, finalize", -1, 400), ("upload", 0, 413)],
)
def test_chunks_that_do_not_fit(serve, command, offset, status):
    address = begin(serve(Scripted()).url, b"abc")
    refused = send(address, command, b"abcdef", offset)
    assert refused.status_code == status
    assert refused.json()["error"]["code"] == status


def test_an_upload_that_is_cancelled_is_gone(serve):
    address = begin(serve(Scripted()).url, b"abc")
    assert send(address, "cancel").headers["x-goog-upload-status"] == "cancelled"
    refused = send(address, "upload, finalize", b"abc")
    assert (refused.status_code, refused.headers["x-goog-upload-status"]) == (404, "final")


# --- in one request ---------------------------------------------------------------------------------------


def test_whole_in_one_request(serve):
    url = serve(Scripted()).url
    raw = httpx.post(
        f"{url}/upload/v1beta/files?key=k", content=b"abc",
        headers={"X-Goog-Upload-Protocol": "raw", "content-type": "text/plain; charset=utf-8"},
    )  # fmt: skip
    assert (raw.status_code, raw.json()["file"]["mimeType"]) == (200, "text/plain")
    told = json.dumps({"file": {"displayName": "two parts", "name": "files/two"}})
    body = (
        f"--XX\r\nContent-Type: application/json\r\n\r\n{told}\r\n"
        f"--XX\r\nContent-Type: text/csv\r\n\r\na,b\r\n1,2\r\n\r\n--XX--\r\n"
    )
    both = httpx.post(
        f"{url}/upload/v1beta/files?key=k&uploadType=multipart", content=body,
        headers={"content-type": "multipart/related; boundary=XX"},
    )  # fmt: skip
    file = both.json()["file"]
    assert (file["name"], file["displayName"], file["mimeType"]) == ("files/two", "two parts", "text/csv")
    assert httpx.get(f"{url}/v1beta/files/two:download?key=k").content == b"a,b\r\n1,2\r\n"


@pytest.mark.parametrize(
    "body",
    ["", "--XX--\r\n", "--XX\r\n\r\nno json\r\n--XX--\r\n", "--XX\r\n\r\n{}\r\n--XX--\r\n",
     "--XX\r\n\r\n{}\r\n--XX\r\n\r\nabc", "--XX\r\n\r\n{}\r\n--XX\r\n\r\na\r\n--XX\r\n\r\nb\r\n--XX--\r\n"],
)  # fmt: skip
def test_multipart_bodies_that_are_none_leave_nothing(serve, body):
    url = serve(Scripted()).url
    refused = httpx.post(
        f"{url}/upload/v1beta/files?key=k",
        content=body,
        headers={"content-type": "multipart/related; boundary=XX"},
    )
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["status"] == "INVALID_ARGUMENT"
    assert httpx.get(f"{url}/v1beta/files?key=k").json() == {"files": []}
