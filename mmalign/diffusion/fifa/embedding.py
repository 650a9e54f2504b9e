"""Texts as points: unit vectors in a file that is mapped into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mmalign.rewards.clip import load_clip
from mmalign.rewards.relevance import RelevanceReward

Vectors = NDArray[np.float32]
MINILM = "minilm"
WORD_FEATURES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoder:
    """How prompts become points whose distances say how different they are.

    Attributes:
        kind: ``sentence``: an encoder of transformers that pools by the mean. ``clip``: the text
            tower of a model of open_clip. ``words``: hashed words and pairs of neighbouring words,
            blind to meaning, without a model.
        model: Folder or hub name of the sentence encoder, or ``minilm`` for all-MiniLM-L6-v2 from
            an installed package; for ``clip`` as the reward ``clip`` takes it. Not for ``words``.
        pretrained: For ``clip`` with a name of open_clip, the tag or file of its weights.
        batch_size: Texts embedded at a time.
        device: Where the text tower of ``clip`` runs; the others use the CPU.
    """

    kind: Literal["sentence", "clip", "words"] = "sentence"
    model: str | None = MINILM
    pretrained: str | None = None
    batch_size: int = 256
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if self.kind == "clip" and self.model in (None, MINILM):
            raise ValueError(
                "an encoder of kind clip needs a model, such as model=ViT-L-14 pretrained=openai"
            )

    def embed(self, texts: Sequence[str]) -> Vectors:
        """``[M, D]`` float32 unit vectors; a text without a word is the vector 0.

        Raises:
            ValueError: The model cannot be loaded.
        """
        ways = {"sentence": self._sentences, "clip": self._clip, "words": self._words}
        return ways[self.kind](texts)

    def _sentences(self, texts: Sequence[str]) -> Vectors:
        encoder = RelevanceReward(
            model=None if self.model == MINILM else self.model, batch_size=self.batch_size
        )
        try:
            return encoder.embedded(texts).numpy()
        except OSError as error:
            raise ValueError(
                f"the sentence encoder {self.model!r} cannot be loaded ({error}); set "
                f"encoder.model to a folder or hub name, or to {MINILM!r}"
            ) from error

    @torch.no_grad()
    def _clip(self, texts: Sequence[str]) -> Vectors:
        assert self.model is not None
        network, _, tokenize = load_clip(self.model, self.pretrained, self.device)
        said = network.encode_text(tokenize(list(texts)).to(self.device), normalize=True)
        found: Vectors = said.float().cpu().numpy()
        return found

    def _words(self, texts: Sequence[str]) -> Vectors:
        from sklearn.feature_extraction.text import HashingVectorizer

        # A token pattern of its own, since the default leaves out words of one letter.
        hashing = HashingVectorizer(
            n_features=WORD_FEATURES,
            ngram_range=(1, 2),
            token_pattern=r"(?u)\b\w+\b",
            dtype=np.float32,
        )
        found: Vectors = hashing.transform(texts).toarray()
        return found


def embedded(texts: Sequence[str], encoder: TextEncoder, file: Path) -> Vectors:
    """The vectors of all texts, written to ``file`` piece by piece and mapped.

    Memory holds ``batch_size`` of them at a time; the file takes 4 D bytes a text.

    Args:
        texts: M texts, at least one.
        encoder: How.
        file: Where; overwritten.

    Returns:
        ``[M, D]`` float32, read-only.
    """
    width = encoder.embed(texts[:1]).shape[1]
    vectors = np.lib.format.open_memmap(
        file, mode="w+", dtype=np.float32, shape=(len(texts), width)
    )
    size = encoder.batch_size
    for start in tqdm(range(0, len(texts), size), desc="embedding", unit="batch", leave=False):
        vectors[start : start + size] = encoder.embed(texts[start : start + size])
    vectors.flush()
    del vectors
    mapped: Vectors = np.load(file, mmap_mode="r")
    return mapped
