"""`studiolo serve` and `studiolo keys` as processes: who is let in, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from studiolo.server import starting
from studiolo.server.settings import Settings

HERE = Path(__file__).parent
ASK = {"model": "stub", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def studiolo(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "studiolo.cli.main", *args], capture_output=True, text=True, check=False
    )


@contextmanager
def process(*args: str) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(
        [sys.executable, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@contextmanager
def slow(home: Path, drain: float = 30) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with process(str(HERE / "slow_server.py"), str(home), str(drain)) as server:
        assert server.stdout is not None
        yield server, int(server.stdout.readline())


def say(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    server.stdin.write(b".")


@contextmanager
def streaming(server: subprocess.Popen[bytes], port: int) -> Iterator[Iterator[str]]:
    """The events of an answer of which the first word has come."""
    say(server)
    with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/chat/completions", json=ASK, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line)
        for line in lines:
            if "one" in line:
                break
        yield lines


def refused(port: int) -> bool:
    """Waits until nobody is let in any more."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            return True


def test_told_to_stop_it_lets_answers_end_and_nobody_in(tmp_path):
    with slow(tmp_path) as (server, port), streaming(server, port) as events:
        server.send_signal(signal.SIGTERM)
        assert refused(port)
        say(server)
        say(server)
        rest = "".join(events)
        assert " two" in rest
        assert " three" in rest
        assert rest.endswith("[DONE]")
        assert server.stdout.read().split() == [b"parked", b"ended"]
        assert server.wait(30) == 0


def test_an_answer_that_takes_too_long_to_end_is_told_so(tmp_path):
    with slow(tmp_path, drain=1) as (server, port), streaming(server, port) as events:
        server.send_signal(signal.SIGTERM)
        rest = "".join(events)
        assert "the server is stopping" in rest
        assert server.stdout.read().split() == [b"parked", b"ended"]
        assert server.wait(30) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_told_twice_it_ends_at_once(tmp_path, second):
    with slow(tmp_path) as (server, port), streaming(server, port):
        server.send_signal(signal.SIGTERM)
        assert refused(port)
        server.send_signal(second)
        assert server.wait(30) == 128 + second
        assert server.stdout.read() == b""


def test_beyond_loopback_it_does_not_start_without_a_key(studiolo_home):
    done = studiolo("serve", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "studiolo keys create" in done.stderr
    assert "Traceback" not in done.stderr
    studiolo("keys", "create", "anna")
    studiolo("keys", "revoke", "anna")
    assert studiolo("serve", "--host", "0.0.0.0", "--port", "0").returncode == 2


def test_beyond_loopback_a_key_is_needed_and_its_revocation_is_followed(studiolo_home):
    key = studiolo("keys", "create", "anna", "--requests-per-minute", "1000").stdout.strip()
    with process("-m", "studiolo.cli.main", "serve", "--host", "0.0.0.0", "--port", "0") as server:
        url = re.search(r"http://\S+:\d+", server.stdout.readline().decode())[0]
        assert httpx.get(f"{url}/v1/models").status_code == 401
        allowed = {"authorization": f"Bearer {key}"}
        assert httpx.get(f"{url}/v1/models", headers=allowed).status_code == 200
        assert studiolo("keys", "revoke", "anna").returncode == 0
        while (answer := httpx.get(f"{url}/v1/models", headers=allowed)).status_code == 200:
            pass
        assert answer.status_code == 401
        assert "revoked" in answer.text
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        lines = [json.loads(line) for line in server.stderr.read().splitlines()]
        assert {line["caller"] for line in lines if line["status"] == 200} == {"anna"}
        assert key not in json.dumps(lines)


def test_a_restart_loses_nothing_in_either_database(studiolo_home, database_url):
    key = studiolo("keys", "create", "anna", "--database", database_url).stdout.strip()
    allowed = {"authorization": f"Bearer {key}"}
    command = (
        "-m",
        "studiolo.cli.main",
        "serve",
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        "--database",
        database_url,
    )
    with process(*command) as server:
        url = re.search(r"http://\S+:\d+", server.stdout.readline().decode())[0]
        given = {"file": ("a.jsonl", b"{}\n")}
        made = httpx.post(f"{url}/v1/files", headers=allowed, files=given, data={"purpose": "batch"})
        assert made.status_code == 200, made.text
        server.kill()
        server.wait()
    with process(*command) as server:
        url = re.search(r"http://\S+:\d+", server.stdout.readline().decode())[0]
        assert httpx.get(f"{url}/v1/files", headers=allowed).json()["data"] == [made.json()]
        file = made.json()["id"]
        assert httpx.get(f"{url}/v1/files/{file}/content", headers=allowed).content == b"{}\n"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--model", "smollm"], "no model of this name"),
        (["--memory", "much"], "not a size"),
        (["--database", "mysql://x/y"], "a database of this kind is not used"),
        (["--database", "postgresql://nobody@127.0.0.1:1/none"], "the database cannot be used"),
        (["--host", "203.0.113.7"], "no key has been made yet"),
        (["--allow-host", "https://studio.example"], "not the name of a host"),
        (["--allow-host", "studio.example:8443"], "not the name of a host"),
    ],
)
def test_what_cannot_be_is_told_in_one_message(studiolo_home, args, told):
    done = studiolo("serve", "--port", "0", *args)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(studiolo_home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = studiolo("serve", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "cannot listen there" in done.stderr


def test_what_is_sent_goes_out_at_once(tmp_path):
    """Two small packets of an answer do not wait for the client's acknowledgement of the first (Nagle)."""
    with starting.bind(Settings(data=tmp_path, port=0)) as listener:
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP  # by which asyncio sets TCP_NODELAY


def test_keys_are_made_listed_limited_and_revoked(studiolo_home):
    made = studiolo("keys", "create", "anna", "--dollars-per-day", "2", "--days", "30")
    assert re.fullmatch(r"sk-studiolo-[0-9a-f]{12}-[\w-]{43}\n", made.stdout)
    limited = studiolo("keys", "limit", "anna", "--concurrent", "4", "--lift", "dollars-per-day")
    assert limited.stdout == "anna: concurrent 4\n"
    wide = {**os.environ, "COLUMNS": "200"}
    listed = subprocess.run(
        [sys.executable, "-m", "studiolo.cli.main", "keys", "list"], capture_output=True, text=True, env=wide
    ).stdout
    assert re.search(r"anna +[0-9a-f]{12} +concurrent 4 +\$0\.0000", listed)
    assert made.stdout.strip() not in listed
    assert studiolo("keys", "revoke", "ben").returncode == 2
