"""Sprites: the openly licensed emoji drawings that the scenes are composed of.

The packages are fetched with `npm pack` at the versions below and checked by their SHA-256; nothing is
installed or run. SVG drawings are rendered by resvg. The result is one `sprites.npz`, from which everything
else is made.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from studiolo.base.vocabulary import HELD_OUT, NOUNS, STYLES
from studiolo.errors import StudioloError
from studiolo.store.files import atomic_path

SPRITE_SIZE = 192
"""Side of a stored sprite in pixels, before it is scaled into a scene."""


@dataclass(frozen=True)
class Package:
    """One npm package: exact version, checksum of its tarball, licence and whom to name."""

    name: str
    version: str
    sha256: str
    licence: str
    credit: str

    @property
    def tarball(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES: tuple[Package, ...] = (
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        "Noto Emoji, Google Inc.",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        "Twemoji, Twitter and jdecked",
    ),
    Package(
        "@iconify-json/emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        "EmojiOne 2 / EmojiTwo, Emoji One",
    ),
    Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
        "Fluent Emoji, Microsoft; packed by LobeHub",
    ),
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        "Fluent Emoji, Microsoft",
    ),
)
_BY_NAME = {package.name: package for package in PACKAGES}


def fetch_package(package: Package, folder: Path) -> Path:
    """The package's tarball in `folder`, fetched if it is not there, refused if its SHA-256 is another."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / package.tarball
    if not path.exists():
        command = [
            "npm",
            "pack",
            f"{package.name}@{package.version}",
            "--silent",
            "--pack-destination",
            str(folder),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise StudioloError(
                f"{package.name} could not be fetched: {getattr(error, 'stderr', '') or error}",
                where=" ".join(command),
                remedy="install npm, or put the tarball there by hand",
            ) from error
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise StudioloError(
            f"{path.name} has SHA-256 {found}, not {package.sha256}",
            where=str(path),
            remedy="delete it and try again",
        )
    return path


def _members(tarball: Path) -> dict[str, bytes]:
    with tarfile.open(tarball) as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        return {m.name.split("/", 1)[1]: archive.extractfile(m).read() for m in files}  # type: ignore[union-attr]


def _plain_hex(hexcode: str) -> str:
    """The code points in lower case without variation selectors, by which the sets can be matched."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _draw_svg(icons: dict[str, Any], name: str) -> Image.Image:
    from resvg_py import svg_to_bytes

    while name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg {names} viewBox="{box}">{icon["body"]}</svg>'
    png = svg_to_bytes(svg_string=svg, width=SPRITE_SIZE, height=SPRITE_SIZE)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _icon_names(noun: str, hexcode: str, names: dict[str, str]) -> list[str]:
    """Where a set has no code-point table its icons are found by their usual names."""
    key = _plain_hex(hexcode)
    return [name for name in (names.get(key), noun.replace(" ", "-"), f"{noun}-face") if name]


def _drawings(style: str, tarball: Path, shared_names: dict[str, str]) -> dict[str, Image.Image]:
    """Every noun's drawing in one style: noun -> RGBA picture (nouns that the set lacks are left out)."""
    files = _members(tarball)
    found: dict[str, Image.Image] = {}
    if "icons.json" not in files:
        pictures = {
            _plain_hex(Path(name).stem): data for name, data in files.items() if name.endswith(".webp")
        }
        for noun, (hexcode, _) in NOUNS.items():
            if data := pictures.get(_plain_hex(hexcode)):
                image = Image.open(io.BytesIO(data)).convert("RGBA")
                found[noun] = image.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS)
        return found
    icons = json.loads(files["icons.json"])
    own = {_plain_hex(code): name for code, name in json.loads(files.get("chars.json", b"{}")).items()}
    for noun, (hexcode, _) in NOUNS.items():
        for name in _icon_names(noun, hexcode, own or shared_names):
            if name in icons["icons"] or name in icons.get("aliases", {}):
                found[noun] = _draw_svg(icons, name)
                break
    return found


def _trim(image: Image.Image) -> np.ndarray:
    """Cut to the drawing and centre it on a square, so that a sprite's size in a scene means its drawn
    size."""
    box = image.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    drawing = image.crop(box)
    scale = SPRITE_SIZE / max(drawing.size)
    drawing = drawing.resize(
        (max(1, round(drawing.width * scale)), max(1, round(drawing.height * scale))),
        Image.Resampling.LANCZOS,
    )
    square = Image.new("RGBA", (SPRITE_SIZE, SPRITE_SIZE))
    square.paste(drawing, ((SPRITE_SIZE - drawing.width) // 2, (SPRITE_SIZE - drawing.height) // 2))
    return np.asarray(square)


def render_sprites(packages: Path, out: Path) -> SpriteBank:
    """Fetch the artwork into `packages` and write every (noun, style) drawing to the file `out` (npz)."""
    tarballs = {name: fetch_package(package, packages) for name, package in _BY_NAME.items()}
    shared = {
        _plain_hex(code): name
        for code, name in json.loads(_members(tarballs["@iconify-json/noto"])["chars.json"]).items()
    }
    sprites = {
        f"{noun}|{style}": _trim(image)
        for style, package in STYLES.items()
        for noun, image in _drawings(style, tarballs[package], shared).items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **sprites)  # type: ignore[arg-type]
    return SpriteBank.load(out)


@dataclass(frozen=True)
class SpriteBank:
    """All drawings: (noun, style) -> RGBA uint8 [192, 192, 4]."""

    sprites: dict[tuple[str, str], np.ndarray]

    @classmethod
    def load(cls, path: Path) -> SpriteBank:
        with np.load(path, allow_pickle=False) as archive:
            return cls({tuple(key.split("|")): archive[key] for key in archive.files})

    def training(self) -> SpriteBank:
        """Without the held-out subjects."""
        return SpriteBank({key: sprite for key, sprite in self.sprites.items() if key not in HELD_OUT})

    def only(self, nouns: tuple[str, ...]) -> SpriteBank:
        return SpriteBank({key: sprite for key, sprite in self.sprites.items() if key[0] in nouns})
