"""Autoregressive image generators: a step is a code of the picture, drawn by the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.modeling_janus import JanusVQVAE

from mmalign.protocols import Likelihood, Want
from mmalign.ragged import lengths_of
from mmalign.text.adapter import save_model
from mmalign.text.answers import Read, Sharing, contrasted, recomputing, scored
from mmalign.text.generation import draw_uniforms
from mmalign.types import Output, Prompt, Scores, Trajectory
from mmalign.vision.ar_codes import (
    CodeSampling,
    Drawing,
    before_head,
    code_head,
    code_states,
    sample_codes,
    scored_rows,
)
from mmalign.vision.ar_pictures import decode_pictures, encode_pictures, prompt_ids


class ARImageAdapter:
    """Drives transformers' Janus as a generator of pictures.

    A trajectory is the row of codebook indices of one picture, in reading order, all of them
    decided by the policy. The log-prob of a code is, by default, the log softmax of the *guided*
    logits that it was drawn from, so that sampling and scoring agree; see `CodeSampling`.

    Args:
        processor: The model's; its tokenizer and its image processor are used.
        vq: The model's own codebook, encoder and decoder; it is read, never trained.
        sampling: Guidance, temperature and which logits are scored.
        feature_size: Width of the hidden state that `Scores.features` holds.
        max_prompt_length: Prompts with more tokens are refused; None for no limit.
        share_prompts: Whether a shared prompt runs once in scoring; None where it saves work.
    """

    likelihood: Likelihood = "exact"

    def __init__(
        self,
        *,
        processor: JanusProcessor,
        vq: JanusVQVAE,
        sampling: CodeSampling,
        feature_size: int,
        max_prompt_length: int | None = None,
        share_prompts: Sharing = None,
    ) -> None:
        self.processor = processor
        self.vq = vq
        self.sampling = sampling
        self.feature_size = feature_size
        self.max_prompt_length = max_prompt_length
        self.share_prompts = share_prompts
        self.drawing = Drawing.of(processor, vq)

    def encode(
        self,
        prompts: Sequence[Prompt],
        outputs: Sequence[Sequence[Output]],
        *,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """Recorded pictures, as the codes the model's own encoder gives them. Nothing is random.

        Raises:
            ValueError: An output is no picture or has another size than the model's pictures, or
                a prompt has no text, holds a picture, or is too long.
        """
        flat = [output for pictures in outputs for output in pictures]
        codes = encode_pictures(self.vq, self.processor.image_processor, flat)
        counts = torch.tensor([len(pictures) for pictures in outputs])
        return self._trajectory(
            codes, torch.arange(len(prompts)).repeat_interleave(counts), self._ids(prompts), flat
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
        """``group_size`` pictures of each prompt; a row's draws depend on no other row.

        Raises:
            ValueError: A prompt has no text, holds a picture, or is too long.
        """
        ids = self._ids(prompts)
        uniforms = draw_uniforms(
            generators, group_size=group_size, num_steps=self.drawing.num_codes
        )
        codes, log_probs = sample_codes(
            cast(JanusForConditionalGeneration, model),
            ids,
            uniforms,
            drawing=self.drawing,
            sampling=self.sampling,
        )
        codes = codes.cpu()
        prompt_of = torch.arange(len(prompts)).repeat_interleave(group_size)
        pictures = decode_pictures(self.vq, self.processor.image_processor, codes)
        found = self._trajectory(codes, prompt_of, ids, pictures)
        return replace(found, log_probs=log_probs.cpu())

    def scores(
        self,
        model: nn.Module,
        trajectory: Trajectory,
        *,
        want: Want = frozenset(),
        against: nn.Module | None = None,
    ) -> Scores:
        """Log-probs of the codes, nats under the sampling temperature, in one forward pass.

        ``features`` are the hidden states that the codes are read from, of the conditional row.
        """
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
        """The settings that scores depend on."""
        return f"ARImageAdapter({self.sampling!r}, {self.drawing!r})"

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write the LoRA (peft's layout) or the whole model, and the processor."""
        save_model(model, directory)
        self.processor.save_pretrained(str(directory))

    def _read(self, model: nn.Module, trajectory: Trajectory) -> Read:
        network = cast(JanusForConditionalGeneration, model)
        sampling = self.sampling
        rows = scored_rows(
            network,
            trajectory.static["prompt_ids"],
            trajectory.prompt_of.tolist(),
            trajectory.stepwise["token"].to(network.device),
            trajectory.mask.to(network.device),
            drawing=self.drawing,
            guided=sampling.guided and sampling.guided_log_probs,
            share=self.share_prompts,
        )
        with recomputing(network):
            states = code_states(network, rows)
        features = states[: int(trajectory.mask.sum())]
        read = before_head(network, states)
        if len(states) > len(features):
            read = sampling.guide(*read.chunk(2))
        return Read(states=read, features=features, head=code_head(network, sampling.temperature))

    def _trajectory(
        self, codes: Tensor, prompt_of: Tensor, ids: list[Tensor], outputs: Sequence[Output]
    ) -> Trajectory:
        return Trajectory(
            mask=torch.ones_like(codes, dtype=torch.bool),
            prompt_of=prompt_of,
            static={"prompt_ids": ids},
            stepwise={"token": codes},
            outputs=outputs,
        )

    def _ids(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        return [
            prompt_ids(self.processor, prompt, row=row, limit=self.max_prompt_length)
            for row, prompt in enumerate(prompts)
        ]
