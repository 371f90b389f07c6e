"""What `google_sdk_tests.py` adds to pytest: credentials that need no network, and a line of JSON a test."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import Any

import google.auth
import pytest
from google.genai._replay_api_client import ReplayApiClient
from google.oauth2.credentials import Credentials

_asked: Counter[str] = Counter()
_ADDRESS = re.compile(r"^https?://[^/]+")
_VARIES = re.compile(r"[0-9a-f]{12,}|req_\w+|\d{4,}|0x[0-9a-f]+|/tmp/[\w/.-]+")


def pytest_configure() -> None:
    google.auth.default = lambda *args, **more: (Credentials("token"), "project")
    ReplayApiClient.__init__ = _redirected(ReplayApiClient.__init__)  # type: ignore[method-assign]
    ReplayApiClient._request = _counted(ReplayApiClient._request)  # type: ignore[method-assign]
    ReplayApiClient._async_request = _counted(ReplayApiClient._async_request)  # type: ignore[method-assign]


def _redirected(begin: Any) -> Any:
    """The tests' own client takes no address from the environment, as Google's client does."""

    def redirected(self: Any, *args: Any, **more: Any) -> None:
        begin(self, *args, **more)
        self._http_options.base_url = os.environ["GOOGLE_GEMINI_BASE_URL"]

    return redirected


def _counted(ask: Any) -> Any:
    """Requests are counted, and come here also where a test gives another address."""

    def counted(self: Any, http_request: Any, *args: Any, **more: Any) -> Any:
        _asked[os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]] += 1
        http_request.url = _ADDRESS.sub(os.environ["GOOGLE_GEMINI_BASE_URL"], http_request.url, count=1)
        return ask(self, http_request, *args, **more)

    return counted


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The fixture `client` of the tests' conftest is what asks an API.
    live = [item for item in items if {"client", "use_vertex"} <= set(getattr(item, "fixturenames", ()))]
    config.hook.pytest_deselected(items=[item for item in items if item not in live])
    items[:] = live


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = (yield).get_result()
    if call.when != "call" and report.outcome == "passed":
        return
    why = str(call.excinfo.value or call.excinfo.typename) if call.excinfo else ""
    kind = call.excinfo.typename if call.excinfo else ""
    line = {
        "file": os.path.relpath(item.path, str(item.config.rootpath / "google/genai/tests")),
        "name": item.name,
        "outcome": report.outcome,
        "requests": _asked[item.nodeid],
        "why": _VARIES.sub("…", f"{kind}: {why}".split("\n")[0])[:220],
    }
    with open(os.environ["GOOGLE_SDK_REPORT"], "a") as out:
        out.write(json.dumps(line) + "\n")


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.outcome == "failed":
        line = {
            "file": report.nodeid.partition("tests/")[2],
            "name": "(cannot be imported)",
            "outcome": "failed",
            "requests": 0,
            "why": str(report.longrepr).strip().split("\n")[-1][:200],
        }
        with open(os.environ["GOOGLE_SDK_REPORT"], "a") as out:
            out.write(json.dumps(line) + "\n")
