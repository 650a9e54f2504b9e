"""Configs: what is read, what is refused and how the refusal reads, and the way back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from mmalign import config, registry
from mmalign.config import ConfigError, build, nodes
from mmalign.data import File
from mmalign.locate import configs
from mmalign.objectives import DPO, GRPO
from mmalign.references import Frozen, Recorded
from mmalign.rewards.text import LengthReward
from mmalign.run import Evaluation, Run, Training
from mmalign.sources import Mixed, Preferences, Rollouts
from mmalign.text import TextPolicy
from mmalign.types import Output, Prompt

TEXT = """\
policy:
  type: text
objective: {type: dpo, beta: 0.2}
source:
  type: preferences
  data: {type: file, path: pairs.jsonl}
training:
  steps: 7
  learning_rate: 1e-4
  mixed_precision: no
"""
RUN = Run(
    policy=TextPolicy(),
    objective=DPO(beta=0.2),
    source=Preferences(data=File(path="pairs.jsonl")),
    training=Training(steps=7, learning_rate=1e-4, mixed_precision="no"),
)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.loads(text, overrides, name="a.yaml")
    return str(caught.value)


# ---- what is read ----------------------------------------------------------------------------


def test_tree_is_the_tree_of_constructors() -> None:
    """Also: 1e-4 is a number and `no` a word, which YAML 1.1 reads the other way round."""
    assert config.loads(TEXT) == RUN


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(TEXT)
    assert config.load(path) == RUN
    with pytest.raises(ConfigError, match="cannot read the config"):
        config.load(tmp_path / "gone.yaml")


def test_containers_of_kinds() -> None:
    text = """\
policy: {type: text, lora: {target_modules: [q_proj, v_proj]}}
objective: {type: grpo}
reference: {type: recorded, folder: cache, of: {type: frozen}}
source:
  type: mixed
  parts:
    - {type: preferences, data: {type: file, path: a.jsonl, columns: {prompt: ask}}}
    - {type: rollouts, data: {type: file, path: b.jsonl}, reward: {type: length, target: 5}}
evaluation:
  data: {type: file, path: c.jsonl}
  judges: {short: {type: length, target: 1}, long: {type: length}}
"""
    run = config.loads(text)
    assert isinstance(run.policy, TextPolicy) and run.policy.lora is not None
    assert run.policy.lora.target_modules == ("q_proj", "v_proj")
    assert run.objective == GRPO()
    assert run.reference == Recorded(folder="cache", of=Frozen())
    assert run.source == Mixed(
        parts=(
            Preferences(data=File(path="a.jsonl", columns={"prompt": "ask"})),
            Rollouts(data=File(path="b.jsonl"), reward=LengthReward(target=5)),
        )
    )
    assert run.evaluation == Evaluation(
        data=File(path="c.jsonl"),
        judges={"short": LengthReward(target=1), "long": LengthReward()},
    )
    assert list(run.evaluation.judges) == ["short", "long"]
    assert config.from_data(config.resolved(run)) == run


@pytest.mark.parametrize(
    ("overrides", "training"),
    [
        (["training.steps=9"], Training(steps=9, learning_rate=1e-4)),
        (["training.learning_rate=1"], Training(steps=7, learning_rate=1.0)),
        (["training.warmup_steps=2"], Training(steps=7, learning_rate=1e-4, warmup_steps=2)),
        (
            ["training.max_grad_norm=null"],
            Training(steps=7, learning_rate=1e-4, max_grad_norm=None),
        ),
        (["training={steps: 3}", "training.log_every=2"], Training(steps=3, log_every=2)),
    ],
)
def test_overrides(overrides: list[str], training: Training) -> None:
    assert config.loads(TEXT, overrides) == replace(RUN, training=training)


def test_overrides_make_what_is_absent_and_enter_lists() -> None:
    run = config.loads(TEXT, ["policy.lora=null", "policy.lora.rank=4", "output=runs/x"])
    assert isinstance(run.policy, TextPolicy) and run.policy.lora is not None
    assert (run.policy.lora.rank, run.output) == (4, "runs/x")
    parts = ["source={type: mixed, parts: [{type: preferences, data: {type: file, path: a}}]}"]
    run = config.loads(TEXT, [*parts, "source.parts.0.batch_size=3"])
    assert isinstance(run.source, Mixed) and isinstance(run.source.parts[0], Preferences)
    assert run.source.parts[0].batch_size == 3


def test_anchors_may_share() -> None:
    text = TEXT.replace("{type: file", "&d {type: file") + (
        "evaluation: {data: *d, judges: {l: {type: length}}}\n"
    )
    run = config.loads(text)
    assert run.evaluation is not None
    assert run.evaluation.data == File(path="pairs.jsonl")


def test_type_may_be_a_dotted_path() -> None:
    text = TEXT.replace("type: dpo", "type: 'mmalign.objectives.dpo:DPO'")
    assert config.loads(text) == RUN


# ---- what is refused -------------------------------------------------------------------------


def test_unknown_key_names_line_and_nearest_key() -> None:
    said = refusal(TEXT.replace("learning_rate", "learning_rte"))
    assert said.startswith("a.yaml:9: training has no key 'learning_rte'")
    assert "did you mean 'learning_rate'?" in said
    assert "steps, learning_rate, critic_learning_rate" in said


REFUSED = [
    (("training:\n", "trainin:\n"), "a.yaml:7: the config has no key 'trainin'", "'training'"),
    (("steps: 7", "steps: many"), "a.yaml:8: training.steps: ", "it is 'many'"),
    (("steps: 7", "steps: 7.5"), "a.yaml:8: training.steps: ", "it is 7.5"),
    (("steps: 7", "steps: true"), "a.yaml:8: training.steps: ", "it is True"),
    (("1e-4", "'1e-4'"), "a.yaml:9: training.learning_rate: ", "it is '1e-4'"),
    (("1e-4", ".nan"), "a.yaml:9: training.learning_rate: ", "finite"),
    (("precision: no", "precision: bf61"), "a.yaml:10: training.mixed_precision", "'bf16'?"),
    (("type: dpo", "type: dpoo"), "a.yaml:3: objective: no objectives type", "'dpo'?"),
    (("type: dpo, ", ""), "a.yaml:3: objective lacks the key 'type'", "ipo"),
    (("beta: 0.2", "bata: 0.2"), "a.yaml:3: objective (type dpo) has no key 'bata'", "'beta'?"),
    (("beta: 0.2", "beta: -1"), "a.yaml:3: objective (type dpo): beta=-1", "more than 0"),
    ((", path: pairs.jsonl", ""), "a.yaml:6: source.data (type file) lacks the key", "'path'"),
    (("{type: dpo, beta: 0.2}", "dpo"), "a.yaml:3: objective must be a mapping", "'dpo'"),
    (("type: dpo", "type: 'no.such:Thing'"), "a.yaml:3: objective: ", "no.such"),
    (("type: dpo", "type: 'json:JSONDecoder'"), "a.yaml:3: objective: ", "not a dataclass"),
    (("  steps: 7", "  steps: 7\n  steps: 8"), "a.yaml:9: the key 'steps'", "first at a.yaml:8"),
    (("steps: 7", "steps: [7"), "a.yaml:9: not valid YAML", ""),
    (("steps: 7", "steps: !!python/name:os.system x"), "a.yaml:8: the tag", "not allowed"),
    (("steps: 7", "steps: *gone"), "a.yaml:8: not valid YAML", "gone"),
    (("steps: 7", "? [1]\n  : 7"), "a.yaml:8: a key must be a word", ""),
    (("policy:", "policies:"), "a.yaml:1: the config has no key 'policies'", "'policy'?"),
]


@pytest.mark.parametrize(("change", "start", "contains"), REFUSED)
def test_refused(change: tuple[str, str], start: str, contains: str) -> None:
    said = refusal(TEXT.replace(*change))
    assert said.startswith(start)
    assert contains in said


@pytest.mark.parametrize(
    ("override", "contains"),
    [
        ("training.stepz=5", "did you mean 'steps'?"),
        ("training.steps", "write key.key=value"),
        ("training..steps=1", "write key.key=value"),
        ("=1", "write key.key=value"),
        ("objective.beta.x=1", "objective.beta is 0.2"),
        ("training.steps={", "not valid YAML"),
        ("evaluation.samples=2", "evaluation lacks the key 'data'"),
    ],
)
def test_refused_override(override: str, contains: str) -> None:
    said = refusal(TEXT, override)
    assert said.startswith(f"override {override!r}: ")
    assert contains in said


def test_missing_part() -> None:
    assert "the config lacks the key 'policy'" in refusal("seed: 1\n")
    assert "must be a mapping" in refusal("")


def test_bombs() -> None:
    """Nine levels of ten references each would unfold into a billion nodes."""
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert "unfolds into more than" in refusal("\n".join(["a0: &a0 [x]", *levels]))
    assert "unfolds into more than" in refusal("a: &a [*a]")
    assert "characters is no config" in refusal("#" * 1_000_001)


# ---- the way back ----------------------------------------------------------------------------


def test_resolved_round_trip(tmp_path: Path) -> None:
    data = config.resolved(RUN)
    assert data["objective"] == {
        "type": "dpo", "beta": 0.2, "label_smoothing": 0.0, "sft_weight": 0.0,
    }  # fmt: skip
    assert json.loads(json.dumps(data)) == data
    config.save_resolved(RUN, tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml") == RUN


@pytest.mark.parametrize("word", ["no", "1e-4", "1e5", "1.", "null", "~", "", "2024-01-01", "0x1"])
def test_words_survive(tmp_path: Path, word: str) -> None:
    """A word that some YAML reads as something else stays a word, here and for YAML 1.1."""
    run = replace(RUN, output=word)
    config.save_resolved(run, tmp_path / "config.yaml")
    assert config.load(tmp_path / "config.yaml").output == word
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["output"] == word


def test_fingerprint_is_of_what_defines_the_run() -> None:
    first = config.fingerprint(RUN)
    assert first == config.fingerprint(replace(RUN, output="elsewhere"))
    assert first != config.fingerprint(replace(RUN, seed=1))


def test_unregistered_class_is_named_by_its_path() -> None:
    assert build.name_of("objectives", Training) == "mmalign.run:Training"
    assert build.name_of("policies", TextPolicy) == "text"


def test_shipped_configs() -> None:
    """Every file resolves into a tree from which an equal run is made."""
    files = sorted(path for path in configs().rglob("*.yaml") if path.parent.name != "data")
    assert len(files) >= 16
    for path in files:
        run = config.load(path)
        assert config.loads(nodes.dump(config.resolved(run))) == run, path


def test_shipped_settings_of_builders(tmp_path: Path) -> None:
    """Each names its builder, and says the same after a round trip."""
    files = sorted(configs().glob("*/data/*.yaml"))
    for path in files:
        name = nodes.parse(path.read_text(), name=str(path)).plain()["type"]
        builder = config.load_builder(name, path)
        again = tmp_path / path.name
        again.write_text(nodes.dump(config.settings_of(builder)))
        assert config.load_builder(name, again) == builder, path


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A reward behind a service."""

    url: str
    secret: str | None = field(default=None, repr=False)

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        return torch.zeros(len(outputs))


def test_secrets_are_read_but_never_written() -> None:
    text = TEXT + (
        "evaluation:\n  data: {type: file, path: c.jsonl}\n"
        f"  judges: {{far: {{type: '{__name__}:Served', url: here, secret: canary}}}}\n"
    )
    run = config.loads(text)
    assert run.evaluation is not None
    assert run.evaluation.judges["far"] == Served(url="here", secret="canary")
    assert "canary" not in json.dumps(config.resolved(run))


# ---- schema ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return config.json_schema()


def test_schema_offers_every_type(schema: dict[str, Any]) -> None:
    choices = [c["$ref"] for c in schema["$defs"]["objectives"]["oneOf"] if "$ref" in c]
    assert "#/$defs/objectives.dpo" in choices
    dpo = schema["$defs"]["objectives.dpo"]
    assert dpo["properties"]["type"] == {"const": "dpo"}
    assert dpo["properties"]["beta"]["default"] == 0.1
    assert "Per nat of log-ratio" in dpo["properties"]["beta"]["description"]
    assert dpo["additionalProperties"] is False
    assert schema["required"] == ["policy", "objective", "source"]


def test_schema_refers_to_nothing_missing(schema: dict[str, Any]) -> None:
    def refs(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if "$ref" in value else []
            return own + [r for v in value.values() for r in refs(v)]
        return [r for v in value for r in refs(v)] if isinstance(value, list) else []

    found = refs(schema)
    assert len(found) > 20
    assert {r.removeprefix("#/$defs/") for r in found} <= schema["$defs"].keys()


def test_schema_leaves_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is absent is named; a class of ours that is absent is a defect."""
    monkeypatch.setitem(registry.SELECTORS, "other", "no_such_package.thing:Selector")
    found = config.json_schema()["$defs"]
    assert found["selectors"]["$comment"] == "left out: other needs the package no_such_package"
    assert "selectors.other" not in found and "selectors.best_worst" in found
    monkeypatch.setitem(registry.SELECTORS, "other", "mmalign.no_such_module:Selector")
    with pytest.raises(ConfigError, match="no_such_module"):
        config.json_schema()


def test_schema_accepts_what_we_accept(schema: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = config.resolved(RUN)
    assert list(validator.iter_errors(good)) == []
    for change in ({"objective": {"type": "dpoo"}}, {"sed": 1}, {"training": {"steps": "many"}}):
        assert not validator.is_valid({**good, **change})
