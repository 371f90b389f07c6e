"""The HTTP side of llama.cpp's server, for what the package has no function for."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

from studiolo.language.engines.llamacpp_errors import error_of
from studiolo.language.errors import LanguageError


class Desk:
    """The server's HTTP side, for short questions."""

    def __init__(self, address: str, key: str) -> None:
        self._address, self._key = address, key

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a POST of JSON.

        Raises:
            LanguageError: what the server says is wrong, or that there is none any more.
        """
        connection = self._connection()
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LanguageError("the model was closed, or its engine has failed") from error
        finally:
            connection.close()
        if "error" in answer:
            raise error_of(answer["error"])
        return dict(answer)

    def _connection(self) -> http.client.HTTPConnection:
        if self._address.startswith("unix://"):
            return _UnixConnection(self._address.removeprefix("unix://"))
        return http.client.HTTPConnection(self._address.removeprefix("http://"))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)
