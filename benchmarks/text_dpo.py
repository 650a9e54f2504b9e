"""DPO on text, full fine-tuning, against TRL: ``python -m benchmarks.text_dpo``.

The same random weights, rows, order, optimizer and clipping; float32, no dropout, four pairs a
step. TRL is given no activation recomputation, which is its default and slower.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import language
from benchmarks.harness import Cell, Settings, main
from benchmarks.measure import Measured, Product, language_model_work

if TYPE_CHECKING:
    from mmalign.data import File
    from mmalign.text import TextPolicy

BETA = 0.1


def prepare(settings: Settings, folder: Path) -> None:
    """Weights, tokenizer and pairs."""
    language.save_model(settings, folder)
    language.save_pairs(settings, folder)


def units(settings: Settings) -> float:
    """Tokens of a step, each prompt once: ``B (P + 2 R)``."""
    return float(settings["batch"] * (settings["prompt"] + 2 * settings["answer"]))


def work(settings: Settings) -> list[Product]:
    """Three forwards' worth for the policy and one for the reference."""
    return language_model_work(
        body=language.body_of(settings),
        vocabulary=settings["vocabulary"],
        prompt=settings["prompt"],
        answer=settings["answer"],
        group=2,
        count=settings["batch"],
        passes=4,
    )


def ours(settings: Settings) -> Measured:
    """Through the public API, as a config would."""
    from mmalign.data import File
    from mmalign.objectives import DPO
    from mmalign.references import Frozen
    from mmalign.run import Run
    from mmalign.sources import Preferences
    from mmalign.text import TextPolicy

    folder = Path(settings["folder"])
    data = File(path=str(folder / "rows.jsonl"))
    policy = TextPolicy(model=str(folder / "model"), max_new_tokens=settings["answer"])
    run = Run(
        policy=policy,
        objective=DPO(beta=BETA),
        source=Preferences(data=data, batch_size=settings["batch"], shuffle=False),
        reference=Frozen(),
        training=language.training(settings),
        output=str(Path(settings["scratch"]) / "run"),
    )
    _check_our_ids(policy, data, settings)
    return language.run_ours(run, settings, units=units(settings))


def _check_our_ids(policy: TextPolicy, data: File, settings: Settings) -> None:
    adapter = policy.load().adapter
    for pair, (prompt, *answers) in zip(
        data.preferences(), language.read_ids(settings), strict=True
    ):
        found = adapter.encode([pair.prompt], [[pair.chosen, pair.rejected]], generators=[])
        assert found.static["prompt_ids"][0].tolist() == prompt
        assert found.stepwise["token"].tolist() == answers


def trl(settings: Settings, **further: Any) -> Measured:
    """TRL with its reference computed in every step, as it does by default."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    folder = Path(settings["folder"])
    trainer = DPOTrainer(
        model=str(folder / "model"),
        args=DPOConfig(
            beta=BETA,
            per_device_train_batch_size=settings["batch"],
            **language.trl_arguments(settings),
            **further,
        ),
        train_dataset=Dataset.from_list(language.read_rows(settings)),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    for row, expected in zip(trainer.train_dataset, language.read_ids(settings), strict=True):
        assert [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]] == expected
    return language.run_trl(trainer, settings, units=units(settings))


def trl_precomputed(settings: Settings) -> Measured:
    """TRL with the reference's log-probs computed before training, outside of the clock."""
    return trl(settings, precompute_ref_log_probs=True)


def trl_scored(settings: Settings) -> Measured:
    """TRL's head at scored positions alone, as where Triton runs."""
    language.trl_scores_completions_only()
    return trl(settings)


def case(prompt: int, answer: int) -> Settings:
    """A row of the table."""
    return {**language.MODEL, "batch": 4, "prompt": prompt, "answer": answer}


CELL = Cell(
    name="text_dpo",
    title="DPO on text, prompt / answer tokens, 4 pairs a step, full fine-tuning",
    unit="unique tokens",
    cases={
        "256/64": case(256, 64),
        "64/128": case(64, 128),
        "512/64": case(512, 64),
        "0.9B, 1024/128": {**case(1024, 128), **language.LARGE, "device": "cuda"},
    },
    sides={
        "mmalign": ours,
        "TRL": trl,
        "TRL, reference precomputed": trl_precomputed,
        "TRL, head at scored positions": trl_scored,
    },
    prepare=prepare,
    work=work,
    quick={**language.QUICK, "batch": 2, "prompt": 12, "answer": 6},
)

if __name__ == "__main__":
    torch.manual_seed(0)
    main(CELL)
