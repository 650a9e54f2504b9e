"""Bias-driven hallucination sampling: rejected answers from a model that can hardly see.

The model goes on with parts of the right answer while its pictures are out of sight, so that what
it takes for likely without looking shows. No annotator, no second model and no second picture.
"""

from mmalign.vision.bdhs.builder import BDHS
from mmalign.vision.bdhs.hallucinating import Hallucinated, Recipe, hallucinate
from mmalign.vision.bdhs.online import AveragedBDHS, MixedBDHS, OnlineBDHS
from mmalign.vision.bdhs.povid import POVID

__all__ = [
    "BDHS", "POVID", "AveragedBDHS", "Hallucinated", "MixedBDHS", "OnlineBDHS", "Recipe",
    "hallucinate",
]  # fmt: skip
