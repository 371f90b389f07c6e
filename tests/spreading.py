"""Which tests go together where several workers share them, and what is begun first (pytest-xdist).

A file stays with one worker, for the sake of what its tests share; but the tests of WIDE share nothing that
takes long: each is taken by itself. What takes longest is begun first, or one worker would be left with it at
the end.
"""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadFileScheduling

WIDE = ("tests/test_docs.py", "tests/test_training_parts.py", "tests/server/test_server_crashes.py")
LONG = (
    "tests/test_docs.py::test_the_commands_of_a_page_run",
    "tests/server/test_server_gemini_tunings.py",
    "tests/server/test_server_crashes.py",
    "tests/test_training_parts.py",
    "tests/jobs/test_tunings.py",
    "tests/language/test_benchmarks.py",
    "tests/test_sampling.py",
    "tests/test_image_benchmarks.py",
    "tests/language/test_llamacpp.py",
    "tests/test_training.py",
    "tests/server/test_server_openai_fine_tuning.py",
    "tests/test_sweep.py",
    "tests/test_scoring.py",
    "tests/test_teaching_families.py",
    "tests/server/test_server_abuse.py",
)


class Spreading(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return nodeid if file in WIDE else file


def order(items: list[pytest.Item]) -> None:
    """The longest first, then file by file as they are found."""

    def rank(item: pytest.Item) -> int:
        return next((place for place, start in enumerate(LONG) if item.nodeid.startswith(start)), len(LONG))

    items.sort(key=rank)
