"""`studiolo extract` in real processes: every document once, also when the process is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest

from studiolo.cli import extract
from studiolo.cli.lines import Lines, encoded
from studiolo.errors import StudioloError

ROOT = Path(__file__).parents[2]
PYTHONPATH = f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "inhabitants": {"type": "integer"}},
    "required": ["city", "inhabitants"],
    "additionalProperties": False,
}

STUB = """
import os, re, resource, signal
from language.stub import Say, StubCompleter, at_once
from studiolo.cli.main import main
from studiolo.errors import StudioloError
from studiolo.language import errors, opening
from studiolo.language.engines.local import LocalEngine

def reply(completion):
    document = completer.detokenize(completion.prompt)
    if named := re.search("raise ([A-Za-z]+)", document):
        return Say(then=getattr(errors, named[1])("told by the engine", remedy="Do this."))
    return '{"n": %s}' % re.findall("number ([0-9]+)", document)[-1]

async def pause():
    tokens = sum(len(seen.tokens) for seen in completer.seen)
    if tokens == int(os.environ.get("KILL_AFTER", -1)):
        os.kill(os.getpid(), int(os.environ.get("SIGNAL", signal.SIGKILL)))
    await at_once()

completer = StubCompleter(reply, pause=pause)
engine = LocalEngine(completer)
async def opened(model, **options):
    return engine
opening.engine = opened
if limit := int(os.environ.get("LONGEST_FILE", 0)):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the write that would pass the limit kills
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main()
"""
"""`studiolo` with a scripted engine that reads "number 7" and answers {"n": 7}."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with five documents and the schema of a number."""
    monkeypatch.chdir(tmp_path)
    Path("number.json").write_text(json.dumps(NUMBER))
    for number in range(5):
        Path(f"{number}.txt").write_text(f"This is number {number}.")
    return tmp_path


def stubbed(*arguments: str, **env: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STUB, "extract", *arguments, "--schema", "number.json"],
        env={**os.environ, **{name: str(value) for name, value in env.items()}, "PYTHONPATH": PYTHONPATH},
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def lines(text: str) -> list[tuple[str, object]]:
    """All lines of a file; each must be whole."""
    assert not text or text.endswith("\n")
    read = [json.loads(line) for line in text.split("\n")[:-1]]
    return [(line.pop("document"), line.pop("data")) for line in read]


DOCUMENTS = [f"{number}.txt" for number in range(5)]
EACH_ONCE = [(f"{number}.txt", {"n": number}) for number in range(5)]


# --- killed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 3, 8, 21])
def test_killed_between_two_lines_it_goes_on(after):
    killed = stubbed(*DOCUMENTS, "--out", "out", KILL_AFTER=after)
    assert killed.returncode == -signal.SIGKILL
    there = lines(Path("out").read_text())
    assert there == EACH_ONCE[: len(there)]
    assert 0 <= len(there) < 5
    done = stubbed(*DOCUMENTS, "--out", "out")
    assert (done.returncode, lines(Path("out").read_text())) == (0, EACH_ONCE)
    assert done.stderr.count(": done\n") == 5 - len(there)


def test_ctrl_c_leaves_the_lines_before_it():
    stopped = stubbed(*DOCUMENTS, "--out", "out", KILL_AFTER=21, SIGNAL=signal.SIGINT)
    assert stopped.returncode == 130
    assert "Traceback" not in stopped.stderr
    there = lines(Path("out").read_text())
    assert there == EACH_ONCE[: len(there)]
    assert 0 < len(there) < 5


@pytest.mark.parametrize("longest", [1, 60, len(encoded("0.txt", {"n": 0})) * 2 - 1])
def test_killed_in_the_midst_of_a_line_it_goes_on(longest):
    killed = stubbed(*DOCUMENTS, "--out", "out", LONGEST_FILE=longest)
    assert killed.returncode == -signal.SIGXFSZ
    torn = Path("out").read_bytes()
    assert len(torn) == longest
    assert not torn.endswith(b"\n")
    done = stubbed(*DOCUMENTS, "--out", "out")
    assert (done.returncode, lines(Path("out").read_text())) == (0, EACH_ONCE)
    assert ("torn off" in done.stderr) == (not torn.endswith(b"}"))


def test_smollm2_killed_and_gone_on_with(smollm2):
    from jsonschema import validate

    Path("city.json").write_text(json.dumps(CITY))
    cities = ["Oslo", "Rome", "Bern"]
    for city in cities:
        Path(f"{city}.txt").write_text(f"I live in {city}, with 700000 others.")
    Path("long.txt").write_text("many words " * 9000)
    documents = ["Oslo.txt", "long.txt", "Rome.txt", "Bern.txt"]
    command = [
        *(sys.executable, "-m", "studiolo.cli.main", "extract", *documents),
        *("--schema", "city.json", "--out", "out", "--model", str(smollm2)),
    ]
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "Oslo.txt: done\n"
        running.kill()
    assert running.returncode == -signal.SIGKILL
    there = Path("out").read_text()
    assert there.startswith('{"document": "Oslo.txt"')
    again = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 3
    told = [line for line in again.stderr.splitlines() if "no data" in line]
    assert len(told) == 1
    assert told[0].startswith("long.txt: no data: the prompt has ")
    assert Path("out").read_text().startswith(there)
    found = lines(Path("out").read_text())
    assert [document for document, _ in found] == ["Oslo.txt", "Rome.txt", "Bern.txt"]
    for _, data in found:
        validate(data, CITY)


NAMES = ("a.txt", "ä\u2028\u0085.txt", 'say "no"\n.txt', "caf\udce9.txt")


def test_cut_anywhere_the_lines_before_the_cut_stay(tmp_path):
    written = [encoded(name, {"text": "a\u2028b"}) for name in NAMES]
    whole, ends = b"".join(written), list(accumulate(map(len, written)))
    out = tmp_path / "cut"
    for length in range(len(whole) + 1):
        out.write_bytes(whole[:length])
        kept = sum(length >= end - 1 for end in ends)  # a line that lacks its break alone is whole
        with Lines(out) as opened:
            assert opened.documents == set(NAMES[:kept])
            assert (opened.torn > 0) == (length not in {0, *ends, *(end - 1 for end in ends)})
            for name, line in zip(NAMES[kept:], written[kept:], strict=True):
                opened.add(name, line)
        assert out.read_bytes() == whole, length


@pytest.mark.parametrize(
    "content",
    [b"Dear diary,", b"Diary\n", b'{"a": 1}\n', b"[]\n", b"\x00\xff", b'{"document": "a", "data": 1}\n\n',
     b'{"document": "a", "data": 1}\n{"document": "b"\n', b'{"document": 1, "data": 1}\n'],
)  # fmt: skip
def test_a_file_that_is_something_else_stays_as_it_is(tmp_path, content):
    out = tmp_path / "mine"
    out.write_bytes(content)
    with pytest.raises(StudioloError, match="left as it is"):
        Lines(out)
    assert out.read_bytes() == content


# --- documents that give no data ---------------------------------------------------------------------------


def test_each_document_without_data_is_told_and_the_others_have_theirs():
    Path("binary").write_bytes(b"\x89PNG\r\n\xff")
    Path("zeros").write_bytes(b"number 1\0\0")
    Path("empty").write_bytes(b"\xef\xbb\xbf \n")
    Path("folder").mkdir()
    Path("busy").write_text("raise OverloadedError")
    Path("cut").write_text("number " + "9" * 3000)
    failing = ["binary", "zeros", "empty", "folder", "nowhere", "busy", "cut"]
    done = stubbed("0.txt", *failing, "1.txt", "--out", "out", "--max-tokens", "40")
    assert done.returncode == 3
    assert lines(Path("out").read_text()) == EACH_ONCE[:2]
    told = dict(line.split(": no data: ") for line in done.stderr.splitlines() if ": no data: " in line)
    assert list(told) == failing
    for document, why in {
        "binary": "UTF-8", "zeros": "zero bytes", "empty": "nothing in it", "folder": "directory",
        "nowhere": "No such file", "busy": "told by the engine. Do this.", "cut": "did not come to its end",
    }.items():  # fmt: skip
        assert why in told[document]
    Path("folder").rmdir()
    for document in failing:
        Path(document).write_text("number 8")
    again = stubbed("0.txt", *failing, "1.txt", "--out", "out")
    assert again.returncode == 0
    assert lines(Path("out").read_text())[2:] == [(document, {"n": 8}) for document in failing]


def test_json_has_no_infinite_numbers():
    with pytest.raises(StudioloError, match="too large"):
        encoded("a", {"n": float("inf")})


def test_a_document_named_twice_is_read_once():
    done = stubbed("0.txt", "1.txt", "./0.txt")
    assert (done.returncode, lines(done.stdout), done.stderr) == (0, EACH_ONCE[:2], "")


def test_a_document_may_have_16_mib(monkeypatch):
    monkeypatch.setattr(extract, "_LARGEST_DOCUMENT", 10)
    Path("a").write_text("0123456789")
    assert extract.read_document(Path("a")) == "0123456789"
    Path("a").write_text("0123456789a")
    with pytest.raises(StudioloError, match="larger than"):
        extract.read_document(Path("a"))


# --- what is wrong with the whole run ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["UnsupportedError", "AuthenticationError", "UnknownModelError"])
def test_what_lies_in_the_schema_or_model_ends_the_run(kind):
    Path("1.txt").write_text(f"raise {kind}")
    done = stubbed(*DOCUMENTS, "--out", "out")
    assert (done.returncode, lines(Path("out").read_text())) == (2, EACH_ONCE[:1])
    assert done.stderr.startswith("0.txt: done\nError: told by the engine")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["0.txt", "--out", "/dev/full"], "No space left on device"),
        (["0.txt", "--out", "nowhere/out"], "No such file or directory"),
        (["0.txt", "--out", "0.txt"], "not a line that"),
        (["0.txt", "empty", "--out", "empty"], "both a document and"),
    ],
)
def test_an_out_file_that_will_not_do(arguments, told):
    Path("empty").touch()
    done = stubbed(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert Path("0.txt").read_text() == "This is number 0."


def test_no_schema_is_told_once():
    Path("number.json").write_text('{"type": "numeral"}')
    done = stubbed(*DOCUMENTS, "--out", "out")
    assert (done.returncode, done.stdout, Path("out").exists()) == (2, "", False)
    assert done.stderr.startswith("Error: not a JSON Schema")
