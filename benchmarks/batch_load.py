"""A batch of 10,000 requests by the HTTP API: memory of the server, items a second, and who asks meanwhile.

    python benchmarks/batch_load.py

The server is `stub_server.py`, a process of its own. The batch comes as a file of JSON lines in OpenAI's
dialect; its answers are fetched as a file, and compared with what they must be, in order. Before it and
meanwhile a client asks for a short answer ten times a second: shown is the ratio of its times to the first
byte. The memory is read when that many items are answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import at, table
from raw_client import Connection, Server, asked, stub_server
from stub_server import NAME, expected

PIECES = 4
EVERY = 0.1  # seconds between two questions of the client that asks meanwhile
_EDGE = "the-edge-of-a-part"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="as little as shows that it runs")
    options = parser.parse_args()
    if options.quick:
        options.items = 200
    with (
        tempfile.TemporaryDirectory() as folder,
        stub_server(Path(folder), "--pieces", str(PIECES)) as server,
    ):
        print(asyncio.run(measured(server, options.items)))


async def measured(server: Server, items: int) -> str:
    connection = Connection(server.port)
    await _questions(server, until=asyncio.create_task(asyncio.sleep(0.5)))  # makes caches warm
    before = await _questions(server, until=asyncio.create_task(asyncio.sleep(5 if items > 1000 else 1)))
    rest = server.resident_mb()
    file = await _uploaded(connection, items)
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    asked_at, cpu = time.perf_counter(), server.cpu()
    batch = await _json(connection, "POST", "/v1/batches", body)
    began = time.perf_counter()
    following = asyncio.create_task(_followed(connection, server, batch["id"], items))
    during = await _questions(server, until=following)
    memory, batch = following.result()
    seconds, cpu = time.perf_counter() - began, server.cpu() - cpu
    right = await _right(connection, batch["output_file_id"], items)
    connection.close()
    rows = [
        ["items that are answered rightly, in order", f"{right:,} of {items:,}"],
        ["seconds to take the batch in", f"{began - asked_at:.1f}"],
        ["items a second", f"{items / seconds:.0f}"],
        ["CPU of the server, ms an item", f"{1000 * cpu / items:.2f}"],
        ["RSS at rest, MiB", f"{rest:.0f}"],
        *([f"RSS at {done:,} items", f"{size:.0f}"] for done, size in memory.items()),
        ["RSS when the answers were fetched", f"{server.resident_mb():.0f}"],
        *_compared(before, during),
    ]
    return table(("", "measured"), rows)


def _compared(before: list[float], during: list[float]) -> list[list[str]]:
    rows = [["questions before the batch, and meanwhile", f"{len(before)}, {len(during)}"]]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        one, other = 1000 * at(before, share), 1000 * at(during, share)
        cell = f"{one:.1f} ms, {other:.1f} ms: {other / one:.1f} times"
        rows.append([f"first byte before and meanwhile, {name}", cell])
    return rows


async def _questions(server: Server, *, until: asyncio.Task[Any]) -> list[float]:
    """Seconds to the first byte of each question, asked until that task has ended."""
    connection, firsts = await Connection(server.port).open(), list[float]()
    while not until.done():
        heard = await connection.request("POST", *asked("chat", len(firsts)))
        assert heard.status == 200, heard.body
        firsts.append(heard.first)
        await asyncio.wait((until,), timeout=EVERY)
    connection.close()
    return firsts


async def _followed(
    connection: Connection, server: Server, batch: str, items: int
) -> tuple[dict[int, float], dict[str, Any]]:
    """The memory at each quarter, and the batch when it is over."""
    marks, memory = [items * quarter // 4 for quarter in (0, 1, 2, 3, 4)], {}
    while True:
        record = await _json(connection, "GET", f"/v1/batches/{batch}")
        while marks and record["request_counts"]["completed"] >= marks[0]:
            memory[marks.pop(0)] = server.resident_mb()
        if record["status"] in ("completed", "failed", "cancelled", "expired"):
            return memory, record
        await asyncio.sleep(0.2)


async def _uploaded(connection: Connection, items: int) -> str:
    form = (
        f'--{_EDGE}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{_EDGE}\r\ncontent-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    )
    lines = "".join(json.dumps(_line(number)) + "\n" for number in range(items))
    kind = {"content-type": f"multipart/form-data; boundary={_EDGE}"}
    body = f"{form}{lines}\r\n--{_EDGE}--\r\n".encode()
    heard = await connection.request("POST", "/v1/files", body, kind)
    assert heard.status == 200, heard.body
    return str(json.loads(heard.body)["id"])


def _line(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{number} please"}]
    body = {"model": NAME, "messages": messages}
    return {"custom_id": f"n{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


async def _right(connection: Connection, file: str, items: int) -> int:
    """How many of the answers are those to their questions, and in their place."""
    heard = await connection.request("GET", f"/v1/files/{file}/content")
    lines = [json.loads(line) for line in heard.body.splitlines()]
    said = [
        (line["custom_id"], line["response"]["body"]["choices"][0]["message"]["content"]) for line in lines
    ]
    wanted = [(f"n{number}", expected(number, PIECES)) for number in range(items)]
    assert len(said) == items
    return sum(one == other for one, other in zip(said, wanted, strict=True))


async def _json(connection: Connection, method: str, path: str, body: Any = None) -> dict[str, Any]:
    heard = await connection.request(method, path, b"" if body is None else json.dumps(body).encode())
    assert heard.status == 200, heard.body
    found = json.loads(heard.body)
    assert isinstance(found, dict)
    return found


if __name__ == "__main__":
    main()
