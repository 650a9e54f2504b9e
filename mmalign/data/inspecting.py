"""What is odd about a picture file, and what is done about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageFile

from mmalign.data import images

Level = Literal["error", "warning"]

_ENDINGS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
}
_OTHERS: tuple[tuple[int, tuple[bytes, ...], str], ...] = (
    (0, (b"<!doctype", b"<!DOCTYPE", b"<html", b"<HTML"), "an HTML page, as of a failed download"),
    (0, (b"version https://git-lfs",), "a pointer of Git LFS, whose file was not fetched"),
    (0, (b"<svg", b"<?xml"), "SVG or XML"),
    (0, (b"%PDF", b"%!PS"), "PDF or PostScript"),
    (0, (b"II*\0", b"MM\0*"), "TIFF"),
    (0, (b"8BPS",), "Photoshop"),
    (0, (b"SIMPLE  =",), "FITS"),
    (0, (b"PK\x03\x04", b"\x1f\x8b"), "an archive"),
    (4, (b"ftypheic", b"ftypheix", b"ftypmif1"), "HEIC"),
    (4, (b"ftypavif",), "AVIF"),
    (4, (b"ftyp",), "a film"),
)
"""Where and how files begin that are often taken for pictures we read."""

ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something odd about a picture.

    Attributes:
        level: An error where the picture cannot be used.
        reason: In two or three words, the same for pictures with the same oddity.
        message: What it is and what is done about it.
    """

    level: Level
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """A picture that was looked at.

    Attributes:
        digest: Of its decoded pixels and size, so that a copy in another format has the same; b""
            where it cannot be decoded.
        notes: What is odd.
    """

    digest: bytes = b""
    notes: tuple[Note, ...] = ()


def inspect(picture: images.Picture) -> Inspected:
    """Decode a picture and say what is odd about it.

    Args:
        picture: A file that exists, or a picture's bytes.
    """
    try:
        pixels = images.load(picture)
        odd = tuple(_oddities(picture))
    except ValueError as error:
        return Inspected(notes=(_refusal(picture, str(error)),))
    digest = hashlib.blake2b(repr(pixels.size).encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return Inspected(digest=digest.digest(), notes=odd)


def _refusal(picture: images.Picture, message: str) -> Note:
    if "cut short" in message:
        reason = "truncated picture"
    elif " pixels are more" in message or "exceeds limit" in message:
        reason = "gigantic picture"
    else:
        reason = "unreadable picture"
        if (kind := _looks_like(picture)) is not None:
            reason = "disguised picture"
            message = f"it is {kind}; pictures must be {', '.join(images.FORMATS)}"
    return Note(level="error", reason=reason, message=message)


def _looks_like(picture: images.Picture) -> str | None:
    if isinstance(picture, bytes):
        head = picture[:32]
    else:
        with picture.open("rb") as file:
            head = file.read(32)
    if not head:
        return "an empty file"
    return next((name for at, starts, name in _OTHERS if head[at:].startswith(starts)), None)


def _oddities(picture: images.Picture) -> Iterator[Note]:
    with images.opened(picture) as image:
        if isinstance(picture, Path):
            yield from _ending(picture, image.format or "")
        for look in _LOOKS:
            if (found := look(image)) is not None:
                reason, message = found
                yield Note(level="warning", reason=reason, message=message)


def _ending(path: Path, form: str) -> Iterator[Note]:
    ending = path.suffix.lower()
    if ending and ending not in _ENDINGS[form]:
        yield Note(
            level="warning",
            reason="disguised picture",
            message=f"it is called {ending} and is {form}; it is read as {form}",
        )


def _animated(image: Image.Image) -> tuple[str, str] | None:
    if not getattr(image, "is_animated", False):
        return None
    return "animated picture", "only its first frame is used"


def _cmyk(image: Image.Image) -> tuple[str, str] | None:
    if image.mode != "CMYK":
        return None
    return "CMYK picture", "its colours are converted to RGB without its colour profile"


def _sixteen_bits(image: Image.Image) -> tuple[str, str] | None:
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    if not image.mode.startswith("I") and not any(";16" in str(tile.args) for tile in tiles):
        return None
    return "16-bit picture", "its values are scaled to 8 bits"


def _turned(image: Image.Image) -> tuple[str, str] | None:
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception as error:
        # Pillow's EXIF parser raises many kinds of error on garbage; the pixels are still good.
        return "unreadable EXIF", f"its orientation is unreadable, taken as stored ({error})"
    if orientation in (0, 1):
        return None
    return "rotated by EXIF", f"orientation {orientation}; it is turned the right way up"


def _see_through(image: Image.Image) -> tuple[str, str] | None:
    # An alpha channel that is full everywhere hides nothing. Decodes, so this comes last.
    if not image.has_transparency_data:
        return None
    low, _ = image.convert("RGBA").getchannel("A").getextrema()
    if low == 255:
        return None
    return "transparent picture", "it is laid on white"


_LOOKS: tuple[Callable[[Image.Image], tuple[str, str] | None], ...] = (
    _animated, _cmyk, _sixteen_bits, _turned, _see_through,
)  # fmt: skip
