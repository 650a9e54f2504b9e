"""Exact judges: rewards computed from what the meta of a prompt says is true.

Each judge is called with prompts and outputs, one prompt an output, and returns a float32
tensor [B]; higher is better. Output that cannot be read scores low; a prompt without the key
a judge needs is an error, because no score would mean anything.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from mmalign.tinyworld.arithmetic import check, parse_problem
from mmalign.tinyworld.detect import MIN_IOU, detect
from mmalign.tinyworld.language import GRADE_ATTRIBUTES, Mention, parse
from mmalign.tinyworld.likeness import distance
from mmalign.tinyworld.requirements import partial, requirement_from_dict, satisfied
from mmalign.tinyworld.scenes import Scene, from_dict
from mmalign.types import Output, Prompt


def _pairs(
    prompts: Sequence[Prompt], outputs: Sequence[Output], key: str, wanted: type
) -> list[tuple[Any, Any]]:
    """Pair what is true (the meta entry `key`) with each output, after checking both."""
    if len(prompts) != len(outputs):
        raise ValueError(
            f"a judge needs one prompt an output; got {len(prompts)} prompts "
            f"and {len(outputs)} outputs"
        )
    pairs = []
    for prompt, output in zip(prompts, outputs, strict=True):
        if key not in prompt.meta:
            raise ValueError(
                f"this judge reads {key!r} from the meta of a prompt, and it is missing; "
                f"add it to the prompts, or use the judge of their own task"
            )
        if not isinstance(output, wanted):
            raise ValueError(
                f"this judge scores outputs of type {wanted.__name__}; got {type(output).__name__}"
            )
        pairs.append((prompt.meta[key], output))
    return pairs


def _tensor(scores: Sequence[float]) -> torch.Tensor:
    return torch.tensor(scores, dtype=torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticJudge:
    """Judges written sums; reads meta["problem"], an expression such as "3 + 4 - 2".

    Args:
        partial: when False, 1 for the right answer reached by exactly the right steps and 0
            otherwise; when True, the share of right parts (steps and answer) among the parts
            the problem needs or the text writes, whichever are more.
    """

    partial: bool = False

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> torch.Tensor:
        """``[B]`` scores in [0, 1], one a prompt and its output."""
        pairs = _pairs(prompts, outputs, "problem", str)
        return _tensor([self._score(expression, text) for expression, text in pairs])

    def _score(self, expression: str, text: str) -> float:
        found = check(parse_problem(expression), text)
        right = found.steps_correct + found.answer_correct
        if self.partial:
            return right / max(found.steps_total + 1, text.count(",") + 1)
        return float(found.well_formed and right == found.steps_total + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptionDetails:
    """How a description compares with its scene, in counts of objects.

    Args:
        stated: objects the text names.
        correct: named objects that are there with every attribute the grade asks for.
        hallucinated: named objects that are not; stated = correct + hallucinated.
        true: objects of the scene.
        covered: objects of the scene named with the right shape and colour, whatever the text
            says of size and place.
    """

    stated: int
    correct: int
    hallucinated: int
    true: int
    covered: int

    @property
    def score(self) -> float:
        """Correct objects over the union of stated and true ones."""
        return self.correct / (self.stated + self.true - self.correct)


def _bag(items: Sequence[Any], names: Sequence[str]) -> Counter[tuple[str | None, ...]]:
    """Count objects or mentions by the attributes that matter."""
    bag: Counter[tuple[str | None, ...]] = Counter()
    for item in items:
        copies = item.count if isinstance(item, Mention) else 1
        bag[tuple(getattr(item, name) for name in names)] += copies
    return bag


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptionJudge:
    """Judges descriptions of a picture; reads meta["scene"], a scene as a dict.

    The score is correct / |stated union true|: naming every object rightly and nothing else
    gives 1, and both omissions and inventions cost. A repeated object counts as invented.

    Args:
        grade: which attributes a named object must have right: "count", "kind", "size" or
            "full".

    Raises:
        ValueError: unknown grade.
    """

    grade: str = "full"

    def __post_init__(self) -> None:
        if self.grade not in GRADE_ATTRIBUTES:
            raise ValueError(
                f"grade must be one of {', '.join(GRADE_ATTRIBUTES)}; got {self.grade!r}"
            )

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> torch.Tensor:
        """``[B]`` scores in [0, 1], one a prompt and its output."""
        return _tensor([found.score for found in self.details(prompts, outputs)])

    def details(
        self, prompts: Sequence[Prompt], outputs: Sequence[Output]
    ) -> tuple[DescriptionDetails, ...]:
        """Count correct, hallucinated and covered objects of each output.

        Args:
            prompts: B prompts with meta["scene"].
            outputs: B texts.

        Returns:
            B records of counts.

        Raises:
            ValueError: a prompt lacks its scene, or an output is not text.
        """
        pairs = _pairs(prompts, outputs, "scene", str)
        return tuple(self._details(from_dict(scene), text) for scene, text in pairs)

    def _details(self, scene: Scene, text: str) -> DescriptionDetails:
        mentions, names = parse(text), GRADE_ATTRIBUTES[self.grade]
        said, true = _bag(mentions, names), _bag(scene.objects, names)
        kind = GRADE_ATTRIBUTES["kind"]
        stated, correct = said.total(), (said & true).total()
        return DescriptionDetails(
            stated=stated,
            correct=correct,
            hallucinated=stated - correct,
            true=true.total(),
            covered=(_bag(mentions, kind) & _bag(scene.objects, kind)).total(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerJudge:
    """Judges short answers: 1 when the words are exactly those of meta["answer"], else 0."""

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> torch.Tensor:
        """``[B]`` scores in [0, 1], one a prompt and its output."""
        pairs = _pairs(prompts, outputs, "answer", str)
        return _tensor([float(answer.split() == text.split()) for answer, text in pairs])


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageJudge:
    """Judges pictures against meta["requirement"], a requirement as a dict.

    Args:
        partial: graded credit for objects partly right; otherwise 1 for exactly the required
            objects and 0 for anything else.
        min_iou: how clean a drawn object must be to count, in [0, 1].
    """

    partial: bool = False
    min_iou: float = MIN_IOU

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> torch.Tensor:
        """``[B]`` scores in [0, 1], one a prompt and its output."""
        score = partial if self.partial else satisfied
        return _tensor(
            [
                score(requirement_from_dict(data), detect(image, min_iou=self.min_iou))
                for data, image in _pairs(prompts, outputs, "requirement", Image.Image)
            ]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LikenessJudge:
    """Judges pictures by how near they are to a right one; reads meta["requirement"].

    One minus the root mean square difference to the nearest picture that would be right, in units
    of a channel's full range. Hardly two of a model's pictures earn the same, and clean ones more:
    a judge for methods that cannot learn from ties. Right and wrong are `ImageJudge`'s business.
    """

    def __call__(self, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> torch.Tensor:
        """``[B]`` scores in [0, 1], one a prompt and its output; 1 for the painter's own."""
        return _tensor(
            [
                1.0 - distance(requirement_from_dict(data), image)
                for data, image in _pairs(prompts, outputs, "requirement", Image.Image)
            ]
        )
