"""Vision-language models: a step is a token of the answer; prompts hold any number of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, ProcessorMixin

from mmalign.blame import Refused
from mmalign.protocols import Likelihood, Want
from mmalign.ragged import lengths_of
from mmalign.text.adapter import decoded, recorded, save_model
from mmalign.text.answers import (
    Read,
    Sharing,
    answered,
    contrasted,
    decoder_states,
    laid_out,
    recomputing,
    scored,
)
from mmalign.text.generation import Sampling, draw_uniforms, generate
from mmalign.text.lm_head import language_head
from mmalign.text.packing import Rows, counted, further
from mmalign.text.rows import left_padded
from mmalign.types import Output, Prompt, Scores, Trajectory
from mmalign.vision.families import Family
from mmalign.vision.feature_cache import FeatureCache
from mmalign.vision.features import (
    decoder_inputs,
    features_of,
    model_inputs,
    picture_keys,
    positions_of,
)
from mmalign.vision.lvlm_inputs import Processed, image_inputs, process

Static = Mapping[str, Any]


class LVLMAdapter:
    """Drives the image-text-to-text models of transformers through their own processors.

    Every key a processor returns reaches the model. Multi-dimensional positions (Qwen2-VL and its
    kin) are computed by the model itself. In the families of `mmalign.vision.families` each picture
    goes through the vision tower once, and once for all batches where the tower is frozen.

    Args:
        processor: The model's.
        sampling: Temperature, longest answer, stop ids; its banned ids hold the image tokens.
        feature_size: Width of the hidden state that `Scores.features` holds.
        max_prompt_length: Prompts with more tokens, image tokens included, are refused; None for no
            limit.
        family: The model's, from `mmalign.vision.families.family_of`; None reads pictures and
            prompts anew for each answer.
        feature_cache_mb: How much of what a frozen tower computed is kept, least recently used
            first to leave.
        feature_cache: Folder that keeps all of it on disk too, for later runs; None for none.
        share_prompts: Whether a prompt that several answers share runs once in scoring; None where
            it saves work. Needs a decoder prepared by `mmalign.text.shared.share_prompts`.
    """

    likelihood: Likelihood = "exact"

    def __init__(
        self,
        *,
        processor: ProcessorMixin,
        sampling: Sampling,
        feature_size: int,
        max_prompt_length: int | None = None,
        family: Family | None = None,
        feature_cache_mb: int = 256,
        feature_cache: Path | None = None,
        share_prompts: Sharing = None,
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.sampling = sampling
        self.feature_size = feature_size
        self.max_prompt_length = max_prompt_length
        self.family = family
        self.features = FeatureCache(megabytes=feature_cache_mb, folder=feature_cache)
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
            ValueError: Pictures and places for them differ in number, a prompt is too long, or an
                output is no text, or holds a stop id or an image token.
        """
        return recorded(
            outputs,
            static=self.static_of(prompts),
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
        static = self.static_of(prompts)
        inputs = self.prefill(network, static)
        uniforms = draw_uniforms(
            generators, group_size=group_size, num_steps=self.sampling.max_new_tokens
        )
        drawn = generate(network, inputs, uniforms, self.sampling)
        return Trajectory(
            mask=drawn.mask,
            prompt_of=torch.arange(len(prompts)).repeat_interleave(group_size),
            static=static,
            stepwise={"token": drawn.tokens},
            outputs=decoded(self.processor.tokenizer, drawn.tokens, drawn.mask),
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
        """Tokens of each prompt, image tokens included; see `mmalign.protocols.Adapter`."""
        return lengths_of(trajectory.static["prompt_ids"])

    def describe(self) -> str:
        """The settings that scores depend on."""
        return f"LVLMAdapter({self.sampling!r})"

    def save(self, model: nn.Module, directory: Path) -> None:
        """Write the LoRA (peft's layout) or the whole model, and the processor."""
        save_model(model, directory)
        self.processor.save_pretrained(str(directory))

    def static_of(self, prompts: Sequence[Prompt]) -> dict[str, list[Any]]:
        """What is kept of prompts, however many answers they get; see `Trajectory.static`.

        Raises:
            ValueError: Pictures and places for them differ in number, or a prompt is too long.
        """
        found = [process(self.processor, prompt, row=row) for row, prompt in enumerate(prompts)]
        for row, one in enumerate(found):
            self._check_length(one, row)
        static: dict[str, list[Any]] = {
            "prompt_ids": [one.ids for one in found],
            "per_token": [dict(one.per_token) for one in found],
            "per_image": [dict(one.per_image) for one in found],
        }
        if self.family is not None:
            static["image_keys"] = [picture_keys(one.per_image, self.family) for one in found]
        return static

    def prefill(self, network: PreTrainedModel, static: Static) -> dict[str, Any]:
        """What the network reads of every prompt before it draws; see `generate`."""
        ids = static["prompt_ids"]
        mask = left_padded([torch.ones_like(row) for row in ids]).to(network.device)
        per_token = {
            key: left_padded([one[key] for one in static["per_token"]]).to(network.device)
            for key in static["per_token"][0]
        }
        if self.family is None:
            images = image_inputs(static["per_image"])
            inputs = {"input_ids": left_padded(ids), "attention_mask": mask, **per_token, **images}
            inputs = _placed(inputs, network)
            return {**inputs, "position_ids": prompt_positions(network, inputs)}
        features = self._features(network, static, self.family)
        width = mask.shape[1]
        positions = [
            functional.pad(one, (width - one.shape[-1], 0))
            for one in self._positions(network, static)
        ]
        return {
            **model_inputs(
                network, left_padded(ids).to(network.device), features, family=self.family
            ),
            **(per_token if self.family.blocks else {}),
            "attention_mask": mask,
            "position_ids": torch.stack(positions, -2).to(network.device),
        }

    def _read(self, model: nn.Module, trajectory: Trajectory) -> Read:
        network, static = cast(PreTrainedModel, model), trajectory.static
        tokens, mask = answered(trajectory, network.device)
        rows = laid_out(
            static["prompt_ids"],
            self._positions(network, static),
            trajectory.prompt_of.tolist(),
            tokens,
            mask,
            decoder=network.get_decoder(),
            share=self.share_prompts if self.family is not None else False,
        )
        if self.family is None:
            states = _whole_states(network, rows, static)
        else:
            with recomputing(network):
                features = self._features(network, static, self.family)
            inputs = decoder_inputs(
                network, rows.input_ids, [features[i] for i in rows.prompts], family=self.family
            )
            if self.family.blocks:
                inputs |= further(rows, static["per_token"])
                states = _model_states(network, rows, {**inputs, **rows.settings()})
            else:
                states = decoder_states(network, rows, inputs)
        head = language_head(
            network, temperature=self.sampling.temperature, banned=self.sampling.banned
        )
        return Read(states=states, head=head)

    def _features(self, network: PreTrainedModel, static: Static, family: Family) -> list[Tensor]:
        """``[K_i, H]`` features of the pictures of each prompt."""
        return features_of(
            network,
            static["per_image"],
            static["image_keys"],
            family=family,
            cache=self.features,
        )

    def _positions(self, network: PreTrainedModel, static: Static) -> list[Tensor]:
        """Of the tokens of each prompt."""
        if self.family is None:
            return counted(static["prompt_ids"])
        return [
            positions_of(network, ids, per_token, per_image, family=self.family)
            for ids, per_token, per_image in zip(
                static["prompt_ids"], static["per_token"], static["per_image"], strict=True
            )
        ]

    def _check_length(self, one: Processed, row: int) -> None:
        limit, length = self.max_prompt_length, len(one.ids)
        if limit is None or length <= limit:
            return
        of_images = int(torch.isin(one.ids, torch.tensor(self.sampling.banned)).sum())
        raise Refused(
            "prompt",
            row,
            f" has {length} tokens, {of_images} of them image tokens, more than "
            f"max_prompt_length={limit}; image tokens are never cut: set it to at least {length}, "
            "or use smaller or fewer images",
        )


def prompt_positions(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """``[P, L]`` positions of prompts, or ``[3, P, L]`` in models with axes for rows and columns.

    Those that the model's own generation begins with; the answer goes on behind the largest.
    """
    found: Tensor = model._prepare_position_ids_for_generation(inputs["input_ids"], dict(inputs))
    # Four axes are three and, before them, the plain count, which tells packed rows apart.
    return found[1:] if found.dim() == 3 and len(found) == 4 else found


def _whole_states(network: PreTrainedModel, rows: Rows, static: Static) -> Tensor:
    """``[M, F]``: every row with its own pictures through the whole model, as its authors do it."""
    inputs = {
        "input_ids": rows.input_ids,
        "attention_mask": rows.attention_mask,
        **further(rows, static["per_token"]),
        **image_inputs([static["per_image"][i] for i in rows.prompts]),
    }
    if "image_grid_thw" not in inputs:
        # Models that lay pictures out on a grid compute their own positions from it; where no row
        # has a picture they would count padding.
        inputs["position_ids"] = rows.position_ids
    return _model_states(network, rows, {**_placed(inputs, network), "use_cache": False})


def _model_states(network: PreTrainedModel, rows: Rows, inputs: Mapping[str, Any]) -> Tensor:
    """``[M, F]`` hidden states of the whole model, which makes its own masks."""
    with recomputing(network):
        output = network.base_model(**inputs)
    return rows.predicting(output.last_hidden_state)


def _placed(inputs: dict[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """The inputs on the model's device, pixels in its precision."""
    return {
        key: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for key, value in inputs.items()
    }
