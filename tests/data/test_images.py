"""Hostile and unusual pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.data import images


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8193, 8193), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bomb_is_refused_from_the_header(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(header_of_png(*size))
    with pytest.raises(ValueError, match=r"pixels|exceeds limit"):
        images.check(path)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "PDF"])
def test_other_formats_are_refused_whatever_the_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path, format=kind)
    with pytest.raises(ValueError, match="not a readable"):
        images.check(path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_allowed_formats(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    Image.new("RGB", (4, 3), "red").save(path, format=kind)
    found = images.load(path)
    assert (found.mode, found.size) == ("RGB", (4, 3))
    red, green, blue = found.getpixel((0, 0))  # type: ignore[misc]
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"\xff\xd8\xff"])
def test_garbage(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable"):
        images.check(data)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    """Orientation 6 means: turn by 90 degrees clockwise.

    So 4 x 2 becomes 2 x 4, and the left half, red, comes to the top.
    """
    image = Image.new("RGB", (4, 2), "blue")
    image.paste((255, 0, 0), (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    found = images.load(tmp_path / "a.png")
    assert found.size == (2, 4)
    assert found.getpixel((0, 0)) == (255, 0, 0)
    assert found.getpixel((0, 3)) == (0, 0, 255)


def test_broken_exif_leaves_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2), "red").save(tmp_path / "a.png", exif=b"Exif\0\0garbage")
    assert images.load(tmp_path / "a.png").size == (4, 2)


def test_transparency_is_white(tmp_path: Path) -> None:
    """Black under alpha 0 is white; black under alpha 128 of 255 is 127."""
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.save(tmp_path / "a.png")
    found = images.load(tmp_path / "a.png")
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert found.getpixel((1, 0)) == (127, 127, 127)


def test_transparent_palette_colour_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.gif", transparency=0)
    found = images.load(tmp_path / "a.gif")
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (255, 0, 0)]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    """65535 / 257 = 255 and 25700 / 257 = 100."""
    Image.fromarray(np.array([[65535, 25700, 0]], dtype=np.uint16)).save(tmp_path / "a.png")
    found = images.load(tmp_path / "a.png")
    assert [found.getpixel((x, 0)) for x in range(3)] == [(255,) * 3, (100,) * 3, (0,) * 3]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert images.load(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    for name in ("link.png", "../secret.png", str(tmp_path / "secret.png"), "../root-2/a.png"):
        with pytest.raises(ValueError, match="outside"):
            images.inside(root, name)


@pytest.mark.parametrize("name", ["", "a\0b", "http://x/a.png", "file:///etc/passwd", "data:x"])
def test_not_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"is a URL|is not a path"):
        images.inside(tmp_path, name)


def test_absolute_path_inside_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(path)
    assert images.inside(tmp_path, str(path)) == path.resolve()
