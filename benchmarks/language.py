"""A language model of random weights, its data, and the two trainers, for cells with text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from benchmarks.harness import Settings
from benchmarks.measure import Clock, Measured

if TYPE_CHECKING:
    from mmalign.run import Run, Training

PAD, EOS = 0, 1
SPECIAL = ("<pad>", "<eos>")
MODEL = {"layers": 6, "width": 384, "heads": 6, "inner": 1024, "vocabulary": 32_000, "rate": 3e-4}
LARGE = {
    "layers": 24, "width": 1536, "heads": 12, "inner": 4096, "vocabulary": 64_000, "rate": 1e-5,
}  # fmt: skip
"""0.9 billion parameters, for a GPU."""
QUICK = {"layers": 1, "width": 32, "heads": 2, "inner": 64, "vocabulary": 64, "rate": 2e-2}


def word_tokenizer(vocabulary: int, *, special: tuple[str, ...] = SPECIAL) -> Any:
    """Words ``w7`` that are their own ids, split at spaces: lengths are exact."""
    words = [*special, *(f"w{i}" for i in range(len(special), vocabulary))]
    plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[-1]))
    plain.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token=special[PAD], eos_token=special[EOS],
        additional_special_tokens=list(special[2:]), model_max_length=100_000,
    )  # fmt: skip


def llama_config(settings: Settings) -> LlamaConfig:
    """The shape of the model: untied embeddings, as many key heads as query heads."""
    return LlamaConfig(
        vocab_size=settings["vocabulary"], hidden_size=settings["width"],
        intermediate_size=settings["inner"], num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"], num_key_value_heads=settings["heads"],
        max_position_embeddings=8192, tie_word_embeddings=False,
        pad_token_id=PAD, eos_token_id=EOS, bos_token_id=EOS,
    )  # fmt: skip


def save_model(settings: Settings, folder: Path) -> None:
    """Write the random model and its tokenizer to ``folder/model``."""
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(settings)).save_pretrained(folder / "model")
    word_tokenizer(settings["vocabulary"]).save_pretrained(folder / "model")


def body_of(settings: Settings) -> tuple[int, int, int]:
    """(L, d, N): layers, width, and parameters of the products inside the layers."""
    width, inner = settings["width"], settings["inner"]
    return settings["layers"], width, settings["layers"] * (4 * width**2 + 3 * width * inner)


def random_words(settings: Settings, count: int, *, generator: torch.Generator) -> list[int]:
    """``count`` ids that are no special tokens."""
    lowest = settings.get("special", len(SPECIAL))
    drawn = torch.randint(lowest, settings["vocabulary"], (count,), generator=generator)
    return drawn.tolist()


def text_of(ids: list[int]) -> str:
    """The words of ids."""
    return " ".join(f"w{i}" for i in ids)


def save_pairs(settings: Settings, folder: Path) -> None:
    """Rows for every step: ``rows.jsonl`` as text, ``ids.json`` as the ids every side must see."""
    generator = torch.Generator().manual_seed(1)
    rows, ids = [], []
    for _ in range((settings["steps"] + 1) * settings["batch"]):
        prompt = random_words(settings, settings["prompt"], generator=generator)
        answers = [
            random_words(settings, settings["answer"] - 1, generator=generator) for _ in range(2)
        ]
        chosen, rejected = (" " + text_of(answer) for answer in answers)
        rows.append({"prompt": text_of(prompt), "chosen": chosen, "rejected": rejected})
        ids.append([prompt, *([*answer, EOS] for answer in answers)])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "ids.json").write_text(json.dumps(ids))


def read_rows(settings: Settings) -> list[dict[str, Any]]:
    """The prepared rows, as text."""
    return [json.loads(line) for line in Path(settings["folder"], "rows.jsonl").open()]


def read_ids(settings: Settings) -> list[list[list[int]]]:
    """The prepared ids: of each row the prompt, the chosen answer, the rejected one."""
    return list(json.loads(Path(settings["folder"], "ids.json").read_text()))


def training(settings: Settings) -> Training:
    """AdamW without weight decay at a constant rate, gradients clipped at 1: on every side."""
    from mmalign.run import Training

    return Training(
        steps=settings["steps"] + 1,
        learning_rate=settings["rate"],
        mixed_precision="no" if settings["dtype"] == "float32" else "bf16",
    )


def trl_arguments(settings: Settings) -> dict[str, Any]:
    """The same in TRL's words, and nothing written, logged to a service or shuffled."""
    return {
        "output_dir": settings["scratch"], "max_steps": settings["steps"] + 1,
        "learning_rate": settings["rate"], "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "max_grad_norm": 1.0, "gradient_accumulation_steps": 1,
        "gradient_checkpointing": settings.get("checkpointing", False),
        "use_cpu": settings["device"] == "cpu", "bf16": settings["dtype"] == "bfloat16",
        "train_sampling_strategy": "sequential", "save_strategy": "no", "report_to": [],
        "disable_tqdm": True,
    }  # fmt: skip


def run_ours(run: Run, settings: Settings, *, units: float) -> Measured:
    """Train as a user does; a step is what lies between the ends of two updates."""
    trainer = run.build()
    clock = Clock(units=units, device=settings["device"])
    update = trainer.update

    def ticking(batch: Any) -> dict[str, float]:
        metrics = update(batch)
        clock.tick(metrics["loss"])
        return metrics

    trainer.update = ticking  # type: ignore[method-assign]
    trainer.train()
    return clock.measured()


class Ticks(TrainerCallback):  # type: ignore[misc]
    """Marks the end of every optimizer step of a transformers trainer."""

    def __init__(self, settings: Settings, *, units: float) -> None:
        self.clock = Clock(units=units, device=settings["device"])
        self.loss: torch.Tensor | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """See transformers."""
        self.clock.tick(self.loss)


def run_trl(trainer: Any, settings: Settings, *, units: float) -> Measured:
    """Train as a user does; the loss is read off `training_step`, as TRL's log rounds it."""
    ticks = Ticks(settings, units=units)
    step = trainer.training_step

    def reading(*arguments: Any, **named: Any) -> torch.Tensor:
        ticks.loss = step(*arguments, **named)
        return ticks.loss

    trainer.training_step = reading
    trainer.add_callback(ticks)
    trainer.train()
    return ticks.clock.measured()


def trl_scores_completions_only() -> None:
    """Have TRL hand its chunked head the scored positions alone.

    It does so by itself only where Triton runs, and everywhere else projects every position.
    """
    from trl.trainer import utils

    # Asked nowhere in that module but for this choice; the head has its own copy of the function.
    utils._use_triton = lambda device: True
