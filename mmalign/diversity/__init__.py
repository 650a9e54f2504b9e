"""How far apart the samples of one prompt are: distances between outputs, for evaluations.

A policy that says the same thing whatever the draw has lost what made sampling worth while, and
its scores alone do not show it.
"""

from mmalign.diversity.embedded import CLIPDistance, SentenceDistance
from mmalign.diversity.measuring import diversity
from mmalign.diversity.plain import NGramDistance, PixelDistance

__all__ = ["CLIPDistance", "NGramDistance", "PixelDistance", "SentenceDistance", "diversity"]
