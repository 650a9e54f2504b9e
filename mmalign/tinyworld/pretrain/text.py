"""The tiny text model: a Llama that adds and subtracts, taught by a teacher who errs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from mmalign.tinyworld.pretrain.answers import answer_loss, rows, tokenise, turn
from mmalign.tinyworld.pretrain.common import fit, num_parameters, prepare, save_half, write_card
from mmalign.tinyworld.tasks import TASKS
from mmalign.tinyworld.tokenizer import build_tokenizer

SEED = 0
STEPS = 2400
SECONDS = 540.0
BATCH = 96
LEARNING_RATE = 3e-3
CORRUPTION = 0.3
HELDOUT = 400
MAX_NEW_TOKENS = 32


def language_config(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int,
    num_layers: int,
    initializer_range: float = 0.02,
) -> LlamaConfig:
    """A Llama over the tiny world's words: rotary positions, tied embeddings, heads of 32."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Plain sampling at temperature 1, until ``<eos>``."""
    return GenerationConfig(
        do_sample=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def heldout_score(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, *, greedy: bool
) -> float:
    """Mean score of the exact judge over held-out prompts, sampled at temperature 1 or greedily."""
    task = TASKS["arithmetic"]
    prompts = task.prompts(split="heldout", size=HELDOUT, seed=SEED)
    inputs = tokenizer.apply_chat_template(
        [[turn("user", prompt.content)] for prompt in prompts],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
    )
    torch.manual_seed(SEED)
    ids = model.eval().generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=not greedy,
        top_k=None if greedy else 0,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    answers = ids[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return float(task.judge(prompts, texts).mean())


def main(out: Path) -> None:
    """Train, measure and write the model."""
    prepare(SEED)
    tokenizer = build_tokenizer()
    model = LlamaForCausalLM(language_config(tokenizer, hidden_size=128, num_layers=4))
    task = TASKS["arithmetic"]

    def loss_of(step: int) -> Tensor:
        shown = task.demonstrations(size=BATCH, seed=step, corruption=CORRUPTION)
        parts = [
            tokenise(tokenizer, [turn("user", prompt.content), turn("assistant", answer)])
            for prompt, answer in shown
        ]
        batch = rows(parts, pad=tokenizer.pad_token_id)
        logits = model(input_ids=batch.ids, attention_mask=batch.attention_mask).logits
        return answer_loss(logits, batch.labels)

    done = fit(
        model.parameters(),
        loss_of,
        name="text",
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        seconds=SECONDS,
    )
    model.generation_config = generation_config(tokenizer)
    sampled = heldout_score(model, tokenizer, greedy=False)
    greedy = heldout_score(model, tokenizer, greedy=True)
    print(f"held-out: {sampled:.3f} sampled, {greedy:.3f} greedy")
    count = num_parameters(model)
    tokenizer.save_pretrained(str(out))
    save_half(model, out)
    write_card(
        out,
        title="tinyworld text",
        summary="A Llama that writes out sums step by step. Its teacher slipped on a declared "
        "share of the sums, so that what it samples can be improved by preferences.",
        facts={
            "architecture": "LlamaForCausalLM",
            "parameters": count,
            "data": f"task arithmetic, training split, {BATCH} fresh sums a step",
            "corruption rate": CORRUPTION,
            "steps": done.steps,
            "seconds on a shared core": done.seconds,
            "seed": SEED,
            "final loss (nats a token)": done.loss,
            f"exact judge, {HELDOUT} held-out sums, temperature 1": sampled,
            f"exact judge, {HELDOUT} held-out sums, greedy": greedy,
        },
        library="transformers",
        pipeline_tag="text-generation",
    )
