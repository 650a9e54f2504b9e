"""Sampling groups of answers, against transformers: ``python -m benchmarks.sampling``.

The same random weights and prompts, float32, temperature 1. TRL's GRPO without an inference server
hands `generate` every prompt once for each answer, with its cache of keys and values; its settings
are repeated here. The end token has probability 0 on both sides, so that all answers have the same
length. Random numbers differ, so what is compared first is what each side answers greedily.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import language
from benchmarks.harness import Cell, Settings, main
from benchmarks.measure import Clock, Measured, Product

GREEDY = 1e-6
"""A temperature at which the likeliest token is drawn."""


def prepare(settings: Settings, folder: Path) -> None:
    """Weights, tokenizer and one prompt for every step."""
    language.save_model(settings, folder)
    language.save_pairs({**settings, "batch": 1}, folder)


def units(settings: Settings) -> float:
    """Tokens of a step, the prompt once: ``P + G R``."""
    return float(settings["prompt"] + settings["group"] * settings["answer"])


def work(settings: Settings) -> list[Product]:
    """One forward for the prompt, and one for each token of the group but the last."""
    layers, width, parameters = language.body_of(settings)
    prompt, group, later = settings["prompt"], settings["group"], settings["answer"] - 1
    wide, seen = 8 * width // 3, prompt * later + later**2 / 2
    return [
        Product(
            name="prompt",
            shape=(prompt, width, wide),
            flops=2.0 * parameters * prompt + 4 * layers * width * prompt**2 / 2,
        ),
        Product(
            name="answers",
            shape=(group, width, wide),
            flops=group * (2.0 * parameters * later + 4 * layers * width * seen),
        ),
        Product(
            name="head",
            shape=(group, width, settings["vocabulary"]),
            flops=2.0 * width * settings["vocabulary"] * (1 + group * later),
        ),
    ]


def ours(settings: Settings) -> Measured:
    """As a rollout does; log-probs of the answers' tokens are recorded on the way."""
    from mmalign.text import TextPolicy
    from mmalign.types import Prompt

    warnings.filterwarnings("ignore", message=".*were cut at max_new_tokens")
    folder = Path(settings["folder"])
    spec = TextPolicy(model=str(folder / "model"), max_new_tokens=settings["answer"])
    policy = spec.load()
    policy.model.to(settings["device"], getattr(torch, settings["dtype"]))
    adapter: Any = policy.adapter
    plain = replace(adapter.sampling, banned=(language.EOS,))
    prompts = [Prompt(content=row["prompt"]) for row in language.read_rows(settings)]

    def answers(number: int, group: int, temperature: float) -> torch.Tensor:
        adapter.sampling = replace(plain, temperature=temperature)
        found = policy.sample(
            [prompts[number]],
            group_size=group,
            generators=[torch.Generator().manual_seed(number)],
        )
        assert found.log_probs is not None and bool(found.mask.all())
        return found.stepwise["token"]

    return _measured(answers, settings)


def transformers(settings: Settings) -> Measured:
    """`generate`, called as TRL 1.16 calls it."""
    from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM

    folder = Path(settings["folder"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model", padding_side="left")
    model = LlamaForCausalLM.from_pretrained(
        folder / "model", dtype=getattr(torch, settings["dtype"])
    )
    model = model.to(settings["device"]).eval()
    prompts = [row["prompt"] for row in language.read_rows(settings)]
    common = {
        "max_new_tokens": settings["answer"], "min_new_tokens": settings["answer"],
        "pad_token_id": language.PAD, "bos_token_id": None, "eos_token_id": language.EOS,
        "disable_compile": True,
    }  # fmt: skip
    drawn = GenerationConfig(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0, min_p=None, repetition_penalty=1.0,
        **common,
    )  # fmt: skip
    greedy = GenerationConfig(do_sample=False, **common)

    @torch.no_grad()
    def answers(number: int, group: int, temperature: float) -> torch.Tensor:
        torch.manual_seed(number)
        inputs = tokenizer([prompts[number]] * group, return_tensors="pt").to(model.device)
        ids = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_config=greedy if temperature == GREEDY else drawn,
        )
        tokens: torch.Tensor = ids[:, inputs["input_ids"].shape[1] :]
        tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return tokens

    return _measured(answers, settings)


def _measured(answers: Callable[[int, int, float], torch.Tensor], settings: Settings) -> Measured:
    """Greedy answers in place of losses, one number each; then groups, one a step.

    Args:
        answers: ``[G, R]`` to a prompt: from its number, G and the temperature.
        settings: Of the case.
    """
    steps, scale = settings["steps"] + 1, float(settings["vocabulary"])
    seen = [float(answers(i, 1, GREEDY).double().mean()) / scale for i in range(steps)]
    clock = Clock(units=units(settings), device=settings["device"])
    for number in range(steps):
        found = answers(number, settings["group"], 1.0)
        assert found.shape == (settings["group"], settings["answer"])
        clock.tick(seen[number])
    return clock.measured()


def case(prompt: int, answer: int, group: int) -> Settings:
    """A row of the table."""
    return {**language.MODEL, "prompt": prompt, "answer": answer, "group": group}


CELL = Cell(
    name="sampling",
    title="Sampling on text, prompt / answer tokens x answers of a prompt, one prompt a step",
    unit="unique tokens",
    cases={
        "512/32 x 8": case(512, 32, 8),
        "256/64 x 8": case(256, 64, 8),
        "64/128 x 8": case(64, 128, 8),
        "512/32 x 16": case(512, 32, 16),
        "0.9B, 1024/128 x 8": {**case(1024, 128, 8), **language.LARGE, "device": "cuda"},
    },
    sides={"mmalign": ours, "transformers": transformers},
    prepare=prepare,
    work=work,
    quick={**language.QUICK, "prompt": 12, "answer": 6, "group": 3},
)

if __name__ == "__main__":
    main(CELL)
