"""The documentation is true: its commands run, its links lead somewhere, its reference is that of the code.

Every ```sh and ```python block of README.md and docs/ is run, page by page, from top to bottom, in a
folder that looks like a fresh clone; what needs torch without the seconds that it takes to start (`warm`).
Comments above a block say otherwise, where a reader sees it:

    <!-- not run: WHY -->
    <!-- run shorter: TEXT => TEXT THAT TAKES ITS PLACE IN THE TEST -->
    <!-- needs: NAME OF LANGUAGE WEIGHTS, fetched once for all tests; without them the page is skipped -->
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from pulled import weights_for_tests

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BASE = ROOT / "src" / "studiolo" / "base"
SHIPPED = [BASE / "weights" / "model_index.json", BASE / "eye" / "labels.json"]

_BLOCK = re.compile(r"((?:^<!--[^\n]*-->\n)*)^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: .+ -->")
_NEEDS = re.compile(r"<!-- needs: (.+?) -->")
_SHORTER = re.compile(r"<!-- run shorter: (.+?) => (.*?) -->")


@dataclass(frozen=True)
class Block:
    language: str
    code: str

    def command(self, python: str) -> list[str]:
        start = ["bash", "-euo", "pipefail", "-c"] if self.language == "sh" else [python, "-c"]
        return [*start, self.code]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that are run, as they are run."""
    found = []
    for comments, language, code in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for shown, run in _SHORTER.findall(comments):
            assert shown in code, f"{page.name}: '{shown}' is not in the block below that comment"
            code = code.replace(shown, run)
        if _NOT_RUN.search(comments):
            continue
        if language == "python" and found and found[-1].language == "python":
            found[-1] = Block("python", f"{found[-1].code}\n{code}")  # one session, as a reader would have
        else:
            found.append(Block(language, code))
    return found


def identify(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the project in it, that commands may write to."""
    for name in ("src", "docs", "README.md", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def commands(warm_python, tmp_path_factory) -> str:
    """PATH with `studiolo` in it, which is warm where it needs torch, and else that of the environment."""
    installed = Path(sys.executable).parent
    path = [str(tmp_path_factory.mktemp("commands")), str(installed), os.environ["PATH"]]
    studiolo = Path(path[0]) / "studiolo"
    studiolo.write_text(_STUDIOLO.format(warm=warm_python, installed=installed / "studiolo"))
    studiolo.chmod(0o755)
    return os.pathsep.join(path)


_STUDIOLO = """#!/bin/sh
case $1 in
  train | estimate | generate | reproduce | score | sweep | bench | convert | merge)
    exec "{warm}" -m studiolo.cli.main "$@" ;;
esac
exec "{installed}" "$@"
"""


@contextmanager
def alone(page: Path) -> Iterator[None]:
    """Pages that serve take the port that they show: one at a time."""
    serves = any("studiolo serve" in block.code for block in blocks(page))
    with FileLock(Path(tempfile.gettempdir()) / "studiolo-docs.lock") if serves else nullcontext():
        yield


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=identify)
def test_the_commands_of_a_page_run(page, clone, studiolo_home, commands, warm_python):
    if not all(file.exists() for file in SHIPPED):
        pytest.skip("the weights of studiolo-base are not in this checkout")
    for name in sorted(set(_NEEDS.findall(page.read_text(encoding="utf-8")))):
        weights_for_tests(name)
    env = {**os.environ, "PATH": commands, "PYTHONPATH": str(ROOT / "src")}
    with alone(page):
        for block in blocks(page):
            done = subprocess.run(
                block.command(warm_python), cwd=clone, capture_output=True, text=True, check=False, env=env
            )
            assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_links_lead_to_files_and_headings_that_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], (
                target
            )


def test_every_page_is_reached_from_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        if page.name != "index.md":
            assert f"({page.relative_to(ROOT / 'docs')})" in index


def test_the_reference_of_the_recipe_is_that_of_the_code():
    page = runpy.run_path(str(ROOT / "scripts" / "recipe_page.py"))
    assert page["PAGE"].read_text(encoding="utf-8") == page["page"](), "out of date: make docs"
