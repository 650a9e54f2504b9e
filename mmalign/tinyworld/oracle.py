"""A preference oracle: noisy pairwise choices with a known law."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmalign.protocols import RewardModel
from mmalign.rng import python_random
from mmalign.types import Output, Preference, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class BradleyTerryOracle:
    """Chooses between two outputs by the Bradley-Terry law of a judge's scores.

    The first is preferred with probability sigmoid((score_a - score_b) / temperature), and the
    choice is then reversed with probability `flip_rate`. Equal scores are a fair coin.

    Args:
        judge: scores outputs, higher is better.
        temperature: how noisy choices are, in units of score; 0 always takes the better one.
        flip_rate: probability of reversing a choice, in [0, 1].
        seed: a seed, or a generator to draw from.

    Raises:
        ValueError: a negative temperature, or a flip rate outside [0, 1].
    """

    judge: RewardModel
    temperature: float = 1.0
    flip_rate: float = 0.0
    seed: int | random.Random = 0
    _rng: random.Random = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise ValueError(f"temperature must be 0 or more; got {self.temperature}")
        if not 0.0 <= self.flip_rate <= 1.0:
            raise ValueError(f"flip_rate must lie in [0, 1]; got {self.flip_rate}")
        seed = self.seed
        rng = seed if isinstance(seed, random.Random) else python_random("oracle", seed)
        object.__setattr__(self, "_rng", rng)

    def probability(self, score_a: float, score_b: float) -> float:
        """Probability that the output scored `score_a` is preferred, flips included."""
        gap = score_a - score_b
        if gap == 0.0:
            clean = 0.5
        elif self.temperature == 0.0:
            clean = float(gap > 0.0)
        else:
            # tanh does not overflow, as exp(-gap / temperature) would for small temperatures.
            clean = 0.5 * (1.0 + math.tanh(0.5 * gap / self.temperature))
        return clean * (1.0 - self.flip_rate) + (1.0 - clean) * self.flip_rate

    def prefers(self, prompt: Prompt, a: Output, b: Output) -> bool:
        """Draw whether `a` is preferred to `b`."""
        score_a, score_b = self.judge([prompt, prompt], [a, b]).tolist()
        return self._rng.random() < self.probability(score_a, score_b)

    def label(
        self, prompts: Sequence[Prompt], firsts: Sequence[Output], seconds: Sequence[Output]
    ) -> list[Preference]:
        """Turn pairs of outputs into preferences, one draw a pair.

        Args:
            prompts: B prompts.
            firsts: B outputs.
            seconds: B outputs.

        Returns:
            B preferences; their meta holds the scores of both sides.

        Raises:
            ValueError: the lengths differ.
        """
        if not len(prompts) == len(firsts) == len(seconds):
            raise ValueError("prompts and both lists of outputs must have one length")
        scores_a = self.judge(prompts, firsts).tolist()
        scores_b = self.judge(prompts, seconds).tolist()
        labelled = []
        for prompt, a, b, score_a, score_b in zip(
            prompts, firsts, seconds, scores_a, scores_b, strict=True
        ):
            first = self._rng.random() < self.probability(score_a, score_b)
            sides, scores = ((a, b), (score_a, score_b))
            if not first:
                sides, scores = ((b, a), (score_b, score_a))
            labelled.append(
                Preference(
                    prompt=prompt,
                    chosen=sides[0],
                    rejected=sides[1],
                    meta={"score_chosen": scores[0], "score_rejected": scores[1]},
                )
            )
        return labelled
