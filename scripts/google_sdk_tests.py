"""Google's own tests of google-genai against Studiolo's server, and a table of what came of them.

    python scripts/google_sdk_tests.py            # all that ask an API
    python scripts/google_sdk_tests.py --why      # with each test that failed, and why

The tests are in the package. Those that ask an API can be told to ask a live one (`--mode=api`), and its
address is changed to this server's. The recordings that they replay otherwise are not in the package, nor are
the pictures and texts that they upload: stand-ins of the same names and types are made here.
Behind the server stands an engine that answers by the request: text, or what fits a schema, or a call of a
function, under each name of a model that the tests ask for. So the table tells of the wire, and of no model.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "server"), str(ROOT / "tests")]

from PIL import Image  # noqa: E402
from sdks import folder_of  # noqa: E402
from serving import serving  # noqa: E402

from studiolo.language.conversation import (  # noqa: E402
    Call,
    CallResult,
    Delta,
    FinishReason,
    FormatKind,
    Request,
    Text,
    Tool,
    ToolMode,
    Usage,
)
from studiolo.language.engines.base import Capabilities  # noqa: E402

MODELS = re.compile(r"['\"/](gemini-[\w.-]+|text-embedding-\d+|learnlm[\w.-]+)['\"]")
ABLE = Capabilities(
    context=65_536, max_output=8192, tools=True,
    modalities=frozenset({"text", "image", "audio", "video", "document"}),
    grammar=True, thinking=True, logprobs=True, seed=True, embeddings=True, candidates=8,
)  # fmt: skip


class StandIn:
    """Answers by the request alone."""

    def __init__(self, model: str) -> None:
        self.model, self.capabilities = model, ABLE

    async def generate(self, request: Request) -> AsyncGenerator[Delta]:
        usage = Usage(prompt=await self.count_tokens(request), answer=7)
        for candidate in range(request.config.candidates):
            for part in _answer(request):
                yield Delta(candidate=candidate, part=part, model=self.model)
            last = candidate == request.config.candidates - 1
            yield Delta(candidate=candidate, finish=FinishReason.STOP, usage=usage if last else None)

    async def count_tokens(self, request: Request) -> int:
        return sum(len(content.text.split()) + 1 for content in request.contents)

    async def embed(self, texts: Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        return [[1.0, float(len(text))] + [0.0] * ((dimensions or 768) - 2) for text in texts]

    async def close(self) -> None: ...


def _answer(request: Request) -> list[Text | Call]:
    config, last = request.config, request.contents[-1]
    if config.format.kind is FormatKind.JSON:
        return [Text(text=json.dumps(_instance(config.format.rule or {})))]
    if config.format.kind is FormatKind.CHOICE:
        assert isinstance(config.format.rule, tuple)
        return [Text(text=config.format.rule[0])]
    answered = any(isinstance(part, CallResult) for part in last.parts)
    mode = request.tool_choice.mode
    if request.tools and not answered and mode is not ToolMode.NONE:
        return [_call(request.tools[0])]
    return [Text(text="The sky is blue because of "), Text(text="Rayleigh scattering: 500 blue words.")]


def _call(tool: Tool) -> Call:
    arguments = _instance(tool.parameters or {})
    return Call(name=tool.name, arguments=arguments if isinstance(arguments, dict) else {}, id="call-1")


def _instance(schema: Any, depth: int = 0) -> Any:
    """Something that fits a schema of the kinds that clients write."""
    if not isinstance(schema, dict) or depth > 6:
        return None
    for word in ("anyOf", "oneOf", "allOf"):
        if schema.get(word):
            return _instance(schema[word][0], depth + 1)
    if "const" in schema or schema.get("enum"):
        return schema.get("const", (schema.get("enum") or [None])[0])
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    match str(kind).lower():
        case "string":
            return "Boston"
        case "integer":
            return int(schema.get("minimum", 2))
        case "number":
            return float(schema.get("minimum", 2.5))
        case "boolean":
            return True
        case "array":
            return [_instance(schema.get("items", {}), depth + 1)] * max(1, schema.get("minItems", 1))
        case "null":
            return None
        case _:
            wanted = schema.get("properties", {})
            return {name: _instance(rule, depth + 1) for name, rule in wanted.items()}


# --- the tests and what they read -------------------------------------------------------------------------


def laid_out(folder: Path) -> Path:
    """A copy of the package below `folder`, with stand-ins for the files of its tests, which it returns."""
    import google.genai

    copy = folder / "google" / "genai"
    shutil.copytree(Path(google.genai.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    data = copy / "tests" / "data"
    data.mkdir()
    source = "\n".join(path.read_text() for path in (copy / "tests").rglob("*.py"))
    for name in set(re.findall(r"data/([\w-]+\.(?:png|jpg|pdf|txt|mp4|m4a|wav))", source)):
        (data / name).write_bytes(_stand_in(name))
    return copy / "tests"


def _stand_in(name: str) -> bytes:
    out, kind = io.BytesIO(), name.rpartition(".")[2]
    if kind in ("png", "jpg"):
        Image.new("RGB", (64, 64), "teal").save(out, {"png": "PNG", "jpg": "JPEG"}[kind])
    elif kind == "pdf":
        Image.new("RGB", (64, 64), "white").save(out, "PDF")
    elif kind == "wav":
        with wave.open(out, "wb") as sound:
            sound.setparams((1, 2, 16_000, 0, "NONE", ""))
            sound.writeframes(bytes(3200))
    elif kind in ("mp4", "m4a"):
        out.write(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(1000))
    else:
        out.write(b"Once upon a time.\n" * 50)
    return out.getvalue()


def models_in(tests: Path) -> list[str]:
    """The models of language that the tests ask for by name."""
    found = {name for path in tests.rglob("*.py") for name in MODELS.findall(path.read_text())}
    return sorted(name for name in found if "image" not in name and "tts" not in name)


def ran(tests: Path, url: str, folder: Path, *, wanted: list[str]) -> list[dict[str, Any]]:
    """What became of each test."""
    report = folder / "report.jsonl"
    site = folder_of("pytest-asyncio", "1.5.0")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            [str(folder), str(ROOT / "scripts"), str(ROOT / "src"), str(ROOT / "tests"), str(site)]
        ),
        "GOOGLE_GEMINI_BASE_URL": url, "GOOGLE_VERTEX_BASE_URL": url, "GOOGLE_API_KEY": "test-key",
        "GOOGLE_CLOUD_PROJECT": "project", "GOOGLE_CLOUD_LOCATION": "us-central1",
        "GOOGLE_GENAI_REPLAYS_DIRECTORY": str(folder / "replays"), "GOOGLE_SDK_REPORT": str(report),
    }  # fmt: skip
    environment.pop("GEMINI_API_KEY", None)
    # -P: the package has modules with names of Python's own, and the tests read files beside them.
    command = [
        sys.executable, "-P", "-m", "pytest", "--mode=api", "-p", "google_sdk_plugin", "-p", "pytest_asyncio",
        "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={folder}", "-o", "asyncio_mode=auto",
        "-o", "consider_namespace_packages=true", "--continue-on-collection-errors", "-W", "ignore", "-q",
        "--no-header", "--tb=no", "--show-capture=no", *[str(tests / part) for part in wanted or [""]],
    ]  # fmt: skip
    with (folder / "pytest.txt").open("w") as out:
        subprocess.run(command, env=environment, cwd=tests.parent, stdout=out, stderr=out, timeout=3600)
    if not report.exists():
        sys.exit((folder / "pytest.txt").read_text())
    return [json.loads(line) for line in report.read_text().splitlines()]


# --- the table --------------------------------------------------------------------------------------------


def table(results: list[dict[str, Any]]) -> str:
    """A line a folder: tests that ask an API, and what came of them."""
    lines = ["| Folder | Tests | Passed | Failed | Skipped | Requests |", "|---|---|---|---|---|---|"]
    folders: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for result in results:
        folders[result["file"].rpartition("/")[0]].append(result)
    for name, found in [*sorted(folders.items()), ("**together**", results)]:
        counted = collections.Counter(result["outcome"] for result in found)
        requests = sum(result["requests"] for result in found)
        counts = (len(found), counted["passed"], counted["failed"], counted["skipped"], requests)
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def reasons(results: list[dict[str, Any]]) -> str:
    """Why tests failed, the most common reason first."""
    counted = collections.Counter(result["why"] for result in results if result["outcome"] != "passed")
    return "\n".join(f"{count:5}  {why}" for why, count in counted.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tests", nargs="*", help="folders or files of the tests, such as models; all of them")
    parser.add_argument("--why", action="store_true", help="each test that did not pass")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        os.environ["STUDIOLO_HOME"] = str(folder / "home")
        tests = laid_out(folder)
        engines = {name: StandIn(name) for name in models_in(tests)}
        with serving(folder / "home", engines, jobs=True) as served:
            results = ran(tests, served.url, folder, wanted=asked.tests)
    print(table(results), reasons(results), sep="\n\n")
    if asked.why:
        for result in results:
            if result["outcome"] != "passed":
                print(f"{result['file']}::{result['name']}: {result['outcome']}: {result['why']}")


if __name__ == "__main__":
    main()
