"""Rows whose columns are files: members of a tar shard with one stem, or a folder of their own.

The rules are those of `row_of`; where the files are, `mmalign.data.shards` and
`mmalign.data.folders` say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmalign.data.formats import Row, RowError, short
from mmalign.data.tables import parsed

PICTURES = ("png", "jpg", "jpeg", "webp", "bmp", "gif")
MAX_MEMBER_BYTES = 64 * 2**20
SIDES: Mapping[str, str] = {
    "": "images",
    "image": "images",
    "chosen": "chosen_images",
    "rejected": "rejected_images",
    "completion": "completion_images",
}
"""Which column the pictures of a name belong to; another name is a column of its own."""


def row_of(members: Mapping[str, Callable[[], Any]], *, picture: Callable[[str], Any]) -> Row:
    """The row that files make up.

    ``json`` holds columns, ``txt`` is the prompt and ``NAME.txt`` the column NAME. A picture is
    ``NAME.ENDING`` or ``ENDING`` alone: of `SIDES` it goes into that column, numbered ones
    (``image.0.png``, ``completion.1.jpg``) in their order, and of another name it is the column.

    Args:
        members: What reads a file, by the part of its name that says what it is.
        picture: From such a part to what the row holds of that picture: bytes, or a path.

    Raises:
        RowError: A file is none of these, or two say the same.
    """
    found: Row = {}
    shown: dict[str, list[tuple[int, str]]] = {}
    for part in sorted(members):
        name, _, ending = part.rpartition(".")
        if ending.lower() in PICTURES:
            base, _, number = name.rpartition(".")
            numbered = number.isdecimal()
            of = base if numbered else name
            shown.setdefault(of, []).append((int(number) if numbered else -1, part))
        elif ending == "json":
            _add(found, _columns(members[part](), part), part)
        elif ending == "txt":
            _add(found, {name or "prompt": _text(members[part](), part)}, part)
        else:
            raise RowError(
                "unread member",
                f"{part!r} is neither json nor txt nor one of {', '.join(PICTURES)}",
            )
    for name, parts in shown.items():
        if len({number for number, _ in parts}) < len(parts):
            raise RowError("wrong value", f"several pictures are {name or 'without a name'!r}")
        pictures = [picture(part) for _, part in sorted(parts)]
        column = SIDES.get(name)
        if column is None and len(pictures) > 1:
            raise RowError("wrong value", f"{name!r} is one column, and has {len(pictures)} files")
        _add(found, {name: pictures[0]} if column is None else {column: pictures}, parts[0][1])
    return found


def _add(row: Row, columns: Mapping[str, Any], part: str) -> None:
    twice = sorted(row.keys() & columns.keys())
    if twice:
        raise RowError("wrong value", f"{part!r} gives the column {twice[0]!r} a second time")
    row.update(columns)


def _columns(data: bytes, part: str) -> Mapping[str, Any]:
    value = parsed(data)
    if not isinstance(value, dict):
        raise RowError("wrong type", f"{part!r} must hold an object of columns, not {short(value)}")
    return value


def _text(data: bytes, part: str) -> str:
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise RowError("malformed text", f"{part!r} is not UTF-8 at byte {error.start}") from error
