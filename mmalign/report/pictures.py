"""What every page is made with: the templates, and pictures inside the file."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from PIL import Image

from mmalign.data import images
from mmalign.data.frames import strip

MAX_SIDE = 256
PIXEL_ART = 64
"""Pictures up to this many pixels are kept as they are and shown enlarged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A picture, or why it cannot be shown.

    Attributes:
        uri: ``data:`` URI; empty where it cannot.
        tiny: Whether it is to be enlarged with hard edges.
        problem: Why not.
        size: Width and height of the picture itself, in pixels.
    """

    uri: str = ""
    tiny: bool = False
    problem: str = ""
    size: tuple[int, int] = (0, 0)


def template(name: str) -> Template:
    """A template of this package; whatever it is filled with is escaped."""
    environment = Environment(
        loader=PackageLoader("mmalign.report", "."),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def shown(picture: str | bytes, folder: Path, *, side: int = MAX_SIDE) -> Shown:
    """A picture as a page holds it.

    Args:
        picture: Its path below ``folder``, or its bytes.
        folder: What the path may not leave.
        side: Longest side in pixels; larger pictures are made smaller.
    """
    return shown_frames((picture,), folder, side=side)


def shown_frames(frames: Sequence[str | bytes], folder: Path, *, side: int = MAX_SIDE) -> Shown:
    """The frames of a clip side by side, as `shown` shows one picture."""
    try:
        places = [f if isinstance(f, bytes) else images.inside(folder, f) for f in frames]
        return embedded(strip([images.load(place) for place in places]), side=side)
    except ValueError as error:
        return Shown(problem=str(error))


def embedded(picture: Image.Image, *, side: int = MAX_SIDE) -> Shown:
    """An RGB picture as a ``data:`` URI: PNG where it is tiny, else WEBP."""
    size = picture.size
    tiny = max(size) <= PIXEL_ART
    small = picture.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    if tiny:
        small.save(buffer, "PNG", optimize=True)
    else:
        small.save(buffer, "WEBP", quality=85)
    kind = "png" if tiny else "webp"
    return Shown(uri=data_uri(buffer.getvalue(), kind), tiny=tiny, size=size)


def digest(script: str) -> str:
    """What a page's policy knows a script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def data_uri(data: bytes, kind: str) -> str:
    """An encoded picture as text that a page can hold."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
