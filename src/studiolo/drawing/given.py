"""A picture given to begin from, and a mask of it: read within bounds, upright, of one size."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from studiolo.diffusion.beginning import Start
from studiolo.diffusion.components import Components
from studiolo.errors import StudioloError
from studiolo.store.files import sha256_bytes

Source = str | Path | bytes | Image.Image
"""A file by its name or its bytes, or a PIL image (which counts as the PNG file that Pillow makes of it)."""

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class Given:
    """What pictures begin from.

    image: RGB; mask: of the same size, 255 where to paint anew, or None for everywhere; each with the SHA-256
    of its file. strength: above 0, how much of the image to give up, to 1. keep: outside the mask the pixels
    stay as they are; else the VAE draws them again, nearly alike. alpha: the mask is where its file, or where
    there is none that of the image, is transparent.
    """

    image: Image.Image
    image_sha256: str
    mask: Image.Image | None = None
    mask_sha256: str | None = None
    strength: float = 0.6
    keep: bool = True
    alpha: bool = False

    def size_for(self, components: Components) -> tuple[int, int]:
        """(width, height) to draw in: the image's own, on the latents' grid; if that is much larger than the
        model was trained for, in the same proportions as large as that."""
        own, unit = components.image_size, components.size_unit
        scale = 1.0
        if max(self.image.size) > 2 * own:
            scale = own / (self.image.width * self.image.height) ** 0.5
        width, height = (max(1, round(side * scale / unit)) * unit for side in self.image.size)
        return width, height

    def fitted(self, width: int, height: int) -> Fitted:
        """Scaled to `width` x `height` pixels, what goes beyond these proportions cut off at both sides."""
        size, lanczos = (width, height), Image.Resampling.LANCZOS
        mask = None
        if self.mask is not None:
            mask = ImageOps.fit(self.mask, size, lanczos).point(lambda value: 255 if value > 127 else 0)
            if mask.getbbox() is None:
                how = "transparent" if self.alpha else "white"
                raise StudioloError(
                    "the mask says nothing to paint",
                    where="mask",
                    remedy=f"Make {how} what is to be painted.",
                )
        return Fitted(ImageOps.fit(self.image, size, lanczos), mask, self.strength, self.keep)


@dataclass(frozen=True)
class Fitted:
    """A given picture and its mask in the size of what is drawn."""

    image: Image.Image
    mask: Image.Image | None
    strength: float
    keep: bool

    @property
    def start(self) -> Start:
        """The same as tensors."""
        pixels = torch.from_numpy(np.array(self.image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        mask = None
        if self.mask is not None:
            mask = torch.from_numpy(np.array(self.mask) > 127)[None, None].float()
        return Start(pixels, self.strength, mask)

    def finished(self, drawn: Image.Image) -> Image.Image:
        """The drawn picture, with the given pixels outside the mask if they are to be kept."""
        if self.mask is None or not self.keep:
            return drawn
        return Image.composite(drawn, self.image, self.mask)


def give(
    image: Source | None,
    mask: Source | None = None,
    strength: float | None = 0.6,
    keep: bool = True,
    alpha: bool = False,
) -> Given | None:
    """Reads what pictures begin from; None without an image.

    The image is turned upright as its EXIF data say, and laid on white where it is transparent.

    Args:
        strength: None: 1 where a mask by `alpha` says what to paint, as nothing is there; else 0.6.
        alpha: paint where the mask, or if there is none the image itself, is transparent, instead of where
            the mask is white. An image that is opaque everywhere is painted everywhere.

    Raises:
        StudioloError: a file that is no picture or too large, a mask without an image or of another size, a
            strength out of range.
    """
    if image is None:
        if mask is not None:
            raise StudioloError("a mask, but no picture", where="mask", remedy="Give the picture too: init.")
        return None
    if strength is not None and not 0 < strength <= 1:
        raise StudioloError(
            f"{strength} is no strength", where="strength", remedy="Use a value above 0, to 1."
        )
    picture, digest = _read(image, "init")
    to_paint, mask_digest = None, None
    if mask is not None:
        drawn, mask_digest = _read(mask, "mask")
        if drawn.size != picture.size:
            raise StudioloError(
                f"the mask has {drawn.width}x{drawn.height} pixels, "
                f"the picture {picture.width}x{picture.height}",
                where="mask",
                remedy="Make both of one size.",
            )
        to_paint = _transparent(drawn) if alpha else _grey(drawn)
        if to_paint is None:
            raise StudioloError(
                "no transparency in it", where="mask", remedy="Make transparent what is to be painted."
            )
    elif alpha:
        to_paint = _transparent(picture)
    if strength is None:
        strength = 1.0 if alpha and to_paint is not None else 0.6
    return Given(_on_white(picture), digest, to_paint, mask_digest, strength, keep, alpha)


def _transparent(picture: Image.Image) -> Image.Image | None:
    """White where `picture` is transparent, None if it is so nowhere."""
    if not picture.has_transparency_data:
        return None
    white = ImageOps.invert(picture.convert("RGBA").getchannel("A"))
    return white if np.asarray(white).max() > 127 else None


def _read(source: Source, what: str) -> tuple[Image.Image, str]:
    """The upright picture in `source`, decoded, and the SHA-256 of its file."""
    if isinstance(source, Image.Image):
        buffer = io.BytesIO()
        source.save(buffer, format="PNG")
        return ImageOps.exif_transpose(source), sha256_bytes(buffer.getvalue())
    where = what if isinstance(source, bytes) else source
    data = source if isinstance(source, bytes) else _bytes_of(Path(source))
    if len(data) > MAX_BYTES:
        raise StudioloError(f"more than {MAX_BYTES >> 20} MiB", where=where, remedy="Save it smaller.")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header only
        if picture.width * picture.height <= MAX_PIXELS:
            picture.load()
            return ImageOps.exif_transpose(picture), sha256_bytes(data)
    except Image.DecompressionBombError:
        pass  # so many pixels that Pillow itself would not read them
    except Exception as error:  # on damaged data decoders raise nearly everything
        raise StudioloError(
            "not a picture that can be read", where=where, remedy="Give a PNG, JPEG or WebP file."
        ) from error
    raise StudioloError(
        f"more pixels than the {MAX_PIXELS / 10**6:g} million that are read",
        where=where,
        remedy="Scale it down.",
    )


def _bytes_of(path: Path) -> bytes:
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise StudioloError(f"more than {MAX_BYTES >> 20} MiB", where=path, remedy="Save it smaller.")
        return path.read_bytes()
    except OSError as error:
        raise StudioloError(f"cannot be read: {error.strerror or error}", where=path) from error


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _grey(mask: Image.Image) -> Image.Image:
    """Brightness, 0 where the mask is transparent."""
    if not mask.has_transparency_data:
        return mask.convert("L")
    rgba = mask.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("L")
