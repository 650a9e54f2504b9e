"""``mmalign data check``: findings by row, then counts by reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
from tqdm import tqdm

from mmalign.data.checks import Checker, Known
from mmalign.data.findings import Finding, printable
from mmalign.data.lengths import Lengths
from mmalign.data.reading import Place, Reader


def check(
    place: Place,
    *,
    against: Path | None,
    model: str | None,
    limits: Mapping[str, int | None],
    limit: int,
    as_json: bool,
) -> bool:
    """Check a file and print what there is to say.

    Args:
        place: The file.
        against: A file whose prompts it must not hold, such as the evaluation's; read as the first.
        model: Counts tokens; None leaves that out.
        limits: Of tokens, by the names of `Lengths`.
        limit: How many findings of a reason are printed; 0 for all. All are counted.
        as_json: Print one JSON object in place of lines.

    Returns:
        Whether there was no error.

    Raises:
        ValueError: A limit is given without a model, or a file is unreadable as a whole.
    """
    if model is None and any(value is not None for value in limits.values()):
        raise ValueError("--max-prompt-length and --max-new-tokens need --model")
    # Before the first row is read: what is wrong with the arguments should be said at once.
    readers = [Reader(place)]
    if against is not None:
        readers.insert(0, Reader(replace(place, path=against)))
    lengths = None if model is None else Lengths(model, **limits)
    counts: Counter[tuple[str, str]] = Counter()
    kept: list[Finding] = []
    rows = {str(reader.place.path): len(reader) for reader in readers}
    for finding in _findings(readers, lengths):
        kind = (finding.level, finding.reason)
        counts[kind] += 1
        if limit and counts[kind] > limit:
            continue
        if as_json:
            kept.append(finding)
        else:
            colour = "red" if finding.level == "error" else "yellow"
            with tqdm.external_write_mode():
                click.secho(finding.line(), fg=colour)
    report = _json if as_json else _summary
    click.echo(report(counts, kept, rows, lengths))
    return not any(level == "error" for level, _ in counts)


def _findings(readers: Sequence[Reader], lengths: Lengths | None) -> Iterator[Finding]:
    known: Known | None = None
    for reader in readers[:-1]:
        # What the other file says about itself is worth knowing: a row of it that cannot be read
        # can leak unseen.
        checker = Checker(reader)
        yield from _walk(checker)
        known = checker.known
    yield from _walk(Checker(readers[-1], against=known, lengths=lengths))


def _walk(checker: Checker) -> Iterator[Finding]:
    total = len(checker.reader)
    name = checker.reader.place.path.name
    # Not drawn where nobody watches: it would stand between the lines of a log.
    for number in tqdm(range(total), desc=name, unit="row", disable=None):
        yield from checker.row(number)
    yield from checker.whole()


def _summary(
    counts: Counter[tuple[str, str]],
    kept: list[Finding],
    rows: dict[str, int],
    lengths: Lengths | None,
) -> str:
    del kept  # printed as they were found
    lines = [printable(f"{name}: {number} rows") for name, number in rows.items()]
    for (level, reason), number in sorted(counts.items(), key=lambda item: (item[0][0], -item[1])):
        lines.append(f"  {number:6} {level:7}  {reason}")
    if not counts:
        lines.append("nothing to say")
    if lengths is not None:
        found = lengths.longest
        lines.append(
            f"longest prompt {found['prompt']} tokens, longest answer {found['answer']}, as "
            f"{lengths.model} reads them"
        )
    return "\n".join(lines)


def _json(
    counts: Counter[tuple[str, str]],
    kept: list[Finding],
    rows: dict[str, int],
    lengths: Lengths | None,
) -> str:
    found = {
        "rows": rows,
        "counts": [
            {"level": level, "reason": reason, "number": number}
            for (level, reason), number in counts.items()
        ],
        "findings": [asdict(finding) for finding in kept],
        "longest": None if lengths is None else {"model": lengths.model, **lengths.longest},
    }
    return json.dumps(found, indent=2)
