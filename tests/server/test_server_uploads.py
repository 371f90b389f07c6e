"""Uploaded files: in pieces, resumed, bounded, whole or absent; in both databases."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from studiolo.errors import ConflictError, NotFoundError, StudioloError, TooLargeError
from studiolo.store.database import Database
from studiolo.store.uploads import SESSION, Uploads

DATA = random.Random(1).randbytes(100_000)


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def uploads(database_url, tmp_path, clock):
    database = Database(database_url)
    yield Uploads(database, tmp_path / "files", largest=200_000, total=300_000, clock=clock)
    database.close()


def begun(uploads: Uploads, *, owner: str | None = None, **told) -> str:
    return uploads.begin(owner=owner, **({"name": "a.bin", "mime": "text/plain", "purpose": "test"} | told))


def kept(uploads: Uploads, data: bytes = b"x", *, owner: str | None = None, **told):
    return uploads.add(data, owner=owner, **({"name": "a", "mime": "text/plain", "purpose": "test"} | told))


def test_pieces_make_the_file(uploads):
    token = begun(uploads, size=len(DATA), owner="anna")
    offset = 0
    for size in (1, 4095, 60_000, 35_904):
        offset = uploads.append(token, offset, [DATA[offset : offset + size]])
    record = uploads.finish(token)
    assert record.sha256 == hashlib.sha256(DATA).hexdigest()
    assert (record.size, record.name, record.mime, record.owner) == (len(DATA), "a.bin", "text/plain", "anna")
    assert uploads.path(record.id).read_bytes() == DATA
    assert uploads.get(record.id, owner="anna") == record


def test_an_empty_file_is_a_file(uploads):
    assert kept(uploads, b"").size == 0


@pytest.mark.parametrize("offset", [0, 9, 11])
def test_a_wrong_offset_tells_the_right_one(uploads, offset):
    token = begun(uploads)
    uploads.append(token, 0, b"0123456789")
    with pytest.raises(ConflictError, match="10"):
        uploads.append(token, offset, b"abc")
    assert uploads.offset(token) == 10


def test_what_came_before_a_broken_connection_stays(uploads):
    def broken():
        yield DATA[:50_000]
        raise ConnectionError

    token = begun(uploads, size=len(DATA))
    with pytest.raises(ConnectionError):
        uploads.append(token, 0, broken())
    assert uploads.offset(token) == 50_000
    uploads.append(token, 50_000, DATA[50_000:])
    assert uploads.path(uploads.finish(token).id).read_bytes() == DATA


def test_finishing_may_be_repeated(uploads):
    token = begun(uploads)
    uploads.append(token, 0, b"abc")
    record = uploads.finish(token)
    assert uploads.finish(token) == record
    with pytest.raises(ConflictError, match="finished"):
        uploads.append(token, 3, b"d")
    assert uploads.offset(token) == 3


def test_a_file_that_is_not_whole_is_no_file(uploads):
    token = begun(uploads, size=4)
    uploads.append(token, 0, b"abc")
    with pytest.raises(ConflictError, match="offset 3"):
        uploads.finish(token)
    assert uploads.page(owner=None).files == ()


def test_more_than_was_announced_is_refused(uploads):
    token = begun(uploads, size=4)
    with pytest.raises(TooLargeError):
        uploads.append(token, 0, [b"abc", b"de"])
    assert uploads.offset(token) == 3


def test_a_file_larger_than_is_taken_is_refused_before_and_while_it_comes(uploads):
    with pytest.raises(TooLargeError):
        begun(uploads, size=200_001)
    token = begun(uploads)
    with pytest.raises(TooLargeError):
        uploads.append(token, 0, (bytes(1000) for _ in range(201)))
    assert uploads.offset(token) == 200_000


def test_all_files_together_are_bounded_also_by_what_is_announced(uploads):
    kept(uploads, bytes(150_000))
    begun(uploads, size=100_000)
    with pytest.raises(TooLargeError, match="50,000 are left"):
        begun(uploads, size=50_001)
    token = begun(uploads)
    with pytest.raises(TooLargeError):
        uploads.append(token, 0, bytes(50_001))
    assert uploads.append(token, 0, bytes(50_000)) == 50_000


def test_files_are_their_owners_alone(uploads):
    mine, yours, nobodys = (kept(uploads, owner=owner) for owner in ("anna", "ben", None))
    for id_, owner in ((yours.id, "anna"), (nobodys.id, "anna"), (mine.id, None), ("file-none", "anna")):
        with pytest.raises(NotFoundError, match="no file of this name"):
            uploads.get(id_, owner=owner)
        with pytest.raises(NotFoundError):
            uploads.delete(id_, owner=owner)
    assert uploads.page(owner="anna").files == (mine,)
    assert uploads.page(owner=None).files == (nobodys,)


def test_pages_shift_nothing(uploads):
    made = [kept(uploads, purpose="batch" if index % 2 else "other").id for index in range(7)]
    first = uploads.page(owner=None, size=3)
    assert [file.id for file in first.files] == made[:-4:-1]
    kept(uploads)  # comes in front
    second = uploads.page(owner=None, size=3, after=first.next)
    assert [file.id for file in second.files] == made[3:0:-1]
    third = uploads.page(owner=None, size=3, after=second.next)
    assert ([file.id for file in third.files], third.next) == (made[:1], None)
    oldest = uploads.page(owner=None, size=9, purpose="batch", oldest_first=True)
    assert [file.id for file in oldest.files] == made[1::2]


def test_files_and_uploads_have_their_time(uploads, clock):
    short, long = kept(uploads, lifetime=timedelta(hours=1)), kept(uploads)
    token = begun(uploads)
    clock.now += timedelta(hours=1)
    with pytest.raises(NotFoundError):
        uploads.get(short.id, owner=None)
    assert uploads.path(short.id).exists()
    assert uploads.expire() == 1
    assert not uploads.path(short.id).exists()
    assert uploads.offset(token) == 0
    clock.now += SESSION
    uploads.expire()
    with pytest.raises(NotFoundError):
        uploads.append(token, 0, b"late")
    assert uploads.page(owner=None).files == (long,)
    assert [path.name for path in uploads.folder.rglob("*") if path.is_file()] == [long.id]


def test_an_upload_that_is_at_work_is_let_end(uploads, clock):
    def slowly():
        yield b"abc"
        clock.now += SESSION
        uploads.expire()
        yield b"def"

    token = begun(uploads)
    assert uploads.append(token, 0, slowly()) == 6
    parts = uploads.folder / "parts"
    assert [path.read_bytes() for path in parts.iterdir()] == [b"abcdef"]
    uploads.expire()
    assert list(parts.iterdir()) == []


def test_a_deleted_file_leaves_nothing(uploads):
    record = kept(uploads)
    uploads.delete(record.id, owner=None)
    assert not uploads.path(record.id).exists()
    assert uploads.page(owner=None).files == ()


def test_a_failed_upload_in_one_go_leaves_nothing(uploads):
    with pytest.raises(TooLargeError):
        kept(uploads, bytes(200_001))
    assert not [path for path in uploads.folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["", "a\nb", "a\r\nset-cookie: x", "\x00", "x" * 513])
def test_names_that_would_do_harm_are_refused(uploads, name):
    with pytest.raises(StudioloError):
        begun(uploads, name=name)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "C:\\x", "ü ñ 日本.png", "."])
def test_a_name_is_no_path(uploads, name):
    record = kept(uploads, name=name)
    assert record.name == name
    assert uploads.path(record.id).parent == uploads.folder


@pytest.mark.parametrize("mime", ["", "text", "text/plain\r\nx: y", "a/b/c", "text/" + "x" * 101])
def test_types_that_are_none_are_refused(uploads, mime):
    with pytest.raises(StudioloError):
        begun(uploads, mime=mime)


@pytest.mark.parametrize("id_", ["", "-a", "a-", "A", "../x", "a/b", "x" * 41])
def test_ids_that_are_none_are_refused(uploads, id_):
    with pytest.raises(StudioloError):
        begun(uploads, id=id_)


def test_an_id_is_given_once(uploads):
    kept(uploads, id="whole", owner="ada")
    begun(uploads, id="coming", owner="ada")
    for id_, owner in (("whole", "ada"), ("whole", None), ("coming", "bob"), ("coming", None)):
        with pytest.raises(ConflictError):
            begun(uploads, id=id_, owner=owner)


@pytest.mark.parametrize("owner", ["ada", None])
def test_whoever_lost_a_token_begins_again_under_the_same_id(uploads, owner):
    lost = begun(uploads, id="mine", owner=owner, size=100_000)
    uploads.append(lost, 0, b"abc")
    token = begun(uploads, id="mine", owner=owner, size=200_000)  # there is no room for both
    with pytest.raises(NotFoundError):
        uploads.append(lost, 3, b"d")
    uploads.append(token, 0, DATA + DATA)
    record = uploads.finish(token)
    assert (record.id, uploads.path("mine").read_bytes()) == ("mine", DATA + DATA)


def test_who_begins_again_as_it_becomes_a_file_leaves_the_file(uploads, monkeypatch):
    token, locked = begun(uploads, id="mine"), uploads._locked
    uploads.append(token, 0, b"abc")

    def late(file):
        monkeypatch.setattr(uploads, "_locked", locked)
        uploads.finish(token)  # by another request, a moment before
        return locked(file)

    monkeypatch.setattr(uploads, "_locked", late)
    with pytest.raises(ConflictError, match="exists"):
        begun(uploads, id="mine")
    assert uploads.get("mine", owner=None).size == 3
    assert uploads.path("mine").read_bytes() == b"abc"


def test_a_token_of_another_upload_is_no_use(uploads):
    begun(uploads)
    with pytest.raises(NotFoundError):
        uploads.append("made-up", 0, b"x")


WORKER = """
import sys
from pathlib import Path
from studiolo.store.database import Database
from studiolo.store.uploads import Uploads

url, folder, token = sys.argv[1:]
uploads = Uploads(Database(url), Path(folder))
print("ready", flush=True)
data = sys.stdin.buffer.read()
offset = uploads.offset(token)
while offset < len(data):
    offset = uploads.append(token, offset, data[offset : offset + 1000])
    print(offset, flush=True)
print(uploads.finish(token).id, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 2, 40, 100, 101], ids=lambda lines: f"after line {lines}")
def test_killed_at_any_moment_the_file_is_whole_in_the_end(database_url, tmp_path, lines):
    folder = tmp_path / "files"
    uploads = Uploads(Database(database_url), folder)
    token = begun(uploads, size=len(DATA))
    _work(database_url, folder, token, kill_after=lines)
    _work(database_url, folder, token)
    (record,) = uploads.page(owner=None).files
    assert record.sha256 == hashlib.sha256(DATA).hexdigest()
    assert uploads.path(record.id).read_bytes() == DATA
    assert not list((folder / "parts").iterdir())


def test_bytes_that_nobody_knows_of_are_swept(uploads):
    record, token = kept(uploads), begun(uploads)
    (uploads.folder / "file-lost").write_bytes(b"x")
    (uploads.folder / "parts" / "lost").write_bytes(b"x")
    assert uploads.sweep() == 2
    assert uploads.path(record.id).exists()
    assert uploads.offset(token) == 0


def _work(url: str, folder: Path, token: str, kill_after: int | None = None) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, url, str(folder), token],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    process.stdin.write(DATA)
    process.stdin.close()
    for seen, _ in enumerate(process.stdout, 1):
        if seen == kill_after:
            process.send_signal(signal.SIGKILL)
    process.wait()
