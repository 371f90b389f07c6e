"""Pulling from a hub on loopback that speaks as the real one: a listing, a redirect, a second host."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from studiolo.errors import StudioloError
from studiolo.models import hub, weights
from tinygguf import gguf

COMMIT = "a" * 40


class _Hub(BaseHTTPRequestHandler):
    files: dict[str, bytes]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append((path, self.headers.get("Authorization")))
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if path == "/api/models/google/tiny":
            return self._answer(200, json.dumps(self._listing()).encode())
        if name and not path.startswith("/bytes"):
            port = self.server.server_address[1]
            return self._answer(302, b"", Location=f"http://localhost:{port}/bytes{path}")
        if name in self.files:
            return self._answer(200, self.files[name])
        return self._answer(404, b"", **{"X-Error-Code": "RepoNotFound"})

    def _listing(self) -> dict[str, object]:
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            | ({"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
               if name.endswith(".gguf") else {})
            for name, data in self.files.items()
        ]  # fmt: skip
        card = {"license": "gemma"}
        return {"id": "google/tiny", "sha": COMMIT, "siblings": siblings, "cardData": card, "tags": []}

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def hub_of(files: dict[str, bytes]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    asked: list[tuple[str, str | None]] = []
    handler = type("Handler", (_Hub,), {"files": files, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pull(endpoint: str, source: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since the hub's client reads its settings when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "studiolo.cli.main", "models", "pull", source],
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_file_is_pulled_and_the_key_stays_with_the_hub():
    with hub_of({"tiny-Q4.gguf": gguf(), "mmproj-F16.gguf": b"", "README.md": b""}) as (endpoint, asked):
        done = pull(endpoint, "hf:google/tiny")
    assert done.returncode == 0, done.stderr
    found = weights.find("tiny")
    assert found.path.read_bytes() == gguf()
    assert (found.licence.name, found.source) == ("gemma", "hf:google/tiny")
    keys = {path.partition("/google")[0]: key for path, key in asked}
    assert keys.items() >= {"/api/models": "Bearer hf_secret", "": "Bearer hf_secret", "/bytes": None}.items()


def test_a_repository_that_is_not_there_is_no_broken_network():
    with hub_of({}) as (endpoint, _):
        done = pull(endpoint, "hf:google/other")
    assert done.returncode == 2
    assert "no such repository" in done.stderr


def test_a_hub_that_is_not_reached_is_told_with_what_to_do():
    done = pull("http://127.0.0.1:9", "hf:google/tiny")
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr
    assert "studiolo models add" in done.stderr
    assert "Traceback" not in done.stderr


FOLDER = [
    "config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "tokenizer.json",
]


@pytest.mark.parametrize(
    ("file", "names", "wanted"),
    [
        (None, [*FOLDER, "pytorch_model.bin", "onnx/model.onnx", "README.md"], FOLDER),
        (None, ["a.gguf", "mmproj.gguf", "config.json"], ["a.gguf"]),
        ("b.gguf", ["a.gguf", "b.gguf"], ["b.gguf"]),
    ],
)
def test_what_is_wanted_of_a_repository(file, names, wanted):
    assert hub._wanted("o/n", file, names) == wanted


@pytest.mark.parametrize(
    ("file", "names", "message"),
    [
        (None, ["a.gguf", "b.gguf"], "Name one: hf:o/n:a.gguf"),
        (None, ["pytorch_model.bin", "config.json"], "pickled"),
        ("model.bin", ["model.bin"], "pickled"),
        (None, ["README.md"], "no weights"),
        ("a-q4.gguf", ["a-q4_0.gguf"], r"There are: a-q4_0\.gguf"),
    ],
)
def test_what_cannot_be_had_of_a_repository_is_told(file, names, message):
    with pytest.raises(StudioloError, match=message):
        hub._wanted("o/n", file, names)
