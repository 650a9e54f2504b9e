"""FiFA: filters preference data by importance."""

from mmalign.diffusion.fifa.builder import FiFA

__all__ = ["FiFA"]
