"""The report: self-contained, complete, and deaf to what a model's output asks of it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign import report
from mmalign.report import curves, write
from mmalign.report.comparison import compared, grid, table
from mmalign.report.curves import grouped, panels
from mmalign.report.page import Interval, scores
from mmalign.report.reading import read

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def judge(mean: float, **more: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "num_prompts": 200, **more}


def lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two updates; scores 0.5 before and 0.8 after; a picture and a text as outputs."""
    run = tmp_path / "my <run>"
    samples = run / "samples"
    samples.mkdir(parents=True)
    metrics = {"loss": 0.6, "rewards/margins": 0.2, "counts/dropped/ties": 3.0, "time/update": 2.0}
    lines(run / "metrics.jsonl", [{"step": s, "kl": 0.0, **metrics} for s in (1, 2)])
    rise = {"mean": 0.3, "low": 0.25, "high": 0.35}
    lines(
        run / "evaluations.jsonl",
        [
            {"step": 0, "judge": {"exact": judge(0.5), "odd": judge(7.0)}, "seconds": 1.0},
            {
                "step": 2,
                "judge": {"exact": judge(0.8), "odd": judge(9.0)},
                "paired": {"exact": rise},
                "seconds": 1.0,
            },
        ],
    )
    (run / "config.yaml").write_text(
        f"policy: {{type: text, model: '{HOSTILE}'}}\ntraining: {{learning_rate: 1e-4}}\nseed: 7\n"
    )
    for step, colour in ((0, "red"), (2, "blue")):
        Image.new("RGB", (8, 8), colour).save(samples / f"{colour}.png")
        items = [
            {
                "prompt": f"draw {HOSTILE}",
                "images": [],
                "outputs": [{"image": f"{colour}.png"}],
                "scores": {"exact": [0.25]},
            },
            {
                "prompt": "say",
                "images": ["red.png"],
                "outputs": [f"{HOSTILE} at {step}"],
                "scores": {"exact": [1.0]},
            },
        ]
        (samples / f"step-{step:06d}.json").write_text(json.dumps({"step": step, "items": items}))
    return run


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def sources(self) -> list[str]:
        return [str(a["src"]) for t, a in self.tags if t == "img"]


def page(folder: Path, *more: Path) -> Page:
    out = folder.parent / "out" / "report.html"
    assert write([folder, *more], out) == out
    return Page(out.read_text())


def test_model_output_is_shown_not_obeyed(folder: Path) -> None:
    found = page(folder)
    assert [tag for tag, _ in found.tags].count("script") == 1
    script = Path(report.__file__).with_name("page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a)
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
    assert f"{HOSTILE} at 0" in found.text and f"{HOSTILE} at 2" in found.text
    assert f"draw {HOSTILE}" in found.text
    assert "my <run>" in found.text


def test_nothing_is_fetched(folder: Path) -> None:
    """Pictures are in the page, links stay in it, and its own policy forbids the rest."""
    found = page(folder)
    assert found.sources()
    assert all(s.startswith(("data:image/png;", "data:image/svg+xml;")) for s in found.sources())
    links = [str(a["href"]) for t, a in found.tags if t == "a"]
    assert links and all(link.startswith("#") for link in links)
    assert not [t for t, _ in found.tags if t in ("link", "iframe", "object", "base", "form")]
    policies = [a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a]
    assert policies and str(policies[0]).startswith("default-src 'none'")


def test_no_script_without_pictures_to_compare(folder: Path) -> None:
    (folder / "evaluations.jsonl").write_text(
        (folder / "evaluations.jsonl").read_text().splitlines()[0] + "\n"
    )
    found = page(folder)
    assert "script" not in {tag for tag, _ in found.tags}
    (policy,) = (a["content"] for t, a in found.tags if t == "meta" and "http-equiv" in a)
    assert "script-src" not in str(policy)


def test_pictures_are_the_samples(folder: Path) -> None:
    pngs = [s for s in page(folder).sources() if s.startswith("data:image/png")]
    pixels = []
    for number, uri in enumerate(pngs):
        path = folder / f"out-{number}.png"
        path.write_bytes(base64.b64decode(uri.partition(",")[2]))
        pixels.append(Image.open(path).convert("RGB").getpixel((0, 0)))
    assert pixels == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


def test_summary(folder: Path) -> None:
    """Before 0.5 +- 0.1 and after 0.8 +- 0.1 on an axis from 0 to 1; the other judge's is wider.

    7 - 0.1 to 9 + 0.1 with 15 % of 2.2 on both sides is 6.57 to 9.43.
    """
    exact, odd = scores(read(folder), 0)
    assert (exact.before.mean, exact.num_prompts, exact.axis) == (0.5, 200, (0.0, 1.0))
    assert exact.after is not None and exact.rise is not None and odd.rise is None
    assert (exact.at(0.5), exact.at(-3.0), exact.at(4.0)) == (50.0, 0.0, 100.0)
    assert odd.axis == pytest.approx((6.57, 9.43))
    text = re.sub(r"\s+", " ", page(folder).text)
    for shown in ("0.500 \u00b1 0.100", "0.800 \u00b1 0.100", "+0.300 [+0.250, +0.350]"):
        assert shown in text


def test_samples_are_laid_over_each_other(folder: Path) -> None:
    """The prompt that is drawn is compared, the one with a picture of its own is in the table."""
    run = read(folder)
    (pair,) = compared(run)
    assert pair.prompt == f"draw {HOSTILE}" and pair.scores == {"exact": (0.25, 0.25)}
    assert pair.before.uri and pair.before.uri != pair.after.uri
    assert [row["prompt"] for row in table(run)] == ["say"]
    assert grid(run) is None  # would hold the same two pictures
    inputs = [a for t, a in page(folder).tags if t == "input"]
    assert len(inputs) == 2 and inputs[1]["aria-label"] == f"draw {HOSTILE}: after from here on"


def test_grid_of_evaluations(folder: Path) -> None:
    """Of 12 evaluations six are shown, the first and the last among them; four samples each."""
    samples, line = folder / "samples", (folder / "evaluations.jsonl").read_text().splitlines()[0]
    lines(folder / "evaluations.jsonl", [{**json.loads(line), "step": s} for s in range(12)])
    item = {"prompt": "draw", "outputs": [{"image": "red.png"}] * 5, "scores": {"exact": [0.5] * 5}}
    for step in range(12):
        (samples / f"step-{step:06d}.json").write_text(json.dumps({"step": step, "items": [item]}))
    found = grid(read(folder))
    assert found is not None and list(found.steps) == [0, 2, 4, 7, 9, 11]
    ((prompt, cells),) = found.rows
    assert prompt == "draw" and [len(cell) for cell in cells] == [4] * 6
    assert page(folder).text.count("Samples by update") == 1


def test_best_of_and_diversity(folder: Path) -> None:
    """Curves of both, a line of the summary, and a word where the samples have become alike."""
    best = [{"n": n, "mean": 0.1 * n, "low": 0.0, "high": 0.5} for n in (1, 2, 3)]
    change = {"mean": -0.3, "low": -0.35, "high": -0.25}
    records = [
        {"step": 0, "judge": {"exact": judge(0.5) | {"best_of": best}},
         "diversity": {"pixels": judge(0.4)}},
        {"step": 2, "judge": {"exact": judge(0.8) | {"best_of": best}},
         "diversity": {"pixels": {**judge(0.1), "change": change}}, "collapsed": ["pixels"]},
    ]  # fmt: skip
    lines(folder / "evaluations.jsonl", records)
    run = read(folder)
    titles = [panel.title for panel in panels(run)][:3]
    assert titles == [
        "judge exact, 95 % interval", "exact: best of n samples",
        "diversity of samples (pixels), 95 % interval",
    ]  # fmt: skip
    last = scores(run, 0)[-1]
    assert (last.judge, last.rise) == ("diversity pixels", Interval(**change))
    assert "have become alike: diversity pixels was 0.4 and is 0.1." in page(folder).text


def test_reward_has_an_interval_where_it_is_smoothed(folder: Path) -> None:
    """A constant reward has none to draw; of 1 and 3 in turn the window of 11 has 2 +- 0.6."""
    found = curves._smooth([(step, 1.0 + 2 * (step % 2)) for step in range(100)])
    step, mean, low, high = found[50]
    # Steps 45 to 55: six times 3 and five times 1, mean 23/11, squares 120/11, deviation 1.0445.
    assert (step, mean) == (50, pytest.approx(23 / 11))
    assert high - mean == pytest.approx(1.959964 * 1.0445 / 11**0.5, abs=1e-3) == mean - low
    lines(folder / "metrics.jsonl", [{"step": s, "reward": 1.0} for s in range(100)])
    titles = [panel.title for panel in panels(read(folder))]
    assert titles[-1] == "sampled reward: running mean, 95 % interval"


def test_counters_facts_and_versions(folder: Path) -> None:
    run = read(folder)
    assert run.counters == {"counts/dropped/ties": 6.0}
    assert run.seconds == 6.0
    text = page(folder).text
    for shown in ("counts/dropped/ties", "learning_rate: 1e-4", "torch", "transformers"):
        assert shown in text


def test_curves_group_metrics_and_leave_out_zeros(folder: Path) -> None:
    metrics = read(folder).metrics
    assert grouped(metrics) == {"loss": ["loss"], "implicit rewards": ["rewards/margins"]}
    assert grouped([{"step": 1, "a/x": 1.0, "a/y": 2.0}]) == {"a": ["a/x", "a/y"]}
    titles = [panel.title for panel in panels(read(folder))]
    assert titles == [
        "judge exact, 95 % interval", "judge odd, 95 % interval", "loss", "implicit rewards"
    ]  # fmt: skip


def test_curves_survive_odd_names_and_values(folder: Path) -> None:
    """A dollar sign is no formula, markup is escaped, and what is not finite leaves a gap."""
    names = ("a/$x_{$", "a/<b>&")
    records = [{"step": s, **dict.fromkeys(names, math.nan if s == 3 else s)} for s in range(100)]
    lines(folder / "metrics.jsonl", records)
    svg = next(p.uri for p in panels(read(folder)) if p.title == "a").partition(",")[2]
    drawn = base64.b64decode(svg).decode()
    assert "$x_{$" in drawn and "&lt;b&gt;&amp;" in drawn
    assert "prefers-color-scheme" in drawn and "currentColor" in drawn


def test_several_runs_are_sections(folder: Path) -> None:
    found = page(folder, folder)
    anchors = [a["id"] for t, a in found.tags if t == "section"]
    assert anchors == ["run-0", "run-1"]


def test_unfinished_run(folder: Path) -> None:
    """Only the first evaluation is there: no after, no rise, and no failure."""
    first = (folder / "evaluations.jsonl").read_text().splitlines()[0]
    (folder / "evaluations.jsonl").write_text(first + "\n")
    (folder / "metrics.jsonl").unlink()
    assert "0.800" not in page(folder).text


@pytest.mark.parametrize("name", ["gone.png", "../secret.png", "http://example.org/a.png"])
def test_picture_that_cannot_be_shown_says_so(folder: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(folder / "secret.png")
    path = folder / "samples" / "step-000002.json"
    path.write_text(path.read_text().replace("blue.png", name))
    found = page(folder)
    assert "no picture:" in found.text and name in found.text


def test_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        write([], tmp_path / "a.html")
    with pytest.raises(ValueError, match="holds no run"):
        write([tmp_path], tmp_path / "a.html")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(ValueError, match=r"metrics\.jsonl:3: not a line of JSON"):
        write([folder], tmp_path / "a.html")
