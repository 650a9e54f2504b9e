"""A corpus of hostile and unusual pictures, built here: what is refused, what is used and how."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmalign.data import File, images
from mmalign.data.checks import Checker
from mmalign.data.inspecting import inspect
from mmalign.data.reading import Place, Reader

SIZE = (24, 16)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


def noise(mode: str = "RGB", *, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def saved(image: Image.Image, kind: str, *, exif: bytes | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({} if exif is None else {"exif": exif}))
    return buffer.getvalue()


def animated(kind: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def oriented(value: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return saved(noise(), "JPEG", exif=exif.tobytes())


def with_text_bomb() -> bytes:
    """A PNG whose compressed comment is 80 MB of zeros."""
    whole = saved(noise(), "PNG")
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 * 2**20), 9))
    at = whole.index(b"IDAT") - 4
    return whole[:at] + bomb + whole[at:]


def clear() -> bytes:
    image = noise("RGBA")
    image.putalpha(0)
    return saved(image, "PNG")


def sixteen_bits() -> bytes:
    return saved(Image.fromarray(np.array([[65535, 25700, 0]], dtype=np.uint16)), "PNG")


def sixteen_bit_colours() -> bytes:
    """A 1 x 1 PNG with three channels of 16 bits: 65535, 25700 and 0."""
    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", 65535, 25700, 0)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


def half(kind: str) -> bytes:
    whole = saved(noise(), kind)
    return whole[: len(whole) * 9 // 10]


REFUSED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty.png": ("disguised picture", lambda: b""),
    "magic.png": ("unreadable picture", lambda: b"\x89PNG\r\n\x1a\n"),
    "magic.gif": ("unreadable picture", lambda: b"GIF89a"),
    "garbage.jpg": ("unreadable picture", lambda: random.Random(0).randbytes(500)),
    "page.jpg": ("disguised picture", lambda: b"<!DOCTYPE html><title>404</title>"),
    "pointer.png": (
        "disguised picture",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    ),
    "script.svg": ("disguised picture", lambda: b"<svg onload='alert(1)'/>"),
    "tiff.png": ("disguised picture", lambda: saved(noise(), "TIFF")),
    "pdf.jpg": ("disguised picture", lambda: saved(noise(), "PDF")),
    "eps.png": ("disguised picture", lambda: saved(noise(), "EPS")),
    "fits.png": ("disguised picture", lambda: b"SIMPLE  =                    T"),
    "zipped.png": ("disguised picture", lambda: gzip.compress(bytes(10**6))),
    "photoshop.png": ("disguised picture", lambda: b"8BPS\0\1" + bytes(40)),
    "phone.jpg": ("disguised picture", lambda: b"\0\0\0\x18ftypheic" + bytes(20)),
    "film.gif": ("disguised picture", lambda: b"\0\0\0\x18ftypisom" + bytes(20)),
    "ppm.png": ("unreadable picture", lambda: saved(noise(), "PPM")),
    "bomb.png": ("gigantic picture", lambda: png_claiming(8193, 8193)),
    "larger.png": ("gigantic picture", lambda: png_claiming(20_000, 20_000)),
    "largest.png": ("gigantic picture", lambda: png_claiming(2**31 - 1, 2**31 - 1)),
    "narrow.png": ("gigantic picture", lambda: png_claiming(2**27, 1)),
    "nothing.png": ("unreadable picture", lambda: png_claiming(0, 4)),
    "comment.png": ("unreadable picture", with_text_bomb),
    **{f"cut.{kind.lower()}": ("truncated picture", lambda kind=kind: half(kind))  # type: ignore[misc]
       for kind in ("PNG", "JPEG", "BMP")},
    "cut.webp": ("unreadable picture", lambda: half("WEBP")),
}  # fmt: skip

USED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jpeg.png": ("disguised picture", lambda: saved(noise(), "JPEG")),
    "rotated.jpg": ("rotated by EXIF", lambda: oriented(6)),
    "mirrored.jpg": ("rotated by EXIF", lambda: oriented(2)),
    "ink.jpg": ("CMYK picture", lambda: saved(noise("CMYK"), "JPEG")),
    "grey16.png": ("16-bit picture", sixteen_bits),
    "colour16.png": ("16-bit picture", sixteen_bit_colours),
    "clear.png": ("transparent picture", clear),
    "moving.gif": ("animated picture", lambda: animated("GIF")),
    "moving.png": ("animated picture", lambda: animated("PNG")),
    "moving.webp": ("animated picture", lambda: animated("WEBP")),
}

ORDINARY: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: saved(noise(), "PNG"),
    "grey.png": lambda: saved(noise("L"), "PNG"),
    "palette.png": lambda: saved(noise("P"), "PNG"),
    "bits.png": lambda: saved(noise("1"), "PNG"),
    "opaque.png": lambda: saved(noise("RGBA"), "PNG"),
    "photo.jpeg": lambda: saved(noise(), "JPEG"),
    "upright.jpg": lambda: oriented(1),
    "still.gif": lambda: saved(noise("P"), "GIF"),
    "PHOTO.WEBP": lambda: saved(noise(), "WEBP"),
    "old.bmp": lambda: saved(noise(), "BMP"),
    "no_ending": lambda: saved(noise(), "PNG"),
}

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


def findings(folder: Path, name: str) -> list[tuple[str, str, str]]:
    """Level, column and reason of everything said about a row with this picture."""
    path = folder / "rows.jsonl"
    row = {"prompt": "What is this?", "images": [name], "chosen": "a", "rejected": "b"}
    path.write_text(json.dumps(row) + "\n")
    checker = Checker(Reader(Place(path=path)))
    return [(f.level, f.field, f.reason) for f in checker.row(0)]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    """The check says why, and training refuses the row too."""
    reason, build = REFUSED[name]
    (tmp_path / name).write_bytes(build())
    assert findings(tmp_path, name) == [("error", "images", reason)]
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: .*{name}"):
        _ = File(path=str(tmp_path / "rows.jsonl")).preferences()[0]


@pytest.mark.parametrize("name", USED)
def test_used_and_said(tmp_path: Path, name: str) -> None:
    reason, build = USED[name]
    (tmp_path / name).write_bytes(build())
    assert findings(tmp_path, name) == [("warning", "images", reason)]
    pair = File(path=str(tmp_path / "rows.jsonl")).preferences()[0]
    assert pair.prompt.images[0].mode == "RGB"


@pytest.mark.parametrize("name", ORDINARY)
def test_nothing_to_say(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(ORDINARY[name]())
    assert findings(tmp_path, name) == []


def test_sixteen_bit_colours_are_scaled() -> None:
    """65535 / 257 = 255 and 25700 / 257 = 100."""
    assert images.load(sixteen_bit_colours()).getpixel((0, 0)) == (255, 100, 0)


def test_cmyk_keeps_its_colours() -> None:
    """Full cyan and full yellow ink together are green."""
    found = images.load(saved(Image.new("CMYK", (16, 16), (255, 0, 255, 0)), "JPEG"))
    red, green, blue = found.getpixel((8, 8))  # type: ignore[misc]
    assert red < 10 and green > 240 and blue < 10


def test_a_copy_in_another_format_has_the_same_digest() -> None:
    digests = {inspect(saved(noise(), kind)).digest for kind in ("PNG", "BMP")}
    assert len(digests) == 1
    assert inspect(saved(noise(seed=1), "PNG")).digest not in digests


def test_digest_knows_the_shape() -> None:
    """4 x 2 and 2 x 4 black pixels are the same bytes, and not the same picture."""
    wide, high = (saved(Image.new("RGB", size), "PNG") for size in ((4, 2), (2, 4)))
    assert inspect(wide).digest != inspect(high).digest


@pytest.mark.parametrize("name", ["rgb.png", "photo.jpeg", "still.gif", "PHOTO.WEBP", "old.bmp"])
def test_changed_bytes_are_an_error_or_a_picture(name: str) -> None:
    """300 files with some bytes changed, removed or added; nothing but ValueError comes out."""
    draw, whole = random.Random(name), ORDINARY[name]()
    outcomes = set()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(min(len(data), draw.choice((40, 200, 10**6))))
            data[at : at + draw.choice((0, 1, 1, 9))] = draw.randbytes(draw.choice((0, 1, 1, 5)))
            data = data or bytearray(b"x")
        found = inspect(bytes(data))
        outcomes.add(bool(found.digest))
        assert bool(found.digest) == all(note.level == "warning" for note in found.notes)
    assert False in outcomes


def loop(folder: Path) -> str:
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return "loop.png"


def escape(folder: Path) -> str:
    outside = folder.parent / f"{folder.name}-secret.png"
    outside.write_bytes(saved(noise(), "PNG"))
    (folder / "link.png").symlink_to(outside)
    return "link.png"


def escaping_folder(folder: Path) -> str:
    (folder / "up").symlink_to(folder.parent)
    escape(folder)
    return f"up/{folder.name}-secret.png"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.png", "missing picture"),
        (".", "missing picture"),
        ("C:\\Users\\me\\a.png", "missing picture"),
        ("../secret.png", "path leaves folder"),
        ("a/../../secret.png", "path leaves folder"),
        ("/etc/passwd", "path leaves folder"),
        ("//server/share/a.png", "path leaves folder"),
        (escape, "path leaves folder"),
        (escaping_folder, "path leaves folder"),
        (loop, "missing picture|bad path"),  # which one depends on Python's version
        ("a" * 5000, "missing picture|bad path"),
        ("", "bad path"),
        ("a\0.png", "bad path"),
        ("\ud800.png", "bad path"),
        ("http://127.0.0.1/a.png", "picture URL"),
        ("HTTPS://example.org/a.png", "picture URL"),
        ("file:///etc/passwd", "picture URL"),
        ("data:image/png;base64,AAAA", "picture URL"),
        ("s3://bucket/a.png", "picture URL"),
    ],
)
def test_paths(tmp_path: Path, name: str | Callable[[Path], str], reason: str) -> None:
    """Nothing outside the folder is opened, nothing is downloaded, and the row is named."""
    path = name if isinstance(name, str) else name(tmp_path)
    ((level, column, found),) = findings(tmp_path, path)
    assert (level, column) == ("error", "images") and found in reason.split("|")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: "):
        File(path=str(tmp_path / "rows.jsonl")).preferences()
