"""One image file -> upright 8-bit RGB pixels, bounded before they are decoded, with notes on repairs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError

from studiolo.errors import StudioloError

_NAMED = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".webp": "WEBP", ".gif": "GIF",
    ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
"""What a file is by its suffix."""
FORMATS = tuple(dict.fromkeys(_NAMED.values()))
SUFFIXES = frozenset(_NAMED)
UNREADABLE_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef"}
)
MAX_BYTES = 100 * 2**20
MAX_PIXELS = 80_000_000
MAX_ASPECT = 4

_ORIENTATION = 0x0112  # EXIF tag


def list_folder(folder: Path) -> list[Path]:
    """What lies in `folder`, in the order of names. Raises StudioloError if it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise out_of_reach(error, folder) from None


def read_bytes(path: Path) -> bytes:
    """A regular file's bytes, at most MAX_BYTES. Raises StudioloError naming the file otherwise."""
    try:
        if path.is_dir():
            raise StudioloError("is a folder, not an image", where=path, remedy="Give an image file.")
        if not path.is_file():  # absent, a broken link, or a pipe that would block
            gone = "a link that leads nowhere" if path.is_symlink() else "there is no such file"
            raise StudioloError(gone, where=path, remedy="Check the path.")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise StudioloError(
                f"{size / 2**20:.0f} MiB, more than the {MAX_BYTES // 2**20} MiB that are read",
                where=path,
                remedy="Save it smaller.",
            )
        data = path.read_bytes()
    except OSError as error:
        raise out_of_reach(error, path) from None
    if not data:
        raise StudioloError("an empty file", where=path, remedy="Copy it again, or take it out.")
    return data


def decode(data: bytes, where: object) -> tuple[Image.Image, list[str]]:
    """The first picture in `data` as RGB, and notes. Raises StudioloError (with `where`) if there is none."""
    if data[4:8] == b"ftyp" and data[8:12] in {b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif"}:
        raise StudioloError(
            "HEIC and AVIF images are not read", where=where, remedy="Export it as JPEG or PNG."
        )
    with _refusing_damage(where):
        picture = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header only
        if picture.width * picture.height > MAX_PIXELS:
            raise _too_many_pixels(f"{picture.width}x{picture.height}", where)
        notes = []
        # MPO: the JPEG of a phone with a second picture inside, a depth map or a preview.
        kind = "JPEG" if picture.format == "MPO" else picture.format
        named = _NAMED.get(Path(str(where)).suffix.lower(), kind)
        if named != kind:
            notes.append(f"named like {named}, and is {kind}; read as that")
        if picture.format != "MPO" and (frames := getattr(picture, "n_frames", 1)) > 1:
            notes.append(f"holds {frames} frames; the first is used")
        picture.seek(0)
        image, more = to_rgb(picture, where)
        return image, notes + more


def to_rgb(picture: Image.Image, where: object) -> tuple[Image.Image, list[str]]:
    """An upright RGB copy of a picture of any mode, and notes on what was changed."""
    notes = []
    with _refusing_damage(where):
        picture.load()
        if picture.getexif().get(_ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
            notes.append("turned upright as its EXIF data say")
        if (converted := _to_srgb(picture)) is not None:
            picture, profile = converted
            notes.append(f"colours converted from {profile} to sRGB")
        if picture.mode == "CMYK":
            notes.append("converted from CMYK without a profile; check its colours")
        if picture.mode.startswith("I;16"):
            # Pillow would clip at 255 what is meant to be scaled.
            picture = Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
            notes.append("reduced from 16 to 8 bits")
        if picture.mode in ("I", "F"):
            raise StudioloError(
                "32-bit pixels without a known range", where=where, remedy="Save it again as PNG or JPEG."
            )
        image, transparent = _on_white(picture)
    if transparent:
        notes.append("laid on white where it is transparent")
    if _is_grey(image):
        notes.append("grey-scale; the subject is learned without colour from it")
    return image, notes


def check_shape(size: tuple[int, int], min_size: int, where: object) -> list[str]:
    """Notes on an image of `size` for a model of `min_size` pixels; StudioloError if it cannot serve."""
    width, height = size
    if min(size) * 2 < min_size:
        raise StudioloError(
            f"{width}x{height} pixels are too few for a model of {min_size}x{min_size}",
            where=where,
            remedy=f"Use an image of at least {-(-min_size // 2)} pixels a side, better {min_size}.",
        )
    if max(size) > MAX_ASPECT * min(size):
        raise StudioloError(
            f"{width}x{height} is a strip, of which a square shows less than a quarter",
            where=where,
            remedy="Crop it to the subject.",
        )
    if min(size) < min_size:
        return [
            f"{width}x{height} pixels, enlarged to the model's {min_size}; a larger image gives more detail"
        ]
    return []


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """`image`, scaled down if its short side is longer than `short_side`."""
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


@contextmanager
def _refusing_damage(where: object) -> Iterator[None]:
    """Turns what decoders raise into a refusal of `where`: on damaged data that is nearly everything, from
    OSError and SyntaxError to struct.error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags, which are of no use here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except StudioloError:
        raise
    except UnidentifiedImageError:
        raise StudioloError(
            "not an image, or cut off at the start",
            where=where,
            remedy="PNG, JPEG, WebP, GIF, BMP and TIFF are read; take other files out.",
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels("too many", where) from None
    except Exception as error:
        raise StudioloError(f"cut off or damaged ({error})", where=where, remedy="Copy it again.") from None


def out_of_reach(error: OSError, path: Path) -> StudioloError:
    return StudioloError(
        f"cannot be read: {error.strerror or error}", where=path, remedy="Check its permissions."
    )


def _too_many_pixels(size: str, where: object) -> StudioloError:
    return StudioloError(
        f"{size} pixels, more than the {MAX_PIXELS // 10**6} million that are decoded",
        where=where,
        remedy="Scale it down.",
    )


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return not (ImageChops.difference(red, green).getbbox() or ImageChops.difference(green, blue).getbbox())


def _to_srgb(picture: Image.Image) -> tuple[Image.Image, str] | None:
    """`picture` in sRGB and the name of the colour profile it came with; None if there is nothing to convert.

    Phones save Display P3 and printers their own inks: taken for sRGB they lose their colours.
    """
    data = picture.info.get("icc_profile")
    if not data or picture.mode not in ("RGB", "CMYK"):
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        name = ImageCms.getProfileDescription(profile).strip() or "its own profile"
        if "srgb" in name.lower():
            return None
        converted = ImageCms.profileToProfile(
            picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError):  # a damaged profile says nothing
        return None
    return (converted, name) if converted else None


def _on_white(picture: Image.Image) -> tuple[Image.Image, bool]:
    """`picture` as RGB, laid on white, and whether any of it was transparent."""
    if not picture.has_transparency_data:
        return picture.convert("RGB"), False
    rgba = picture.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image, bool(np.asarray(rgba.getchannel("A")).min() < 255)
