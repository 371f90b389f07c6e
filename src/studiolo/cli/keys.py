"""studiolo keys: who may call the server, and how much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from studiolo.cli.serve import Data, DatabaseUrl, use_data
from studiolo.errors import StudioloError

if TYPE_CHECKING:
    from studiolo.server.keys import Key, KeyStore

app = typer.Typer(help="Keys of the server: make, list, limit and revoke them.", no_args_is_help=True)


class Limit(StrEnum):
    """The names of limits, as the options have them."""

    REQUESTS_PER_MINUTE = "requests-per-minute"
    TOKENS_PER_MINUTE = "tokens-per-minute"
    CONCURRENT = "concurrent"
    DOLLARS_PER_DAY = "dollars-per-day"
    DOLLARS_PER_MONTH = "dollars-per-month"


_Name = Annotated[str, typer.Argument(help="Its name, or the id that logs tell.")]
_Requests = Annotated[float | None, typer.Option(min=0.001, metavar="N", help="Requests a minute.")]
_Tokens = Annotated[float | None, typer.Option(min=0.001, metavar="N", help="Tokens a minute, of all kinds.")]
_Concurrent = Annotated[int | None, typer.Option(min=1, metavar="N", help="Requests at the same time.")]
_Day = Annotated[float | None, typer.Option(min=0, metavar="USD", help="US dollars a day (of UTC).")]
_Month = Annotated[float | None, typer.Option(min=0, metavar="USD", help="US dollars a month (of UTC).")]
_Lift = Annotated[list[Limit] | None, typer.Option(help="Take this limit away (may be given several times).")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to call it: whose it is, or what for.")],
    requests_per_minute: _Requests = None,
    tokens_per_minute: _Tokens = None,
    concurrent: _Concurrent = None,
    dollars_per_day: _Day = None,
    dollars_per_month: _Month = None,
    days: Annotated[float | None, typer.Option(min=0.0001, help="Days until it expires; else never.")] = None,
    data: Data = None,
    database: DatabaseUrl = None,
) -> None:
    """Make a key, and print it. It is shown this once."""
    use_data(data)
    from studiolo.server.keys import KeyLimits

    limits = KeyLimits(
        requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute, concurrent=concurrent,
        dollars_per_day=dollars_per_day, dollars_per_month=dollars_per_month,
    )  # fmt: skip
    with _store(database) as store:
        key, _ = store.create(name, limits=limits, lifetime=timedelta(days=days) if days else None)
    typer.echo(key)
    typer.echo("Keep it now: only its hash is kept here.", err=True)


@app.command("list")
def list_keys(data: Data = None, database: DatabaseUrl = None) -> None:
    """Show all keys, their limits, and what they have spent."""
    use_data(data)
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "id", "limits", "today", "month", "until", box=None, header_style="bold")
    with _store(database) as store:
        for key in store.list():
            spent = store.spent(key.id)
            table.add_row(
                key.name, key.id, _limits(key), f"${spent.today:.4f}", f"${spent.month:.4f}", _until(key)
            )
    Console().print(table)


@app.command()
def limit(
    name: _Name,
    requests_per_minute: _Requests = None,
    tokens_per_minute: _Tokens = None,
    concurrent: _Concurrent = None,
    dollars_per_day: _Day = None,
    dollars_per_month: _Month = None,
    lift: _Lift = None,
    data: Data = None,
    database: DatabaseUrl = None,
) -> None:
    """Change a key's limits; those that are not named stay. A running server follows within a second."""
    use_data(data)
    given: dict[str, float | None] = {
        "requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute,
        "concurrent": concurrent, "dollars_per_day": dollars_per_day, "dollars_per_month": dollars_per_month,
    }  # fmt: skip
    changed: dict[str, float | None] = {field: value for field, value in given.items() if value is not None}
    changed |= dict.fromkeys((name.replace("-", "_") for name in lift or ()), None)
    if not changed:
        raise StudioloError("no limit is named", remedy="Give one, such as --concurrent 4, or --lift NAME.")
    with _store(database) as store:
        typer.echo(f"{name}: {_limits(store.limit(name, **changed))}")


@app.command()
def revoke(name: _Name, data: Data = None, database: DatabaseUrl = None) -> None:
    """Make a key useless, for good. A running server follows within a second."""
    use_data(data)
    with _store(database) as store:
        store.revoke(name)
    typer.echo(f"{name} is revoked.")


@contextmanager
def _store(url: str | None) -> Iterator[KeyStore]:
    from studiolo.server.keys import KeyStore
    from studiolo.store.database import Database

    database = Database(url)
    try:
        yield KeyStore(database)
    finally:
        database.close()


def _limits(key: Key) -> str:
    limits = key.limits.model_dump(exclude_none=True)
    return ", ".join(f"{field.replace('_', '-')} {value:g}" for field, value in limits.items()) or "none"


def _until(key: Key) -> str:
    if key.revoked is not None:
        return f"revoked {_local(key.revoked)}"
    return "ever" if key.expires is None else _local(key.expires)


def _local(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M")
