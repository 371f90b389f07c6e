"""Answers that are kept, in each kind of database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from studiolo.errors import NotFoundError, TooLargeError
from studiolo.server import kept as kept_module
from studiolo.server.kept import LIFETIME, Kept, KeptAnswers
from studiolo.store.database import Database


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(database_url, clock) -> Iterator[KeptAnswers]:
    database = Database(database_url)
    yield KeptAnswers(database, worker="here", clock=clock)
    database.close()


def answer(id_: str, owner: str | None = "ada", **more: Any) -> Kept:
    return Kept(
        **{"kind": "response", "id": id_, "owner": owner, "model": "m", "body": {}, "sent": []} | more
    )


def test_kept_for_one_key_and_for_a_time(kept, clock):
    kept.keep(answer("r1", body={"text": "NUL \0, ü"}, sent=[{"a": 1}]))
    kept.keep(answer("r2", previous="r1"))
    assert [one.id for one in kept.conversation("response", "r2", "ada", where="x")] == ["r1", "r2"]
    for kind, owner in (("response", None), ("response", "bob"), ("interaction", "ada")):
        with pytest.raises(NotFoundError):
            kept.get(kind, "r1", owner)
        with pytest.raises(NotFoundError):
            kept.delete(kind, "r1", owner)
    clock.now += LIFETIME - timedelta(seconds=1)
    one = kept.get("response", "r1", "ada")
    assert (one.body, one.sent, one.previous) == ({"text": "NUL \0, ü"}, [{"a": 1}], None)
    clock.now += timedelta(seconds=1)
    with pytest.raises(NotFoundError):
        kept.get("response", "r1", "ada")


@pytest.mark.parametrize("name", ["", "r'; --", "../r", "r" * 81, "ü"])
def test_names_that_are_none(kept, name):
    with pytest.raises(NotFoundError):
        kept.get("response", name, None)


def test_a_way_back_that_is_gone(kept):
    kept.keep(answer("r1"))
    kept.keep(answer("r2", previous="r1"))
    kept.delete("response", "r1", "ada")
    with pytest.raises(NotFoundError) as told:
        kept.conversation("response", "r2", "ada", where="previous")
    assert told.value.where == "previous"


def test_a_conversation_is_read_back_within_bounds(kept, monkeypatch):
    for number, previous in enumerate((None, "r0", "r1")):
        said = [{"text": "é" * 10 * number}]
        kept.keep(answer(f"r{number}", previous=previous, body={"n": number}, sent=said, events=[{"e": 1}]))
    whole = kept.conversation("response", "r2", "ada", where="x")
    size = sum(len(json.dumps(one.body)) + len(json.dumps(one.sent)) for one in whole)
    assert kept.conversation("response", "r2", "ada", where="x", largest=size) == whole
    assert [one.events for one in whole] == [None] * 3  # nobody who goes on from them needs those
    with pytest.raises(TooLargeError, match=f"more than {size - 1} bytes") as told:
        kept.conversation("response", "r2", "ada", where="x", largest=size - 1)
    assert (told.value.where, told.value.remedy) == ("x", "Begin a new one, with what of it still counts.")
    monkeypatch.setattr(kept_module, "LONGEST", 3)
    assert len(kept.conversation("response", "r2", "ada", where="x")) == 3
    kept.keep(answer("r3", previous="r2"))
    with pytest.raises(TooLargeError, match="more than 3 answers"):
        kept.conversation("response", "r3", "ada", where="x")


def test_a_page_of_large_answers_is_a_short_one(kept, clock, monkeypatch):
    monkeypatch.setattr(kept_module, "_PAGE", 100)
    for number, letters in enumerate((10, 30, 30, 300, 10)):
        body, sent = {"text": "x" * letters}, [{"text": "x" * 300}]
        kept.keep(answer(f"r{number}", kind="completion", body=body, sent=sent))
        clock.now += timedelta(seconds=1)
    found, after, more = [], None, True
    while more:
        page, more = kept.page("completion", "ada", size=20, after=after)
        found.append([one.id for one in page])
        after = page[-1].id
    assert found == [["r0", "r1"], ["r2"], ["r3"], ["r4"]]


def test_pages(kept, clock):
    for number in range(6):  # two at each moment: then the name decides
        labels = {"odd": str(number % 2)}
        kept.keep(answer(f"r{number}", kind="completion", body={"metadata": labels}, model=f"m{number % 3}"))
        clock.now += timedelta(seconds=number % 2)
    kept.keep(answer("other", owner=None, kind="completion"))

    def read(**wishes: Any) -> list[str]:
        found, after, more = [], None, True
        while more:
            page, more = kept.page("completion", "ada", size=2, after=after, **wishes)
            found += [one.id for one in page]
            after = found[-1] if found else None
        return found

    names = [f"r{number}" for number in range(6)]
    assert read() == names
    assert read(newest_first=True) == names[::-1]
    assert read(labels={"odd": "1"}) == names[1::2]
    assert read(model="m2") == ["r2", "r5"]
    assert read(labels={"odd": "2"}) == []


def test_what_is_being_made(kept, database_url, clock):
    kept.keep(answer("r1", running=True))
    kept.keep(answer("r2", running=True))
    kept.keep(answer("r3"))
    kept.end(answer("r2", body={"status": "completed"}, events=[{"n": 1}]))
    kept.end(answer("gone"))  # it was deleted meanwhile, and stays so
    assert [one.id for one in kept.left("response")] == ["r1"]
    assert kept.left("interaction") == []
    other = Database(database_url)
    assert KeptAnswers(other, worker="there", clock=clock).left("response") == []
    other.close()
    ended = kept.get("response", "r2", "ada")
    assert (ended.running, ended.body, ended.events) == (False, {"status": "completed"}, [{"n": 1}])
    with pytest.raises(NotFoundError):
        kept.get("response", "gone", "ada")


def test_a_change_changes_nothing_else(kept):
    kept.keep(answer("r1", body={"a": 1, "metadata": {"x": "y"}}))
    assert kept.change("response", "r1", "ada", {"metadata": {}}).body == {"a": 1, "metadata": {}}
    with pytest.raises(NotFoundError):
        kept.change("response", "r1", "bob", {"a": 2})
