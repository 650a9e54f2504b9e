"""Vision-language models: a step is a token of the answer; prompts hold any number of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from mmalign.protocols import Likelihood, Want
from mmalign.text.adapter import answered, decoded, recorded, save_model
from mmalign.text.generation import Sampling, draw_uniforms, generate
from mmalign.text.rows import left_padded, side_by_side
from mmalign.text.scoring import padded_steps, score_rows
from mmalign.types import Output, Prompt, Scores, Trajectory
from mmalign.vision.lvlm_inputs import Processed, image_inputs, process, token_inputs


class LVLMAdapter:
    """Drives the image-text-to-text models of transformers through their own processors.

    Every key a processor returns reaches the model. Multi-dimensional positions (Qwen2-VL and its
    kin) are computed by the model itself.

    Args:
        processor: The model's.
        sampling: Temperature, longest answer, stop ids; its banned ids hold the image tokens.
        feature_size: Width of the hidden state that `Scores.features` holds.
        max_prompt_length: Prompts with more tokens, image tokens included, are refused; None for no
            limit.
    """

    likelihood: Likelihood = "exact"

    def __init__(
        self,
        *,
        processor: ProcessorMixin,
        sampling: Sampling,
        feature_size: int,
        max_prompt_length: int | None = None,
    ) -> None:
        self.processor = processor
        self.sampling = sampling
        self.feature_size = feature_size
        self.max_prompt_length = max_prompt_length

    def encode(
        self,
        prompts: Sequence[Prompt],
        outputs: Sequence[Sequence[Output]],
        *,
        generators: Sequence[torch.Generator],
    ) -> Trajectory:
        """Recorded answers; see `mmalign.protocols.Adapter`. Nothing is random here.

        Raises:
            ValueError: Pictures and places for them differ in number, a prompt is too long, or an
                output is no text, or holds a stop id or an image token.
        """
        return recorded(
            outputs,
            static=self._static(prompts),
            tokenizer=self.processor.tokenizer,
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
        network = cast(PreTrainedModel, model)
        static = self._static(prompts)
        prompt_of = torch.arange(len(prompts)).repeat_interleave(group_size)
        ids = [static["prompt_ids"][i] for i in prompt_of.tolist()]
        mask = left_padded([torch.ones_like(row) for row in ids])
        inputs = {
            "input_ids": left_padded(ids),
            "attention_mask": mask,
            **_further(static, prompt_of, width=mask.shape[1], extra=0),
        }
        uniforms = draw_uniforms(
            generators, group_size=group_size, num_steps=self.sampling.max_new_tokens
        )
        tokens, drawn = generate(network, _placed(inputs, network), uniforms, self.sampling)
        return Trajectory(
            mask=drawn,
            prompt_of=prompt_of,
            static=static,
            stepwise={"token": tokens},
            outputs=decoded(self.processor.tokenizer, tokens, drawn),
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
        network = cast(PreTrainedModel, model)
        tokens, mask = answered(trajectory, network.device)
        prompts = trajectory.static["prompt_ids"]
        rows = side_by_side(
            [prompts[i].to(network.device) for i in trajectory.prompt_of.tolist()], tokens, mask
        )
        inputs = {
            "input_ids": rows.input_ids,
            "attention_mask": rows.attention_mask,
            **_further(
                trajectory.static,
                trajectory.prompt_of,
                width=rows.width,
                extra=tokens.shape[1] - 1,
            ),
        }
        if "image_grid_thw" not in inputs:
            # Models that lay pictures out on a grid compute their own positions from it; where no
            # row has a picture they would count padding.
            inputs["position_ids"] = rows.position_ids
        scores = score_rows(
            model,
            _placed(inputs, network),
            tokens,
            mask,
            sampling=self.sampling,
            want=want,
            against=against,
        )
        return padded_steps(scores, trajectory.mask.shape[1])

    def describe(self) -> str:
        """The settings that scores depend on."""
        return f"LVLMAdapter({self.sampling!r})"

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write the LoRA (peft's layout) or the whole model, and the processor."""
        save_model(model, directory)
        self.processor.save_pretrained(str(directory))

    def _static(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        found = [process(self.processor, prompt, row=row) for row, prompt in enumerate(prompts)]
        for row, one in enumerate(found):
            self._check_length(one, row)
        return {
            "prompt_ids": [one.ids for one in found],
            "per_token": [dict(one.per_token) for one in found],
            "per_image": [dict(one.per_image) for one in found],
        }

    def _check_length(self, one: Processed, row: int) -> None:
        limit, length = self.max_prompt_length, len(one.ids)
        if limit is None or length <= limit:
            return
        of_images = int(torch.isin(one.ids, torch.tensor(self.sampling.banned)).sum())
        raise ValueError(
            f"prompt {row} has {length} tokens, {of_images} of them image tokens, more than "
            f"max_prompt_length={limit}; image tokens are never cut: set it to at least {length}, "
            "or use smaller or fewer images"
        )


def _further(
    static: Mapping[str, Any], prompt_of: Tensor, *, width: int, extra: int
) -> dict[str, Tensor]:
    """What the model takes beside ids and mask: the rows' keys, each row owning its pictures."""
    rows = prompt_of.tolist()
    return {
        **token_inputs([static["per_token"][i] for i in rows], width=width, extra=extra),
        **image_inputs([static["per_image"][i] for i in rows]),
    }


def _placed(inputs: dict[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """The inputs on the model's device, pixels in its precision."""
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for key, value in inputs.items()
    }
