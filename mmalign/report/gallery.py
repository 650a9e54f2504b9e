"""Rows of a data file on one page: pictures, prompts, how answers differ, why rows were dropped.

The page needs nothing beside it and loads nothing. How it looks is in ``gallery.html``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

from markupsafe import Markup
from tqdm import tqdm

from mmalign import rng
from mmalign.data.building import DROPPED, Files
from mmalign.data.formats import Dropped, RowError
from mmalign.data.reading import Place, Reader
from mmalign.report.items import Item, item_of
from mmalign.report.pictures import digest, template

KEPT = "kept"
UNREADABLE = "unreadable row"
_SCRIPT = Path(__file__).with_name("gallery.js")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large a page may become.

    Attributes:
        rows: Rows at most.
        megabytes: Of the file; the row that would exceed it and all later ones are left out.
        side: Longest side of a picture in pixels.
    """

    rows: int = 200
    megabytes: float = 40
    side: int = 384


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """How many rows there are of one kind.

    Attributes:
        reason: Why they were dropped, or `KEPT`.
        number: In the files.
        shown: On the page.
        share: Of the most frequent kind, in per cent.
    """

    reason: str
    number: int
    shown: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """What a page shows.

    Attributes:
        name: The data file's.
        totals: By reason; kept rows first, then the most frequent.
        items: The rows.
        sentence: What was left out and how the rest was chosen.
    """

    name: str
    totals: tuple[Total, ...]
    items: tuple[Item, ...]
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pick:
    """A row to show."""

    reader: Reader
    number: int
    reason: str = ""


def write_gallery(place: Place, out: Path, *, limits: Limits, seed: int = 0) -> Gallery:
    """Write a page about a data file, and about the dropped rows beside it.

    Args:
        place: The file.
        out: The page; one that exists is replaced.
        limits: How large it may become.
        seed: Of the choice of rows.

    Returns:
        What is on it.

    Raises:
        ValueError: A file is unreadable as a whole.
    """
    gallery = collect(place, limits=limits, seed=seed)
    script = _SCRIPT.read_text("utf-8")
    page = template("gallery.html").render(
        gallery=gallery,
        script=Markup(script),  # ours, and the only one that the page's policy lets run
        script_digest=digest(script),
        has_heat=any(view.heat for item in gallery.items for view in item.views),
        has_weights=any(
            piece.tint is not None
            for item in gallery.items
            for side in item.sides
            for piece in side.pieces
        ),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    # Half a character, which JSON can hold and UTF-8 cannot, is shown as it was written.
    out.write_bytes(page.encode("utf-8", "backslashreplace"))
    return gallery


def collect(place: Place, *, limits: Limits, seed: int = 0) -> Gallery:
    """The rows that a page shows; arguments as of `write_gallery`."""
    is_dropped = place.path.name.endswith(".dropped.jsonl")
    beside = Files(kept=place.path).dropped
    groups: dict[str, list[_Pick]] = {}
    if is_dropped:
        groups |= _by_reason(Reader(place))
    else:
        reader = Reader(place)
        groups[KEPT] = [_Pick(reader=reader, number=number) for number in range(len(reader))]
        if beside.is_file():
            # A builder's file, whatever the layout of the other one.
            groups |= _by_reason(Reader(replace(place, path=beside, format="trl", columns={})))
    quotas = quota({reason: len(group) for reason, group in groups.items()}, limits.rows)
    chosen = {
        reason: [group[i] for i in spread(len(group), quotas[reason], reason=reason, seed=seed)]
        for reason, group in groups.items()
    }
    found, full = _items(chosen, limits)
    items = tuple(item for _, item in sorted(found.items()))
    counts = Counter(item.reason or KEPT for item in items)
    most = max((len(group) for group in groups.values()), default=1) or 1
    totals = tuple(
        Total(reason=r, number=len(g), shown=counts[r], share=round(100 * len(g) / most, 2))
        for r, g in sorted(groups.items(), key=lambda pair: (pair[0] != KEPT, -len(pair[1])))
    )
    total = sum(len(group) for group in groups.values())
    sentence = f"{len(items)} of {total} rows"
    if len(items) < total:
        sentence += f", spread over {'the files' if len(groups) > 1 else 'the file'} (seed {seed})"
    if full:
        sentence += f"; more would exceed {limits.megabytes:g} MB"
    return Gallery(name=place.path.name, totals=totals, items=items, sentence=f"{sentence}.")


def _by_reason(reader: Reader) -> dict[str, list[_Pick]]:
    """The rows of a file of dropped ones."""
    found: dict[str, list[_Pick]] = {}
    for number in range(len(reader)):
        try:
            reason = str(reader.read(number).get(DROPPED) or "no reason given")
        except (RowError, Dropped):
            reason = UNREADABLE
        found.setdefault(reason, []).append(_Pick(reader=reader, number=number, reason=reason))
    return found


def quota(sizes: Mapping[str, int], rows: int) -> dict[str, int]:
    """How many rows of each kind are shown.

    Half of the rows, and what the other half does not need, are kept ones; dropped ones share alike
    among the reasons, so that rare ones are seen.

    Returns:
        Of 100 kept rows, 90 too long and 3 too short, 20 are shown as 10, 7 and 3.
    """
    found = dict.fromkeys(sizes, 0)
    dropped = [reason for reason in sizes if reason != KEPT]
    kept = min(sizes.get(KEPT, 0), rows - min(rows // 2, sum(sizes[r] for r in dropped)))
    if KEPT in found:
        found[KEPT] = kept
    left = rows - kept
    while left and (open_ := [r for r in dropped if found[r] < sizes[r]]):
        for reason in open_[:left]:
            found[reason] += 1
        left -= min(left, len(open_))
    return found


def spread(size: int, count: int, *, reason: str, seed: int) -> list[int]:
    """``count`` of ``size`` numbers in order: one drawn from each of as many equal stretches."""
    assert count <= size
    found = []
    for stretch in range(count):
        low, high = size * stretch // count, size * (stretch + 1) // count
        found.append(rng.python_random(seed, "gallery", reason, stretch).randrange(low, high))
    return found


def _items(
    chosen: Mapping[str, Sequence[_Pick]], limits: Limits
) -> tuple[dict[tuple[int, int], Item], bool]:
    """The rows by their place on the page, and whether the page was full before the last one.

    Kinds take turns, so that a page that is full shows some of each.
    """
    found: dict[tuple[int, int], Item] = {}
    size = 0.0
    for order, pick in tqdm(list(_in_turns(chosen)), desc="rows", unit="row"):
        item = item_of(pick.reader, pick.number, side=limits.side, reason=pick.reason)
        size += item.size
        if size > limits.megabytes * 1e6 and found:
            return found, True
        found[order, pick.number] = item
    return found, False


def _in_turns(chosen: Mapping[str, Sequence[_Pick]]) -> Iterator[tuple[int, _Pick]]:
    numbered = [[(order, pick) for pick in picks] for order, picks in enumerate(chosen.values())]
    yield from (one for one in chain.from_iterable(zip_longest(*numbered)) if one is not None)
