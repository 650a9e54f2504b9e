"""The training step of GRPO alone, against TRL: ``python -m benchmarks.text_grpo``.

Groups of completions, their rewards and the log-probs of the policy that wrote them are recorded,
so that both sides train on the same tokens. TRL's `_prepare_inputs`, which would generate, hands
them out instead; its loss, backward pass, clipping and optimizer run unmodified in its own trainer.
Where there is a KL term, both sides compute their reference within the step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks import language
from benchmarks.harness import Cell, Settings, main
from benchmarks.measure import Measured, Product, language_model_work

if TYPE_CHECKING:
    from mmalign.policy import Policy
    from mmalign.types import Batch


def prepare(settings: Settings, folder: Path) -> None:
    """Weights, and for every step a prompt, its completions, rewards and recorded log-probs."""
    from transformers import AutoModelForCausalLM

    language.save_model(settings, folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    groups = []
    for _ in range(settings["steps"] + 1):
        prompt = language.random_words(settings, settings["prompt"], generator=generator)
        answers = [
            [
                *language.random_words(settings, settings["answer"] - 1, generator=generator),
                language.EOS,
            ]
            for _ in range(settings["group"])
        ]
        groups.append(
            {
                "prompt": prompt,
                "answers": answers,
                "reward": torch.rand(settings["group"], generator=generator).tolist(),
                "behaviour": _log_probs(model, prompt, answers),
            }
        )
    (folder / "groups.json").write_text(json.dumps(groups))


@torch.no_grad()
def _log_probs(model: Any, prompt: list[int], answers: list[list[int]]) -> list[list[float]]:
    found = []
    for answer in answers:
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(ids, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
        taken = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
        found.append(taken[:, 0].tolist())
    return found


def read_groups(settings: Settings) -> list[dict[str, Any]]:
    """The recorded groups, one a step."""
    return list(json.loads(Path(settings["folder"], "groups.json").read_text()))


def units(settings: Settings) -> float:
    """Tokens of a step, the prompt once: ``P + G R``."""
    return float(settings["prompt"] + settings["group"] * settings["answer"])


def work(settings: Settings) -> list[Product]:
    """Three forwards' worth for the policy, and one for the reference of a KL term."""
    return language_model_work(
        body=language.body_of(settings),
        vocabulary=settings["vocabulary"],
        prompt=settings["prompt"],
        answer=settings["answer"],
        group=settings["group"],
        count=1,
        passes=4 if settings["beta"] > 0 else 3,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedGroups:
    """A source that hands out what is recorded in a folder; see `mmalign.protocols.Source`."""

    folder: str

    def build(self, policy: Policy, *, seed: int) -> RecordedSource:
        """Everything is encoded here, outside of the clock, as it is on TRL's side."""
        groups = read_groups({"folder": self.folder})
        return RecordedSource([_batch(policy, group) for group in groups])


class RecordedSource:
    """Batches in their order."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: no run of this source is resumed."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


def _batch(policy: Policy, group: Mapping[str, Any]) -> Batch:
    from mmalign.types import Batch, Prompt

    prompt = Prompt(content=language.text_of(group["prompt"]))
    texts = [language.text_of(answer[:-1]) for answer in group["answers"]]
    trajectory = policy.adapter.encode([prompt], [texts], generators=[])
    assert trajectory.static["prompt_ids"][0].tolist() == group["prompt"]
    assert trajectory.stepwise["token"].tolist() == group["answers"]
    return Batch(
        trajectory=trajectory,
        group=torch.zeros(len(texts), dtype=torch.int64),
        reward=torch.tensor(group["reward"]),
        weight=trajectory.mask.float(),
        behaviour=torch.tensor(group["behaviour"]),
    )


def ours(settings: Settings) -> Measured:
    """Through the public API, with a source of the recorded groups."""
    from mmalign.objectives import GRPO
    from mmalign.run import Run
    from mmalign.text import TextPolicy

    folder = Path(settings["folder"])
    run = Run(
        policy=TextPolicy(model=str(folder / "model"), max_new_tokens=settings["answer"]),
        objective=GRPO(beta=settings["beta"], aggregate="token"),
        source=RecordedGroups(folder=str(folder)),
        training=language.training(settings),
        output=str(Path(settings["scratch"]) / "run"),
    )
    return language.run_ours(run, settings, units=units(settings))


def trl(settings: Settings) -> Measured:
    """TRL's trainer on the same groups, with its default loss and unclipped KL term."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    folder, size = Path(settings["folder"]), settings["group"]
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=GRPOConfig(
            beta=settings["beta"],
            # By default TRL weighs its KL term by the ratio, which the published one is not.
            use_bias_correction_kl=False,
            num_generations=size,
            per_device_train_batch_size=size,
            max_completion_length=settings["answer"],
            **{**language.trl_arguments(settings), "train_sampling_strategy": "random"},
        ),
        train_dataset=Dataset.from_dict({"prompt": ["w5"] * (settings["steps"] + 1)}),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    device = trainer.accelerator.device
    groups = [recorded_inputs(group, device) for group in read_groups(settings)]
    recorded = iter(groups)
    trainer._prepare_inputs = lambda batch: _with_reference(trainer, next(recorded))
    return language.run_trl(trainer, settings, units=units(settings))


def recorded_inputs(group: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """A recorded group as TRL's `_generate_and_score_completions` would hand it out."""
    reward, answers = torch.tensor(group["reward"]), torch.tensor(group["answers"])
    prompts = torch.tensor(group["prompt"]).expand(len(answers), -1).contiguous()
    inputs = {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts),
        "completion_ids": answers, "completion_mask": torch.ones_like(answers),
        "advantages": (reward - reward.mean()) / (reward.std() + 1e-4),
        "old_per_token_logps": torch.tensor(group["behaviour"]),
        "num_items_in_batch": torch.tensor(answers.numel()),
    }  # fmt: skip
    return {key: value.to(device) for key, value in inputs.items()}


def _with_reference(trainer: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's log-probs as `_generate_and_score_completions` computes them."""
    if trainer.beta == 0.0:
        return inputs
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    with torch.no_grad():
        found, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.ref_model,
            ids,
            torch.ones_like(ids),
            inputs["completion_ids"].shape[1],
            batch_size=trainer.args.per_device_train_batch_size,
        )
    return {**inputs, "ref_per_token_logps": found}


def trl_scored(settings: Settings) -> Measured:
    """TRL's head at scored positions alone, as where Triton runs."""
    language.trl_scores_completions_only()
    return trl(settings)


def case(group: int, beta: float) -> Settings:
    """A row of the table."""
    return {**language.MODEL, "prompt": 512, "answer": 64, "group": group, "beta": beta}


CELL = Cell(
    name="text_grpo",
    title="The training step of GRPO, prompt 512 / answers 64, one group a step",
    unit="unique tokens",
    cases={
        "G = 8": case(8, 0.0),
        "G = 8, KL 0.04": case(8, 0.04),
        "G = 4": case(4, 0.0),
        "G = 16": case(16, 0.0),
        "0.9B, G = 8": {**case(8, 0.0), **language.LARGE, "prompt": 1024, "device": "cuda"},
    },
    sides={"mmalign": ours, "TRL": trl, "TRL, head at scored positions": trl_scored},
    prepare=prepare,
    work=work,
    quick={**language.QUICK, "prompt": 12, "answer": 6},
)

if __name__ == "__main__":
    main(CELL)
