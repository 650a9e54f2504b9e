"""Opening pictures that somebody else made: formats, size and place are checked before decoding.

What comes out is RGB with 8 bits, turned the right way up. Transparency is laid on white, 16-bit
greys are scaled (not clipped), and of an animation the first frame is taken.
"""

from __future__ import annotations

import logging
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 2**26
"""About 67 million: 8192 x 8192."""

Picture = Path | bytes
"""An encoded picture: a file, or its bytes (columns of parquet files)."""

_log = logging.getLogger(__name__)
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def inside(root: Path, name: str) -> Path:
    """The file that ``name`` means in the folder ``root``.

    Raises:
        ValueError: It is a URL, lies outside ``root`` (links followed), or does not exist.
    """
    if "://" in name or name.startswith("data:"):
        raise ValueError(f"{name!r} is a URL; download the pictures first and give their paths")
    if not name or "\0" in name:
        raise ValueError(f"{name!r} is not a path")
    base = root.resolve()
    try:
        path = (base / name).resolve()
        is_file = path.is_relative_to(base) and path.is_file()
    except (OSError, RuntimeError, UnicodeError) as error:
        # Too long a name, links in a circle, half a character.
        raise ValueError(f"{name[:80]!r} is not a path ({error})") from error
    if not path.is_relative_to(base):
        raise ValueError(f"{name!r} lies outside the image folder {base}; set `images` to a parent")
    if not is_file:
        raise ValueError(f"{name!r} does not exist in the image folder {base}")
    return path


def check(picture: Picture, *, decode: bool = False) -> None:
    """Read the header, or everything where ``decode``.

    Raises:
        ValueError: Not one of `FORMATS`, more than `MAX_PIXELS`, or broken.
    """
    if decode:
        load(picture)
        return
    opened(picture).close()


def opened(picture: Picture) -> Image.Image:
    """The picture with its header read and its pixels not yet; the caller closes it.

    Raises:
        ValueError: As `check`.
    """
    try:
        source = BytesIO(picture) if isinstance(picture, bytes) else picture
        found = Image.open(source, formats=FORMATS)
    except _UNREADABLE as error:
        raise ValueError(f"not a readable {'/'.join(FORMATS)} picture ({error})") from error
    width, height = found.size
    if width * height > MAX_PIXELS:
        found.close()
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}; make it smaller")
    return found


def load(picture: Picture) -> Image.Image:
    """The decoded picture, RGB.

    Raises:
        ValueError: As `check`, or the pixels are broken or cut short.
    """
    with opened(picture) as image:
        try:
            image.load()
        except _UNREADABLE as error:
            raise ValueError(f"its pixels are broken or cut short ({error})") from error
        return to_rgb(_upright(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB with 8 bits: greys of 16 bits scaled, transparency laid on white."""
    if image.mode.startswith("I"):
        levels = np.asarray(image, dtype=np.float64) / 257.0
        image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.new("RGBA", shown.size, "white")
        image.alpha_composite(shown)
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        # Pillow's EXIF parser raises many kinds of error on garbage; the pixels are still good.
        _log.warning("a picture's orientation is unreadable, taken as stored: %s", error)
        return image
