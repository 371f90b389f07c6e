"""What the pages of reports are made of: they need nothing else, no scripts and no other file."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from PIL import Image

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td{padding:.2rem .8rem;border-bottom:1px solid #ddd}
td.number{text-align:right;font-variant-numeric:tabular-nums}h1,h2{line-height:1.2}
img{max-width:100%;image-rendering:pixelated;border:1px solid #ddd}small{color:#666}
"""


def stacked(above: Image.Image, below: Image.Image) -> Image.Image:
    """One picture above the other."""
    sheet = Image.new("RGB", (max(above.width, below.width), above.height + below.height), "white")
    sheet.paste(above, (0, 0))
    sheet.paste(below, (0, above.height))
    return sheet


def picture(image: Image.Image, name: str) -> str:
    """The tag of a picture, the picture in it; `name` is for those who cannot see it."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(name, quote=True)}" src="data:image/png;base64,{data}">'


def opened(path: Path) -> Image.Image:
    """The picture in a file, RGB, the file closed again."""
    with Image.open(path) as image:
        return image.convert("RGB")
