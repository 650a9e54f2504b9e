"""Insight-V: how chains grow over HTTP, how they are assessed, and what is trained on."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign import config, rng
from mmalign.data import File
from mmalign.data.building import construct
from mmalign.endpoint import Endpoint, Question
from mmalign.locate import configs
from mmalign.policy import Policy
from mmalign.tinyworld.data import TinyWorld
from mmalign.tinyworld.judges import AnswerJudge
from mmalign.tinyworld.reasoner import Reasoner, answer_of, plan, seen
from mmalign.types import Prompt
from mmalign.vision.completing import Decoding
from mmalign.vision.insight import InsightV, write_reasoning, write_summaries
from mmalign.vision.insight.agents import MAX_SEED, NAME, AskerAgent, PolicyAgent
from mmalign.vision.insight.assessing import checked, normalised, read_scores, scored
from mmalign.vision.insight.builder import INSTRUCTION
from mmalign.vision.insight.chains import (
    AGAIN,
    BEFORE,
    BROKEN_STEP,
    NO_ANSWER,
    SYSTEM,
    Chain,
    Step,
    grow,
    read_answer,
    read_step,
)
from tests.vision.agent import Asked, serving
from tests.vision.lvlm_models import FAMILIES, adapter_of

DATA = TinyWorld(task="vqa", size=3)
PLACES = {
    rng.seed_of(0, NAME, chain, attempt) % MAX_SEED: (chain, attempt)
    for chain in range(-1, 6)
    for attempt in range(3)
}
"""Chain and attempt by the seed that a request carries."""


def step(title: str, content: str, action: str) -> str:
    return json.dumps({"title": title, "content": content, "next_action": action})


class Agent:
    """A program over HTTP whose chains are, by number: thorough, short, wrong, broken at first,
    broken always, endless. It keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, Asked]] = []
        self.lock = threading.Lock()

    def __call__(self, asked: Asked) -> str:
        chain, attempt = PLACES[asked.body["seed"]]
        with self.lock:
            self.asked.append((chain, attempt, asked))
        if chain == -1:
            return self.scores(asked.text)
        question = asked.text.removeprefix("Question: ").partition("\n")[0]
        scene = seen(asked.images[0])
        done = before(asked.text)
        if chain == 4 or (chain == 3 and attempt < 2 and not done):
            return "Well, let me think about it."
        if done and done[-1]["next_action"] == "final_answer":
            answer = "purple" if chain == 2 else answer_of(question, scene)
            return json.dumps({"title": "final answer", "content": f"{answer.capitalize()}."})
        if chain == 5:
            return step("again", f"thought {len(done)}", "continue")
        steps = plan(question, scene, thorough=chain == 0)
        title, content = steps[len(done)]
        return step(title, content, "final_answer" if len(done) + 1 == len(steps) else "continue")

    def scores(self, text: str) -> str:
        """Of the right chains: 90 for a long one, 40 for a short one."""
        found = [90 if "### look" in one else 40 for one in text.split("\n\nChain ")[1:]]
        return f"Scores: {found}"

    def of(self, chain: int) -> list[tuple[int, Asked]]:
        return [(attempt, asked) for number, attempt, asked in self.asked if number == chain]


def before(text: str) -> list[dict[str, str]]:
    """The steps that a request repeats."""
    lines = text.partition(f"{BEFORE}\n")[2].partition("\n\n")[0].splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def served() -> Iterator[tuple[Agent, Endpoint]]:
    agent = Agent()
    with serving(agent) as endpoint:
        yield agent, endpoint


def builder(endpoint: Endpoint, **changes: Any) -> InsightV:
    return replace(InsightV(data=DATA, agent=endpoint, chains=6, max_steps=5), **changes)


# ---- chains ----------------------------------------------------------------------------------


def test_how_chains_grow(served: tuple[Agent, Endpoint]) -> None:
    agent, endpoint = served
    prompt, right = DATA.demonstrations()[0]
    ((thorough, short, wrong, late, broken, endless),) = grow(
        AskerAgent(asker=endpoint, seed=0), [(0, prompt)], chains=6, max_steps=15, attempts=3
    )
    assert [len(c.steps) for c in (thorough, short, wrong, late)] == [3, 1, 1, 1]
    assert normalised(thorough.answer) == normalised(late.answer) == right
    assert wrong.answer == "Purple."
    assert (broken.flaw, broken.steps) == (BROKEN_STEP, ())
    assert (endless.flaw, len(endless.steps)) == (NO_ANSWER, 15)
    assert thorough.written().count("### ") == 3

    assert [attempt for attempt, _ in agent.of(4)] == [0, 1, 2]
    assert [attempt for attempt, _ in agent.of(3)] == [0, 1, 2, 0]
    assert [AGAIN in asked.text for _, asked in agent.of(3)] == [False, True, True, False]
    assert all(asked.images[0].tobytes() == prompt.images[0].tobytes() for *_, asked in agent.asked)
    assert [asked.system for _, asked in agent.of(1)] == [SYSTEM, ""]


def test_each_step_sees_the_steps_before_it(served: tuple[Agent, Endpoint]) -> None:
    """The request for step t repeats the t - 1 earlier steps; that for the answer, all of them."""
    agent, endpoint = served
    prompt, _ = DATA.demonstrations()[1]
    (chains,) = grow(
        AskerAgent(asker=endpoint, seed=0), [(1, prompt)], chains=6, max_steps=4, attempts=3
    )
    for number, requests in ((0, 4), (5, 4)):
        steps = [one.described() for one in chains[number].steps]
        assert [before(asked.text) for _, asked in agent.of(number)] == [
            steps[:t] for t in range(requests)
        ]


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        (step("a", "b", "continue"), True),
        (f"```json\n{step('a', 'b', 'final_answer')}\n```", True),
        (step("a", "b", "stop"), False),
        (step("a", " ", "continue"), False),
        (f"Here: {step('a', 'b', 'continue')}", False),
        ('{"title": "a", "content": ["b"], "next_action": "continue"}', False),
        ('{"title": "a"}', False),
        ("[1]", False),
        ('{"title": ', False),
    ],
)
def test_which_replies_are_steps(reply: str, read: bool) -> None:
    assert (read_step(reply) is not None) is read


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ('{"content": "red"}', "red"),
        ('{"content": 3}', "3"),
        ('{"content": ""}', None),
        ("3", None),
    ],
)
def test_which_replies_are_answers(reply: str, answer: str | None) -> None:
    assert read_answer(reply) == answer


def test_a_local_model_writes_chains_too() -> None:
    """A random one writes no JSON, so that every chain comes to nothing after its attempts; and
    what it writes at a place depends on nothing else."""
    torch.manual_seed(0)
    model, processor = FAMILIES["llava"]()
    policy = Policy(adapter=adapter_of(model, processor), model=model)
    agent = PolicyAgent(policy=policy, decoding=Decoding(max_new_tokens=5), seed=3, batch_size=2)
    prompts = [(row, prompt) for row, (prompt, _) in enumerate(DATA.demonstrations())]
    found = grow(agent, prompts, chains=2, max_steps=3, attempts=2)
    assert [[one.flaw for one in chains] for chains in found] == [[BROKEN_STEP] * 2] * 3
    asked = [
        Question(text="how many", images=prompt.images, system="Look.") for _, prompt in prompts
    ]
    places = [(row, 0, 0, 0) for row, _ in prompts]
    whole = agent.answer(asked, places)  # type: ignore[arg-type]
    assert agent.answer(asked[2:], places[2:]) == whole[2:]  # type: ignore[arg-type]
    assert len(set(whole)) > 1


# ---- assessment ------------------------------------------------------------------------------


def test_answers_are_compared_by_words() -> None:
    assert normalised("The Answer, a 3.5!") == normalised("answer 3.5") == "answer 3.5"
    assert normalised("top left") != normalised("top right")
    chains = [Chain(answer="Yes."), Chain(answer="no"), Chain(flaw=NO_ANSWER)]
    assert checked(chains, Prompt(content="?"), "yes", None) == [True, False, None]


def test_a_language_model_compares_answers() -> None:
    """Two and 2 mean the same, which words do not say; a reply that is neither 1 nor 0 is none."""

    def program(asked: Asked) -> str:
        answer = asked.text.rpartition("Other answer: ")[2]
        return {"two": "[1]", "five": "0", "2 or 3": "perhaps"}[answer]

    chains = [Chain(answer=a) for a in ("two", "five", "2 or 3")] + [Chain(flaw=BROKEN_STEP)]
    with serving(program) as checker:
        assert checked(chains, Prompt(content="?"), "2", checker) == [True, False, None, None]


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("[90, 40]", [90.0, 40.0]),
        ("Scores: [1, 100].", [1.0, 100.0]),
        ("[90]", None),
        ("[0, 50]", None),
        ("[101, 50]", None),
        ('["90", 50]', None),
        ("[true, 50]", None),
        ("90, 40", None),
        ("[90, 4", None),
    ],
)
def test_which_replies_are_scores(reply: str, scores: list[float] | None) -> None:
    assert read_scores(reply, 2) == scores


def test_all_chains_are_scored_in_one_request() -> None:
    """The first reply cannot be read, so there is a second request, and no third."""
    seen_texts: list[str] = []

    def program(asked: Asked) -> str:
        seen_texts.append(asked.text)
        return "I like both." if len(seen_texts) == 1 else "[70, 30]"

    chains = [
        Chain(steps=(Step(title=t, content=c, next_action="final_answer"),), answer="x")
        for t, c in (("one", "first"), ("two", "second"))
    ]
    with serving(program) as endpoint:
        judge = AskerAgent(asker=endpoint, seed=0)
        prompt = Prompt(content="what ?")
        assert scored(chains, prompt, 0, judge, attempts=3) == [70.0, 30.0]
        assert len(seen_texts) == 2
        assert all("### one\nfirst" in t and "### two\nsecond" in t for t in seen_texts)
        seen_texts.clear()
        assert scored(chains, prompt, 0, judge, attempts=1) is None


# ---- pairs and training sets -----------------------------------------------------------------


def test_pairs(served: tuple[Agent, Endpoint]) -> None:
    """Best of the right chains (90) over the wrong one (0); or over the short right one (40)."""
    _, endpoint = served
    for wrong, score in ((True, 0.0), (False, 40.0)):
        settings = builder(endpoint, wrong_as_rejected=wrong)
        for candidate in settings.prepare(seed=0).candidates():
            pair = candidate.preference
            assert candidate.dropped is None
            assert str(pair.chosen).startswith("### look at the picture")
            assert str(pair.rejected).startswith("### conclude")
            assert (pair.meta["chosen_score"], pair.meta["rejected_score"]) == (90.0, score)
            assert [one["right"] for one in pair.meta["chains"]] == [
                True, True, False, True, None, None,
            ]  # fmt: skip
            assert pair.prompt.content[-1]["content"][-1]["text"].endswith(  # type: ignore[index]
                INSTRUCTION
            )


def test_questions_without_a_pair(served: tuple[Agent, Endpoint]) -> None:
    """Every answer wrong; every score the same; a margin that none reaches."""
    _, endpoint = served
    assert dropped(builder(endpoint, data=Renamed(right="sky"))) == ["no right chain"] * 3
    with serving(lambda asked: "[50, 50, 50]") as judge:
        even = builder(endpoint, judge=judge, wrong_as_rejected=False)
        assert dropped(even) == ["same score"] * 3
    with serving(lambda asked: "none of them") as judge:
        assert dropped(builder(endpoint, judge=judge)) == ["unreadable scores"] * 3
    high = builder(endpoint, min_margin=51.0, wrong_as_rejected=False)
    assert dropped(high) == ["same score"] * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """The same questions with one right answer."""

    right: str

    def demonstrations(self) -> list[tuple[Prompt, str]]:
        return [(prompt, self.right) for prompt, _ in DATA.demonstrations()]


def dropped(settings: InsightV) -> list[str | None]:
    return [one.dropped for one in settings.prepare(seed=0).candidates()]


def test_no_pair_ever_prefers_a_wrong_answer() -> None:
    """Over many questions, written and scored by the tiny world's own program."""
    settings = InsightV(data=TinyWorld(task="vqa", size=60), agent=Reasoner(), chains=4)
    kept = 0
    for candidate in settings.prepare(seed=0).candidates():
        pair = candidate.preference
        if candidate.dropped is not None:
            continue
        kept += 1
        chains = [one for one in pair.meta["chains"] if one["written"] == pair.chosen]
        assert any(one["right"] for one in chains)
        assert pair.meta["chosen_score"] > pair.meta["rejected_score"]
        answer = next(one["answer"] for one in chains if one["right"])
        assert float(AnswerJudge()([pair.prompt], [answer])) == 1.0
    assert kept > 40


def test_a_row_does_not_depend_on_where_the_work_began() -> None:
    work = InsightV(data=TinyWorld(task="vqa", size=6), agent=Reasoner(), rows_at_a_time=4)
    whole = [one.preference.meta for one in work.prepare(seed=2).candidates()]
    assert [one.preference.meta for one in work.prepare(seed=2).candidates(3)] == whole[3:]
    assert whole != [one.preference.meta for one in work.prepare(seed=5).candidates()]


@pytest.fixture(scope="module")
def constructed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("insight") / "pairs.jsonl"
    settings = InsightV(data=TinyWorld(task="vqa", size=40), agent=Reasoner(), chains=6)
    construct(settings, path, settings="a")
    return path


def test_the_summary_agent_learns_from_every_quality(constructed: Path, tmp_path: Path) -> None:
    """At least one sample of each bucket and of wrong chains; the answer is the right one."""
    output = tmp_path / "summary.jsonl"
    counts = write_summaries(constructed, output)
    samples = File(path=str(output)).demonstrations()
    found = Counter(prompt.meta["bucket"] for prompt, _ in samples)
    assert found == counts and set(counts) == {"1-60", "60-80", "80-101", "flawed"}
    assert min(counts.values()) >= 1
    for prompt, answer in samples:
        assert float(AnswerJudge()([prompt], [answer])) == 1.0
        said = "".join(p.get("text", "") for p in prompt.content[-1]["content"])  # type: ignore[index]
        assert "### " in said and INSTRUCTION not in said and len(prompt.images) == 1
    flawed = [p for p, _ in samples if p.meta["bucket"] == "flawed"]
    assert {p.meta["score"] for p in flawed} == {0.0}
    for bucket, low, high in (("1-60", 1, 60), ("60-80", 60, 80), ("80-101", 80, 101)):
        scores = [p.meta["score"] for p, _ in samples if p.meta["bucket"] == bucket]
        assert all(low <= score < high for score in scores)
    write_summaries(constructed, tmp_path / "again.jsonl")
    again = (tmp_path / "again.jsonl").read_text().replace("again-images", "summary-images")
    assert again == output.read_text()


def test_a_bucket_without_chains_is_said(
    constructed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = write_summaries(constructed, tmp_path / "s.jsonl", buckets=((2.0, 3.0), (3.0, 101.0)))
    assert counts["2-3"] == 0 and counts["3-101"] > 0
    assert "no chain for 2-3" in caplog.text


def test_the_reasoning_agent_learns_from_the_best(constructed: Path, tmp_path: Path) -> None:
    number = write_reasoning(constructed, tmp_path / "best.jsonl")
    rows = File(path=str(tmp_path / "best.jsonl")).demonstrations()
    assert number == len(rows) > 30
    chosen = {pair.meta["row"]: pair.chosen for pair in File(path=str(constructed)).preferences()}
    for prompt, chain in rows:
        assert chain == chosen.get(prompt.meta["row"], chain)


def test_training_sets_are_made_of_this_builders_files(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "builder": "other"}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="was not made by `mmalign data insight-v`"):
        write_reasoning(path, tmp_path / "best.jsonl")
    for buckets in (((1.0, 60.0), (50.0, 90.0)), ((5.0, 5.0),), ((90.0, 102.0),)):
        with pytest.raises(ValueError, match="must not overlap"):
            write_summaries(path, tmp_path / "s.jsonl", buckets=buckets)


# ---- settings --------------------------------------------------------------------------------


def test_shipped_settings(tmp_path: Path) -> None:
    path = configs() / "vision" / "data" / "insight_v.yaml"
    found = config.load_builder("insight-v", path, ["data.size=4"])
    described: Mapping[str, Any] = config.settings_of(found)
    assert described["agent"] == {"type": "tinyworld", "errors": 0.4, "thorough": 0.5, "seed": 0}
    assert construct(found, tmp_path / "pairs.jsonl", settings="a").total() == 4


@pytest.mark.parametrize(
    "changes", [{"chains": 1}, {"max_steps": 0}, {"attempts": 0}, {"min_margin": 0.0}]
)
def test_wrong_settings(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        InsightV(data=DATA, **changes)
