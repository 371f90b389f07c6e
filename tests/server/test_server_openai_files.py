"""Files and uploads in parts, by the official client."""

from __future__ import annotations

import asyncio
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import openai
import pytest
from openai.types import FileDeleted, FileObject, Upload
from talking import client_of

from language.stub import StubEngine
from studiolo.server.keys import KeyStore
from studiolo.server.openai.uploads_kept import PartedUploads, parted_in

LINES = b'{"custom_id": "a"}\n'


@pytest.fixture
def served(serve):
    return serve(StubEngine())


@pytest.fixture
def client(served):
    return client_of(served.url)


def test_a_file_from_its_upload_to_its_end(client):
    made = client.files.create(file=("notes.txt", b"some text"), purpose="user_data")
    FileObject.model_validate(made.model_dump(), strict=True)
    assert (made.filename, made.bytes, made.purpose, made.status) == (
        "notes.txt",
        9,
        "user_data",
        "processed",
    )
    assert made.expires_at is None
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == b"some text"
    gone = client.files.delete(made.id)
    assert (FileDeleted.model_validate(gone.model_dump(), strict=True).id, gone.deleted) == (made.id, True)
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as told:
            call(made.id)
        assert told.value.code == "not_found"


def test_the_asynchronous_client(served):
    async def go() -> bytes:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="k") as client:
            files = [client.files.create(file=(f"{n}.txt", b"%d" % n), purpose="batch") for n in range(5)]
            made = await asyncio.gather(*files)
            listed = [file.id async for file in client.files.list(limit=2)]
            assert sorted(listed) == sorted(file.id for file in made)
            return (await client.files.content(made[3].id)).content

    assert asyncio.run(go()) == b"3"


def test_pages_orders_and_purposes(client):
    made = [
        client.files.create(file=(f"{n}.jsonl", LINES), purpose="batch" if n % 2 else "vision").id
        for n in range(5)
    ]
    assert [file.id for file in client.files.list()] == made[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made
    assert [file.id for file in client.files.list(purpose="batch")] == [made[3], made[1]]
    first = client.files.list(limit=3)
    assert (len(first.data), first.has_more) == (3, True)
    rest = client.files.list(limit=3, after=first.data[-1].id)
    assert ([file.id for file in rest.data], rest.has_more) == (made[1::-1], False)
    with pytest.raises(openai.NotFoundError):
        client.files.list(after="file-nothing")
    with pytest.raises(openai.BadRequestError):
        client.files.list(limit=0)


def test_how_long_files_are_kept(client):
    def kept(**more) -> float | None:
        made = client.files.create(file=("a.jsonl", LINES), **more)
        return None if made.expires_at is None else made.expires_at - made.created_at

    assert kept(purpose="user_data") is None
    assert kept(purpose="batch") == 30 * 24 * 3600
    hour = {"anchor": "created_at", "seconds": 3600}
    assert kept(purpose="user_data", expires_after=hour) == 3600
    with pytest.raises(openai.BadRequestError) as told:
        kept(purpose="user_data", expires_after={"anchor": "created_at", "seconds": 60})
    assert told.value.param == "expires_after.seconds"


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"files": {"file": ("a.txt", b"x")}}, "purpose"),
        ({"files": {"file": ("a.txt", b"x")}, "data": {"purpose": "theft"}}, "purpose"),
        ({"files": {"other": ("a.txt", b"x")}, "data": {"purpose": "batch"}}, "other"),
        ({"files": {"file": ("a.txt", b"x")}, "data": {"purpose": "batch", "colour": "red"}}, "colour"),
        ({"files": {"file": (None, b"x")}, "data": {"purpose": "batch"}}, "file"),
        ({"files": [("file", ("a", b"x")), ("file", ("b", b"x"))], "data": {"purpose": "batch"}}, "file"),
        ({"json": {"purpose": "batch"}}, "content-type"),
    ],
)
def test_forms_that_are_none(served, client, form, param):
    answer = httpx.post(f"{served.url}/v1/files", **form)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert not client.files.list().data


def test_a_broken_form(served, client):
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for body in (
        b"",
        b"--x\r\n",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
    ):
        answer = httpx.post(f"{served.url}/v1/files", content=body, headers=headers)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert not client.files.list().data


@pytest.mark.parametrize("name", ["../../etc/passwd", "a\\b", "naïve \u2028.txt", 'q".txt', "x" * 600])
def test_names_do_no_harm(served, client, name):
    try:
        made = client.files.create(file=(name, b"x"), purpose="user_data")
    except openai.BadRequestError:
        assert not client.files.list().data
        return
    answer = httpx.get(f"{served.url}/v1/files/{made.id}/content", headers={"authorization": "Bearer k"})
    assert answer.content == b"x"
    assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
    assert [path.name for path in served.studio.files.folder.iterdir() if path.is_file()] == [made.id]


def test_a_file_that_is_too_large_leaves_nothing(serve):
    served = serve(StubEngine(), largest_file=100_000)
    client = client_of(served.url)
    with pytest.raises(openai.APIStatusError) as told:
        client.files.create(file=("a", b"x" * 200_000), purpose="user_data")
    assert (told.value.status_code, told.value.code) == (413, "request_too_large")
    assert not client.files.list().data


@pytest.fixture
def two(serve):
    """Two clients with keys of their own."""
    served = serve(StubEngine(), host="0.0.0.0")
    store = KeyStore(served.studio.database)
    return [client_of(served.url, api_key=store.create(name)[0]) for name in ("ada", "bob")]


def test_nobody_sees_another_ones(two):
    ada, bob = two
    file = ada.files.create(file=("a.txt", b"x"), purpose="user_data")
    upload = ada.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="user_data")
    part = ada.uploads.parts.create(upload.id, data=b"x")
    for call in (
        lambda: bob.files.retrieve(file.id),
        lambda: bob.files.content(file.id),
        lambda: bob.files.delete(file.id),
        lambda: bob.uploads.parts.create(upload.id, data=b"y"),
        lambda: bob.uploads.complete(upload.id, part_ids=[part.id]),
        lambda: bob.uploads.cancel(upload.id),
        lambda: ada.files.retrieve(part.id.replace("part_", "file-")),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    assert not bob.files.list().data
    assert [found.id for found in ada.files.list()] == [file.id]


@pytest.mark.parametrize("name", ["a\0b", "a\r\nx: y", "\x7f", "x" * 513])
def test_names_that_no_file_can_have_are_refused_at_the_beginning_of_an_upload(client, name):
    with pytest.raises(openai.BadRequestError):
        client.uploads.create(bytes=1, filename=name, mime_type="text/plain", purpose="user_data")


# --- uploads in parts -------------------------------------------------------------------------------------


def test_parts_in_the_order_that_is_told(client):
    upload = client.uploads.create(
        bytes=9, filename="a.txt", mime_type="text/plain", purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    Upload.model_validate(upload.model_dump(), strict=True)
    assert (upload.status, upload.expires_at - upload.created_at) == ("pending", 3600)
    with ThreadPoolExecutor() as pool:
        parts = list(
            pool.map(lambda data: client.uploads.parts.create(upload.id, data=data), (b"ghi", b"abc", b"def"))
        )
    assert parts[0].id.startswith("part_")
    order = [parts[1].id, parts[2].id, parts[0].id]
    done = client.uploads.complete(upload.id, part_ids=order, md5=hashlib.md5(b"abcdefghi").hexdigest())
    Upload.model_validate(done.model_dump(), strict=True)
    assert (done.status, done.file.filename, done.file.bytes) == ("completed", "a.txt", 9)
    assert client.files.content(done.file.id).read() == b"abcdefghi"
    again = client.uploads.complete(upload.id, part_ids=order)
    assert again.file.id == done.file.id
    assert [file.id for file in client.files.list()] == [done.file.id]
    with pytest.raises(openai.ConflictError):
        client.uploads.parts.create(upload.id, data=b"more")


def test_the_client_splits_a_file_by_itself(client, served):
    data = bytes(range(256)) * 1000
    done = client.uploads.upload_file_chunked(
        file=data, filename="big.bin", bytes=len(data), mime_type="application/x-thing", purpose="user_data",
        part_size=100_000, md5=hashlib.md5(data).hexdigest(),
    )  # fmt: skip
    assert client.files.content(done.file.id).read() == data
    folder = served.studio.files.folder
    assert [path.name for path in folder.iterdir() if path.is_file()] == [done.file.id]  # no parts are left


def test_parts_that_do_not_make_the_file(client, served):
    upload = client.uploads.create(bytes=6, filename="a", mime_type="text/plain", purpose="user_data")
    other = client.uploads.create(bytes=6, filename="b", mime_type="text/plain", purpose="user_data")
    one, two = (client.uploads.parts.create(upload.id, data=data) for data in (b"abc", b"def"))
    foreign = client.uploads.parts.create(other.id, data=b"def")
    for part_ids, md5, param in (
        ([one.id], None, "part_ids"),
        ([one.id, two.id], "0" * 32, "md5"),
        ([one.id, one.id], None, "part_ids[1]"),
        ([one.id, foreign.id], None, "part_ids[1]"),
        ([], None, "part_ids"),
    ):
        with pytest.raises(openai.BadRequestError) as told:
            client.uploads.complete(upload.id, part_ids=part_ids, **({"md5": md5} if md5 else {}))
        assert told.value.param == param
    assert not client.files.list().data
    assert client.uploads.complete(upload.id, part_ids=[one.id, two.id]).status == "completed"


def test_cancelled_uploads_leave_nothing(client, served):
    upload = client.uploads.create(bytes=3, filename="a", mime_type="text/plain", purpose="user_data")
    part = client.uploads.parts.create(upload.id, data=b"abc")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert [path for path in served.studio.files.folder.iterdir() if path.is_file()] == []
    for call in (
        lambda: client.uploads.cancel(upload.id),
        lambda: client.uploads.complete(upload.id, part_ids=[part.id]),
    ):
        with pytest.raises(openai.ConflictError):
            call()


def test_uploads_end_after_an_hour(client, served):
    upload = client.uploads.create(bytes=3, filename="a", mime_type="text/plain", purpose="user_data")
    kept = parted_in(served.studio.database).get(upload.id, None)
    later = PartedUploads(served.studio.database, clock=lambda: kept.created + timedelta(hours=1))
    assert later.get(upload.id, None).status == "expired"


def test_too_large_is_told_before_a_part_comes(serve):
    client = client_of(serve(StubEngine(), largest_file=1000).url)
    with pytest.raises(openai.APIStatusError) as told:
        client.uploads.create(bytes=1001, filename="a", mime_type="text/plain", purpose="user_data")
    assert told.value.status_code == 413


def test_a_file_of_the_client_s_own_kind(client, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"\x89PNG")
    made = client.files.create(file=path, purpose="vision")
    assert made.filename == "photo.png"
    assert client.files.create(file=io.BytesIO(b"bytes without a name"), purpose="vision").bytes == 20
