"""Weights on the Hugging Face hub. What is fetched is listed with its checksums by the hub itself."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from studiolo.errors import StudioloError
from studiolo.models.download import Remote, UnreachableError
from studiolo.models.facts import OF_FOLDERS, PICKLES, refused_pickles


@dataclass(frozen=True)
class Listing:
    """What to fetch, by relative path; `revision` is the commit that it is taken from."""

    files: dict[str, Remote]
    revision: str
    licence: str | None


def find(repository: str, file: str | None) -> Listing:
    """The named .gguf file; or all of a repository in safetensors; or its only .gguf file.

    Raises:
        UnreachableError: the hub cannot be reached.
        StudioloError: it has no such repository or file, or only pickles.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    info = _asked(repository)
    offered = {sibling.rfilename: sibling for sibling in info.siblings or []}
    own = {name: value for name, value in build_hf_headers().items() if name.lower() == "authorization"}
    files = {}
    for name in _wanted(repository, file, list(offered)):
        lfs = offered[name].lfs
        files[name] = Remote(
            hf_hub_url(repository, name, revision=info.sha),
            name.replace("/", "--"),
            offered[name].size,
            lfs.sha256 if lfs else None,
            own,
        )
    card = info.card_data
    return Listing(files, info.sha, card.get("license") if card else None)


def _asked(repository: str) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return HfApi().model_info(repository, files_metadata=True, timeout=30)
    except RepositoryNotFoundError as error:
        raise StudioloError(
            "the hub has no such repository, or does not show it to you",
            where=repository,
            remedy="Check the spelling; for a private one set HF_TOKEN.",
        ) from error
    except Exception as error:  # its client raises errors of several libraries for "no network" alone
        raise UnreachableError(
            f"the hub cannot be reached ({type(error).__name__})",
            where=repository,
            remedy="Check the network, or fetch the weights elsewhere and add them: studiolo models add PATH",
        ) from error


def _wanted(repository: str, file: str | None, names: list[str]) -> list[str]:
    ggufs = [name for name in names if name.endswith(".gguf") and "mmproj" not in name]
    if file is not None:
        if PurePosixPath(file).suffix in PICKLES:
            raise refused_pickles(repository, [file])
        if file in names and file.endswith(".gguf"):
            return [file]
        near = difflib.get_close_matches(file, ggufs, n=3, cutoff=0.3) or ggufs[:6]
        raise StudioloError(
            "no such .gguf file in this repository",
            where=f"{repository}:{file}",
            remedy=f"There are: {', '.join(near)}." if near else "It holds no .gguf file.",
        )
    top = [name for name in names if PurePosixPath(name).suffix in OF_FOLDERS]
    if "config.json" in top and any("/" not in name and name.endswith(".safetensors") for name in top):
        return [name for name in top if "/" not in name or name.endswith("/config.json")]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise StudioloError(
            "several .gguf files in this repository",
            where=repository,
            remedy=f"Name one: hf:{repository}:{ggufs[0]}; there are {', '.join(ggufs[:8])}.",
        )
    if pickles := [name for name in names if PurePosixPath(name).suffix in PICKLES]:
        raise refused_pickles(repository, pickles)
    raise StudioloError("no weights in this repository: neither .gguf nor *.safetensors", where=repository)
