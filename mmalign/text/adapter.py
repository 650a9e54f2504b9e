"""Text: a step is a token of the answer, its log-prob is the log softmax at that token."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmalign import lora
from mmalign.blame import Refused
from mmalign.protocols import Likelihood, Want
from mmalign.ragged import lengths_of
from mmalign.text.answers import (
    Read,
    Sharing,
    answered,
    contrasted,
    decoder_states,
    laid_out,
    scored,
)
from mmalign.text.generation import Sampling, draw_uniforms, generate
from mmalign.text.ids import answer_ids, prompt_ids
from mmalign.text.lm_head import language_head
from mmalign.text.packing import counted
from mmalign.text.rows import left_padded, right_padded
from mmalign.types import Output, Prompt, Scores, Trajectory

logger = logging.getLogger(__name__)


class CausalAdapter:
    """Drives any causal language model of transformers, with its chat template.

    A prompt is a string (one turn of the user) or a conversation. Where the tokenizer has no chat
    template, prompt and answer are plainly put one after the other.

    Args:
        tokenizer: The model's.
        sampling: Temperature, longest answer, stop ids.
        feature_size: Width of the hidden state that `Scores.features` holds.
        max_prompt_length: Prompts with more tokens are refused; None for no limit.
        share_prompts: Whether a prompt that several answers share runs once in scoring; None where
            it saves work. Needs a decoder prepared by `mmalign.text.shared.share_prompts`.
    """

    likelihood: Likelihood = "exact"

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling,
        feature_size: int,
        max_prompt_length: int | None = None,
        share_prompts: Sharing = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.feature_size = feature_size
        self.max_prompt_length = max_prompt_length
        self.share_prompts = share_prompts

    def encode(
        self,
        prompts: Sequence[Prompt],
        outputs: Sequence[Sequence[Output]],
        *,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """Recorded answers; see `mmalign.protocols.Adapter`. Nothing is random here.

        Raises:
            ValueError: An output is no text, a prompt is too long, or an answer holds a stop id.
        """
        return recorded(
            outputs,
            static=self.static_of(prompts),
            tokenizer=self.tokenizer,
            sampling=self.sampling,
        )

    @torch.no_grad()
    def sample(
        self,
        model: nn.Module,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """``group_size`` answers of each prompt; a row's draws depend on no other row."""
        network, static = cast(PreTrainedModel, model), self.static_of(prompts)
        uniforms = draw_uniforms(
            generators, group_size=group_size, num_steps=self.sampling.max_new_tokens
        )
        drawn = generate(network, self.prefill(network, static), uniforms, self.sampling)
        return Trajectory(
            mask=drawn.mask,
            prompt_of=torch.arange(len(prompts)).repeat_interleave(group_size),
            static=static,
            stepwise={"token": drawn.tokens},
            outputs=decoded(self.tokenizer, drawn.tokens, drawn.mask),
            log_probs=drawn.log_probs,
        )

    def scores(
        self,
        model: nn.Module,
        trajectory: Trajectory,
        *,
        want: Want = frozenset(),
        against: nn.Module | None = None,
    ) -> Scores:
        """Log-probs of the answers' tokens, nats under the sampling temperature."""
        return scored(self._read, model, trajectory, want=want, against=against)

    def contrast(
        self, model: nn.Module, trajectory: Trajectory, *, against: nn.Module, strength: float
    ) -> Tensor:
        """See `mmalign.protocols.Contrasting`."""
        return contrasted(self._read, model, trajectory, against=against, strength=strength)

    def prompt_lengths(self, trajectory: Trajectory) -> Tensor:
        """Tokens of each prompt; see `mmalign.protocols.Adapter`."""
        return lengths_of(trajectory.static["prompt_ids"])

    def describe(self) -> str:
        """The settings that scores depend on: those of the step distribution."""
        return f"CausalAdapter {self.sampling!r}"

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write the LoRA (peft's layout) or the whole model, and the tokenizer."""
        save_model(model, directory)
        self.tokenizer.save_pretrained(str(directory))

    def static_of(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        """What is kept of prompts, however many answers they get; see `Trajectory.static`.

        Raises:
            ValueError: A prompt is empty, or too long.
        """
        ids = [prompt_ids(self.tokenizer, prompt) for prompt in prompts]
        for row, found in enumerate(ids):
            check_length(len(found), row, self.max_prompt_length)
        return {"prompt_ids": [torch.tensor(found, dtype=torch.int64) for found in ids]}

    def prefill(self, network: PreTrainedModel, static: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the network reads of every prompt before it draws; see `generate`."""
        ids = static["prompt_ids"]
        mask = left_padded([torch.ones_like(row) for row in ids])
        inputs = {"input_ids": left_padded(ids), "attention_mask": mask}
        return {key: value.to(network.device) for key, value in inputs.items()}

    def _read(self, model: nn.Module, trajectory: Trajectory) -> Read:
        network = cast(PreTrainedModel, model)
        tokens, mask = answered(trajectory, network.device)
        prompts = trajectory.static["prompt_ids"]
        rows = laid_out(
            prompts,
            counted(prompts),
            trajectory.prompt_of.tolist(),
            tokens,
            mask,
            decoder=network.get_decoder(),
            share=self.share_prompts,
        )
        states = decoder_states(network, rows, {"input_ids": rows.input_ids})
        head = language_head(
            network, temperature=self.sampling.temperature, banned=self.sampling.banned
        )
        return Read(states=states, head=head)


def recorded(
    outputs: Sequence[Sequence[Output]],
    *,
    static: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
) -> Trajectory:
    """The trajectory of recorded answers: row order is prompt by prompt, answer by answer.

    Raises:
        ValueError: An output is no text, or an answer holds a stop id or a banned one.
    """
    flat = [output for answers in outputs for output in answers]
    ids = []
    for row, output in enumerate(flat):
        if not isinstance(output, str):
            raise Refused(
                "row",
                row,
                f": this model answers in text, and the recorded output is a "
                f"{type(output).__name__}",
            )
        found = answer_ids(
            tokenizer,
            output,
            stop_ids=sampling.stop_ids,
            max_new_tokens=sampling.max_new_tokens,
        )
        if any(token in sampling.banned for token in found):
            raise Refused("row", row, f": an answer must not contain image tokens: {output[:60]!r}")
        ids.append(found)
    cut = [row for row, found in enumerate(ids) if found[-1] not in sampling.stop_ids]
    if cut:
        logger.warning(
            "%d of %d recorded answers are longer than max_new_tokens=%d; their first tokens are "
            "scored, without an end token (first such row of the batch: %d)",
            len(cut), len(ids), sampling.max_new_tokens, cut[0],
        )  # fmt: skip
    lengths = torch.tensor([len(found) for found in ids])
    tokens = right_padded(ids)
    return Trajectory(
        mask=torch.arange(tokens.shape[1]) < lengths.unsqueeze(1),
        prompt_of=torch.arange(len(outputs)).repeat_interleave(
            torch.tensor([len(answers) for answers in outputs])
        ),
        static=static,
        stepwise={"token": tokens},
        outputs=flat,
    )


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: Tensor, mask: Tensor) -> list[Output]:
    """The answers as text, without special tokens."""
    return [
        tokenizer.decode(row[kept], skip_special_tokens=True)
        for row, kept in zip(tokens, mask, strict=True)
    ]


def check_length(length: int, row: int, limit: int | None) -> None:
    """Refuse a prompt longer than ``limit`` tokens: cutting it would change what was asked."""
    if limit is not None and length > limit:
        raise Refused(
            "prompt",
            row,
            f" has {length} tokens, more than max_prompt_length={limit}; set it to at least "
            f"{length}, or filter the data",
        )


def save_model(model: nn.Module, directory: Path) -> None:
    """Write what `from_pretrained` of peft, or of transformers, reads."""
    network = cast(PreTrainedModel, model)
    directory.mkdir(parents=True, exist_ok=True)
    if lora.names(model):
        lora.save(model, directory, name=lora.merge_name(model), base=network.name_or_path)
    else:
        network.save_pretrained(str(directory))
