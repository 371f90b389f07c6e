"""Keys: shown once, kept as hashes, limited, and their accounts; in both databases."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa

from studiolo.errors import NotFoundError, StudioloError
from studiolo.language.conversation import Usage
from studiolo.language.errors import RateLimitError
from studiolo.server.errors import KeyRefusedError, SpentError
from studiolo.server.keys import Entry, KeyLimits, KeyStore, Spent
from studiolo.server.limits import FRESH, NOBODY, Keys
from studiolo.store.database import Database

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Hands:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)

    def now(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def database(database_url):
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def store(database, hands) -> KeyStore:
    return KeyStore(database, clock=hands)


@pytest.fixture
def keys(store, hands) -> Keys:
    return Keys(store, needed=True, clock=hands)


def test_a_key_is_known_again(store):
    text, key = store.create("anna")
    assert store.check(text) == key
    assert store.find("anna") == store.find(key.id) == key


def test_the_database_holds_no_key(store, database):
    text, _ = store.create("anna")
    secret = text.removeprefix("sk-studiolo-")[13:].encode()
    with database.read() as connection:
        row = connection.execute(sa.text("SELECT * FROM keys")).one()
    held = b"|".join(value if isinstance(value, bytes) else str(value).encode() for value in row)
    assert len(secret) == 43
    assert secret not in held
    assert text.encode() not in held


def with_another_end(key: str) -> str:
    return key[:-1] + ("a" if key[-1] != "a" else "b")


@pytest.mark.parametrize(
    "change", [with_another_end, lambda key: key[:-1], lambda key: key + "a", str.upper, lambda key: ""]
)
def test_nearly_a_key_is_none(store, change):
    text, _ = store.create("anna")
    assert store.check(change(text)) is None


def test_two_keys_have_two_names(store):
    store.create("anna")
    with pytest.raises(StudioloError, match="exists"):
        store.create("anna")
    with pytest.raises(NotFoundError):
        store.find("ben")


def test_limits_change_one_by_one(store):
    store.create("anna", limits=KeyLimits(concurrent=2, dollars_per_day=1))
    assert store.limit("anna", concurrent=3).limits == KeyLimits(concurrent=3, dollars_per_day=1)
    assert store.limit("anna", dollars_per_day=None).limits == KeyLimits(concurrent=3)


def test_accounts_add_up_by_day_model_and_kind(store, database):
    usage = Usage(prompt=10, cached=4, answer=3, thoughts=2, summaries=1)
    month_ago = NOON - timedelta(days=22)
    store.record([Entry("k", NOON, "m", usage, 0.5), Entry("k", NOON, "m", usage, 0.25, batch=True)])
    store.record([Entry("k", NOON, "m", usage, 0.5), Entry("k", NOON - timedelta(days=1), "m", usage, 2)])
    store.record([Entry("k", month_ago, "m", usage, 8), Entry("", NOON, "m", usage, 16)])
    assert store.spent("k") == Spent(today=1.25, month=3.25)
    with database.read() as connection:
        row = connection.execute(
            sa.text("SELECT * FROM spending WHERE key = 'k' AND day = :day AND NOT batch"),
            {"day": date(2026, 11, 21) if not database.is_sqlite else "2026-11-21"},
        ).one()
    told = row._asdict()
    counts = {"requests": 2, "prompt": 20, "cached": 8, "answer": 6, "thoughts": 6, "dollars": 1.0}
    assert {name: told[name] for name in counts} == counts


def test_many_writers_lose_nothing(store):
    entry = Entry("k", NOON, "m", Usage(prompt=1), 0.125)

    async def write() -> None:
        await asyncio.gather(*(asyncio.to_thread(store.record, [entry]) for _ in range(40)))

    asyncio.run(write())
    assert store.spent("k").today == 5.0


def admitted(keys: Keys, key: str | None):
    return asyncio.run(keys.admit(key))


@pytest.mark.parametrize("key", [None, "", "x", "sk-studiolo-000000000000-" + "a" * 43])
def test_nobody_gets_in_without_a_key(keys, key):
    with pytest.raises(KeyRefusedError):
        admitted(keys, key)


def test_on_loopback_any_text_will_do_but_a_wrong_key_of_ours(store, hands):
    keys = Keys(store, needed=False, clock=hands)
    assert admitted(keys, None)[0] == NOBODY
    assert admitted(keys, "sk-whatever")[0] == NOBODY
    text, key = store.create("anna")
    assert admitted(keys, text)[0].key_id == key.id
    with pytest.raises(KeyRefusedError):
        admitted(keys, with_another_end(text))


def test_a_key_ends(keys, store, hands):
    text, _ = store.create("anna", lifetime=timedelta(hours=1))
    assert admitted(keys, text)[0].name == "anna"
    hands.seconds = 3600
    with pytest.raises(KeyRefusedError, match="expired"):
        admitted(keys, text)


def test_a_revoked_key_is_none_within_a_second(keys, store, hands):
    text, _ = store.create("anna")
    admitted(keys, text)
    store.revoke("anna")
    hands.seconds = FRESH + 0.01
    with pytest.raises(KeyRefusedError, match="revoked"):
        admitted(keys, text)


def test_requests_a_minute(keys, store, hands):
    text, _ = store.create("anna", limits=KeyLimits(requests_per_minute=3))
    for _ in range(3):
        admitted(keys, text)
    with pytest.raises(RateLimitError) as refused:
        admitted(keys, text)
    assert refused.value.retry_after == pytest.approx(20)
    hands.seconds += 20
    admitted(keys, text)


def test_tokens_a_minute(keys, store, hands):
    text, _ = store.create("anna", limits=KeyLimits(tokens_per_minute=600))

    async def use() -> None:
        caller, _ = await keys.admit(text)
        await keys.spent(caller, "m", Usage(prompt=500, answer=150), 0)
        await keys.flush()

    asyncio.run(use())
    with pytest.raises(RateLimitError) as refused:
        admitted(keys, text)
    assert refused.value.retry_after == pytest.approx(5.1)  # 51 tokens at 10 a second
    hands.seconds += 5.2
    admitted(keys, text)


def test_requests_at_once(keys, store):
    text, _ = store.create("anna", limits=KeyLimits(concurrent=2))

    async def use() -> None:
        _, leave = await keys.admit(text)
        await keys.admit(text)
        with pytest.raises(RateLimitError, match="2 requests"):
            await keys.admit(text)
        leave()
        leave()  # twice gives no second place
        await keys.admit(text)
        with pytest.raises(RateLimitError):
            await keys.admit(text)

    asyncio.run(use())


@pytest.mark.parametrize(
    ("limits", "wait"),
    [(KeyLimits(dollars_per_day=1), 12 * 3600), (KeyLimits(dollars_per_month=1), 9.5 * 24 * 3600)],
    ids=["a day", "a month"],
)
def test_spending_ends_until_the_next_day_or_month(keys, store, hands, limits, wait):
    text, _ = store.create("anna", limits=limits)

    async def use() -> None:
        caller, _ = await keys.admit(text)
        for _ in range(4):
            await keys.spent(caller, "m", Usage(prompt=1), 0.25)  # at once, before it is on the disk
        with pytest.raises(RateLimitError) as refused:
            await keys.admit(text)
        assert refused.value.retry_after == wait
        await keys.flush()
        hands.seconds += 10  # read again from the database: it is neither lost nor counted twice
        with pytest.raises(RateLimitError):
            await keys.admit(text)
        hands.seconds = wait
        await keys.admit(text)

    asyncio.run(use())
    assert store.spent(store.find("anna").id).month in (0.0, 1.0)


def test_what_was_spent_survives_a_restart(store, hands):
    text, _ = store.create("anna", limits=KeyLimits(dollars_per_day=1))

    async def use() -> None:
        before = Keys(store, needed=True, clock=hands)
        caller, _ = await before.admit(text)
        await before.spent(caller, "m", Usage(prompt=1), 1.0)
        await before.flush()
        with pytest.raises(RateLimitError):
            await Keys(store, needed=True, clock=hands).admit(text)

    asyncio.run(use())


def test_requests_that_come_together_count_what_was_spent_once(keys, store, hands):
    """All of them find what is known of the key too old, and read it again."""
    text, key = store.create("anna", limits=KeyLimits(dollars_per_day=1))

    async def use() -> None:
        caller, _ = await keys.admit(text)
        for _ in range(3):
            await keys.spent(caller, "m", Usage(prompt=1), 0.25)
            hands.seconds += FRESH + 1
            await asyncio.gather(*(keys.admit(text) for _ in range(8)))
        await keys.spent(caller, "m", Usage(prompt=1), 0.25)
        with pytest.raises(RateLimitError, match="spent"):
            await keys.admit(text)
        await keys.flush()

    asyncio.run(use())
    assert store.spent(key.id).today == 1.0


def test_what_cannot_be_written_now_is_written_later(keys, store, monkeypatch):
    text, key = store.create("anna", limits=KeyLimits(dollars_per_day=1))
    record = store.record

    def away(entries):
        monkeypatch.setattr(store, "record", record)
        raise sa.exc.OperationalError("INSERT", {}, OSError("away"))

    async def use() -> None:
        caller, _ = await keys.admit(text)
        monkeypatch.setattr(store, "record", away)
        await keys.spent(caller, "m", Usage(prompt=1), 0.5)
        with pytest.raises(sa.exc.OperationalError):
            await keys.flush()
        await keys.flush()

    asyncio.run(use())
    assert store.spent(key.id).today == 0.5


def test_what_is_done_unattended_ends_with_the_money_and_with_the_key(keys, store):
    _, key = store.create("anna", limits=KeyLimits(dollars_per_day=1))

    async def use() -> None:
        await keys.check_unattended(None)
        await keys.check_unattended(key.id)
        store.record([Entry(key.id, NOON, "m", Usage(prompt=1), 1.0, batch=True)])
        with pytest.raises(SpentError, match="spent"):
            await keys.check_unattended(key.id)
        store.limit("anna", dollars_per_day=2)
        await keys.check_unattended(key.id)
        store.revoke("anna")
        with pytest.raises(KeyRefusedError, match="revoked"):
            await keys.check_unattended(key.id)

    asyncio.run(use())
