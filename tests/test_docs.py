"""The documentation is true: its commands run, its links lead somewhere, its reference is that of the code.

Every ```sh and ```python block of README.md and docs/ is run, page by page, from top to bottom, in a
folder that looks like a fresh clone. Two comments above a block say otherwise, where a reader sees it:

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
from dataclasses import dataclass
from pathlib import Path

import pytest

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

    @property
    def command(self) -> list[str]:
        return ["bash", "-euo", "pipefail", "-c"] if self.language == "sh" else [sys.executable, "-c"]


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


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=identify)
def test_the_commands_of_a_page_run(page, clone, studiolo_home):
    if not all(file.exists() for file in SHIPPED):
        pytest.skip("the weights of studiolo-base are not in this checkout")
    for name in sorted(set(_NEEDS.findall(page.read_text(encoding="utf-8")))):
        weights_for_tests(name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks(page):
        done = subprocess.run(
            [*block.command, block.code], cwd=clone, capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip
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
