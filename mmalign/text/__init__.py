"""Text: any causal language model of transformers."""

from mmalign.text.adapter import CausalAdapter
from mmalign.text.generation import Sampling
from mmalign.text.policy import TextPolicy

__all__ = ["CausalAdapter", "Sampling", "TextPolicy"]
