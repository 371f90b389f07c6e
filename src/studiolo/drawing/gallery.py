"""A folder that pictures are added to: numbered on from those that are there, none overwritten."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from studiolo.diffusion.autoencoding import decode_latents
from studiolo.diffusion.components import Components
from studiolo.diffusion.sampling import Step
from studiolo.drawing.model import Picture
from studiolo.drawing.sheet import contact_sheet
from studiolo.store.files import atomic_path

PREVIEW = "preview.png"
_NUMBERED = re.compile(r"(?:\d+-)?(\d+)-(?:seed\d+|sheet)\.png")


class Gallery:
    """Adds `000-seed7.png`, `001-seed8.png`, ... and sheets `000-001-sheet.png` to a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        names = (_NUMBERED.fullmatch(file.name) for file in self.folder.iterdir())
        self._first = self._next = max((int(name[1]) + 1 for name in names if name), default=0)

    def add(self, picture: Picture) -> Path:
        """Saves a picture under the next number and returns the file."""
        path = self.folder / f"{self._next:03d}-seed{picture.record.request.seed}.png"
        self._next += 1
        return picture.save(path)

    def add_sheet(self, pictures: Sequence[Picture], title: str = "") -> Path:
        """Saves a contact sheet of the pictures just added, with their prompts and seeds below."""
        requests = [picture.record.request for picture in pictures]
        captions = [f"{request.prompt} · {request.seed}" for request in requests]
        path = self.folder / f"{self._first:03d}-{self._next - 1:03d}-sheet.png"
        _save(contact_sheet([picture.image for picture in pictures], captions, title=title), path)
        return path

    def preview(self, components: Components, step: Step) -> Path:
        """Writes preview.png: the pictures at work, as the model guesses them at this step."""
        images = [Image.fromarray(pixels) for pixels in decode_latents(components, step.clean)]
        path = self.folder / PREVIEW
        _save(contact_sheet(images, title=f"step {step.number} of {step.total}"), path)
        return path


def _save(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
