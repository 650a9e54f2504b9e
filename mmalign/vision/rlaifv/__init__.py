"""RLAIF-V's divide and conquer: answers are compared by the claims in them that do not hold."""

from mmalign.vision.rlaifv.builder import RLAIFV

__all__ = ["RLAIFV"]
