"""The documents are true: links lead somewhere, examples run, configs compose, tables are current.

Examples are written out to files and imported or loaded as a reader would do it.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmalign import config, registry
from mmalign.config import nodes
from mmalign.objectives import GRPO
from mmalign.protocols import Adapter, Objective, RewardModel, Selector
from mmalign.run import DataSpec, Run, Training
from mmalign.sources import Rollouts
from mmalign.types import Batch, Prompt, Trajectory

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "text/*.md", "vision/*.md", "diffusion/*.md")
    for path in ROOT.glob(pattern)
)


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a document in one language."""
    text = (ROOT / document).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def imported(code: str, name: str, folder: Path) -> ModuleType:
    """``code`` as a module called ``name``."""
    path = folder / f"{name}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def example(document: str, class_name: str, folder: Path) -> ModuleType:
    """The one python block of ``document`` that defines ``class_name``."""
    found = [b for b in blocks(document, "python") if f"class {class_name}" in b]
    assert len(found) == 1
    return imported(found[0], f"example_{class_name.lower()}", folder)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in t]
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing


def test_readme_config_composes() -> None:
    """The YAML and the Python of the README describe the same run."""
    run = config.loads(blocks("README.md", "yaml")[0])
    assert type(run.objective).__name__ == "DPO"
    code = blocks("README.md", "python")[0]
    keys = re.findall(r"^    (\w+)=", code, flags=re.MULTILINE)
    assert keys == ["policy", "objective", "source", "training", "evaluation", "output"]


def test_readme_python_is_the_readme_config(tmp_path: Path) -> None:
    code = re.sub(r"^folder = .*$", "", blocks("README.md", "python")[0], flags=re.MULTILINE)
    module = imported(code, "readme_example", tmp_path)
    run = config.loads(blocks("README.md", "yaml")[0])
    assert config.resolved(module.run) == config.resolved(run)


@pytest.mark.parametrize("number", range(5))
def test_methods_settings_compose(number: int) -> None:
    """Each objective line of docs/methods.md is a valid config."""
    lines = [
        line
        for block in blocks("docs/methods.md", "yaml")
        for line in block.splitlines()
        if line.startswith("objective:")
    ]
    assert len(lines) == 5
    base = blocks("README.md", "yaml")[0]
    run = config.loads(base, overrides=["objective=" + lines[number].partition(":")[2].strip()])
    assert isinstance(run.objective, GRPO)


def test_token_level_settings_compose() -> None:
    """Each YAML block of the page is a part of a valid config."""
    found = blocks("docs/methods/token_level.md", "yaml")
    assert len(found) == 2
    base = blocks("README.md", "yaml")[0]
    for block in found:
        parts = nodes.parse(block, name="block").plain()
        config.loads(base, overrides=[f"{k}={json.dumps(v)}" for k, v in parts.items()])


@pytest.mark.parametrize("page", ["table", "reproductions"])
def test_page_is_current(page: str) -> None:
    """`make docs-table` would change nothing."""
    subprocess.run([sys.executable, f"docs/{page}.py", "--check"], cwd=ROOT, check=True)


def test_no_claim_is_recorded_that_nobody_makes() -> None:
    """A record whose claim was renamed would stay unseen: the page goes by the registry."""
    recorded = {path.stem for path in (ROOT / "docs/reproductions").glob("*.json")}
    assert recorded <= registry.table("claims").keys()


@pytest.mark.parametrize("name", registry.table("claims"))
def test_a_claim_says_what_it_trains_and_its_record_is_of_what_it_compares(name: str) -> None:
    claim = registry.resolve("claims", name)
    assert claim.objectives and set(claim.objectives) <= registry.table("objectives").keys()
    record = json.loads((ROOT / f"docs/reproductions/{name}.json").read_text("utf-8"))
    compared = [verdict["comparison"] for verdict in record["comparisons"]]
    assert compared == [str(comparison) for comparison in claim.comparisons]
    assert len(record["seeds"]) >= claim.seeds


def two_rows(log_probs: tuple[float, float], reference: tuple[float, float]) -> Batch:
    """One group of two rows with one step each, rewards 1 and 0."""
    mask = torch.ones(2, 1, dtype=torch.bool)
    return Batch(
        trajectory=Trajectory(
            mask=mask,
            prompt_of=torch.zeros(2, dtype=torch.int64),
            static={},
            stepwise={"token": torch.tensor([[1], [2]])},
            outputs=["a", "b"],
        ),
        group=torch.zeros(2, dtype=torch.int64),
        reward=torch.tensor([1.0, 0.0]),
        weight=mask.float(),
        reference=torch.tensor(reference).unsqueeze(1),
    )


def test_objective_example(tmp_path: Path) -> None:
    """h_w = -1 - (-2) = 1, h_l = -3 - (-2) = -1, D = 2; beta 0.25: max(0, 1 - 0.5) = 0.5."""
    from mmalign.types import Scores

    hinge = example("CONTRIBUTING.md", "Hinge", tmp_path).Hinge(beta=0.25)
    assert isinstance(hinge, Objective)
    batch = hinge.credit(two_rows((-1.0, -3.0), (-2.0, -2.0)))
    assert batch.denominator == 1
    loss = hinge.loss(Scores(log_probs=torch.tensor([[-1.0], [-3.0]])), batch)
    assert loss.total.item() == pytest.approx(0.5)


def test_selector_example(tmp_path: Path) -> None:
    """Rewards 1 and 0 lie 1 apart: kept at a margin of 1; at 1.5 there is nothing else to keep."""
    selector = example("CONTRIBUTING.md", "Disagreeing", tmp_path).Disagreeing
    batch = two_rows((-1.0, -1.0), (-1.0, -1.0))
    assert isinstance(selector(), Selector)
    assert selector(min_margin=1.0)(batch).counters == {"dropped/margin": 0.0}
    assert selector(min_margin=1.5)(batch).counters == {"dropped/margin": 1.0}


def test_reward_example(tmp_path: Path) -> None:
    module = example("docs/guides/rewards.md", "ExactAnswer", tmp_path)
    reward = module.ExactAnswer(column="solution")
    assert isinstance(reward, RewardModel)
    prompts = [Prompt(content="2 + 2", meta={"solution": "4"})] * 2
    assert reward(prompts, ["4", "5"]).tolist() == [1.0, 0.0]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaysYes:
    """Prompts, and a reward of 1 for the output "yes"."""

    def prompts(self) -> list[Prompt]:
        return [Prompt(content="?" * n) for n in range(1, 5)]

    def preferences(self) -> list[object]:
        return []

    def __call__(self, prompts: list[Prompt], outputs: list[str]) -> torch.Tensor:
        return torch.tensor([float(output == "yes") for output in outputs])


def test_adapter_example_learns(tmp_path: Path) -> None:
    """The adapter of CONTRIBUTING.md goes through the whole loop, and "yes" becomes likelier.

    Probabilities start at 1/2. With 4 prompts, groups of 8 and Adam at 0.2 a logit difference
    grows by about 0.4 an update, so 10 updates take the probability beyond 0.9.
    """
    module = example("CONTRIBUTING.md", "ChoicePolicy", tmp_path)
    run = Run(
        policy=module.ChoicePolicy(),
        objective=GRPO(),
        source=Rollouts(data=SaysYes(), reward=SaysYes(), num_generations=8, batch_size=4),
        training=Training(steps=10, learning_rate=0.2),
        output=str(tmp_path / "run"),
    )
    trainer = run.build()
    assert isinstance(trainer.policy.adapter, Adapter)
    trainer.train()
    probability = trainer.policy.model(torch.arange(1, 5)).softmax(-1)[:, 0]
    assert probability.min() > 0.9
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_data_example(tmp_path: Path) -> None:
    """Summands 0 and 1: four sums; 1 + 1 = 2 is preferred to 3."""
    sums = example("docs/guides/data.md", "Sums", tmp_path).Sums(largest=1)
    assert isinstance(sums, DataSpec)
    last = sums.preferences()[-1]
    assert len(sums.preferences()) == 4
    assert (last.prompt.content, last.chosen, last.rejected) == ("1+1=", "2", "3")
