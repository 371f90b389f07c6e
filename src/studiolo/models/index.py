"""Wheels on package indexes: PyPI, or what pip is configured to ask instead.

A wheel is found by the index's own page (PEP 503, PEP 691) and fetched by us, because then a download that
was cut goes on where it stopped, and shows how far it is. Where that fails (logins by keyring, certificates
that only pip knows, proxies in pip's configuration), `pip download` fetches it; that one begins anew when it
was cut, unless pip's own cache has the file.
"""

from __future__ import annotations

import ast
import html.parser
import json
import os
import subprocess
import sys
import urllib.error
import urllib.parse
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from studiolo.errors import StudioloError
from studiolo.models.download import Remote, UnreachableError, basic_login, open_url

if TYPE_CHECKING:
    from packaging.version import Version

PYPI = "https://pypi.org/simple"
_KEYS = ("index-url", "extra-index-url", "find-links", "no-index", "cert")
_LONGEST_PAGE = 1 << 26
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True)
class Requirement:
    """A package, and its version if a certain one is meant."""

    name: str
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.name}=={self.version}" if self.version else self.name


@dataclass(frozen=True)
class Indexes:
    """What pip is told to look through: indexes by URL, folders of wheels, and a file of certificates.

    `left_out` are those that we cannot ask, and why: pip may be able to.
    """

    urls: tuple[str, ...] = (PYPI,)
    folders: tuple[Path, ...] = ()
    cert: str | None = None
    left_out: tuple[str, ...] = ()


def configured() -> Indexes:
    """pip's configuration, its files and environment variables, as pip itself reads them."""
    said = _pip_configuration()
    alone = said.get("no-index", "").lower() in ("1", "true", "yes", "on")
    urls = [] if alone else [said.get("index-url", PYPI), *said.get("extra-index-url", "").split()]
    links = said.get("find-links", "").split()
    return Indexes(
        tuple(url for url in urls if _trusted(url)),
        tuple(
            Path(link.removeprefix("file://")) for link in links if "://" not in link.removeprefix("file://")
        ),
        said.get("cert"),
        (
            *(f"{_host(url)}: no TLS" for url in urls if not _trusted(url)),
            *(f"{link}: a page of links" for link in links if link.startswith("http")),
        ),
    )


def find_wheel(wanted: Requirement, indexes: Indexes, sha256: str | None = None) -> Remote:
    """The wheel to fetch: of the wanted or the newest version, for this machine.

    Args:
        sha256: take no other than the one with this checksum.

    Raises:
        UnreachableError: no index answered.
        StudioloError: the indexes have no such package, or no such wheel of it.
    """
    faults = list(indexes.left_out)
    places: list[str | Path] = [*indexes.urls, *indexes.folders]
    offers = [offer for index in places for offer in _offers(index, wanted.name, indexes.cert, faults)]
    chosen = _chosen(offers, wanted)
    for offer in chosen:
        if sha256 is None or offer.remote.sha256 in (None, sha256):
            return replace(offer.remote, sha256=sha256 or offer.remote.sha256)
    if chosen:
        raise StudioloError(
            f"the package index has another file of this name than the known one (SHA-256 {sha256})",
            where=chosen[0].remote.url,
            remedy="Ask whoever keeps the index; nothing was fetched.",
        )
    if faults:
        raise UnreachableError(
            f"no package index could be asked for {wanted} ({'; '.join(faults)})",
            remedy="Check the network, and what `pip config list` says of index-url.",
        )
    have = ", ".join(map(str, sorted({offer.version for offer in offers})[-8:]))
    raise StudioloError(
        "no wheel of this version on the package index" if have else "no such package on the package index",
        where=str(wanted),
        remedy=f"There are: {have}." if have else "Check the spelling.",
    )


def _chosen(offers: list[_Offer], wanted: Requirement) -> list[_Offer]:
    """Those of the wanted version, or of the newest that is neither withdrawn nor a preview."""
    from packaging.version import Version

    if wanted.version is not None:
        return [offer for offer in offers if offer.version == Version(wanted.version)]
    sound = [offer for offer in offers if not offer.yanked and not offer.version.is_prerelease]
    newest = max((offer.version for offer in sound), default=None)
    return [offer for offer in sound if offer.version == newest]


def download_by_pip(wanted: Requirement, folder: Path) -> Path:
    """The same wheel by `pip download`, without its requirements and without installing anything."""
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), str(wanted),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        told = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip is not here"]
        raise UnreachableError(
            f"pip could not fetch {wanted} ({told[-1].removeprefix('ERROR: ')})",
            remedy="Check the network, and what `pip config list` says of index-url.",
        )
    return wheels[0]


def _pip_configuration() -> dict[str, str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:  # an environment without pip
        told = {key: os.environ.get(f"PIP_{key.upper().replace('-', '_')}") for key in _KEYS}
        return {key: value for key, value in told.items() if value is not None}
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in done.stdout.splitlines():  # such as: global.index-url='https://...'
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in sections:
            sections[section][name] = str(ast.literal_eval(value))
    return sections["global"] | sections["download"] | sections[":env:"]


def _trusted(url: str) -> bool:
    """As pip has it: what comes without TLS from another machine may be anyone's."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme in ("https", "file") or (
        parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")
    )


@dataclass(frozen=True)
class _Link:
    url: str
    sha256: str | None = None
    size: int | None = None
    yanked: bool = False


@dataclass(frozen=True)
class _Offer:
    remote: Remote
    version: Version
    yanked: bool


def _offers(index: str | Path, name: str, cert: str | None, faults: list[str]) -> list[_Offer]:
    """The wheels of this package that an index or a folder has; a fault is noted."""
    from packaging.utils import canonicalize_name

    if isinstance(index, Path):
        files = [Remote(file.as_uri(), file.name) for file in sorted(index.glob("*.whl"))]
        return [offer for file in files if (offer := _offer(file, name))]
    bare, login = basic_login(f"{index.rstrip('/')}/{canonicalize_name(name)}/")
    page = f"{bare}index.html" if bare.startswith("file:") else bare
    try:
        base, links = _links(page, login, cert)
    except urllib.error.HTTPError as error:
        if error.code != 404:
            faults.append(f"{_host(page)}: {error.code} {error.reason}")
        return []
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        if not page.startswith("file:"):  # a folder has no page for packages that it lacks
            faults.append(f"{_host(page)}: {getattr(error, 'reason', error)}")
        return []
    found = []
    for link in links:
        remote = _remote(urllib.parse.urljoin(base, link.url), link, login, _host(page))
        if offer := _offer(replace(remote, cert=cert), name, link.yanked):
            found.append(offer)
    return found


def _offer(remote: Remote, name: str, yanked: bool = False) -> _Offer | None:
    """None for source archives, wheels of other packages, and wheels for other machines."""
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

    try:
        package, version, _, tags = parse_wheel_filename(remote.filename)
    except InvalidWheelFilename:
        return None
    if package != canonicalize_name(name) or tags.isdisjoint(sys_tags()):
        return None
    return _Offer(remote, version, yanked)


def _links(page: str, login: dict[str, str], cert: str | None) -> tuple[str, list[_Link]]:
    """Where the page was in the end, and what it links to."""
    with open_url(page, {"Accept": _ACCEPT}, login, cert) as response:
        text = response.read(_LONGEST_PAGE).decode("utf-8", "replace")
        is_json = "json" in response.headers.get_content_type()
        return response.url, _json_links(text) if is_json else _html_links(text)


def _remote(url: str, link: _Link, login: dict[str, str], index_host: str) -> Remote:
    url, fragment = urllib.parse.urldefrag(url)
    told = urllib.parse.parse_qs(fragment).get("sha256", [None])[0]
    filename = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]
    headers = login if _host(url) == index_host else {}  # the index's password is nobody else's
    return Remote(url, filename, link.size, link.sha256 or told, headers)


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


def _json_links(text: str) -> list[_Link]:
    """PEP 691, and PEP 700 for sizes."""
    return [
        _Link(file["url"], file.get("hashes", {}).get("sha256"), file.get("size"), bool(file.get("yanked")))
        for file in json.loads(text)["files"]
    ]


def _html_links(text: str) -> list[_Link]:
    """PEP 503."""
    links: list[_Link] = []

    class Anchors(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            said = dict(attrs)
            if tag == "a" and (url := said.get("href")):
                links.append(_Link(url, yanked="data-yanked" in said))

    Anchors().feed(text)
    return links
